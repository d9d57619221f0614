"""JSON lines in and out: every bad line named, no good line lost."""

import contextlib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from anchorlwf.data.plain_prompts import decoded, is_plain, plain_rows, text_rows
from anchorlwf.data.probe import Probe
from anchorlwf.data.record import Prompt, Record
from anchorlwf.errors import AnchorLwfError, BadLineWarning, PromptWarning, RecordError, warn, wrong
from anchorlwf.files import append_lines, held_file, write_atomic

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "BadLine",
    "BadLineWarning",
    "Check",
    "Line",
    "Reading",
    "Row",
    "Source",
    "append_record",
    "append_records",
    "checked_line",
    "each_line",
    "each_prompt",
    "each_record",
    "given_rows",
    "last_of_each",
    "lines_of",
    "load_probes",
    "load_prompts",
    "load_records",
    "parse_json",
    "problem_of",
    "read_lines",
    "refusal",
    "row_of",
    "rows_of",
    "save_lines",
    "save_records",
]

Row = TypeVar("Row", bound=BaseModel)
Source = str | Path | BaseModel | Mapping[str, Any] | Iterable[BaseModel | Mapping[str, Any]]
"""A JSONL file; or rows, as dicts or checked already (a list, a generator, a `datasets` dataset); or a single one."""
Check = Callable[[Row], Iterable[str] | None]
"""Raises for a bad line; gives its remarks on a good one."""


_FEW = 5
"""Line numbers that one warning names."""


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
    problems = []
    for item in error.errors(include_url=False):
        field = ".".join(str(part) for part in item["loc"])
        if item["type"] == "value_error":
            problems.append(f"{field}: {item['ctx']['error']}" if field else str(item["ctx"]["error"]))
        else:
            got = "nothing" if item["type"] == "missing" else repr(item["input"])
            got = got if len(got) <= 80 else got[:77] + "..."
            problems.append(f"{field or 'line'}: expected {_expected(item['msg'])}, got {got}")
    return "; ".join(problems)


def _expected(message: str) -> str:
    lowered = message[0].lower() + message[1:]
    for lead in ("input should be ", "field "):
        lowered = lowered.removeprefix(lead)
    return "the field" if lowered == "required" else lowered


def _unpadded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unpadded(item) for key, item in value.items() if item is not None}
    return [_unpadded(item) for item in value] if isinstance(value, list) else value


class Line(NamedTuple):
    """One line that is not blank, or one row of a dataset."""

    number: int
    """Counted from 1."""
    row: dict[str, Any] | BaseModel | str
    """A string is what is wrong with the line."""
    start: int = 0
    """Bytes of the file before it."""
    content: bytes = b""
    """The line as it stands in the file, its line break included."""


def parse_json(text: str) -> Any:
    """The JSON value that a text holds.

    Raises:
        ValueError, RecursionError: they hold none, or one that could not be written again.
    """
    value = json.loads(text)
    # Half of an escaped surrogate pair is read without complaint, but no text can hold it: neither a tokenizer nor a
    # file would take it later.
    if "\\u" in text:
        json.dumps(value, ensure_ascii=False).encode()
    return value


def row_of(content: bytes) -> dict[str, Any] | str:
    """The JSON object that stands in a line; or, as a string, what is wrong with it."""
    try:
        row = parse_json(content.rstrip(b"\r\n").decode())
    except UnicodeDecodeError as error:
        return f"expected UTF-8 text, got bytes that are not ({error.reason} at byte {error.start})"
    except json.JSONDecodeError as error:
        return f"expected one JSON object, got broken JSON ({error.msg} at column {error.colno})"
    except (ValueError, RecursionError) as error:
        # A number of thousands of digits, brackets without end, half a character.
        return f"expected one JSON object, got broken JSON ({error})"
    return row if isinstance(row, dict) else f"expected a JSON object, got {type(row).__name__}"


def rows_of(source: Any, kind: type[BaseModel]) -> Iterable[Any]:
    """The rows of anything but a file: one row stands for itself.

    Raises:
        RecordError: what holds no rows, or several datasets in one.
    """
    what = kind.__name__.lower()
    if isinstance(source, Mapping) and any(hasattr(part, "features") for part in source.values()):
        splits = list(map(str, source))
        got, fix = f"the splits {', '.join(splits)}", f"Choose one, such as [{splits[0]!r}]."
        raise RecordError(wrong(f"{what}s", "one dataset", got, fix))
    if isinstance(source, BaseModel | Mapping):
        return [source]
    if not isinstance(source, Iterable) or isinstance(source, bytes):
        fix = "Give a list of them, or a JSONL file."
        raise RecordError(wrong(f"{what}s", f"a path, a {what}, or rows of them", type(source).__name__, fix))
    return source


