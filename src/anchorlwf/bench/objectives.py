"""What is compared: each a function that runs one forward and backward pass with a frozen head.

Shape suffixes: N completion tokens, D hidden width, V vocabulary, K kept entries of a token's distribution.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from anchorlwf.loss import Implementation, anchor_loss

__all__ = ["OBJECTIVES", "Problem", "make_problem"]

TOP = 4


@dataclass(frozen=True)
class Problem:
    """Hidden states of a model that has moved a little from its reference; head shared and frozen."""

    hidden_ND: Tensor
    ref_hidden_ND: Tensor
    weight_VD: Tensor
    token_ids_N: Tensor
    confidence_N: Tensor


def make_problem(tokens: int, width: int, vocabulary: int, anchors: float, seed: int) -> Problem:
    """Float32, on the CPU; logits with a standard deviation of 3; `anchors` is the share of tokens at confidence 1."""
    generator = torch.Generator().manual_seed(seed)
    ref_hidden_ND = torch.randn(tokens, width, generator=generator)
    hidden_ND = ref_hidden_ND + 0.1 * torch.randn(tokens, width, generator=generator)
    weight_VD = torch.randn(vocabulary, width, generator=generator).mul_(3 / width**0.5)
    token_ids_N = torch.randint(0, vocabulary, (tokens,), generator=generator)
    certain_N = torch.randperm(tokens, generator=generator) < round(anchors * tokens)
    return Problem(hidden_ND, ref_hidden_ND, weight_VD, token_ids_N, certain_N.float())


def _backward(problem: Problem, loss: Callable[[Tensor], Tensor]) -> None:
    hidden_ND = problem.hidden_ND.clone().requires_grad_()
    loss(hidden_ND).sum().backward()


def _ours(impl: Implementation) -> Callable[[Problem], None]:
    def run(problem: Problem) -> None:
        _backward(problem, lambda hidden_ND: anchor_loss(
            hidden_ND, problem.ref_hidden_ND, problem.weight_VD, problem.token_ids_N, problem.confidence_N, impl=impl,
        ))

    return run


def _trl(problem: Problem) -> None:
    """TRL's distillation objective in forward KL; it knows no anchors, so every token is a keep token to it."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    weight_VD = problem.weight_VD
    _backward(problem, lambda hidden_ND: ChunkedDivergenceFunction.apply(
        hidden_ND, weight_VD, None, problem.ref_hidden_ND, weight_VD, None, 0.0,
    )[0])


def _top4(problem: Problem) -> None:
    """Full logits; cross-entropy at anchors, elsewhere KL from the reference's four largest, renormalised.

    Our rewrite of what the paper's author trains with; a token's probability outside the four is ignored.
    """
    def loss(hidden_ND: Tensor) -> Tensor:
        log_p_NV = (hidden_ND @ problem.weight_VD.T).log_softmax(-1)
        with torch.no_grad():
            top = (problem.ref_hidden_ND @ problem.weight_VD.T).topk(TOP, dim=-1)
            log_ref_NK = top.values.log_softmax(-1)
        keep_N = (log_ref_NK.exp() * (log_ref_NK - log_p_NV.gather(-1, top.indices))).sum(-1)
        anchor_N = -log_p_NV.gather(-1, problem.token_ids_N[:, None])[:, 0]
        return torch.where(problem.confidence_N == 1, anchor_N, keep_N)

    _backward(problem, loss)


def _matmuls(problem: Problem) -> None:
    """The floor: the three products that no exact method can do without, and nothing else."""
    logits_NV = problem.hidden_ND @ problem.weight_VD.T
    torch.mm(problem.ref_hidden_ND, problem.weight_VD.T, out=logits_NV)
    torch.mm(logits_NV, problem.weight_VD)


OBJECTIVES: dict[str, Callable[[Problem], None]] = {
    "chunked": _ours("chunked"), "dense": _ours("dense"), "trl": _trl, "top4": _top4, "matmuls": _matmuls,
}
"""By name; each runs forward and backward once."""
