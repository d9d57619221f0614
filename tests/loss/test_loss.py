"""The loss against a brute force of its definition, and what it must never do: overflow, cancel, or fill the memory.

Shape suffixes: N completion tokens, D hidden width, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from live_bytes import LiveBytes
from torch.nn import functional

from anchorlwf.errors import LossError
from anchorlwf.loss import anchor_loss, chunked
from anchorlwf.loss.inputs import Head
from anchorlwf.loss.reduce import Counts, reduce_loss
from anchorlwf.loss.scores import token_scores

IMPLEMENTATIONS = ("dense", "chunked")
CONFIDENCES = (0.0, 1e-6, 0.1, 0.5, 0.9, 0.999, 1.0)


# --- the definition, in float64, one token and one vocabulary entry at a time ---


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


LOGITS = [{}, {"softcap": 3.0}, {"logit_scale": 0.25}, {"logit_scale": 0.5, "softcap": 2.0}]


@pytest.mark.parametrize("options", LOGITS, ids=lambda o: "-".join(o) or "plain")
@pytest.mark.parametrize("head", [False, True], ids=["frozen", "trainable"])
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_value_and_gradient_are_those_of_the_definition(impl, direction, bias, head, options):
    confidences = CONFIDENCES if direction == "forward" else CONFIDENCES[:-1]
    case = make(confidences, bias=bias, own_ref_head=head, direction=direction, **options)
    share = torch.linspace(-1.0, 2.0, len(confidences))
    arguments = case.trained(head)
    divergence = case.loss(impl)
    assert divergence.dtype == torch.float32
    assert_near(divergence, brute(case), 1e-5)
    (divergence * share).sum().backward()
    for name, tensor in arguments.items():
        assert_near(tensor.grad, brute_gradient(case, name, share.double().numpy()), 1e-5)


@pytest.mark.parametrize("head", [False, True], ids=["frozen", "trainable"])
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_without_a_head_of_its_own_the_reference_has_ours_and_does_not_move(impl, head):
    case = make(bias=True)
    own = replace(case, ref_weight=case.weight.clone(), ref_bias=case.bias.clone())
    grads = []
    for original in (case, own):
        one = replace(original, hidden=case.hidden.clone(), weight=case.weight.clone(), bias=case.bias.clone())
        arguments = one.trained(head)
        loss = one.loss(impl)
        grads.append([loss, *torch.autograd.grad(loss.sum(), list(arguments.values()))])
    for ours, theirs in zip(*grads, strict=True):
        # Not bit by bit: a head that is shared is projected through once, with twice the rows.
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("head", [False, True], ids=["frozen", "trainable"])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_half_precision_goes_in_and_float32_comes_out(impl, direction, head):
    confidences = CONFIDENCES if direction == "forward" else CONFIDENCES[:-1]
    case = make(
        confidences, width=16, vocabulary=40, bias=True, own_ref_head=True, dtype=torch.bfloat16, direction=direction
    )
    arguments = case.trained(head)
    divergence = case.loss(impl)
    assert divergence.dtype == torch.float32
    # The arithmetic is float32, so the values are exact for the rounded inputs; gradients are rounded to bfloat16.
    assert_near(divergence, brute(case), 1e-5)
    divergence.sum().backward()
    for name, tensor in arguments.items():
        assert tensor.grad.dtype == torch.bfloat16
        if name != "weight":
            assert_near(tensor.grad.float(), brute_gradient(case, name, np.ones(len(confidences))), 2e-2)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_autocast_does_not_reach_inside(impl):
    case = make(width=16, vocabulary=40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = case.loss(impl)
    assert torch.equal(inside, case.loss(impl))


# --- special cases of the method ---


def from_logits(
    logits: torch.Tensor, ref_logits: torch.Tensor, ids: list[int], conf: list[float], **options: object
) -> Case:
    """A case whose head is the identity, so that hidden states are logits."""
    return Case(logits, ref_logits, torch.eye(logits.shape[-1]), torch.tensor(ids), torch.tensor(conf), options=options)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_confidence_zero_is_the_divergence_from_the_reference(impl):
    case = make((0.0,) * 6, width=8, vocabulary=30)
    log_p, log_ref = ((h @ case.weight.T).log_softmax(-1) for h in (case.hidden, case.ref_hidden))
    for direction, (source, target) in (("forward", (log_p, log_ref)), ("reverse", (log_ref, log_p))):
        case.options["direction"] = direction
        expected = functional.kl_div(source, target, reduction="none", log_target=True).sum(-1)
        torch.testing.assert_close(case.loss(impl), expected)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_confidence_one_is_cross_entropy(impl):
    case = make((1.0,) * 6, width=8, vocabulary=30)
    expected = functional.cross_entropy(case.hidden @ case.weight.T, case.token_ids, reduction="none")
    torch.testing.assert_close(case.loss(impl), expected)


@given(
    st.floats(0, 0.9999), st.sampled_from(["forward", "reverse"]), st.sampled_from(IMPLEMENTATIONS), st.integers(0, 9)
)
def test_a_model_that_is_its_target_has_nothing_to_learn(confidence, direction, impl, token):
    confidence = float(np.float32(confidence))
    ref_logits = torch.randn(1, 10, generator=torch.Generator().manual_seed(token), dtype=torch.float64)
    target = (1 - confidence) * ref_logits.softmax(-1)
    target[0, token] += confidence
    case = from_logits(target.log().float(), ref_logits.float(), [token], [confidence], direction=direction)
    case.trained(False)
    divergence = case.loss(impl)
    divergence.sum().backward()
    assert abs(divergence.item()) < 1e-6
    assert case.hidden.grad.abs().max() < 1e-6


@given(st.floats(0, 1), st.sampled_from(IMPLEMENTATIONS), st.integers(0, 1000))
def test_a_divergence_is_never_below_zero(confidence, impl, seed):
    assert make((confidence,) * 3, seed=seed).loss(impl).min() > -1e-6


@pytest.mark.parametrize("size", [1e2, 1e4])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_extreme_logits_stay_finite_and_right(impl, direction, size):
    confidences = CONFIDENCES if direction == "forward" else CONFIDENCES[:-1]
    sides = torch.tensor([[1.0, -1.0, 0.0, 0.5], [-1.0, 1.0, 0.0, 0.5]]) * size
    # Model and reference certain of the same token, of different ones, and the anchor in each of these places.
    rows = [(m, r, token, c) for m in (0, 1) for r in (0, 1) for token in (0, 1, 2) for c in confidences]
    case = from_logits(
        sides[[row[0] for row in rows]],
        sides[[row[1] for row in rows]],
        [row[2] for row in rows],
        [row[3] for row in rows],
        direction=direction,
    )
    case.trained(False)
    divergence = case.loss(impl)
    divergence.sum().backward()
    assert divergence.isfinite().all()
    assert case.hidden.grad.isfinite().all()
    np.testing.assert_allclose(divergence.detach().numpy(), brute(case), rtol=1e-5, atol=1e-6)


# --- chunks ---


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Make chunks of so many tokens for a vocabulary."""

    def shrink(tokens: int, vocabulary: int) -> None:
        monkeypatch.setattr(chunked, "CHUNK_BYTES", tokens * vocabulary * 4)
        assert chunked.chunk_size(vocabulary) == tokens

    return shrink


