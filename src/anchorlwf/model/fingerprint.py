"""Hashes of tensors, and of a network without the adapter on it."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from anchorlwf.model.lora.attachment import without_wrappers

__all__ = ["base_sha", "base_tensors", "network_sha", "tensors_sha"]


def tensors_sha(tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> str:
    """SHA-256 over names, types, shapes and bytes.

    Args:
        tensors: by name; their order does not matter.
        dtype: what floating-point ones are rounded to first. None: as they are.
    """

    def digest(tensor: Tensor) -> str:
        tensor = tensor.detach()
        if dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        tensor = tensor.cpu().contiguous()
        return f"{tensor.dtype} {list(tensor.shape)} {hashlib.sha256(_bytes(tensor)).hexdigest()}"

    # Hashing large buffers lets other threads run; and rounded copies exist only while they are hashed.
    with ThreadPoolExecutor() as pool:
        lines = [f"{name} {line}\n" for name, line in zip(tensors, pool.map(digest, tensors.values()), strict=True)]
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _below_adapter(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Those of the base, named as they are without a LoRA adapter around it."""
    return {without_wrappers(name): tensor for name, tensor in tensors if ".lora_" not in name}


def base_tensors(net: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of the base by name, the same with a LoRA adapter on it and without; tied ones once."""
    return _below_adapter([*net.named_parameters(), *net.named_buffers()])


def base_sha(net: nn.Module) -> str:
    """SHA-256 that tells one base from another: of its parameters, rounded to bfloat16.

    Buffers, which are computed where the network runs, and the configuration, to which each release of transformers
    adds, are left out; rounded, a base is the same whether it was loaded in bfloat16 or in float32.
    """
    return tensors_sha(_below_adapter(net.named_parameters()), torch.bfloat16)


def network_sha(net: PreTrainedModel) -> str:
    """SHA-256 of all that a network computes with: its weights and its configuration, adapters left out."""
    attention = getattr(net.config, "_attn_implementation", None)
    # The location of the files does not change what is computed; the attention implementation does.
    config = {**net.config.to_dict(), "_name_or_path": None, "attention": attention}
    settings = json.dumps(config, sort_keys=True, default=str)
    return hashlib.sha256(f"{tensors_sha(base_tensors(net))} {settings}".encode()).hexdigest()
