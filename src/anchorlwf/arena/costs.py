"""What a method costs: tokens a person annotates, actions they take, tokens trained, FLOPs, memory."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from anchorlwf.arena.plan import Method
from anchorlwf.arena.questions import Correction
from anchorlwf.data.record import Record
from anchorlwf.model.language_model import LanguageModel

__all__ = ["annotation_cost", "peak_memory", "peer_flops", "reset_peak_memory", "train_flops", "train_tokens"]


def annotation_cost(method: Method, corrections: Sequence[Correction], records: Sequence[Record]) -> dict[str, int]:
    """Annotated tokens, and an estimate of a person's actions.

    The model's own answer: two actions for each correction (point, give the right token; anchors side by side are one
    correction) and one to accept. A written answer: one for each word and one to hand it in. A checker or a note:
    one for each fact.
    """
    if method.trainer in ("grpo", "context") and not method.warm:
        return {"annotated_tokens": 0, "annotation_actions": len({one.group for one in corrections})}
    if method.words == "human":
        words = sum(len((one.human or "").split()) for one in corrections)
        return {
            "annotated_tokens": sum(len(record.completion_ids) for record in records),
            "annotation_actions": words + len(corrections),
        }
    runs = 0
    for record in records:
        places = {anchor.position for anchor in record.anchors}
        runs += sum(place - 1 not in places for place in places)
    return {
        "annotated_tokens": sum(len(record.anchors) for record in records),
        "annotation_actions": 2 * runs + len(records),
    }


def train_tokens(records: Sequence[Record], steps: int, batch_size: int) -> int:
    """Tokens (prompt and completion) that go through the model in so many steps."""
    mean = sum(len(record.prompt_ids) + len(record.completion_ids) for record in records) / len(records)
    return round(mean * min(batch_size, len(records)) * steps)


def train_flops(model: LanguageModel, tokens: int, *, reference: bool) -> float:
    """Estimated floating-point operations of training on so many tokens.

    2 per weight and token forward, 2 backward (the weights are frozen: activations' gradients only), and 2 for the
    reference's forward pass where there is one.
    """
    weights = sum(parameter.numel() for parameter in model.causal.parameters())
    return float(weights) * tokens * (6 if reference else 4)


def peer_flops(model: LanguageModel, positions: int) -> float:
    """Estimated, for so many token positions put through the network in any pass of GRPO, DPO or self-distillation.

    2 per weight and position, and 2 more for the third of them that gradients flow through.
    """
    weights = sum(parameter.numel() for parameter in model.causal.parameters())
    return float(weights) * positions * (2 + 2 / 3)


def reset_peak_memory() -> None:
    """Start the process's high-water mark anew, where the system lets it (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory() -> int | None:
    """Bytes of resident memory at the most since `reset_peak_memory`; None where the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None
