"""The lines of a JSONL file: read one at a time, checked, located; every bad one named."""

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from anchorlwf.errors import AnchorLwfError, AnchorLwfWarning, PromptWarning, RecordError, wrong

__all__ = [
    "BadLine",
    "BadLineWarning",
    "Check",
    "Line",
    "Row",
    "Source",
    "checked_line",
    "checked_lines",
    "good_lines",
    "problem_of",
    "refusal",
    "row_of",
    "rows_of",
]

Row = TypeVar("Row", bound=BaseModel)
Source = str | Path | BaseModel | Mapping[str, Any] | Iterable[BaseModel | Mapping[str, Any]]
"""A JSONL file; or rows, as dicts or checked already (a list, a generator, a `datasets` dataset); or a single one."""
Check = Callable[[Row], Iterable[str] | None]
"""Raises for a bad line; gives its remarks on a good one."""


_FEW = 5
"""Line numbers that one warning names."""


class BadLineWarning(AnchorLwfWarning):
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


def row_of(content: bytes) -> dict[str, Any] | str:
    """The JSON object that stands in a line; or, as a string, what is wrong with it."""
    try:
        row = json.loads(content.rstrip(b"\r\n").decode())
        # Half of an escaped surrogate pair is read without complaint, but no text can hold it: neither a
        # tokenizer nor a file would take it later.
        if b"\\u" in content:
            json.dumps(row, ensure_ascii=False).encode()
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


def _lines(source: Source, kind: type[BaseModel]) -> Iterator[Line]:
    if not isinstance(source, str | Path):
        # To us an absent field and None are the same. A `datasets` dataset (told by its features) also pads the dicts
        # within a row: {"role": "user", "content": "...", "tool_calls": None}, which chat templates would take badly.
        clean = _unpadded if hasattr(source, "features") else lambda value: value
        for number, row in enumerate(rows_of(source, kind), 1):
            yield Line(number, _row(row, clean))
        return
    start = 0
    with open(source, "rb") as stream:
        for number, content in enumerate(stream, 1):
            if content.strip():
                yield Line(number, row_of(content), start, content)
            start += len(content)


def checked_line(
    line: Line, source: str, kind: type[Row], check: Callable[[Row], object] | None = None
) -> Row | BadLine:
    """One line as `kind`, or what is wrong with it. Arguments: `checked_lines`."""
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


def checked_lines(
    source: Source, kind: type[Row], check: Check[Row] | None = None
) -> Iterator[tuple[Line, Row | BadLine]]:
    """Read a JSONL file (or rows of a dataset) as `kind`, line by line, good and bad; memory does not grow with it.

    Args:
        source: path, or rows.
        kind: of the lines.
        check: raises an `AnchorLwfError` for a line that is well-formed and yet no good, such as a prompt too long.
            What it returns are remarks on a good one, of which `good_lines` warns.

    Raises:
        RecordError: the file does not exist or holds no line at all.
    """
    name = str(source) if isinstance(source, str | Path) else "dataset"
    if isinstance(source, str | Path) and not Path(source).is_file():
        raise RecordError(wrong(name, "a JSONL file", "no such file", "Check the path."))
    empty = True
    for line in _lines(source, kind):
        empty = False
        yield line, checked_line(line, name, kind, check)
    if empty:
        what = f"at least one {kind.__name__.lower()}"
        got, fix = "an empty file", "Write one JSON object per line."
        if name == "dataset":
            got, fix = "no rows", "Give some; a generator gives its rows only once."
        raise RecordError(wrong(name, what, got, fix))


def _listed(numbers: list[int]) -> str:
    few = ", ".join(map(str, numbers[:_FEW])) + (f" and {len(numbers) - _FEW} more" if len(numbers) > _FEW else "")
    return f"line {few}" if len(numbers) == 1 else f"lines {few}"


def refusal(bad: Sequence[BadLine], good: int) -> AnchorLwfError:
    """The error that names every bad line of a source in which `good` other lines are good."""
    listing = "\n".join(map(str, bad))
    kinds = {one.kind for one in bad}
    error = kinds.pop() if len(kinds) == 1 else RecordError
    fix = "Mend the bad ones, or skip them (--skip-bad, where the command has it; in Python skip_bad=True)."
    return error(f"{listing}\n{good} other lines are good. {fix}")


def good_lines(
    source: Source, kind: type[Row], *, skip_bad: bool, asked_by: int, check: Check[Row] | None = None
) -> Iterator[tuple[Line, Row]]:
    """The good lines of `checked_lines`; once they have all been given, the bad ones are raised, or warned of.

    What `check` remarked on good lines is warned of then (`PromptWarning`), each remark once, with its lines.

    `asked_by`: how many calls up from here the one is that warnings should point at, as `warnings.warn` counts.
    """
    good, bad = 0, list[BadLine]()
    said: list[str] = []
    remarks: dict[str, list[int]] = {}

    def heard(row: Row) -> None:
        said[:] = (check(row) if check else None) or ()

    for line, row in checked_lines(source, kind, heard):
        if isinstance(row, BadLine):
            bad.append(row)
        else:
            good += 1
            for remark in said:
                remarks.setdefault(remark, []).append(line.number)
            yield line, row
    name = str(source) if isinstance(source, str | Path) else "dataset"
    for remark, numbers in remarks.items():
        warnings.warn(f"{name}, {_listed(numbers)}: {remark}", PromptWarning, stacklevel=asked_by)
    if bad and not skip_bad:
        raise refusal(bad, good)
    for one in bad:
        warnings.warn(str(one), BadLineWarning, stacklevel=asked_by)
