"""JSON lines in and out: every bad line named, no good line lost, views for other trainers."""

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from anchorlwf.errors import RecordError, wrong
from anchorlwf.files import append_lines, held_file, write_atomic
from anchorlwf.data.lines import BadLine, BadLineWarning, Check, Row, Source, checked_lines, good_lines, rows_of
from anchorlwf.data.probe import Probe
from anchorlwf.data.record import Prompt, Record

__all__ = [
    "BadLine",
    "BadLineWarning",
    "append_record",
    "append_records",
    "each_line",
    "each_prompt",
    "each_record",
    "given_rows",
    "load_probes",
    "load_prompts",
    "load_records",
    "read_lines",
    "save_lines",
    "save_records",
]


def each_line(source: Source, kind: type[Row], check: Check[Row] | None = None) -> Iterator[Row | BadLine]:
    """The lines of a file or the rows of a dataset, good and bad. Arguments and errors: `lines.checked_lines`."""
    return (row for _, row in checked_lines(source, kind, check))


def read_lines(source: Source, kind: type[Row]) -> tuple[list[Row], list[BadLine]]:
    """All of `each_line`: the good ones and the bad ones. Raises `RecordError` as it does."""
    good: list[Row] = []
    bad: list[BadLine] = []
    for row in each_line(source, kind):
        if isinstance(row, BadLine):
            bad.append(row)
        else:
            good.append(row)
    return good, bad


def _each(source: Source, kind: type[Row], skip_bad: bool, check: Check[Row] | None = None) -> Iterator[Row]:
    for _, row in good_lines(source, kind, skip_bad=skip_bad, asked_by=5, check=check):
        yield row


def _load(source: Source, kind: type[Row], skip_bad: bool, check: Check[Row] | None = None) -> list[Row]:
    return list(_each(source, kind, skip_bad, check))


def each_record(source: Source, *, skip_bad: bool = False) -> Iterator[Record]:
    """Read records one at a time, those that a later line replaces too. Raises as `load_records`, but at the end."""
    return _each(source, Record, skip_bad)


def each_prompt(source: Source, *, skip_bad: bool = False, check: Check[Prompt] | None = None) -> Iterator[Prompt]:
    """Read prompts one at a time. Arguments and errors as `load_prompts`, but it raises at the end."""
    return _each(source, Prompt, skip_bad, check)


def load_records(source: Source, *, skip_bad: bool = False, check: Check[Record] | None = None) -> list[Record]:
    """Read records from a JSONL file, a `datasets` dataset or any iterable of dicts or records.

    A later line with the same id replaces an earlier one (files are appended to, never rewritten in place).

    Args:
        source: path, or rows.
        skip_bad: go on after bad lines and warn of each (`BadLineWarning`) instead of raising.
        check: raises an `AnchorLwfError` for a record that cannot be used here; its line is a bad one then.

    Raises:
        RecordError: names every bad line by file, line number, field, expected and got; or the file is empty.
        AnchorLwfError: what `check` raised, where nothing else was wrong.
    """
    return list(_latest(_each(source, Record, skip_bad, check)).values())


def _latest(records: Iterable[Record]) -> dict[str, Record]:
    latest: dict[str, Record] = {}
    for record in records:
        latest.pop(record.id, None)
        latest[record.id] = record
    return latest


def given_rows(source: Source, kind: type[Row], load: Callable[[Source], list[Row]]) -> list[Row]:
    """What a function was given as records or probes: rows that are such as they are, anything else through `load`.

    Raises:
        RecordError: as `load_records`.
    """
    if isinstance(source, str | Path):
        return load(source)
    # A dataset's rows stay there: it is read once, and padded fields are told by its type.
    rows = source if hasattr(source, "features") else list(rows_of(source, kind))
    if isinstance(rows, list) and all(isinstance(row, kind) for row in rows):
        return rows
    return load(rows)


def load_probes(source: Source, *, skip_bad: bool = False) -> list[Probe]:
    """Read probes, like `load_records`. Ids must be unique."""
    probes = _load(source, Probe, skip_bad)
    seen: set[str] = set()
    for probe in probes:
        if probe.id in seen:
            raise RecordError(wrong("probe id", "each id once", f"{probe.id!r} twice", "Rename one of the two."))
        seen.add(probe.id)
    return probes


def load_prompts(source: Source, *, skip_bad: bool = False, check: Check[Prompt] | None = None) -> list[Prompt]:
    """Read prompts: lines with `prompt` (text) or `messages` (a chat), and an optional `answer`.

    Args:
        source, skip_bad: as for `load_records`.
        check: raises an `AnchorLwfError` for a prompt that cannot be taken; its line is a bad one then. The remarks
            it gives on others are warned of (`PromptWarning`), with their lines.

    Raises:
        RecordError: as `load_records`; or what `check` raised, where nothing else was wrong.
    """
    return _load(source, Prompt, skip_bad, check)


def save_lines(path: str | Path, rows: Iterable[BaseModel | dict[str, Any]]) -> None:
    """Write rows as JSONL in one atomic step, in turn with whoever appends to the file.

    Raises:
        StorageError: the old file still stands.
    """
    lines = [
        row.model_dump_json() if isinstance(row, BaseModel) else json.dumps(row, ensure_ascii=False) for row in rows
    ]
    # Whoever waits to append meanwhile must find the new file; one that is not there, or not ours to write, has nobody.
    shared = Path(path).is_file() and os.access(path, os.W_OK)
    with held_file(path) if shared else contextlib.nullcontext():
        write_atomic(path, "".join(f"{line}\n" for line in lines))


def save_records(path: str | Path, records: Source) -> None:
    """Write records as JSONL, atomically.

    Args:
        path: of the file; what stood there is replaced.
        records: anything that `load_records` takes.

    Raises:
        RecordError: they are no records.
        StorageError: the file cannot be written. The old one still stands either way.
    """
    save_lines(path, given_rows(records, Record, load_records))


def append_record(path: str | Path, record: Record) -> None:
    """Append one record durably (fsync before return). Raises `StorageError`; the file is then as it was."""
    append_records(path, [record])


def append_records(path: str | Path, records: Sequence[Record]) -> None:
    """Append records durably, with one fsync, in turn with other writers. Raises `StorageError`, as `append_lines`."""
    append_lines(path, [record.model_dump_json() for record in records])
