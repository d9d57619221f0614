"""Checkpoints to damage, and what they answer."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from anchorlwf.model.language_model import LanguageModel, load_model

Edit = Callable[[dict[str, torch.Tensor]], None]


def logits(model: LanguageModel) -> torch.Tensor:
    with torch.no_grad():
        return model.net(input_ids=torch.tensor([[5, 9, 30, 70]]), use_cache=False).logits


def disturb(
    model: LanguageModel, size: float, *, dropout: float = 0.0, targets: str | list[str] = "all-linear"
) -> LanguageModel:
    """The model with an adapter that changes its logits: a fresh one of PEFT's, with B = 0, changes nothing."""
    model.attach_lora(4, 8.0, dropout, targets, seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.net.named_parameters():
        if "lora_B" in name or "lora_embedding_B" in name:
            torch.nn.init.normal_(weight, std=size, generator=generator)
    model.net.eval()
    return model


def disturbed(folder: Path, size: float) -> LanguageModel:
    """`disturb` of a model read from a folder; at size 0 it answers as it did."""
    return disturb(load_model(str(folder), dtype="float32", device="cpu"), size)


def edit_weights(folder: Path, edit: Edit) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def damaged(folder: Path) -> Iterator[tuple[str, str]]:
    """Damage the files of a folder one by one, in one way at a time: (file, damage). Afterwards it is whole again."""
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for damage, changed in damages(content):
            if changed == content:
                continue
            if changed is None:
                path.unlink()
            else:
                path.write_bytes(changed)
            yield path.name, damage
            path.write_bytes(content)


def damages(content: bytes) -> Iterator[tuple[str, bytes | None]]:
    """What may have happened to a file; None: it is gone."""
    yield "deleted", None
    for text in (b"", b"{}", b"[]", b"null", b"\x00" * 64):
        yield repr(text), text
    for part in (1, 3, 5):
        yield f"cut to {part}/6", content[: len(content) * part // 6]
    for place in (0, len(content) // 3, len(content) // 2, len(content) - 2):
        for byte in (0x00, 0xFF, ord('"')):
            yield f"{byte:#x} at {place}", content[:place] + bytes([byte]) + content[place + 1 :]
