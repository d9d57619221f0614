"""The model writes prompts: it is shown a chat up to where a user speaks, and sampled until that turn ends.

With a chat template that is everything up to and including the user's header (Magpie, arXiv 2406.08464). A model
without one writes text from its start token, of which a random number of tokens becomes the prompt.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from anchorlwf.config import RetainConfig
from anchorlwf.data.record import Message, Record
from anchorlwf.decoding.greedy import Decoded, sample_batch
from anchorlwf.errors import ModelError, wrong
from anchorlwf.model.language_model import LanguageModel

__all__ = ["Opening", "Written", "general_opening", "near_opening", "write"]

# Turns that have nothing in common, so that what their templated prompts share is the template's.
_UNLIKE = ("Ab", "7", "\u4e2d", "(")
_SHORTEST = 4
"""Minimum number of prompt tokens for a model without a chat template."""


@dataclass(frozen=True)
class Opening:
    """How a prompt begins."""

    history: list[Message]
    """The turns before the one that is written."""
    tools: list[dict[str, Any]]
    header_ids: list[int]
    """Everything up to where the user speaks."""
    content_ids: list[int]
    """How the turn begins; mostly empty."""
    length: int | None
    """Tokens that the turn is cut to; None: it ends by itself, with one of `ends` or before `marker`."""
    ends: frozenset[int]
    marker: str
    """What the template writes behind the turn, where that begins with no token of its own; or nothing."""
    of: str | None = None
    """The corrected record it begins like."""


@dataclass(frozen=True)
class Written:
    """A turn the model wrote, or why it will not do."""

    text: str
    flaw: str | None


def _shared(rows: Sequence[list[int]]) -> int:
    """How many ids all rows begin with."""
    return next((i for i, column in enumerate(zip(*rows, strict=False)) if len(set(column)) > 1), min(map(len, rows)))


def _control_ids(model: LanguageModel) -> frozenset[int]:
    tokenizer = model.codec.tokenizer
    added = {token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special}
    return frozenset(added | set(tokenizer.all_special_ids)) | model.stop_ids


def _opening(model: LanguageModel, history: list[Message], tools: list[dict[str, Any]]) -> tuple[Opening, int]:
    """The opening of a turn behind `history`, and how many ids the template puts behind the turn."""
    rows = [model.codec.encode_prompt([*history, {"role": "user", "content": text}], tools) for text in _UNLIKE]
    header_ids = rows[0][: _shared(rows)]
    footer = _shared([row[len(header_ids) :][::-1] for row in rows])
    footer_ids = rows[0][len(rows[0]) - footer :]
    control = _control_ids(model)
    end = next((token for token in footer_ids if token in control), None)
    ends = model.stop_ids | (frozenset() if end is None else {end})
    marker = model.codec.decode(footer_ids, special=True).strip() if end is None else ""
    return Opening(history, tools, header_ids, [], None, ends, marker), footer


def general_opening(model: LanguageModel, rng: random.Random, config: RetainConfig) -> Opening:
    """The first turn of a chat about anything.

    Raises:
        ModelError: no chat template, and no token to start from.
    """
    opening, _ = _opening(model, [], [])
    tokenizer = model.codec.tokenizer
    if tokenizer.chat_template:
        return opening
    # Documents begin behind the end of another where no token of its own says so.
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    header_ids = opening.header_ids or ([] if first is None else [first])
    if not header_ids:
        fix = "Give prompts of your own in a file, take --retain none, or set the tokenizer's bos_token."
        raise ModelError(wrong("the model's own prompts", "a chat template or a start token", "neither", fix))
    length = rng.randint(min(_SHORTEST, config.prompt_tokens), config.prompt_tokens)
    return Opening([], [], header_ids, [], length, opening.ends, "")


def near_opening(model: LanguageModel, record: Record, rng: random.Random) -> Opening | None:
    """The corrected prompt up to a random token of its last turn; None where that is no user's text."""
    *history, last = record.messages
    if last.get("role") != "user" or not isinstance(last.get("content"), str):
        return None
    opening, footer = _opening(model, history, record.tools)
    content_ids = record.prompt_ids[len(opening.header_ids) : len(record.prompt_ids) - footer]
    length = None if model.codec.tokenizer.chat_template else len(content_ids)
    kept = rng.randint(min(1, len(content_ids) - 1), len(content_ids) - 1) if content_ids else 0
    begun = content_ids[:kept]
    return Opening(history, record.tools, opening.header_ids, begun, length, opening.ends, opening.marker, record.id)


def write(model: LanguageModel, openings: Sequence[Opening], config: RetainConfig, seed: int) -> list[Written]:
    """One turn for each opening, all in one batch. Raises `PromptError` where an opening fills the context."""
    ends = frozenset[int]().union(*(opening.ends for opening in openings))
    prompts = [[*opening.header_ids, *opening.content_ids] for opening in openings]
    sampled = sample_batch(
        model, prompts, config.prompt_tokens, seed=seed, temperature=config.temperature, stop_ids=ends
    )
    control = _control_ids(model)
    return [_written(model, opening, turn, control) for opening, turn in zip(openings, sampled, strict=True)]


def _written(model: LanguageModel, opening: Opening, turn: Decoded, control: frozenset[int]) -> Written:
    ids = turn.ids if turn.truncated else turn.ids[:-1]
    complete = not turn.truncated
    if opening.length is not None:
        ids, complete = ids[: max(1, opening.length - len(opening.content_ids))], True
    text = model.codec.decode([*opening.content_ids, *ids], special=True)
    if opening.marker and opening.marker in text:
        text, complete = text.partition(opening.marker)[0], True
    if not complete:
        return Written(text, "cut off")
    if not control.isdisjoint(ids):
        return Written(text, "control tokens")
    return Written(text.strip(), None)
