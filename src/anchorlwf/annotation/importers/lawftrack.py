"""Data sets of lawftrack, the paper's own annotation tool, as records.

They hold texts and token numbers, no ids: everything is tokenised again, each anchor is checked against the token that
stands there now, looked for nearby, and flagged where it does not fit. Nothing is guessed silently. Traces of the
paper's experiments, which do hold ids, come in as they are (`traces`).

lawftrack counts the tokens of a message in its raw text, the template's header included where that is part of it.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from typing import Any, Literal

from pydantic import ValidationError

from anchorlwf.annotation.importers.markers import Markers, messages_of
from anchorlwf.annotation.importers.traces import is_trace, trace_record
from anchorlwf.data.jsonl import BadLine, lines_of, problem_of, refusal
from anchorlwf.data.record import Anchor, ModelStamp, Prompt, Record, chat_key, new_id
from anchorlwf.errors import AnchorLwfError, RecordError, wrong
from anchorlwf.model.vocabulary import TokenTable

__all__ = ["CHECK", "Flag", "LawftrackFile", "Span", "read_lawftrack"]

Span = Literal["first", "whole"]
"""Of a replacement of several tokens: only the first is an anchor, or each of them."""
CHECK = "lawftrack:check"
"""Tag of drafts that hold a flagged anchor."""

_NEAR = 16
"""How many tokens away an anchor is looked for."""
_CONFIDENCE = 0.999
"""Where the file gives none."""


@dataclass(frozen=True)
class Flag:
    """An anchor, or a whole sample, that does not fit."""

    sample: str
    anchor: int | None
    """Its number in the sample, from 0; None: the sample itself."""
    reason: str

    def __str__(self) -> str:
        return f"sample {self.sample}{'' if self.anchor is None else f', anchor {self.anchor + 1}'}: {self.reason}"


@dataclass(frozen=True)
class LawftrackFile:
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
    before: int
    """Tokens of the raw text before the answer: lawftrack's numbers begin there."""


def _samples(content: str) -> Iterator[tuple[str, Any]]:
    """Each sample under its name; a `BadLine` where a line of training JSONL is none."""
    try:
        whole = json.loads(content)
    except RecursionError as error:
        raise RecordError(wrong("lawftrack file", "JSON", "brackets without end", "Export it again.")) from error
    except ValueError:
        rows = _line_rows(content)
    else:
        # Beside its tasks a trace repeats them as one, run together.
        held = ("samples", "tasks")
        rows = next((whole[key] for key in held if key in whole), [whole]) if isinstance(whole, dict) else whole
    if not isinstance(rows, list):
        raise RecordError(wrong("lawftrack file", "a list of samples", type(rows).__name__, "Export it again."))
    for number, row in enumerate(rows, 1):
        names = [row.get(key) for key in ("id", "title", "task_name")] if isinstance(row, dict) else []
        line = f"line {row.line}" if isinstance(row, BadLine) else None
        yield str(next(filter(None, [*names, line]), number)), row


def _line_rows(content: str) -> list[Any]:
    """The lines of training JSONL. Raises `RecordError` where no line is good."""
    if not content.strip():
        raise RecordError(wrong("lawftrack file", "at least one sample", "an empty file", "Export it again."))
    rows = [
        BadLine("lawftrack file", line.number, line.row) if isinstance(line.row, str) else line.row
        for line in lines_of(BytesIO(content.encode(errors="surrogatepass")))
    ]
    bad = [row for row in rows if isinstance(row, BadLine)]
    if len(bad) == len(rows):
        raise refusal(bad, 0)
    return rows


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return "" if content is None else str(content)


def _raw_messages(row: dict[str, Any], table: TokenTable) -> tuple[list[dict[str, Any]], int]:
    """The sample's chat with its texts as they stand, and the number of the first message that may be a completion."""
    messages, first = row.get("messages"), 0
    if row.get("completion") is not None:
        prompt, completion = row.get("prompt") or [], row["completion"]
        # lawftrack takes either as a text, too.
        prompt = messages_of(prompt, table.codec) if isinstance(prompt, str) else prompt
        completion = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
        messages, first = [*prompt, *completion], len(prompt)
    roles = [isinstance(m, dict) and isinstance(m.get("role"), str) for m in messages or []]
    if not isinstance(messages, list) or not all(roles):
        raise RecordError(wrong("sample", "messages with roles", "something else", "Export it again."))
    if "completion_message_index" in row and row.get("completion") is None:
        first = row["completion_message_index"]
        if type(first) is not int or not 0 <= first < len(messages):
            what = f"the number of a message, 0 to {len(messages) - 1}"
            raise RecordError(wrong("completion_message_index", what, repr(first)[:80], "Export it again."))
        messages = messages[: first + 1]
    return [{**message, "content": _text(message.get("content"))} for message in messages], first


