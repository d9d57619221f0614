"""The protocol: what a correction may be, which tokens become anchors, when an answer has ended, what happens to it.

Every rule stands here once, for programs (`session`) and for people (`annotator.sessions`) alike: values only, no model
and no clock. What happened is an event, and `tree.apply` gives the state after it (paper section 3.1).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from anchorlwf.annotation.events import Continued, Corrected, Started
from anchorlwf.data.record import Anchor, Record
from anchorlwf.decoding.teacher_forcing import Choices
from anchorlwf.errors import NothingToDoError, RecordError, wrong

__all__ = ["Bounds", "State", "anchors_of", "check_correction", "check_position", "continued", "corrected", "resumed"]


@dataclass(frozen=True)
class State:
    """An answer and its anchors at one moment."""

    completion_ids: tuple[int, ...]
    anchors: tuple[Anchor, ...] = ()
    ties: tuple[int, ...] = ()
    truncated: bool = False


@dataclass(frozen=True)
class Bounds:
    """What the answers to one prompt may consist of."""

    tokens: int
    """Maximum number of completion tokens: what was configured, or less where the context has no more room."""
    vocabulary: int
    """Token ids are below it."""
    stop_ids: frozenset[int]
    """Any of them ends the turn."""

    def ending(self, completion_ids: Sequence[int]) -> tuple[bool, bool]:
        """Whether these tokens are a whole answer, and whether only the limit made them one."""
        stopped = bool(completion_ids) and completion_ids[-1] in self.stop_ids
        full = len(completion_ids) >= self.tokens
        return stopped or full, full and not stopped

    def begun(self, started: Started) -> Started:
        """What a session begins with, whole only where it is: a draft may have been put away in mid-answer."""
        if started.truncated or not started.ended:
            return started
        ended, truncated = self.ending(started.completion_ids)
        return started.model_copy(update={"ended": ended, "truncated": truncated})


def check_position(position: int, length: int) -> None:
    """Raise `RecordError` unless an answer of `length` tokens has one at `position`."""
    if not 0 <= position < length:
        raise RecordError(wrong("position", f"0 to {length - 1}", position, "Point at a token of the answer."))


def check_correction(bounds: Bounds, completion_ids: Sequence[int], position: int, token_ids: Sequence[int]) -> None:
    """Ask whether `token_ids` may stand from `position` of an answer on.

    Raises:
        RecordError: position or tokens outside the answer, its limit or the vocabulary, or tokens behind the end.
        NothingToDoError: exactly these tokens stand there already.
    """
    check_position(position, len(completion_ids))
    if not token_ids:
        raise RecordError(wrong("correction", "at least one token", "none", "Give the text that should stand."))
    stray = next((token for token in token_ids if not 0 <= token < bounds.vocabulary), None)
    if stray is not None:
        expected = f"token ids from 0 to {bounds.vocabulary - 1}"
        raise RecordError(wrong("correction", expected, stray, "Take ids of this model's tokenizer."))
    length = position + len(token_ids)
    if length > bounds.tokens:
        fix = "Raise --max-new-tokens or shorten it."
        raise RecordError(wrong("answer", f"at most {bounds.tokens} tokens", length, fix))
    if not bounds.stop_ids.isdisjoint(token_ids[:-1]):
        raise RecordError(wrong("correction", "the end-of-turn token last", "tokens after it", "Drop those."))
    if list(completion_ids[position:length]) == list(token_ids):
        fix = "Choose another token, or accept the answer."
        raise NothingToDoError(wrong("correction", "tokens that differ from the answer", "the same", fix))


def anchors_of(
    choices: Choices, token_ids: Sequence[int], start: int, confidence: float, source: str
) -> tuple[list[Anchor], list[int]]:
    """Anchors and ties among `token_ids`, which stand from position `start` on: the rule of the protocol.

    A token is an anchor if the model, given the corrected prefix, would not pick it greedily; within the tolerance of
    a tie it is noted as such instead. `choices` has one entry per token of `token_ids`.
    """
    anchors, ties = [], []
    for offset, token in enumerate(token_ids):
        position = start + offset
        if choices.tied[offset]:
            ties.append(position)
        elif choices.best_ids[offset] != token:
            anchors.append(
                Anchor(
                    position=position,
                    token_id=token,
                    rejected_id=choices.best_ids[offset],
                    confidence=confidence,
                    ref_probability=choices.probabilities[offset],
                    source=source,
                )
            )
    return anchors, ties


def resumed(record: Record, at: datetime) -> Started:
    """An unfinished record is taken up: its answer as it stands is the first of the session (`Bounds.begun`)."""
    return Started(
        at=at,
        completion_ids=tuple(record.completion_ids),
        anchors=tuple(record.anchors),
        ties=tuple(record.ties),
        original_ids=tuple(record.original_ids),
        ended=True,
        truncated=record.truncated,
    )


def corrected(
    bounds: Bounds,
    parent: int,
    prefix_ids: Sequence[int],
    token_ids: Sequence[int],
    choices: Choices,
    *,
    confidence: float,
    source: str,
    at: datetime,
) -> Corrected:
    """A correction that `check_correction` let pass was made.

    Args:
        bounds: of the answer.
        parent: number of the answer that is corrected.
        prefix_ids: its tokens before the correction.
        token_ids: what stands behind them from now on.
        choices: what the model would have chosen at each of `token_ids`.
        confidence, source: of the anchors among them.
        at: when.
    """
    anchors, ties = anchors_of(choices, token_ids, len(prefix_ids), confidence, source)
    ended, truncated = bounds.ending([*prefix_ids, *token_ids])
    return Corrected(
        at=at,
        parent=parent,
        position=len(prefix_ids),
        token_ids=tuple(token_ids),
        probabilities=tuple(choices.probabilities),
        anchors=tuple(anchors),
        ties=tuple(ties),
        source=source,
        ended=ended,
        truncated=truncated,
    )


def continued(
    bounds: Bounds,
    node: int,
    standing_ids: Sequence[int],
    token_ids: Sequence[int],
    probabilities: Sequence[float],
    at: datetime,
) -> Continued:
    """The model went on at an answer, number `node`, whose tokens were `standing_ids`."""
    ended, truncated = bounds.ending([*standing_ids, *token_ids])
    return Continued(
        at=at,
        node=node,
        token_ids=tuple(token_ids),
        probabilities=tuple(probabilities),
        ended=ended,
        truncated=truncated,
    )
