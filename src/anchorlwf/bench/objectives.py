"""What is compared: each a function that runs one forward and backward pass with a frozen head.

Shape suffixes: N completion tokens, D hidden width, V vocabulary, A anchors,
K kept entries of a token's distribution.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import kl_div, one_hot

from anchorlwf.loss import Implementation, anchor_loss
from anchorlwf.loss.inputs import Head
from anchorlwf.loss.reference_summary import Summary, summarize, summary_loss

__all__ = ["OBJECTIVES", "Problem", "make_problem", "ours", "top4_loss"]

TOP = 4


@dataclass(frozen=True)
class Problem:
    """Hidden states of a model that has moved a little from its reference; head shared and frozen."""

    hidden_ND: Tensor
    ref_hidden_ND: Tensor
    weight_VD: Tensor
    token_ids_N: Tensor
    confidence_N: Tensor

    @property
    def head(self) -> Head:
        """Model's and reference's."""
        return Head(self.weight_VD, None, 1.0, None)

    @functools.cached_property
    def summary(self) -> Summary:
        """The reference's, made when first asked for: training makes it once."""
        return summarize(self.ref_hidden_ND, self.head, self.token_ids_N)


def make_problem(
    tokens: int, width: int, vocabulary: int, anchors: float, seed: int, *, dtype: str = "float32", device: str = "cpu"
) -> Problem:
    """Logits with a standard deviation of 3; `anchors` is the share of tokens at confidence 1."""
    generator = torch.Generator(device).manual_seed(seed)
    with torch.device(device):
        ref_hidden_ND = torch.randn(tokens, width, generator=generator)
        hidden_ND = ref_hidden_ND + 0.1 * torch.randn(tokens, width, generator=generator)
        weight_VD = torch.randn(vocabulary, width, generator=generator).mul_(3 / width**0.5)
        token_ids_N = torch.randint(0, vocabulary, (tokens,), generator=generator)
        certain_N = torch.randperm(tokens, generator=generator) < round(anchors * tokens)
    kind = getattr(torch, dtype)
    hidden_ND, ref_hidden_ND, weight_VD = (tensor.to(kind) for tensor in (hidden_ND, ref_hidden_ND, weight_VD))
    return Problem(hidden_ND, ref_hidden_ND, weight_VD, token_ids_N, certain_N.float())


def _backward(problem: Problem, loss: Callable[[Tensor], Tensor]) -> None:
    hidden_ND = problem.hidden_ND.clone().requires_grad_()
    loss(hidden_ND).sum().backward()


def ours(impl: Implementation) -> Callable[[Problem], None]:
    """Our loss by one implementation."""

    def run(problem: Problem) -> None:
        _backward(
            problem,
            lambda hidden_ND: anchor_loss(
                hidden_ND,
                problem.ref_hidden_ND,
                problem.weight_VD,
                problem.token_ids_N,
                problem.confidence_N,
                impl=impl,
            ),
        )

    return run


def _summary(problem: Problem) -> None:
    """Ours from the second pass over the records on."""
    given = problem.summary, problem.head, problem.token_ids_N, problem.confidence_N
    _backward(problem, lambda hidden_ND: summary_loss(hidden_ND, *given).divergence_N)


def _trl(problem: Problem) -> None:
    """TRL's distillation objective in forward KL; it knows no anchors, so every token is a keep token to it."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    weight_VD = problem.weight_VD
    _backward(
        problem,
        lambda hidden_ND: ChunkedDivergenceFunction.apply(
            hidden_ND, weight_VD, None, problem.ref_hidden_ND, weight_VD, None, 0.0
        )[0],
    )


def top4_loss(logits_NV: Tensor, ref_logits_NV: Tensor, token_ids_N: Tensor, confidence_N: Tensor) -> Tensor:
    """KL between target and model over the target's four most probable tokens and all others as a fifth: [N] in nats.

    What lawftrack, the tool of the paper's author, trains with, written anew: both distributions in full, the target
    mixed with the anchor's token.
    """
    p_NV, target_NV = logits_NV.softmax(-1), ref_logits_NV.softmax(-1)
    anchor_N = confidence_N > 0
    share_A1, token_ids_A = confidence_N[anchor_N, None], token_ids_N[anchor_N]
    target_NV[anchor_N] = share_A1 * one_hot(token_ids_A, target_NV.shape[1]) + (1 - share_A1) * target_NV[anchor_N]
    top = target_NV.topk(TOP, dim=-1)
    log_p_NK = _with_rest(p_NV.gather(-1, top.indices)).log()
    return kl_div(log_p_NK, _with_rest(top.values), reduction="none").sum(-1)


def _with_rest(p_NK: Tensor) -> Tensor:
    return torch.cat([p_NK, (1 - p_NK.sum(-1, keepdim=True)).clamp(min=1e-10)], -1)


def _top4(problem: Problem) -> None:
    ref_logits_NV = (problem.ref_hidden_ND @ problem.weight_VD.T).float()
    _backward(
        problem,
        lambda hidden_ND: top4_loss(
            (hidden_ND @ problem.weight_VD.T).float(), ref_logits_NV, problem.token_ids_N, problem.confidence_N
        ),
    )


def _matmuls(problem: Problem) -> None:
    """The three matrix products of comparing two models' logits, and nothing else; a summary needs two of them."""
    logits_NV = problem.hidden_ND @ problem.weight_VD.T
    torch.mm(problem.ref_hidden_ND, problem.weight_VD.T, out=logits_NV)
    torch.mm(logits_NV, problem.weight_VD)


OBJECTIVES: dict[str, Callable[[Problem], None]] = {
    "ours": ours("auto"),
    "summary": _summary,
    "dense": ours("dense"),
    "trl": _trl,
    "top4": _top4,
    "matmuls": _matmuls,
}
"""By name; each runs forward and backward once."""