@pytest.mark.parametrize("tokens", [1, 3, 10])
@pytest.mark.parametrize("head", [False, True], ids=["frozen", "trainable"])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_chunked_is_dense_across_chunks(small_chunks, direction, head, tokens):
    confidences = (0.0, 0.4, 0.0, 0.9, 0.0) * 5
    if direction == "forward":
        # Certain anchors go through chunks of their own; more of them than one chunk holds, and in between the rest.
        confidences = tuple(c or float(i % 4 == 0) for i, c in enumerate(confidences))
    found = []
    for impl in IMPLEMENTATIONS:
        case = make(
            confidences, width=12, vocabulary=50, bias=True, own_ref_head=True, softcap=5.0, direction=direction
        )
        small_chunks(tokens, 50)
        arguments = case.trained(head)
        loss = case.loss(impl)
        share = torch.linspace(0.5, 1.5, len(confidences))
        found.append([loss.detach(), *torch.autograd.grad((loss * share).sum(), list(arguments.values()))])
    for dense, ours in zip(*found, strict=True):
        assert (dense - ours).norm() <= 1e-5 * dense.norm()


@pytest.mark.parametrize("head", [False, True], ids=["frozen", "trainable"])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_gradients_of_chunked_pass_gradcheck(small_chunks, direction, head):
    small_chunks(2, 7)
    confidences = (0.0, 0.3, 1.0, 0.99, 1.0) if direction == "forward" else (0.0, 0.3, 0.99)
    case = make(
        confidences,
        width=3,
        vocabulary=7,
        bias=True,
        own_ref_head=True,
        dtype=torch.float64,
        direction=direction,
        softcap=4.0,
        logit_scale=0.7,
    )
    arguments = case.trained(head)
    names = list(arguments)

    def loss(*values: torch.Tensor) -> torch.Tensor:
        return replace(case, **dict(zip(names, values, strict=True))).loss("chunked")

    assert loss(*arguments.values()).dtype == torch.float64
    assert torch.autograd.gradcheck(loss, tuple(arguments.values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(1.0, None), (0.5, 4.0)], ids=["plain", "scaled and capped"])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_scores_of_tokens_are_those_of_full_logits(small_chunks, monkeypatch, dtype, shape, count):
    small_chunks(3, 50)
    monkeypatch.setattr(chunked, "TILE_BYTES", 12 * 20 * 4)  # a narrow head is widened in several parts
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(50, 12, generator=generator).to(dtype), torch.randn(50, generator=generator).to(dtype)
    hidden, ids = torch.randn(count, 12, generator=generator).to(dtype), torch.arange(count)
    head = Head(weight, bias, *shape)
    best, log_p = token_scores(head, hidden, ids)
    logits = head.logits(hidden)
    assert torch.equal(best, logits.argmax(-1))
    torch.testing.assert_close(log_p, logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0].float())
    assert log_p.dtype == torch.float32


