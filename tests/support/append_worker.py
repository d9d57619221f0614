"""What test_sharing.py lets other processes do. Apart from it so that such a process imports nothing else."""

from pathlib import Path
from typing import Any

from anchorlwf.data.jsonl import append_record
from anchorlwf.data.record import ModelStamp, Record, new_id

STAMP = ModelStamp(name="m", tokenizer_sha="t", template_sha="c")


def made(*name: object, **changes: Any) -> Record:
    """A record of that name."""
    record = Record(
        id=new_id(*name),
        model=STAMP,
        messages=[{"role": "user", "content": str(name)}],
        prompt_ids=[1],
        completion_ids=[1, 2],
        completion="x" * 400,
    )
    return record.model_copy(update=changes)


def append_many(path: Path, writer: int, count: int, start: Any) -> None:
    """Append records of one's own, each on the disk before the next, once everybody is there."""
    start.wait(60)
    for number in range(count):
        append_record(path, made(writer, number))
