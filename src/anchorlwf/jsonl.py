"""JSON lines in and out: every bad line named, no good line lost, views for other trainers."""

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from anchorlwf.errors import AnchorLwfError, RecordError, wrong
from anchorlwf.files import append_lines, write_atomic
from anchorlwf.probe import Probe
from anchorlwf.record import Prompt, Record

__all__ = [
    "BadLine",
    "BadLineWarning",
    "append_record",
    "append_records",
    "each_earlier",
    "each_line",
    "each_prompt",
    "each_record",
    "earlier_records",
    "load_probes",
    "load_prompts",
    "load_records",
    "problem_of",
    "read_lines",
    "save_lines",
    "save_records",
]

Row = TypeVar("Row", bound=BaseModel)
Source = str | Path | Iterable[dict[str, Any]]


class BadLineWarning(UserWarning):
    """A line was skipped because it is not what the file should hold."""


@dataclass(frozen=True)
class BadLine:
    """One line that could not be read, and why."""

    source: str
    line: int
    """Counted from 1."""
    problem: str
    """Field, expected and got."""
    kind: type[AnchorLwfError] = RecordError
    """What is raised where no other kind of line is bad."""

    def __str__(self) -> str:
        return f"{self.source}, line {self.line}: {self.problem}"


def problem_of(error: ValidationError) -> str:
    """What pydantic found: field, expected and got, in our words."""
    found = []
    for item in error.errors(include_url=False):
        field = ".".join(str(part) for part in item["loc"])
        if item["type"] == "value_error":
            found.append(f"{field}: {item['ctx']['error']}" if field else str(item["ctx"]["error"]))
        else:
            got = "nothing" if item["type"] == "missing" else repr(item["input"])
            got = got if len(got) <= 80 else got[:77] + "..."
            found.append(f"{field or 'line'}: expected {_expected(item['msg'])}, got {got}")
    return "; ".join(found)


def _expected(message: str) -> str:
    lowered = message[0].lower() + message[1:]
    for lead in ("input should be ", "field "):
        lowered = lowered.removeprefix(lead)
    return "the field" if lowered == "required" else lowered


def _unpadded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unpadded(item) for key, item in value.items() if item is not None}
    return [_unpadded(item) for item in value] if isinstance(value, list) else value


