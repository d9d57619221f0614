"""Checkpoints to damage, and what they answer."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from anchorlwf.model.language_model import LanguageModel

Edit = Callable[[dict[str, torch.Tensor]], None]


def logits(model: LanguageModel) -> torch.Tensor:
    with torch.no_grad():
        return model.net(input_ids=torch.tensor([[5, 9, 30, 70]]), use_cache=False).logits


def edit_weights(folder: Path, edit: Edit) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


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
