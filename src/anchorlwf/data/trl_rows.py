"""Records as the rows that other trainers read."""

from collections.abc import Callable, Iterable
from typing import Any

from anchorlwf.data.record import Record

__all__ = ["dpo_rows", "sft_rows"]


def sft_rows(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Complete records as TRL's conversational prompt-completion rows (SFTTrainer)."""
    return [
        {
            "prompt": record.messages,
            "completion": [{"role": "assistant", "content": record.completion}],
            **({"tools": record.tools} if record.tools else {}),
        }
        for record in records
        if record.status == "complete"
    ]


def dpo_rows(records: Iterable[Record], decode: Callable[[list[int]], str]) -> list[dict[str, Any]]:
    """Complete, corrected records as TRL's preference rows: the corrected answer over the original one.

    Args:
        records: records with anchors and `original_ids`; others have no rejected side and are left out.
        decode: token ids to text without special tokens.
    """
    views = []
    for record in records:
        if record.anchors and record.original_ids:
            for row in sft_rows([record]):
                rejected = [{"role": "assistant", "content": decode(record.original_ids)}]
                views.append({**row, "chosen": row["completion"], "rejected": rejected})
                del views[-1]["completion"]
    return views
