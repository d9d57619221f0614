"""Whether a loaded model may be given records end to end: found out by trying, not by its name.

What cannot: attention other than sdpa and flash, masks of a model's own, layers that carry a state along the row
(state spaces, convolutions), a forward that drops what it does not know.
"""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from anchorlwf.divergence import completion_hidden
from anchorlwf.model.attention import attention_kind
from anchorlwf.model.batch import Batch, KeepTurn, Turn, collate, pack
from anchorlwf.model.language_model import LanguageModel

__all__ = ["batch_of", "fed_length", "may_pack", "packing_flaw", "shares_beginnings"]

_log = logging.getLogger(__name__)


def fed_length(turn: Turn) -> int:
    """Tokens of a turn that are put through the network; the last of the completion is only predicted."""
    return len(turn.prompt_ids) + len(turn.completion_ids) - 1


def may_pack(model: LanguageModel, longest: int) -> bool:
    """`packing_flaw` finds none; otherwise the log says which."""
    flaw = packing_flaw(model, longest)
    if flaw is not None:
        _log.info("batches are padded, and made of records of like length: %s", flaw)
    return flaw is None


def shares_beginnings(model: LanguageModel) -> bool:
    """Whether what all prompts of a packed batch begin with is computed once. On a GPU it was not measured."""
    return model.device.type == "cpu" and attention_kind(model.backbone) == "sdpa"


def batch_of(model: LanguageModel, turns: Sequence[Turn], *, packed: bool) -> Batch:
    """A batch of these turns, in this order, on the CPU."""
    if packed:
        return pack(turns, share=shares_beginnings(model))
    return collate(turns, model.codec.pad_id)


@torch.no_grad()
def packing_flaw(model: LanguageModel, longest: int) -> str | None:
    """Why records cannot be packed for this model, or None.

    Two records are put through the reference packed and padded, and packed once more with the first one altered; where
    beginnings are shared, so are two records that begin alike. Call it in the autocast context that training runs in.

    Args:
        model: as it will be trained.
        longest: `fed_length` of the longest record; one of the two is as long, so that a window that cuts records off
            is seen.
    """
    kind = attention_kind(model.backbone)
    if kind not in ("sdpa", "flash"):
        return f"{kind} attention cannot be told where records begin"
    for begin in (0, longest // 3) if shares_beginnings(model) else (0,):
        flaw = _trial(model, longest, begin)
        if flaw is not None:
            return flaw
    return None


def _trial(model: LanguageModel, longest: int, begin: int) -> str | None:
    """What is wrong with two packed records that have their first `begin` tokens in common, or None."""
    generator = torch.Generator().manual_seed(0)
    first, second = (
        torch.randint(0, model.vocabulary, (length + 1,), generator=generator) for length in (longest, longest // 2 + 1)
    )
    second[:begin] = first[:begin]
    altered = torch.cat([first[:begin], (first[begin:] + 1) % model.vocabulary])
    prompt = max(1, begin)
    pair, other = _turns(prompt, first, second), _turns(prompt, altered, second)
    try:
        padded_ND = _states(model, collate(pair, model.codec.pad_id))
        packed_ND, neighbour_ND = (_states(model, pack(both, share=begin > 0)) for both in (pair, other))
    except Exception as error:  # noqa: BLE001 - whatever a network raises, it takes padded batches
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    own = len(pair[0].completion_ids)
    if not torch.equal(packed_ND[own:], neighbour_ND[own:]):
        return "a record's hidden states change with the record before it"
    gap = float(((packed_ND - padded_ND).norm(dim=1) / padded_ND.norm(dim=1)).max())
    rounded = model.causal.dtype != torch.float32 or torch.is_autocast_enabled(model.device.type)
    # What attends to the wrong tokens is off by far more than half precision rounds.
    if not gap <= (5e-2 if rounded else 1e-4):
        return f"packed and padded, a record's hidden states differ by {gap:.1e} of their norm"
    return None


def _turns(prompt: int, *ids: Tensor) -> list[Turn]:
    """Turns whose prompts have so many tokens."""
    return [KeepTurn(one[:prompt].tolist(), one[prompt:].tolist()) for one in ids]


def _states(model: LanguageModel, batch: Batch) -> Tensor:
    with model.reference() as net:
        return completion_hidden(net, model.backbone_of(net), batch.to(model.device)).float()
