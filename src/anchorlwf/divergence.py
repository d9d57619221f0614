"""From batches to divergences: hidden states of model and reference, the loss over them, and KL as a measure.

Shape suffixes: N completion tokens of a batch, D hidden width.
"""

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from anchorlwf.loss import Direction, Implementation, scored_loss
from anchorlwf.loss.inputs import MEMORY, Head, LossInputs, Scored
from anchorlwf.loss.reference_summary import Summary, summary_loss
from anchorlwf.model.attention import attention_kind, network_inputs, within_records
from anchorlwf.model.batch import Batch, Turn, collate
from anchorlwf.model.head import captured_hidden, read_head
from anchorlwf.model.language_model import LanguageModel

__all__ = ["completion_hidden", "divergence", "token_kl"]


def completion_hidden(net: nn.Module, backbone: nn.Module, batch: Batch) -> Tensor:
    """Final hidden states [N, D] at the positions that predict completion tokens.

    Args:
        net: what is called: the model, or its DistributedDataParallel wrapper, whose own forward must run.
        backbone: the network below the head, inside `net`.
        batch: on the model's device.
    """
    packed = contextlib.nullcontext() if batch.bounds is None else within_records(backbone)
    inputs = network_inputs(batch, attention_kind(backbone))
    with captured_hidden(backbone) as hidden, packed:
        # The model's own forward pass must project something; one position is the minimum.
        net(**inputs, use_cache=False, logits_to_keep=1)
    return batch.select(hidden[0])


def divergence(
    hidden_ND: Tensor,
    reference: Tensor | Summary,
    heads: tuple[Head, Head],
    token_ids_N: Tensor,
    confidence_N: Tensor,
    *,
    direction: Direction = "forward",
    impl: Implementation = "auto",
    memory: int = MEMORY,
) -> Scored:
    """`scored_loss` with the (model's, reference's) heads as they were read; [N] each.

    Args:
        hidden_ND: of the model.
        reference: its hidden states [N, D], or their summary, which knows the forward direction alone.
        heads: (model's, reference's).
        token_ids_N, confidence_N, direction, impl: as for `anchor_loss`, and right: they are not checked.
        memory: bytes that the loss may take on a GPU.
    """
    head, ref_head = heads
    if isinstance(reference, Summary):
        assert direction == "forward", "a summary was made for another direction"
        return summary_loss(hidden_ND, reference, head, token_ids_N, confidence_N)
    inputs = LossInputs(hidden_ND, reference, head, ref_head, token_ids_N, confidence_N, direction, memory)
    return scored_loss(inputs, impl)


def _hidden_and_head(model: LanguageModel, batch: Batch) -> tuple[Tensor, Head]:
    hidden_ND = completion_hidden(model.net, model.backbone, batch)
    model.check_finite(hidden_ND)
    return hidden_ND, read_head(model)


@torch.no_grad()
def token_kl(
    model: LanguageModel, reference: LanguageModel | None, turns: Sequence[Turn], *, batch_size: int = 32
) -> list[list[float]]:
    """KL(reference || model) in nats at every completion token of every turn.

    Args:
        model: the tuned model.
        reference: another loaded model, or None: the model's own reference (adapter off, or its frozen copy).
        turns: prompts with the continuations to measure on.
        batch_size: turns per forward pass.

    Returns:
        One list per turn, as long as its completion. Infinite where the model excludes a token (by a bias of -inf) that
        the reference does not.

    Raises:
        ModelError: the model or the reference gives NaN or infinity, for its weights are damaged or it overflows.
    """
    kls: list[list[float]] = []
    for start in range(0, len(turns), batch_size):
        part = turns[start : start + batch_size]
        batch = collate(part, model.codec.pad_id).to(model.device)
        hidden_ND, head = _hidden_and_head(model, batch)
        if reference is not None:
            ref_hidden_ND, ref_head = _hidden_and_head(reference, batch)
        else:
            with model.as_reference() as own:
                ref_hidden_ND, ref_head = _hidden_and_head(own, batch)
        keep_N = torch.zeros_like(batch.confidence_N)
        kl_N = divergence(hidden_ND, ref_hidden_ND, (head, ref_head), batch.token_ids_N, keep_N).divergence_N
        model.check_finite(kl_N.where(kl_N != torch.inf, 0.0))
        kls += [part_kl.tolist() for part_kl in kl_N.split([len(turn.completion_ids) for turn in part])]
    return kls