@pytest.mark.parametrize("trained", [("hidden",), ("weight",), ("bias",), ("hidden", "bias"), ("weight", "bias"), ()])
def test_chunked_gives_a_gradient_to_whatever_asks_for_one(trained):
    found = []
    for impl in IMPLEMENTATIONS:
        case = make(bias=True, own_ref_head=True)
        for name in trained:
            getattr(case, name).requires_grad_()
        loss = case.loss(impl)
        assert loss.requires_grad == bool(trained)
        if trained:
            loss.sum().backward()
        for name in ("hidden", "weight", "bias", "ref_hidden", "ref_weight", "ref_bias"):
            assert (getattr(case, name).grad is not None) == (name in trained)
        found.append([getattr(case, name).grad for name in trained])
    for dense, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, dense, rtol=1e-5, atol=1e-6)


def test_chunked_leaves_its_inputs_alone():
    case = make(bias=True, own_ref_head=True, logit_scale=0.5, softcap=3.0)
    before = {name: tensor.clone() for name, tensor in vars(case).items() if isinstance(tensor, torch.Tensor)}
    case.trained(True)
    case.loss("chunked").sum().backward()
    for name, tensor in before.items():
        assert torch.equal(getattr(case, name).detach(), tensor)


@pytest.mark.parametrize("head", [False, True], ids=["frozen", "trainable"])
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_no_token_is_a_loss_with_a_graph(impl, head):
    case = make((), bias=True)
    arguments = case.trained(head)
    loss = case.loss(impl)
    assert loss.shape == (0,)
    loss.sum().backward()
    for tensor in arguments.values():
        assert torch.equal(tensor.grad, torch.zeros_like(tensor))


