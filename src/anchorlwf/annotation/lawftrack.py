"""Data sets of lawftrack, the paper's own annotation tool, as records.

They hold texts and token numbers, no ids: everything is tokenised again, each anchor is checked against the token that
stands there now, looked for nearby, and flagged where it does not fit. Nothing is guessed silently.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from anchorlwf.annotation.tokens import TokenTable
from anchorlwf.errors import AnchorLwfError, RecordError, wrong
from anchorlwf.record import Anchor, ModelStamp, Record, new_id

__all__ = ["CHECK", "Flag", "Found", "Span", "read_lawftrack"]

Span = Literal["first", "whole"]
"""Of a replacement of several tokens: only the first is an anchor, or each of them."""
CHECK = "lawftrack:check"
"""Tag of drafts that hold a flagged anchor."""

_NEAR = 16
"""How many tokens away an anchor is looked for."""
_CONFIDENCE = 0.999
"""Where the file gives none."""
_HEADER = re.compile(r"^.*<\|im_start\|>\s*assistant[ \t]*\r?\n?", re.DOTALL)
_END = re.compile(r"<\|(?:im_end|endoftext|eot_id|end_of_text)\|>.*$", re.DOTALL)


@dataclass(frozen=True)
class Flag:
    """An anchor, or a whole sample, that does not fit."""

    sample: str
    anchor: int | None
    """Its number in the sample, from 0; None: the sample itself."""
    reason: str

    def __str__(self) -> str:
        return f"sample {self.sample}{'' if self.anchor is None else f', anchor {self.anchor + 1}'}: {self.reason}"

    def json(self) -> dict[str, Any]:
        """For the page."""
        return {"sample": self.sample, "anchor": self.anchor, "reason": self.reason}


@dataclass(frozen=True)
class Found:
    """What a file held."""

    records: list[Record]
    """Complete where every anchor fits; drafts tagged `CHECK` with those that do, where one does not."""
    flags: list[Flag]


@dataclass(frozen=True)
class _Turn:
    """One assistant message with what comes before it."""

    index: int
    messages: list[dict[str, Any]]
    ids: list[int]


def _samples(content: str) -> Iterator[tuple[str, Any]]:
    try:
        whole = json.loads(content)
        rows = whole.get("samples", [whole]) if isinstance(whole, dict) else whole
        if not isinstance(rows, list):
            raise RecordError(wrong("lawftrack file", "a list of samples", type(rows).__name__, "Export it again."))
    except RecursionError as error:
        raise RecordError(wrong("lawftrack file", "JSON", "brackets without end", "Export it again.")) from error
    except json.JSONDecodeError:
        rows = []
        for number, line in enumerate(content.split("\n"), 1):
            try:
                rows += [json.loads(line)] if line.strip() else []
            except (ValueError, RecursionError) as error:
                raise RecordError(wrong(f"line {number}", "one JSON object", error, "Export it again.")) from error
    for number, row in enumerate(rows, 1):
        yield (str(row.get("id") or row.get("title") or number) if isinstance(row, dict) else str(number)), row


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return "" if content is None else str(content)


def strip_template(text: str) -> str:
    """An assistant's text without the header before it and the end-of-turn marker (and what follows) behind it."""
    return _END.sub("", _HEADER.sub("", text))


def _turns(row: dict[str, Any], table: TokenTable, end_id: int) -> list[_Turn]:
    messages, completion = row.get("messages"), row.get("completion")
    if completion is not None:
        messages = [*(row.get("prompt") or []), *completion]
    roles = [isinstance(m, dict) and isinstance(m.get("role"), str) for m in messages or []]
    if not isinstance(messages, list) or not all(roles):
        raise RecordError(wrong("sample", "messages with roles", "something else", "Export it again."))
    clean = [{**m, "content": _text(m.get("content"))} for m in messages]
    for message in clean:
        if message["role"] == "assistant":
            message["content"] = strip_template(message["content"])
    first = len(row.get("prompt") or []) if completion is not None else 0
    if "completion_message_index" in row and completion is None:
        first = int(row["completion_message_index"])
        clean = clean[: first + 1]
    return [
        _Turn(index, clean[:index], [*table.encode(message["content"]), end_id])
        for index, message in enumerate(clean)
        if message["role"] == "assistant" and index >= first and index > 0
    ]


