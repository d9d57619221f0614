"""Prompts of the user's own to keep: JSONL, plain text, or a data set of the hub."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from anchorlwf.data.jsonl import Check, load_prompts
from anchorlwf.data.record import Prompt
from anchorlwf.errors import ConfigError, RecordError, wrong

__all__ = ["own_prompts"]

_COLUMNS = ("prompt", "messages", "conversation", "instruction", "question", "text")
"""Where data sets of prompts keep them, the first that is there."""


def own_prompts(sources: Iterable[str | Path], *, limit: int, check: Check[Prompt] | None = None) -> list[Prompt]:
    """The prompts of all sources, each once.

    Args:
        sources: a file that `load_prompts` takes; else a folder or name of a data set, of which the split `train` is
            read.
        limit: maximum number of prompts of each data set; files are read completely.
        check: raises an `AnchorLwfError` for a prompt that cannot be taken.

    Raises:
        ConfigError: no file, and no data set to be had under that name.
        RecordError: a file with a bad line, or a data set without prompts.
    """
    distinct: dict[str, Prompt] = {}
    for source in sources:
        for prompt in _read(source, limit, check):
            distinct.setdefault(prompt.model_dump_json(include={"messages", "tools"}), prompt)
    return list(distinct.values())


def _read(source: str | Path, limit: int, check: Check[Prompt] | None) -> list[Prompt]:
    path = Path(source)
    if path.is_file():
        return load_prompts(path, check=check)
    rows = list(itertools.islice(_rows(str(source)), limit))
    if not rows:
        fix = f"A data set needs one of the columns {', '.join(_COLUMNS)}."
        raise RecordError(wrong(str(source), "prompts", "none", fix))
    return load_prompts(rows, check=check)


def _rows(name: str) -> Iterator[dict[str, Any]]:
    from datasets import load_dataset

    try:
        for row in load_dataset(name, split="train", streaming=True):
            value = next((row[column] for column in _COLUMNS if row.get(column)), None)
            if messages := _asked(value):
                yield {"messages": messages}
    except Exception as error:  # datasets raises many kinds, by format and transport
        fix = "Give a .jsonl or .txt file, a data set's folder, or its name on the hub (and a connection to it)."
        got = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(wrong(f"prompts {name}", "a file or a data set", got, fix)) from error


def _asked(value: Any) -> list[dict[str, Any]]:
    """The chat up to its first user's turn: what comes behind answers another model's words."""
    if isinstance(value, str):
        return [{"role": "user", "content": value}] if value.strip() else []
    turns = [turn for turn in value or () if isinstance(turn, dict)]
    first = next((i for i, turn in enumerate(turns) if turn.get("role") == "user"), None)
    return [] if first is None else [{key: turn[key] for key in ("role", "content")} for turn in turns[: first + 1]]