def _row(row: Any, clean: Callable[[Any], Any]) -> dict[str, Any] | BaseModel | str:
    if isinstance(row, BaseModel):
        return row
    if not isinstance(row, Mapping):
        return f"expected a dict, got {type(row).__name__}"
    return {key: clean(value) for key, value in row.items() if value is not None}


def lines_of(stream: BufferedIOBase) -> Iterator[Line]:
    """The lines of an open JSONL file that are not blank, good and bad."""
    start = 0
    for number, content in enumerate(stream, 1):
        if content.strip():
            yield Line(number, row_of(content), start, content)
        start += len(content)


def _lines(source: Source | BufferedIOBase, kind: type[BaseModel], *, plain: bool) -> Iterator[Line]:
    if isinstance(source, BufferedIOBase):
        yield from (Line(*found) for found in text_rows(map(decoded, source))) if plain else lines_of(source)
    elif isinstance(source, str | Path) and issubclass(kind, Prompt) and plain:
        yield from (Line(number, row) for number, row in plain_rows(source))
    elif isinstance(source, str | Path):
        with open(source, "rb") as stream:
            yield from lines_of(stream)
    else:
        # To us an absent field and None are the same. A `datasets` dataset (told by its features) also pads the dicts
        # within a row: {"role": "user", "content": "...", "tool_calls": None}, which chat templates would take badly.
        clean = _unpadded if hasattr(source, "features") else lambda value: value
        for number, row in enumerate(rows_of(source, kind), 1):
            yield Line(number, _row(row, clean))


def checked_line(
    line: Line, source: str, kind: type[Row], check: Callable[[Row], object] | None = None
) -> Row | BadLine:
    """One line as `kind`, or what is wrong with it. Arguments: `Reading`."""
    if isinstance(line.row, str):
        return BadLine(source, line.number, line.row)
    try:
        row = kind.model_validate(line.row)
        if check is not None:
            check(row)
    except ValidationError as error:
        return BadLine(source, line.number, problem_of(error))
    except AnchorLwfError as error:
        return BadLine(source, line.number, str(error), type(error))
    return row


class Reading(Generic[Row]):
    """One pass over the lines of a JSONL file, or the rows of a dataset; memory does not grow with it.

    `lines` gives everything, good and bad; `good_lines` the good ones, and `report` then says what was wrong.

    Args:
        source: a path; an open binary file; or rows.
        kind: of the lines.
        check: raises an `AnchorLwfError` for a line that is well-formed and yet no good, such as a prompt too long.
            What it returns are remarks on a good line.
        name: of the source, for messages. None: its path, or "dataset".
        plain: an open file holds a prompt per line, and no JSON.

    Raises:
        RecordError: no such file.

    Attributes:
        count: good lines read so far.
        bad: the bad ones read so far.
        remarks: what `check` had to remark on good lines, each remark with the numbers of its lines.
    """

    def __init__(
        self,
        source: Source | BufferedIOBase,
        kind: type[Row],
        check: Check[Row] | None = None,
        *,
        name: str | None = None,
        plain: bool = False,
    ) -> None:
        self.name = name or (str(source) if isinstance(source, str | Path) else "dataset")
        if isinstance(source, str | Path) and not Path(source).is_file():
            expected = "a file" if is_plain(source) else "a JSONL file"
            raise RecordError(wrong(self.name, expected, "no such file", "Check the path."))
        self._source, self._kind, self._check = source, kind, check
        self._plain = plain or (isinstance(source, str | Path) and is_plain(source))
        self._is_file = isinstance(source, str | Path | BufferedIOBase)
        self.count, self.bad = 0, list[BadLine]()
        self.remarks: dict[str, list[int]] = {}

    def lines(self) -> Iterator[tuple[Line, Row | BadLine]]:
        """Every line that is not blank, as it stands and as what it was read.

        Raises:
            RecordError: there is none at all.
        """
        for line in _lines(self._source, self._kind, plain=self._plain):
            remarks: list[str] = []
            row = checked_line(line, self.name, self._kind, partial(self._examine, remarks))
            if isinstance(row, BadLine):
                self.bad.append(row)
            else:
                self.count += 1
                for remark in remarks:
                    self.remarks.setdefault(remark, []).append(line.number)
            yield line, row
        if not self.count and not self.bad:
            got, fix = "an empty file", "Write one JSON object per line."
            if not self._is_file:
                got, fix = "no rows", "Give some; a generator gives its rows only once."
            elif self._plain:
                fix = "Write a prompt per line."
            raise RecordError(wrong(self.name, f"at least one {self._kind.__name__.lower()}", got, fix))

    def _examine(self, remarks: list[str], row: Row) -> None:
        if self._check is not None:
            remarks.extend(self._check(row) or ())

    def good_lines(self) -> Iterator[tuple[Line, Row]]:
        """The good lines. Raises as `lines`."""
        for line, row in self.lines():
            if not isinstance(row, BadLine):
                yield line, row

    def report(self, *, skip_bad: bool) -> None:
        """Warn of the remarks (`PromptWarning`); then raise the error that names every bad line read, or warn of them.

        Args:
            skip_bad: warn of each bad line (`BadLineWarning`) instead of raising.

        Raises:
            RecordError: there were bad lines.
            AnchorLwfError: what `check` raised, where nothing else was wrong.
        """
        self.warn_of_remarks()
        if self.bad and not skip_bad:
            raise refusal(self.bad, self.count)
        for bad_line in self.bad:
            warn(str(bad_line), BadLineWarning)

    def warn_of_remarks(self) -> None:
        """Warn of the remarks on lines read so far (`PromptWarning`), of each once and with its lines."""
        for remark, numbers in self.remarks.items():
            warn(f"{self.name}, {_listed(numbers)}: {remark}", PromptWarning)