def _anchors(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Every anchor once: `edits` repeats `anchors`."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for anchor in [*(row.get("anchors") or []), *(row.get("edits") or [])]:
        if not isinstance(anchor, dict):
            raise RecordError(wrong("anchor", "an object", type(anchor).__name__, "Export it again."))
        position = anchor.get("token_index", anchor.get("position"))
        wanted = anchor.get("replacement_token")
        if isinstance(position, bool) or not isinstance(position, int) or not isinstance(wanted, str) or not wanted:
            what = "token_index and replacement_token"
            raise RecordError(wrong("anchor", what, repr(anchor)[:80], "Export it again."))
        found.setdefault((position, wanted), {**anchor, "token_index": position})
    return list(found.values())


def _length(table: TokenTable, ids: list[int], position: int, wanted: str) -> int:
    """How many tokens from `position` on make up the text; 0 where it does not stand there."""
    if not 0 <= position < len(ids):
        return 0
    # A replacement that is part of a character was exported as U+FFFD: only the shown piece can be compared.
    if "\ufffd" in wanted:
        return int(table.token(ids[position]).text == wanted)
    target, sofar = wanted.encode(), b""
    for count, token in enumerate(ids[position:], 1):
        sofar += table.raw(token)
        if sofar.startswith(target):
            return count
        if not target.startswith(sofar):
            return 0
    return 0


def _near(table: TokenTable, ids: list[int], anchor: dict[str, Any]) -> tuple[int, int] | str:
    """Position and number of tokens of an anchor, or why it does not fit."""
    position, wanted = anchor["token_index"], anchor["replacement_token"]
    for distance in range(_NEAR + 1):
        places = sorted({position - distance, position + distance})
        hits = [(place, count) for place in places if (count := _length(table, ids, place, wanted))]
        if len(hits) == 1:
            return hits[0]
        if hits:
            return f"{wanted!r} stands at token {hits[0][0]} and at {hits[1][0]}, as near to {position} as one another"
    return f"{wanted!r} stands nowhere within {_NEAR} tokens of {position}"


def _fit(turn: _Turn, table: TokenTable, anchors: list[dict[str, Any]]) -> int:
    """How many anchors stand exactly where they should, were this the message they speak of."""
    return sum(bool(_length(table, turn.ids, a["token_index"], a["replacement_token"])) for a in anchors)


def _assigned(
    turns: list[_Turn], table: TokenTable, anchors: list[dict[str, Any]]
) -> dict[int, list[tuple[int, dict[str, Any]]]]:
    """Anchors by turn: as `message_index` says where they fit there, else where they fit, else the last turn."""
    by_index = {turn.index: turn for turn in turns}
    found: dict[int, list[tuple[int, dict[str, Any]]]] = {turn.index: [] for turn in turns}
    for number, anchor in enumerate(anchors):
        named = by_index.get(anchor.get("message_index", turns[-1].index))
        fitting = [turn for turn in turns if _fit(turn, table, [anchor])]
        chosen = named if named is not None and (named in fitting or not fitting) else (fitting or turns)[-1]
        found[chosen.index].append((number, anchor))
    return found


def _made(
    turn: _Turn, table: TokenTable, listed: list[tuple[int, dict[str, Any]]], span: Span, sample: str
) -> tuple[dict[int, Anchor], list[Flag]]:
    made: dict[int, Anchor] = {}
    flags: list[Flag] = []
    for number, anchor in listed:
        hit = _near(table, turn.ids, anchor)
        if isinstance(hit, str):
            flags.append(Flag(sample, number, hit))
            continue
        place, count = hit
        before = table.codec.encode(str(anchor.get("original_token") or ""))
        for offset in range(count if span == "whole" else 1):
            token = turn.ids[place + offset]
            rejected = before[0] if not offset and len(before) == 1 and before[0] != token else None
            made[place + offset] = Anchor(
                position=place + offset,
                token_id=token,
                rejected_id=rejected,
                confidence=anchor.get("confidence") or _CONFIDENCE,
                source="human:lawftrack",
                created_at=anchor.get("created_at") or datetime.now(UTC),
            )
    return made, flags


def _sample(
    sample: str, row: Any, table: TokenTable, stamp: ModelStamp, end_id: int, span: Span
) -> tuple[list[Record], list[Flag]]:
    if not isinstance(row, dict):
        raise RecordError(wrong("sample", "an object", type(row).__name__, "Export it again."))
    turns, anchors = _turns(row, table, end_id), _anchors(row)
    if not turns:
        raise RecordError(wrong("sample", "an assistant's message", "none", "Export it again."))
    records, flags = [], []
    assigned = _assigned(turns, table, anchors)
    for turn in turns:
        if not assigned[turn.index] and turn is not turns[-1]:
            continue  # an earlier turn that nobody corrected is only context
        made, wrong_ones = _made(turn, table, assigned[turn.index], span, sample)
        flags += wrong_ones
        prompt_ids = table.codec.encode_prompt(turn.messages, row.get("tools") or [])
        records.append(
            Record(
                id=new_id("lawftrack", sample, turn.index, prompt_ids, turn.ids),
                model=stamp,
                messages=turn.messages,
                tools=row.get("tools") or [],
                prompt_ids=prompt_ids,
                completion_ids=turn.ids,
                completion=table.codec.decode(turn.ids),
                anchors=[made[place] for place in sorted(made)],
                status="draft" if wrong_ones else "complete",
                tags=["lawftrack", *([CHECK] if wrong_ones else [])],
            )
        )
    return records, flags


def read_lawftrack(
    content: str,
    table: TokenTable,
    stamp: ModelStamp,
    stop_ids: frozenset[int],
    *,
    span: Span = "first",
    check: Callable[[Record], object] = lambda _record: None,
) -> Found:
    """Read a data set export, training JSONL, or the older form of either.

    Args:
        content: the file.
        table, stamp, stop_ids: of the base model that was annotated.
        span: which tokens of a replacement become anchors.
        check: raises an `AnchorLwfError` for a record that cannot be taken; its sample is flagged then.

    Raises:
        RecordError: no such file at all; a sample that cannot be read is flagged instead.
    """
    end_id = table.codec.end_id(stop_ids)
    records: list[Record] = []
    flags: list[Flag] = []
    for sample, row in _samples(content):
        try:
            made, wrong_ones = _sample(sample, row, table, stamp, end_id, span)
            for record in made:
                check(record)
        except (AnchorLwfError, ValueError, TypeError) as error:
            flags.append(Flag(sample, None, str(error)))
            continue
        records += made
        flags += wrong_ones
    return Found(records, flags)
