"""Greedy choice and log-probability of standing tokens, without full logits and without gradient.

Shape suffixes: N completion tokens, C tokens of one chunk, D hidden width, V vocabulary.
"""

import torch
from torch import Tensor

from anchorlwf.loss.chunked import chunk_size
from anchorlwf.loss.inputs import Head
from anchorlwf.loss.products import project
from anchorlwf.loss.rows import finish_logits

__all__ = ["token_scores"]


@torch.no_grad()
def token_scores(head: Head, hidden_ND: Tensor, token_ids_N: Tensor) -> tuple[Tensor, Tensor]:
    """The head's greedy choice [N] (int64) and its log-probability of `token_ids_N` [N] (float32, nats)."""
    count, vocabulary = len(token_ids_N), len(head.weight_VD)
    wide = torch.promote_types(hidden_ND.dtype, torch.float32)
    best_N = torch.empty_like(token_ids_N)
    log_p_N = torch.empty(count, dtype=torch.float32, device=token_ids_N.device)
    # On a GPU small products are slow.
    size = min(count, chunk_size(vocabulary, wide.itemsize) * (8 if hidden_ND.is_cuda else 1))
    buffer_CV = hidden_ND.new_empty(size, vocabulary, dtype=wide)
    # Half precision inside an autocast region would undo the float32 of the projections.
    with torch.autocast(hidden_ND.device.type, enabled=False):
        for start in range(0, count, size or 1):
            part = slice(start, min(start + size, count))
            logits_CV = buffer_CV[: part.stop - start]
            project(hidden_ND[part], head.weight_VD, logits_CV)
            finish_logits(logits_CV, head)
            best_N[part] = logits_CV.argmax(-1)
            own_C = logits_CV.gather(-1, token_ids_N[part][:, None])[:, 0]
            log_p_N[part] = own_C - logits_CV.logsumexp(-1)
    return best_N, log_p_N