def _listed(numbers: list[int]) -> str:
    few = ", ".join(map(str, numbers[:_FEW])) + (f" and {len(numbers) - _FEW} more" if len(numbers) > _FEW else "")
    return f"line {few}" if len(numbers) == 1 else f"lines {few}"


def refusal(bad: Sequence[BadLine], good: int) -> AnchorLwfError:
    """The error that names every bad line of a source in which `good` other lines are good."""
    listing = "\n".join(map(str, bad))
    kinds = {bad_line.kind for bad_line in bad}
    error = kinds.pop() if len(kinds) == 1 else RecordError
    fix = "Mend the bad ones, or skip them (--skip-bad, where the command has it; in Python skip_bad=True)."
    return error(f"{listing}\n{good} other lines are good. {fix}")


def each_line(source: Source, kind: type[Row], check: Check[Row] | None = None) -> Iterator[Row | BadLine]:
    """The lines of a file or the rows of a dataset, good and bad. Arguments and errors: `Reading`."""
    return (row for _, row in Reading(source, kind, check).lines())


def read_lines(source: Source, kind: type[Row]) -> tuple[list[Row], list[BadLine]]:
    """All of `each_line`: the good ones and the bad ones. Raises `RecordError` as it does."""
    reading = Reading(source, kind)
    return [row for _, row in reading.good_lines()], reading.bad


def _each(source: Source, kind: type[Row], skip_bad: bool, check: Check[Row] | None = None) -> Iterator[Row]:
    reading = Reading(source, kind, check)
    for _, row in reading.good_lines():
        yield row
    reading.report(skip_bad=skip_bad)


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
    records = _load(source, Record, skip_bad, check)
    return [records[index] for index in last_of_each(b"".join(uuid.UUID(record.id).bytes for record in records))]


def last_of_each(ids: bytes | bytearray) -> "NDArray[np.int64]":
    """Where, among 16-byte ids, each stands for the last time: int64, ascending.

    In a file of records a later line replaces an earlier one of the same id; these are the lines that count.
    """
    import numpy as np  # not needed for `anchorlwf --help`, which is to be quick

    halves = np.frombuffer(ids, np.uint64).reshape(-1, 2)
    # A stable order: equal ids stay in that of the file.
    order = np.lexsort(halves.T)
    ordered = halves[order]
    last = np.ones(len(order), bool)
    last[:-1] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return np.sort(order[last])


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
        source, skip_bad: as for `load_records`; also plain text (`.txt`) and tables (`.csv`, `.tsv`), as `plain_rows`
            reads them.
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
        path: the file; an existing one is replaced.
        records: anything that `load_records` takes.

    Raises:
        RecordError: `records` contains something that is not a record. An existing file is then unchanged.
        StorageError: the file cannot be written. An existing file is then unchanged.
    """
    save_lines(path, given_rows(records, Record, load_records))


def append_record(path: str | Path, record: Record) -> None:
    """Append one record durably (fsync before return). Raises `StorageError`; the file is then as it was."""
    append_records(path, [record])


def append_records(path: str | Path, records: Sequence[Record]) -> None:
    """Append records durably, with one fsync, in turn with other writers. Raises `StorageError`, as `append_lines`."""
    append_lines(path, [record.model_dump_json() for record in records])
