"""Everything that can happen to an answer under correction, as values that go into the store and come back the same."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from anchorlwf.data.record import Anchor

__all__ = [
    "EVENTS",
    "Continued",
    "Corrected",
    "Decided",
    "Event",
    "Extended",
    "Moved",
    "Noted",
    "Reopened",
    "Started",
    "Tagged",
    "Verdict",
    "Weighed",
]

Verdict = Literal["accept", "keep", "reject", "skip"]
"""The decision on an answer: right as corrected, right as the model said it, of no use, or left to somebody else."""
Count = Annotated[int, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    at: datetime
    """When, in UTC; part of the event, so that the events give the same state whenever they are applied again."""
    step: str | None = None
    """The client's own name for the step that made it, by which a step asked for twice is known again."""


class Started(_Event):
    """The first node: empty, or what was there already (a prefetched answer, a draft)."""

    kind: Literal["started"] = "started"
    completion_ids: tuple[Count, ...] = ()
    probabilities: tuple[Probability | None, ...] = ()
    anchors: tuple[Anchor, ...] = ()
    ties: tuple[Count, ...] = ()
    original_ids: tuple[Count, ...] = ()
    """The model's own first answer, where this one is no longer it."""
    ended: bool = False
    truncated: bool = False


class Corrected(_Event):
    """Below `parent`: its tokens before `position`, then `token_ids`; the continuation comes as `Continued`."""

    kind: Literal["corrected"] = "corrected"
    parent: Count
    position: Count
    token_ids: Annotated[tuple[Count, ...], Field(min_length=1)]
    probabilities: tuple[Probability | None, ...] = ()
    """The reference's probability of each of `token_ids`."""
    anchors: tuple[Anchor, ...] = ()
    ties: tuple[Count, ...] = ()
    source: str
    ended: bool = False
    """The correction itself ends the turn, or fills the limit."""
    truncated: bool = False


class Continued(_Event):
    """Greedy tokens that followed at a node; `ended` where the turn ended or the limit was reached."""

    kind: Literal["continued"] = "continued"
    node: Count
    token_ids: tuple[Count, ...] = ()
    probabilities: tuple[Probability | None, ...] = ()
    ended: bool
    truncated: bool = False


class Extended(_Event):
    """The answer at a node, which the limit had cut, may go on up to another limit."""

    kind: Literal["extended"] = "extended"
    node: Count
    limit: Annotated[int, Field(ge=1)]
    """Maximum number of completion tokens from now on."""


class Moved(_Event):
    """Another node is on the screen: undo, redo, or a jump through the history."""

    kind: Literal["moved"] = "moved"
    node: Count


class Weighed(_Event):
    """The anchor that the present answer has at `position` gets another confidence, wherever it is shared."""

    kind: Literal["weighed"] = "weighed"
    position: Count
    confidence: Annotated[float, Field(gt=0, le=1)]


class Noted(_Event):
    """The note is now this text."""

    kind: Literal["noted"] = "noted"
    text: str


class Tagged(_Event):
    """The tags are now these."""

    kind: Literal["tagged"] = "tagged"
    tags: tuple[str, ...]


class Decided(_Event):
    """Done: accept (as corrected), keep (right as the model said it), reject, or skip (somebody else may)."""

    kind: Literal["decided"] = "decided"
    verdict: Verdict


class Reopened(_Event):
    """The decision is taken back."""

    kind: Literal["reopened"] = "reopened"


Event = Annotated[
    Started | Corrected | Continued | Extended | Moved | Weighed | Noted | Tagged | Decided | Reopened,
    Field(discriminator="kind"),
]
EVENTS: TypeAdapter[Event] = TypeAdapter(Event)
"""Reads an event of any kind from JSON."""
