"""Cases for the loss, and a brute force of its definition: float64, one token and one vocabulary entry at a time."""

import math
from dataclasses import dataclass, field

import numpy as np
import torch

from anchorlwf.loss import anchor_loss

IMPLEMENTATIONS = ("dense", "chunked")
CONFIDENCES = (0.0, 1e-6, 0.1, 0.5, 0.9, 0.999, 1.0)


def log_softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    total = top + math.log(math.fsum(math.exp(value - top) for value in logits))
    return [value - total for value in logits]


def brute_token(logits: list[float], ref_logits: list[float], token: int, confidence: float, direction: str) -> float:
    log_p, log_ref = log_softmax(logits), log_softmax(ref_logits)
    terms = []
    for v in range(len(logits)):
        delta = 1.0 if v == token else 0.0
        q = confidence * delta + (1 - confidence) * math.exp(log_ref[v])
        if delta and confidence:
            log_q = math.log(q)
        else:  # in logarithms, for q itself may be too small for a float
            log_q = -math.inf if confidence == 1 else math.log1p(-confidence) + log_ref[v]
        if direction == "forward":
            terms.append(q * (log_q - log_p[v]) if q else 0.0)
        else:
            terms.append(math.exp(log_p[v]) * (log_p[v] - log_q))
    return math.fsum(terms)


@dataclass
class Case:
    """Arguments of `anchor_loss`, of any dtype."""

    hidden: torch.Tensor
    ref_hidden: torch.Tensor
    weight: torch.Tensor
    token_ids: torch.Tensor
    confidence: torch.Tensor
    bias: torch.Tensor | None = None
    ref_weight: torch.Tensor | None = None
    ref_bias: torch.Tensor | None = None
    options: dict[str, object] = field(default_factory=dict)

    def loss(self, impl: str) -> torch.Tensor:
        return anchor_loss(
            self.hidden,
            self.ref_hidden,
            self.weight,
            self.token_ids,
            self.confidence,
            bias=self.bias,
            ref_weight=self.ref_weight,
            ref_bias=self.ref_bias,
            impl=impl,
            **self.options,
        )

    def trained(self, head: bool) -> dict[str, torch.Tensor]:
        """The tensors to differentiate by, set up for it."""
        names = ["hidden", *(["weight", "bias"] if head else [])]
        found = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        for tensor in found.values():
            tensor.requires_grad_()
        return found


def brute(case: Case, **changed: np.ndarray) -> np.ndarray:
    """Every token's divergence by the definition; `changed` replaces arguments (for numerical derivatives)."""
    plain = {
        name: None if tensor is None else tensor.detach().double().numpy()
        for name, tensor in vars(case).items()
        if name != "options"
    }
    # The reference's head is fixed before anything changes.
    ref_weight = plain["weight"] if plain["ref_weight"] is None else plain["ref_weight"]
    ref_bias = plain["bias"] if plain["ref_bias"] is None else plain["ref_bias"]
    plain |= changed
    scale, softcap = case.options.get("logit_scale", 1.0), case.options.get("softcap")

    def logits(hidden: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        raw = scale * (hidden @ weight.T + (0 if bias is None else bias))
        return raw if softcap is None else softcap * np.tanh(raw / softcap)

    rows = zip(
        logits(plain["hidden"], plain["weight"], plain["bias"]).tolist(),
        logits(plain["ref_hidden"], ref_weight, ref_bias).tolist(),
        plain["token_ids"].astype(int).tolist(),
        plain["confidence"].tolist(),
        strict=True,
    )
    direction = str(case.options.get("direction", "forward"))
    return np.array([brute_token(*row, direction) for row in rows])


def brute_gradient(case: Case, name: str, share: np.ndarray) -> np.ndarray:
    """d (share . divergence) / d argument by central differences: nothing but the definition is trusted."""
    at = getattr(case, name).detach().double().numpy()
    step, found = 1e-5, np.zeros_like(at)
    for index in np.ndindex(at.shape):
        up, down = at.copy(), at.copy()
        up[index] += step
        down[index] -= step
        found[index] = share @ (brute(case, **{name: up}) - brute(case, **{name: down})) / (2 * step)
    return found


def make(
    confidences: tuple[float, ...] = CONFIDENCES,
    *,
    width: int = 5,
    vocabulary: int = 9,
    bias: bool = False,
    own_ref_head: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **options: object,
) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    count = len(confidences)
    return Case(
        normal(count, width),
        normal(count, width),
        normal(vocabulary, width),
        torch.randint(0, vocabulary, (count,), generator=generator),
        torch.tensor(confidences),
        normal(vocabulary) if bias else None,
        normal(vocabulary, width) if own_ref_head else None,
        normal(vocabulary) if own_ref_head and bias else None,
        options,
    )


def assert_near(ours: torch.Tensor, truth: np.ndarray, tolerance: float) -> None:
    """Relative to the whole; and each element relative to itself or, where terms cancelled in it, to the largest."""
    found, truth_norm = ours.detach().double().numpy(), np.linalg.norm(truth)
    assert np.linalg.norm(found - truth) <= tolerance * truth_norm
    np.testing.assert_allclose(found, truth, rtol=tolerance, atol=tolerance * np.abs(truth).max())