# --- memory ---


WIDTH, VOCABULARY = 32, 20_000


def peak_bytes(impl: str, count: int, head: bool, direction: str = "forward") -> int:
    confidences = ((0.0, 0.5, 0.0, 1.0 if direction == "forward" else 0.9) * count)[:count]
    case = make(confidences, width=WIDTH, vocabulary=VOCABULARY, own_ref_head=head, direction=direction)
    case.trained(head)
    with LiveBytes() as live:
        case.loss(impl).sum().backward()
    return live.peak


def test_the_meter_sees_what_is_alive_and_what_is_freed():
    with LiveBytes() as live:
        kept = torch.zeros(1000)
        for _ in range(5):
            (kept + 1).add_(1).view(10, 100).sum().item()
    assert 8000 <= live.peak <= 8100
    assert 4000 <= live.now <= 4100


@pytest.mark.parametrize(("head", "direction"), [(False, "forward"), (False, "reverse"), (True, "forward")])
def test_peak_memory_of_chunked_does_not_depend_on_the_number_of_tokens(small_chunks, head, direction):
    small_chunks(64, VOCABULARY)
    few, many, chunk = 256, 2048, 64 * VOCABULARY * 4
    low, high = peak_bytes("chunked", few, head, direction), peak_bytes("chunked", many, head, direction)
    # The gradient of hidden, made in the forward pass and scaled in the backward pass, and a few numbers per token.
    assert high - low <= (many - few) * (2 * WIDTH * 4 + 64)
    # A few buffers of one chunk; where the head trains, its gradient too.
    assert 2 * chunk <= low <= 5 * chunk + head * 2 * VOCABULARY * WIDTH * 4


def test_peak_memory_of_dense_does():
    assert peak_bytes("dense", 512, False) - peak_bytes("dense", 256, False) >= 256 * VOCABULARY * 4


# --- arguments that are refused ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(1, 7, 5)}, r"hidden: expected shape \[N, D\], got \[1, 7, 5\]"),
        ({"ref_hidden": torch.zeros(6, 5)}, r"ref_hidden: expected shape \[7, 5\], got \[6, 5\]"),
        ({"weight": torch.zeros(9, 4)}, r"weight: expected shape \[9, 5\], got \[9, 4\]"),
        ({"ref_weight": torch.zeros(8, 5)}, r"ref_weight: expected shape \[9, 5\], got \[8, 5\]"),
        ({"ref_weight": torch.zeros(9, 4)}, r"ref_hidden: expected shape \[7, 4\], got \[7, 5\]"),
        ({"token_ids": torch.zeros(6, dtype=torch.long)}, r"token_ids: expected shape \[7\], got \[6\]"),
        ({"token_ids": torch.zeros(7, 1, dtype=torch.long)}, r"token_ids: expected shape \[7\], got \[7, 1\]"),
        ({"confidence": torch.zeros(6)}, r"confidence: expected shape \[7\], got \[6\]"),
        ({"bias": torch.zeros(8)}, r"bias: expected shape \[9\], got \[8\]"),
        ({"ref_bias": torch.zeros(8)}, r"ref_bias: expected shape \[9\], got \[8\]"),
        ({"token_ids": torch.zeros(7, dtype=torch.int32)}, r"token_ids: expected dtype int64, got torch.int32"),
        ({"token_ids": torch.full((7,), 9)}, r"token_ids: expected 0 to 8, got 9 to 9"),
        ({"token_ids": torch.tensor([0, 1, -1, 0, 0, 0, 0])}, r"token_ids: expected 0 to 8, got -1 to 1"),
        ({"confidence": torch.full((7,), 1.001)}, r"confidence: expected values in \[0, 1\], got \[1.00"),
        ({"confidence": torch.full((7,), -0.1)}, r"confidence: expected values in \[0, 1\], got \[-0.1"),
        ({"confidence": torch.full((7,), torch.nan)}, r"confidence: expected values in \[0, 1\], got \[nan"),
        ({"options": {"direction": "backward"}}, r"direction: expected 'forward' or 'reverse', got 'backward'"),
        ({"options": {"direction": "reverse"}}, r"'reverse': expected every anchor's confidence below 1, got 1"),
    ],
)
def test_what_is_wrong_with_an_argument_is_said(change, message):
    case = replace(make(), **change)
    for impl in IMPLEMENTATIONS:
        with pytest.raises(LossError, match=message):
            case.loss(impl)