def _raw_rows(source: Source) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Numbered dicts; a string in their place is what is wrong with that line."""
    if not isinstance(source, str | Path):
        # To us an absent field and None are the same. A `datasets` dataset (told by its features) also pads the dicts
        # within a row: {"role": "user", "content": "...", "tool_calls": None}, which chat templates would take badly.
        clean = _unpadded if hasattr(source, "features") else lambda value: value
        for number, row in enumerate(source, 1):
            yield number, {key: clean(value) for key, value in row.items() if value is not None}
        return
    with open(source, "rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.rstrip(b"\r\n").decode())
                # Half of an escaped surrogate pair is read without complaint, but no text can hold it: neither a
                # tokenizer nor a file would take it later.
                if b"\\u" in line:
                    json.dumps(row, ensure_ascii=False).encode()
            except UnicodeDecodeError as error:
                yield number, f"expected UTF-8 text, got bytes that are not ({error.reason} at byte {error.start})"
            except json.JSONDecodeError as error:
                yield number, f"expected one JSON object, got broken JSON ({error.msg} at column {error.colno})"
            except (ValueError, RecursionError) as error:
                # A number of thousands of digits, brackets without end, half a character.
                yield number, f"expected one JSON object, got broken JSON ({error})"
            else:
                yield number, row if isinstance(row, dict) else f"expected a JSON object, got {type(row).__name__}"


def each_line(
    source: Source, kind: type[Row], check: Callable[[Row], object] | None = None
) -> Iterator[Row | BadLine]:
    """Read a JSONL file (or rows of a dataset) as `kind`, line by line, good and bad; memory does not grow with it.

    Args:
        source: path, or rows.
        kind: of the lines.
        check: raises an `AnchorLwfError` for a line that is well-formed and yet no good, such as a prompt too long.

    Raises:
        RecordError: the file does not exist or holds no line at all.
    """
    name = str(source) if isinstance(source, str | Path) else "dataset"
    if isinstance(source, str | Path) and not Path(source).is_file():
        raise RecordError(wrong(name, "a JSONL file", "no such file", "Check the path."))
    number = 0
    for number, row in _raw_rows(source):
        if isinstance(row, str):
            yield BadLine(name, number, row)
            continue
        try:
            found = kind.model_validate(row)
            if check is not None:
                check(found)
        except ValidationError as error:
            yield BadLine(name, number, problem_of(error))
        except AnchorLwfError as error:
            yield BadLine(name, number, str(error), type(error))
        else:
            yield found
    if not number:
        what = f"at least one {kind.__name__.lower()}"
        raise RecordError(wrong(name, what, "an empty file", "Write one JSON object per line."))


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


def _each(
    source: Source, kind: type[Row], skip_bad: bool, check: Callable[[Row], object] | None = None
) -> Iterator[Row]:
    """The good lines; once they have all been given, the bad ones are raised, or warned of."""
    good, bad = 0, list[BadLine]()
    for row in each_line(source, kind, check):
        if isinstance(row, BadLine):
            bad.append(row)
        else:
            good += 1
            yield row
    if bad and not skip_bad:
        listing = "\n".join(str(line) for line in bad)
        kinds = {line.kind for line in bad}
        error = kinds.pop() if len(kinds) == 1 else RecordError
        fix = "Mend the bad ones, or skip them (--skip-bad, where the command has it; in Python skip_bad=True)."
        raise error(f"{listing}\n{good} other lines are good. {fix}")
    for line in bad:
        warnings.warn(str(line), BadLineWarning, stacklevel=4)


def _load(
    source: Source, kind: type[Row], skip_bad: bool, check: Callable[[Row], object] | None = None
) -> list[Row]:
    return list(_each(source, kind, skip_bad, check))


def each_record(source: Source, *, skip_bad: bool = False) -> Iterator[Record]:
    """Read records one at a time, those that a later line replaces too. Raises as `load_records`, but at the end."""
    return _each(source, Record, skip_bad)


def each_prompt(
    source: Source, *, skip_bad: bool = False, check: Callable[[Prompt], object] | None = None
) -> Iterator[Prompt]:
    """Read prompts one at a time. Arguments and errors as `load_prompts`, but it raises at the end."""
    return _each(source, Prompt, skip_bad, check)


def load_records(source: Source, *, skip_bad: bool = False) -> list[Record]:
    """Read records from a JSONL file, a `datasets` dataset or any iterable of dicts.

    A later line with the same id replaces an earlier one (files are appended to, never rewritten in place).

    Args:
        source: path, or rows.
        skip_bad: go on after bad lines and warn of each (`BadLineWarning`) instead of raising.

    Raises:
        RecordError: names every bad line by file, line number, field, expected and got; or the file is empty.
    """
    return list(_latest(_each(source, Record, skip_bad)).values())


def _latest(records: Iterable[Record]) -> dict[str, Record]:
    latest: dict[str, Record] = {}
    for record in records:
        latest.pop(record.id, None)
        latest[record.id] = record
    return latest


def load_probes(source: Source, *, skip_bad: bool = False) -> list[Probe]:
    """Read probes, like `load_records`. Ids must be unique."""
    probes = _load(source, Probe, skip_bad)
    seen: set[str] = set()
    for probe in probes:
        if probe.id in seen:
            raise RecordError(wrong("probe id", "each id once", f"{probe.id!r} twice", "Rename one of the two."))
        seen.add(probe.id)
    return probes


def load_prompts(
    source: Source, *, skip_bad: bool = False, check: Callable[[Prompt], object] | None = None
) -> list[Prompt]:
    """Read prompts: lines with `prompt` (text) or `messages` (a chat), and an optional `answer`.

    Args:
        source, skip_bad: as for `load_records`.
        check: raises an `AnchorLwfError` for a prompt that cannot be taken; its line is a bad one then.

    Raises:
        RecordError: as `load_records`; or what `check` raised, where nothing else was wrong.
    """
    return _load(source, Prompt, skip_bad, check)


def each_earlier(path: str | Path) -> Iterator[Record]:
    """What an interrupted run has left in `path`, as `each_record`; nothing where the file is missing or empty.

    A line torn by a crash is warned of and must not keep the work from going on. A file without any record is
    something else: `RecordError`.
    """
    if not Path(path).is_file() or not Path(path).stat().st_size:
        return iter(())
    some_good = any(isinstance(line, Record) for line in each_line(path, Record))
    return _each(path, Record, skip_bad=some_good)


def earlier_records(path: str | Path) -> dict[str, Record]:
    """`each_earlier` by id, of each id the latest."""
    return _latest(each_earlier(path))


def save_lines(path: str | Path, rows: Iterable[BaseModel | dict[str, Any]]) -> None:
    """Write rows as JSONL in one atomic step. Raises `StorageError`; the old file then still stands."""
    lines = [
        row.model_dump_json() if isinstance(row, BaseModel) else json.dumps(row, ensure_ascii=False) for row in rows
    ]
    write_atomic(path, "".join(f"{line}\n" for line in lines))


def save_records(path: str | Path, records: Iterable[Record]) -> None:
    """Write records as JSONL, atomically. Raises `StorageError`; the old file then still stands."""
    save_lines(path, records)


def append_record(path: str | Path, record: Record) -> None:
    """Append one record durably (fsync before return). Raises `StorageError`; the file is then as it was."""
    append_records(path, [record])


def append_records(path: str | Path, records: Sequence[Record]) -> None:
    """Append records durably, with one fsync. Raises `StorageError`; the file is then as it was."""
    append_lines(path, [record.model_dump_json() for record in records])
