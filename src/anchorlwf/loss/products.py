"""The loss's matrix products: inputs in the head's own type, sums in float32 (float64 where the inputs are).

A product of two half-precision numbers is exact in float32, so nothing is lost by multiplying what is half anyhow in
tensor cores, as long as the sums leave them in float32. cuBLAS does that (`out_dtype`) where torch lets it. Where torch
does not, both are widened part by part and multiplied in TF32, which holds every number of a half type: exact too, and
half as fast. On a CPU, and where only one of the two is half, they are widened and multiplied in float32.

Shape suffixes: C tokens of a chunk, D hidden width, V vocabulary, T part of the vocabulary.
"""

import contextlib
from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

__all__ = ["add_outer", "project", "project_back"]

TILE_BYTES = 8 * 2**20
"""Maximum number of bytes of the part of a half-precision head that is widened at a time."""
GPU_TILE_BYTES = 128 * 2**20
"""The same on a GPU, where small products are slow."""
_HALVES = (torch.bfloat16, torch.float16)


def project(hidden_CD: Tensor, weight_VD: Tensor, out_CV: Tensor) -> None:
    """hidden @ weight.T into `out_CV`, in its dtype."""
    if _in_tensor_cores(hidden_CD, weight_VD):
        torch.mm(hidden_CD, weight_VD.T, out_dtype=out_CV.dtype, out=out_CV)
        return
    with _exact_tf32(hidden_CD, weight_VD):
        wide_CD = hidden_CD.to(out_CV.dtype)
        for part, weight_TD in _tiles(weight_VD, out_CV.dtype):
            torch.mm(wide_CD, weight_TD.T, out=out_CV[:, part])


def project_back(grad_CV: Tensor, weight_VD: Tensor) -> Tensor:
    """grad @ weight, [C, D]: in float32, or float64 where `grad` is."""
    wide = torch.promote_types(grad_CV.dtype, torch.float32)
    if _in_tensor_cores(grad_CV, weight_VD):
        return torch.mm(grad_CV, weight_VD, out_dtype=wide)
    grad_CD = grad_CV.new_zeros(len(grad_CV), weight_VD.shape[1], dtype=wide)
    with _exact_tf32(grad_CV, weight_VD):
        for part, weight_TD in _tiles(weight_VD, wide):
            grad_CD.addmm_(grad_CV[:, part].to(wide), weight_TD)
    return grad_CD


def add_outer(sum_VD: Tensor, grad_CV: Tensor, hidden_CD: Tensor) -> None:
    """sum += grad.T @ hidden, in the dtype of `sum`."""
    if _in_tensor_cores(grad_CV, hidden_CD):
        torch.addmm(sum_VD, grad_CV.T, hidden_CD, out_dtype=sum_VD.dtype, out=sum_VD)
        return
    with _exact_tf32(grad_CV, hidden_CD):
        wide_CD = hidden_CD.to(sum_VD.dtype)
        size = max(1, GPU_TILE_BYTES // (len(grad_CV) * sum_VD.itemsize or 1))
        for start in range(0, len(sum_VD), size):
            part = slice(start, start + size)
            sum_VD[part].addmm_(grad_CV[:, part].T.to(sum_VD.dtype), wide_CD)


def _tiles(weight_VD: Tensor, wide: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """The weight in `wide`: itself where it is so already, else part by part through one small buffer."""
    if weight_VD.dtype == wide:
        yield slice(None), weight_VD
        return
    count, width = weight_VD.shape
    size = min(count, max(1, (GPU_TILE_BYTES if weight_VD.is_cuda else TILE_BYTES) // (width * wide.itemsize)))
    tile_TD = weight_VD.new_empty(size, width, dtype=wide)
    for start in range(0, count, size):
        part = weight_VD[start : start + size]
        yield slice(start, start + size), tile_TD[: len(part)].copy_(part)


def _same_half(left: Tensor, right: Tensor) -> bool:
    return left.is_cuda and left.dtype == right.dtype and left.dtype in _HALVES


def _in_tensor_cores(left: Tensor, right: Tensor) -> bool:
    return _same_half(left, right) and _takes_out_dtype(left.dtype, left.device)


@cache
def _takes_out_dtype(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether torch multiplies in `dtype` and sums in float32 there: it says so by doing it."""
    one, wide = torch.ones(16, 16, dtype=dtype, device=device), torch.ones(16, 16, device=device)
    try:
        torch.mm(one, one, out_dtype=torch.float32, out=wide)
        torch.addmm(wide, one, one, out_dtype=torch.float32, out=wide)
    except (RuntimeError, TypeError):
        return False
    return True


@contextlib.contextmanager
def _exact_tf32(left: Tensor, right: Tensor) -> Iterator[None]:
    """TF32 while this lasts, where it rounds neither of the two."""
    flags, exact = torch.backends.cuda.matmul, _same_half(left, right)
    before = flags.allow_tf32 if exact else False
    if exact:
        flags.allow_tf32 = True
    try:
        yield
    finally:
        if exact:
            flags.allow_tf32 = before
