"""Annotation traces of the paper's experiments: one task each, with the token ids of the corrected answer."""

from datetime import UTC, datetime
from typing import Any

from anchorlwf.data.record import Anchor, Message, ModelStamp, Prompt, Record, new_id
from anchorlwf.errors import RecordError, wrong
from anchorlwf.model.vocabulary import TokenTable

__all__ = ["is_trace", "trace_record"]

_FIX = "Name the model that was annotated, with its own tokenizer."


def is_trace(row: dict[str, Any]) -> bool:
    """Whether a sample is such a task."""
    return "completion_ids" in row and "anchor_token_indices" in row


def trace_record(row: dict[str, Any], table: TokenTable, stamp: ModelStamp, end_id: int, confidence: float) -> Record:
    """The record of one task.

    Nothing is tokenised again. That the ids are this tokenizer's is seen by the texts that stand beside them.

    Args:
        row: `prompt`, `completion_ids` without the end of turn, `anchor_token_indices` into them; texts and rounds.
        table, stamp, end_id: of the model that was annotated.
        confidence: of anchors for which the trace names no target.

    Raises:
        RecordError: fields that do not fit one another, or ids of another tokenizer.
    """
    prompt, ids, positions = row.get("prompt"), row["completion_ids"], row["anchor_token_indices"]
    if not isinstance(prompt, str) or not prompt.strip():
        raise RecordError(wrong("prompt", "a text", repr(prompt)[:80], "Export it again."))
    for name, numbers in (("completion_ids", ids), ("anchor_token_indices", positions)):
        if not isinstance(numbers, list) or any(type(number) is not int for number in numbers):
            raise RecordError(wrong(name, "a list of integers", repr(numbers)[:80], "Export it again."))
    table.check(ids)
    if any(not 0 <= position < len(ids) for position in positions):
        got = repr(positions)[:80]
        raise RecordError(wrong("anchor_token_indices", f"positions below {len(ids)}", got, "Export it again."))
    _check_texts(row, table, ids, positions)
    cut = _cut(row)
    answer = ids if cut or (ids and ids[-1] == end_id) else [*ids, end_id]
    messages = [{"role": "user", "content": prompt}]
    prompt_ids = _prompt_ids(table, messages)
    return Record.build(
        Prompt(messages=messages, tags=["trace"]),
        stamp,
        prompt_ids=prompt_ids,
        completion_ids=answer,
        decode=table.codec.decode,
        record_id=new_id("trace", prompt_ids, answer),
        anchors=_anchors(row, table, ids, positions, confidence),
        truncated=cut,
        tags=[row["task_name"]] if isinstance(row.get("task_name"), str) else [],
    )


def _check_texts(row: dict[str, Any], table: TokenTable, ids: list[int], positions: list[int]) -> None:
    said, text = row.get("gold_completion"), table.codec.decode(ids)
    if said is not None and said != text:
        got = f"{text[:60]!r} by this tokenizer"
        raise RecordError(wrong("completion_ids", f"ids of gold_completion, {str(said)[:60]!r}", got, _FIX))
    tokens = row.get("anchor_tokens")
    stand = [table.codec.decode([ids[position]], special=True) for position in positions]
    if tokens is not None and tokens != stand:
        got = f"{str(stand)[:80]} by this tokenizer"
        raise RecordError(wrong("anchor_token_indices", f"tokens {str(tokens)[:80]}", got, _FIX))


def _rounds(row: dict[str, Any]) -> list[dict[str, Any]]:
    rounds = row.get("rounds")
    return [entry for entry in rounds if isinstance(entry, dict)] if isinstance(rounds, list) else []


def _cut(row: dict[str, Any]) -> bool:
    """Whether the answer was broken off by its length."""
    rounds = _rounds(row)
    return bool(rounds) and (rounds[-1].get("truncated_by_length") is True)


def _prompt_ids(table: TokenTable, messages: list[Message]) -> list[int]:
    """As the experiments templated it: without thinking, where the template has a choice."""
    return table.codec.encode_prompt(messages, thinking=False)


def _anchors(
    row: dict[str, Any], table: TokenTable, ids: list[int], positions: list[int], confidence: float
) -> list[Anchor]:
    corrected = {
        token.get("token_index"): token
        for entry in _rounds(row)
        for token in entry.get("correction_tokens") or []
        if isinstance(token, dict)
    }
    targets = row.get("anchor_target_probabilities") or [None] * len(positions)
    if len(targets) != len(positions):
        fix = "Export it again."
        raise RecordError(wrong("anchor_target_probabilities", f"one for each of {len(positions)}", len(targets), fix))
    annotator, made = row.get("annotator_model"), {}
    for position, target in zip(positions, targets, strict=True):
        known = corrected.get(position, {})
        reference, first = known.get("reference_probability"), known.get("top1_token_text")
        before = table.encode(first) if isinstance(first, str) else []
        made[position] = Anchor(
            position=position,
            token_id=ids[position],
            rejected_id=before[0] if len(before) == 1 and before[0] != ids[position] else None,
            confidence=confidence if target is None else _confidence(target, reference),
            ref_probability=reference,
            source=f"judge:{annotator}" if annotator else "human",
            created_at=datetime.now(UTC),
        )
    return [made[position] for position in sorted(made)]


def _confidence(target: Any, reference: Any) -> Any:
    """The c with c + (1 - c) r = target: a trace names the probability an anchor is to have, not its confidence."""
    if not isinstance(target, float) or not isinstance(reference, float) or reference >= 1:
        return target  # the anchor itself refuses what is no number
    return (target - reference) / (1 - reference)
