"""Greedy choice and log-probability of standing tokens, without full logits and without gradient.

Shape suffixes: N completion tokens, C tokens of one chunk, D hidden width, V vocabulary.
"""

import torch
from torch import Tensor

from anchorlwf.loss.chunked import chunk_size
from anchorlwf.loss.inputs import Head

__all__ = ["token_scores"]


@torch.no_grad()
def token_scores(head: Head, hidden_ND: Tensor, token_ids_N: Tensor) -> tuple[Tensor, Tensor]:
    """The head's greedy choice [N] (int64) and its log-probability of `token_ids_N` [N] (float32, nats)."""
    best_N = torch.empty_like(token_ids_N)
    log_p_N = torch.empty(len(token_ids_N), dtype=torch.float32, device=token_ids_N.device)
    size = chunk_size(head.weight_VD.shape[0])
    for start in range(0, len(token_ids_N), size):
        part = slice(start, start + size)
        logits_CV = head.logits(hidden_ND[part])
        best_N[part] = logits_CV.argmax(-1)
        own_C = logits_CV.gather(-1, token_ids_N[part][:, None])[:, 0]
        log_p_N[part] = own_C - logits_CV.logsumexp(-1)
    return best_N, log_p_N
