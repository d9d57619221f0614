"""What an annotator is asked and what it may answer.

Every annotator, person or program, answers one question: given prompt and completion, where is the first wrong token
and what should stand there, or is the answer right? (paper section 3.1)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from anchorlwf.data.record import Anchor, Prompt
from anchorlwf.decoding.greedy import Choices, Step
from anchorlwf.errors import AnchorLwfError
from anchorlwf.model.codec import Codec

__all__ = ["Accept", "Annotator", "Correct", "Quit", "Reject", "State", "Undo", "Verdict", "View", "anchors_of"]


@dataclass(frozen=True)
class View:
    """What the annotator sees: prompt, the answer so far, and what the model would rather have said."""

    prompt: Prompt
    codec: Codec
    completion_ids: list[int]
    anchors: list[Anchor]
    truncated: bool
    steps: Callable[[], list[Step]]
    """The model's choice and its alternatives at every position, computed when first asked for."""


@dataclass(frozen=True)
class Accept:
    """The answer is right."""


@dataclass(frozen=True)
class Reject:
    """The prompt or answer is not worth correcting; the record is kept as rejected."""


@dataclass(frozen=True)
class Undo:
    """Take the last correction back."""


@dataclass(frozen=True)
class Quit:
    """Stop here; the present answer is kept as a draft, to be resumed."""


@dataclass(frozen=True)
class Correct:
    """The token at `position` is the first wrong one; `token_ids` should stand there."""

    position: int
    token_ids: list[int]
    confidence: float = 1.0


Verdict = Accept | Reject | Undo | Quit | Correct


class Annotator(Protocol):
    """Anything that can judge an answer."""

    source: str
    """Goes into `Anchor.source`, such as `human:ada` or `target`."""

    def review(self, view: View) -> Verdict:
        """Point at the first wrong token and give the right ones, or accept."""
        ...

    def complain(self, error: AnchorLwfError) -> None:
        """Hear that the last correction was not taken; a program that cannot do better raises the error."""
        ...


@dataclass(frozen=True)
class State:
    """An answer and its anchors at one moment."""

    completion_ids: tuple[int, ...]
    anchors: tuple[Anchor, ...] = ()
    ties: tuple[int, ...] = ()
    truncated: bool = False


def anchors_of(
    choices: Choices, token_ids: list[int], start: int, confidence: float, source: str
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
