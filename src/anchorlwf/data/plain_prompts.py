"""Prompts in plain text and CSV: the rows of a file, with the numbers of their lines, as JSONL would have them."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from anchorlwf.errors import PromptWarning, RecordError, warn, wrong

__all__ = ["decoded", "is_plain", "plain_rows", "text_rows"]

_TABLES = (".csv", ".tsv")
_QUESTIONS = ("prompt", "question")
_ANSWER = "answer"
_BYTES = "surrogateescape"
"""Bytes that are no UTF-8 come out as characters that UTF-8 has not, so that they can be found and named by line."""


def is_plain(path: str | Path) -> bool:
    """Whether the name is that of plain text (`.txt`) or of a table (`.csv`, `.tsv`), and not of JSONL."""
    return Path(path).suffix.lower() in (".txt", *_TABLES)


def plain_rows(path: str | Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """The prompts of a file for which `is_plain` holds.

    A text file holds a prompt per line. A table begins with a line of names, among them `prompt` or `question`, and
    `answer` where the right answers are known; what separates its fields (comma, semicolon or tab) is found out.

    Yields:
        Line numbers, counted from 1, each with a row as `Prompt` takes it, or with what is wrong with the line. Blank
        lines are left out.

    Raises:
        RecordError: a table without a column of prompts.
    """
    with open(path, encoding="utf-8-sig", errors=_BYTES, newline="") as stream:
        yield from _table(stream, str(path)) if Path(path).suffix.lower() in _TABLES else text_rows(stream)


def decoded(line: bytes) -> str:
    """A line of plain text that stands elsewhere than in a file."""
    return line.decode("utf-8-sig", _BYTES)


def text_rows(lines: Iterator[str]) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """A prompt per line; yields as `plain_rows`."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, _checked({"prompt": line.strip()})


def _checked(row: dict[str, Any]) -> dict[str, Any] | str:
    try:
        for value in row.values():
            value.encode()
    except UnicodeEncodeError:
        return "expected UTF-8 text, got bytes that are not; save the file as UTF-8"
    return row


def _table(stream: Iterator[str], name: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    first = next(stream, "")
    separator = max(",;\t", key=first.count)
    header = [field.strip().lower() for field in next(csv.reader([first], delimiter=separator), [])]
    question = next((column for column in _QUESTIONS if column in header), None)
    if question is None:
        fix = "Name the columns in the first line."
        got = ", ".join(header) or "an empty first line"
        raise RecordError(wrong(name, "a column `prompt` or `question`", got, fix))
    unread = [column for column in header if column not in (question, _ANSWER)]
    if unread:
        warn(f"{name}: the columns {', '.join(unread)} are not read, only {question} and {_ANSWER}", PromptWarning)
    places = {"prompt": header.index(question), **({_ANSWER: header.index(_ANSWER)} if _ANSWER in header else {})}
    reader = csv.reader(stream, delimiter=separator, strict=True)
    while True:
        number = reader.line_num + 2  # behind the names, and counted from 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            yield number, f"expected a row of a table, got a broken one ({error}); nothing behind it was read"
            return
        if fields is None:
            return
        if any(map(str.strip, fields)):
            yield number, _row(fields, places, len(header))


def _row(fields: list[str], places: dict[str, int], columns: int) -> dict[str, Any] | str:
    if any(map(str.strip, fields[columns:])):
        return f"expected {columns} fields, got {len(fields)}; put texts with separators in them between double quotes"
    row = {field: fields[place].strip() for field, place in places.items() if place < len(fields)}
    if not row.get("prompt"):
        return "expected a prompt, got an empty field"
    return _checked({field: value for field, value in row.items() if value})