def _turns(row: dict[str, Any], table: TokenTable, markers: Markers, end_id: int) -> list[_Turn]:
    raw, first = _raw_messages(row, table)
    answers = [markers.answer(m["content"]) if m["role"] == "assistant" else slice(None) for m in raw]
    clean = [{**m, "content": m["content"][answer]} for m, answer in zip(raw, answers, strict=True)]
    return [
        _Turn(
            index,
            clean[:index],
            [*table.encode(message["content"]), end_id],
            _count_before(table, raw[index]["content"], answers[index].start),
        )
        for index, message in enumerate(clean)
        if message["role"] == "assistant" and index >= first and index > 0
    ]


def _count_before(table: TokenTable, text: str, start: int) -> int:
    """How many tokens of the text end before the character `start`."""
    tokenizer = table.codec.tokenizer
    if not start or not tokenizer.is_fast:
        return len(table.encode(text[:start]))
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return sum(end <= start for _, end in offsets)


def _anchors(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Every anchor once: `edits` repeats `anchors`."""
    anchors: dict[tuple[Any, ...], dict[str, Any]] = {}
    for anchor in [*(row.get("anchors") or []), *(row.get("edits") or [])]:
        if not isinstance(anchor, dict):
            raise RecordError(wrong("anchor", "an object", type(anchor).__name__, "Export it again."))
        position, message = anchor.get("token_index", anchor.get("position")), anchor.get("message_index")
        wanted = anchor.get("replacement_token")
        if message is not None and type(message) is not int:
            raise RecordError(wrong("message_index", "an integer", repr(message)[:80], "Export it again."))
        if type(position) is not int or not isinstance(wanted, str) or not wanted:
            what = "token_index and replacement_token"
            raise RecordError(wrong("anchor", what, repr(anchor)[:80], "Export it again."))
        anchors.setdefault((message, position, wanted), {**anchor, "token_index": position, "message_index": message})
    return list(anchors.values())


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


def _near(table: TokenTable, turn: _Turn, anchor: dict[str, Any]) -> tuple[int, int] | str:
    """Position and number of tokens of an anchor, or why it does not fit."""
    position, wanted = anchor["token_index"] - turn.before, anchor["replacement_token"]
    if count := _length(table, turn.ids, position, wanted):
        return position, count
    around = range(position - _NEAR, position + _NEAR + 1)
    hits = [(near, count) for near in around if (count := _length(table, turn.ids, near, wanted))]
    if len(hits) == 1:
        return hits[0]
    number = position + turn.before
    if hits:
        numbers = " and at ".join(str(near + turn.before) for near, _ in hits[:2])
        return f"{wanted!r} does not stand at token {number}, but at {numbers}: which of them is meant?"
    return f"{wanted!r} stands nowhere within {_NEAR} tokens of {number}"


def _fits(turn: _Turn, table: TokenTable, anchor: dict[str, Any]) -> bool:
    """Whether the anchor stands exactly where it should, were this the message it speaks of."""
    return bool(_length(table, turn.ids, anchor["token_index"] - turn.before, anchor["replacement_token"]))


def _assigned(
    turns: list[_Turn], table: TokenTable, anchors: list[dict[str, Any]]
) -> tuple[dict[int, list[tuple[int, dict[str, Any]]]], dict[int, str]]:
    """Anchors by turn, and what is wrong with those of which it cannot be told.

    As `message_index` says where they fit there, else where alone they fit, else the named turn, else the last one.
    """
    by_index = {turn.index: turn for turn in turns}
    assigned: dict[int, list[tuple[int, dict[str, Any]]]] = {turn.index: [] for turn in turns}
    unclear: dict[int, str] = {}
    for number, anchor in enumerate(anchors):
        message = anchor["message_index"]
        named = by_index.get(turns[-1].index if message is None else message)
        fitting = [turn for turn in turns if _fits(turn, table, anchor)]
        chosen = named if named is not None and (named in fitting or not fitting) else (fitting or turns)[-1]
        assigned[chosen.index].append((number, anchor))
        if chosen is not named and len(fitting) > 1:
            messages = " and in ".join(str(turn.index) for turn in fitting[:2])
            unclear[number] = f"{anchor['replacement_token']!r} stands there in message {messages}: which one is meant?"
    return assigned, unclear


def _made(
    turn: _Turn,
    table: TokenTable,
    listed: list[tuple[int, dict[str, Any]]],
    unclear: dict[int, str],
    span: Span,
    sample: str,
) -> tuple[dict[int, Anchor], list[Flag]]:
    made: dict[int, Anchor] = {}
    flags: list[Flag] = []
    for number, anchor in listed:
        hit = unclear.get(number) or _near(table, turn, anchor)
        if isinstance(hit, str):
            flags.append(Flag(sample, number, hit))
            continue
        start, count = hit
        before = table.codec.encode(str(anchor.get("original_token") or ""))
        for offset in range(count if span == "whole" else 1):
            token = turn.ids[start + offset]
            rejected = before[0] if not offset and len(before) == 1 and before[0] != token else None
            made[start + offset] = Anchor(
                position=start + offset,
                token_id=token,
                rejected_id=rejected,
                confidence=_CONFIDENCE if anchor.get("confidence") is None else anchor["confidence"],
                source="human:lawftrack",
                created_at=_moment(anchor.get("created_at")),
            )
    return made, flags


def _moment(value: Any) -> Any:
    """When an anchor was made: lawftrack's seconds since 1970, or a text; now where it does not say."""
    if type(value) not in (int, float):
        return value or datetime.now(UTC)
    try:
        return datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise RecordError(wrong("created_at", "seconds since 1970", value, "Export it again.")) from error


def _sample(
    sample: str, row: Any, table: TokenTable, stamp: ModelStamp, markers: Markers, end_id: int, span: Span
) -> tuple[list[Record], list[Flag]]:
    if isinstance(row, BadLine):
        raise RecordError(row.problem)
    if not isinstance(row, dict):
        raise RecordError(wrong("sample", "an object", type(row).__name__, "Export it again."))
    if is_trace(row):
        return [trace_record(row, table, stamp, end_id, _CONFIDENCE)], []
    turns, anchors = _turns(row, table, markers, end_id), _anchors(row)
    if not turns:
        raise RecordError(wrong("sample", "an assistant's message", "none", "Export it again."))
    records, flags = [], []
    assigned, unclear = _assigned(turns, table, anchors)
    for turn in turns:
        if not assigned[turn.index] and turn is not turns[-1]:
            continue  # an earlier turn that nobody corrected is only context
        made, misfits = _made(turn, table, assigned[turn.index], unclear, span, sample)
        flags += misfits
        tools = row.get("tools") or []
        records.append(
            Record.build(
                Prompt(messages=turn.messages, tools=tools, tags=["lawftrack"]),
                stamp,
                prompt_ids=table.codec.encode_prompt(turn.messages, tools),
                completion_ids=turn.ids,
                decode=table.codec.decode,
                record_id=new_id("lawftrack", sample, turn.index, chat_key(turn.messages, tools), turn.ids),
                anchors=[made[position] for position in sorted(made)],
                status="draft" if misfits else "complete",
                tags=[CHECK] if misfits else [],
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
) -> LawftrackFile:
    """Read a data set export, training JSONL, the older form of either, or a trace of the paper's experiments.

    Args:
        content: the file.
        table, stamp, stop_ids: of the base model that was annotated.
        span: which tokens of a replacement become anchors.
        check: raises an `AnchorLwfError` for a record that cannot be taken; its sample is flagged then.

    Raises:
        RecordError: no such file at all; a sample that cannot be read is flagged instead.
    """
    end_id, markers = table.codec.end_id(stop_ids), Markers(table.codec, stop_ids)
    records: list[Record] = []
    flags: list[Flag] = []
    for sample, row in _samples(content):
        try:
            made, misfits = _sample(sample, row, table, stamp, markers, end_id, span)
            for record in made:
                check(record)
        except ValidationError as error:
            flags.append(Flag(sample, None, problem_of(error)))
            continue
        except (AnchorLwfError, ValueError, TypeError) as error:
            flags.append(Flag(sample, None, str(error)))
            continue
        records += made
        flags += misfits
    return LawftrackFile(records, flags)