def test_an_unknown_implementation_is_refused():
    with pytest.raises(LossError, match="impl: expected auto or dense or chunked or triton, got 'fast'"):
        make().loss("fast")


def test_auto_is_one_of_the_implementations():
    case = make()
    assert any(torch.equal(case.loss("auto"), case.loss(impl)) for impl in IMPLEMENTATIONS)


# --- reduction ---


@given(
    data=st.data(),
    reduction=st.sampled_from(["token", "balanced"]),
    anchors=st.lists(st.booleans(), max_size=12),
    alpha=st.floats(0.1, 4),
    beta=st.floats(0.1, 4),
    hinge=st.booleans(),
)
def test_shares_of_micro_batches_add_up_to_the_batch(data, reduction, anchors, alpha, beta, hinge):
    count = len(anchors)
    anchor_N = torch.tensor(anchors, dtype=torch.bool)
    values = torch.linspace(0.5, 3.0, count, dtype=torch.float64)
    pull_N = torch.arange(count).remainder(3).ne(0).double() if hinge else None
    counts = Counts(anchors=sum(anchors), keeps=count - sum(anchors))
    cuts = sorted(data.draw(st.lists(st.integers(0, count), max_size=4)))
    totals, grads = [], []
    for edges in ([0, count], [0, *cuts, count]):
        divergence_N = values.clone().requires_grad_()
        total = sum(
            reduce_loss(
                divergence_N[a:b],
                anchor_N[a:b],
                counts,
                reduction,
                alpha=alpha,
                beta=beta,
                pull_N=None if pull_N is None else pull_N[a:b],
            )
            for a, b in pairwise(edges)
        )
        total.backward()
        totals.append(total.item())
        grads.append(divergence_N.grad)
    assert totals[1] == pytest.approx(totals[0], rel=1e-12)
    assert torch.equal(grads[0], grads[1])
    # And the whole is what the formula says.
    weights = [(alpha if a else beta) * (1.0 if pull_N is None else pull_N[i].item()) for i, a in enumerate(anchors)]
    sizes = [count] * count if reduction == "token" else [counts.anchors if a else counts.keeps for a in anchors]
    expected = sum(w * v / n for w, v, n in zip(weights, values.tolist(), sizes, strict=True))
    assert totals[0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("reduction", ["token", "balanced"])
@pytest.mark.parametrize("anchors", [[], [True, True], [False, False]], ids=["no token", "only anchors", "no anchor"])
def test_a_side_that_is_empty_adds_nothing_and_keeps_the_graph(reduction, anchors):
    divergence_N = torch.full((len(anchors),), 3.0, requires_grad=True)
    counts = Counts(sum(anchors), len(anchors) - sum(anchors))
    loss = reduce_loss(divergence_N, torch.tensor(anchors, dtype=torch.bool), counts, reduction)
    assert loss.item() == (3.0 if anchors else 0.0)
    loss.backward()
    assert torch.equal(divergence_N.grad, torch.full((len(anchors),), 1 / max(1, len(anchors))))
