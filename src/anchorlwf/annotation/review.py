"""What an annotator is asked and what it may answer.

Every annotator, person or program, answers one question: given prompt and completion, where is the first wrong token
and what should stand there, or is the answer right? (paper section 3.1)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from anchorlwf.data.record import Anchor, Prompt
from anchorlwf.decoding.greedy import Step
from anchorlwf.errors import AnchorLwfError
from anchorlwf.model.codec import Codec

__all__ = ["Accept", "Annotator", "Correct", "Quit", "Reject", "Review", "Undo", "View"]


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


Review = Accept | Reject | Undo | Quit | Correct
"""What an annotator makes of a view."""


class Annotator(Protocol):
    """Anything that can judge an answer."""

    source: str
    """Goes into `Anchor.source`, such as `human:ada` or `target`."""

    def review(self, view: View) -> Review:
        """Point at the first wrong token and give the right ones, or accept."""
        ...

    def complain(self, error: AnchorLwfError) -> None:
        """Hear that the last correction was not taken; a program that cannot do better raises the error."""
        ...
