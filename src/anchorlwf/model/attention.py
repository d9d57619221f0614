"""Attention within records that lie end to end in one row, where the model's own would need a T x T mask.

Flash attention takes the records' bounds itself. `sdpa` gets a function that runs transformers' own over one record
after the other: the sum of L^2 instead of T^2, and nothing crosses from one record to the next. What all records begin
with may stand at the front of the row; then each of them sees that, too, and it is computed once.

Shape suffixes: H heads, T tokens of the row, S shared ones, L tokens of a record besides those, K head width.
"""

import contextlib
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from anchorlwf.model.batch import Batch

__all__ = ["WITHIN_RECORDS", "attention_kind", "network_inputs", "within_records"]

WITHIN_RECORDS = "anchorlwf_within_records"
"""The name under which transformers knows our function. No mask function is registered, so no mask is built for it."""
_FIELD = "_attn_implementation"


def _config(backbone: nn.Module) -> PretrainedConfig:
    """What the attention layers of a network read."""
    return backbone.config.get_text_config()  # type: ignore[operator,union-attr]


def attention_kind(backbone: nn.Module) -> str:
    """flash, sdpa, or the name of an implementation that cannot be told where records begin."""
    name = str(getattr(_config(backbone), _FIELD))
    return "flash" if "flash" in name else "sdpa" if name == WITHIN_RECORDS else name


@functools.lru_cache(64)
def _mask(shared: int, length: int, window: int | None, device: torch.device) -> Tensor:
    """Causal, and no more than `window` tokens back: bool [1, 1, L, S + L]."""
    # Kept for other passes, which may want a gradient.
    with torch.inference_mode(False):
        position_L = torch.arange(shared, shared + length, device=device)
        back = position_L[:, None] - torch.arange(shared + length, device=device)
        return ((back >= 0) & (back < (window or shared + length)))[None, None]


def _at_least_single(states_1HTK: Tensor) -> Tensor:
    return states_1HTK.to(torch.promote_types(states_1HTK.dtype, torch.float32))


def _sdpa_within_records(
    module: nn.Module,
    query_1HTK: Tensor,
    key_1HTK: Tensor,
    value_1HTK: Tensor,
    attention_mask: Tensor | None,
    *,
    record_lengths: Sequence[int],
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' `sdpa`, record by record; neighbours of one length go in one call. Returns [1, T, H, K]."""
    if attention_mask is not None:
        raise ValueError("this model makes attention masks of its own")
    dtype = value_1HTK.dtype
    precision: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if query_1HTK.requires_grad and query_1HTK.device.type == "cpu":
        # PyTorch's own takes two to four times as long backward on a CPU in bfloat16 as in float32.
        precision = torch.autocast("cpu", enabled=False)
        query_1HTK, key_1HTK, value_1HTK = map(_at_least_single, (query_1HTK, key_1HTK, value_1HTK))
    runs = [(length, len(list(run))) for length, run in itertools.groupby(record_lengths)]
    shared = query_1HTK.shape[2] - sum(record_lengths)
    sizes = [shared, *(length * many for length, many in runs)]

    def attend(length: int, before: int, *parts: Tensor) -> Tensor:
        """[many, H, L, K] of the queries, and S + L of keys and values: [many * L, H, K]."""
        windowed = sliding_window is not None and before + length > sliding_window
        mask = _mask(before, length, sliding_window, query_1HTK.device) if before or windowed else None
        with precision:
            return sdpa_attention_forward(module, *parts, mask, **options)[0].flatten(0, 1)

    # Split, not sliced: the gradient of a slice is as long as the row.
    fronts, *rows = zip(*(x_1HTK[0].split(sizes, dim=1) for x_1HTK in (query_1HTK, key_1HTK, value_1HTK)), strict=True)
    done = [attend(shared, 0, *(front_HSK[None] for front_HSK in fronts))] if shared else []
    for (length, many), row in zip(runs, rows, strict=True):
        # [H, many * L, K] -> [many, H, L, K]: a view.
        query, *others = (states_HTK.unflatten(1, (many, length)).transpose(0, 1) for states_HTK in row)
        if shared:
            fronts_kv = (front_HSK.expand(many, -1, -1, -1) for front_HSK in fronts[1:])
            others = [torch.cat(both, dim=2) for both in zip(fronts_kv, others, strict=True)]
        done.append(attend(length, shared, query, *others))
    return torch.cat(done)[None].to(dtype), None


AttentionInterface.register(WITHIN_RECORDS, _sdpa_within_records)


@contextlib.contextmanager
def within_records(backbone: nn.Module) -> Iterator[None]:
    """Packed batches may pass through `backbone` while this lasts: forward, and backward where that runs layers again.

    The configuration names our function meanwhile and its own afterwards, so nothing that is saved knows of it.
    """
    config = _config(backbone)
    own = getattr(config, _FIELD)
    if attention_kind(backbone) == "sdpa":
        setattr(config, _FIELD, WITHIN_RECORDS)
    try:
        yield
    finally:
        setattr(config, _FIELD, own)


def network_inputs(batch: Batch, kind: str) -> dict[str, Any]:
    """What a network is called with: ids and mask, or for a packed batch ids, positions and the records' bounds.

    Args:
        batch: on the network's device.
        kind: see `attention_kind`.
    """
    if batch.bounds is None or batch.record_lengths is None:
        return {"input_ids": batch.input_ids_BT, "attention_mask": batch.attention_mask_BT}
    lengths = batch.record_lengths.tolist()
    inputs = {"input_ids": batch.input_ids_BT, "position_ids": batch.position_ids_BT}
    if kind != "flash":
        return {**inputs, "record_lengths": lengths}
    # transformers' FlashAttentionKwargs.
    return {
        **inputs,
        "cu_seq_lens_q": batch.bounds,
        "cu_seq_lens_k": batch.bounds,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }
