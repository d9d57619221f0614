"""What requests may hold, shapes and sizes, and who asks."""

from typing import Annotated, Any, Literal

from fastapi import Depends, Header, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "Asked",
    "Choice",
    "Comparison",
    "Confidence",
    "Correction",
    "Draft",
    "Import",
    "Note",
    "Number",
    "Order",
    "Pause",
    "Position",
    "Priority",
    "Start",
    "StepName",
    "Tags",
    "Target",
    "Text",
    "Top",
    "Training",
    "Verdict",
    "Who",
]

_LARGEST = 2**31 - 1
Whole = Annotated[int, Field(ge=0, le=_LARGEST)]
Weight = Annotated[float, Field(gt=0, le=1)]
Number = Annotated[int, Path(ge=1, le=_LARGEST)]
"""Of an item or a session."""
Position = Annotated[int, Query(ge=0, le=_LARGEST)]
Start = Annotated[int, Query(ge=0, le=_LARGEST)]
Top = Annotated[int, Query(ge=1, le=100)]
StepName = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=64)]
"""A client's own name for a step, new for each: asked for again under the same name, it is not done again."""
Pause = Annotated[int | None, Field(ge=1, le=_LARGEST)]
"""Tokens behind which a continuation pauses at the end of a sentence."""
Order = Literal["queue", "uncertain", "probability"]


def _who(request: Request) -> str:
    return request.state.annotator


Who = Annotated[str, Depends(_who)]
"""The annotator's name, as the guard found it."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Choice(_Body):
    """Which item is next."""

    order: Order = "queue"


class Priority(_Body):
    """How soon."""

    priority: Annotated[int, Field(ge=-1_000_000, le=1_000_000)]


class Correction(_Body):
    """`token_ids` or `text` for a position of a node's answer."""

    node: Whole
    position: Whole
    token_ids: Annotated[list[Whole], Field(max_length=100_000)] | None = None
    text: Annotated[str, Field(max_length=1_000_000)] | None = None
    space: bool = False
    """Before `text`, the white space of the token it replaces, where it belongs there."""
    end: bool = False
    """The end of turn behind all this."""
    confidence: Weight | None = None
    stream: bool = True
    pause: Pause = None


class Draft(_Body):
    """A text that may be put at a position of a node's answer."""

    node: Whole
    position: Whole
    text: Annotated[str, Field(max_length=1_000_000)]
    space: bool = False


class Target(_Body):
    """A node of the tree."""

    node: Whole


class Confidence(_Body):
    """Of the anchor at a position."""

    position: Whole
    confidence: Weight


class Note(_Body):
    """Free text."""

    text: Annotated[str, Field(max_length=100_000)]


class Tags(_Body):
    """Free labels."""

    tags: Annotated[list[Annotated[str, Field(min_length=1, max_length=100)]], Field(max_length=100)]


class Verdict(_Body):
    """A decision."""

    verdict: Literal["accept", "keep", "reject", "skip"]


class Text(_Body):
    """Something to tokenise."""

    text: Annotated[str, Field(max_length=1_000_000)]


class Comparison(_Body):
    """A session's prompt, or messages."""

    session: Annotated[int, Field(ge=1, le=_LARGEST)] | None = None
    messages: Annotated[list[dict[str, Any]], Field(max_length=1000)] | None = None


class Training(_Body):
    """What is trained to stay besides the accepted records."""

    retain: Literal["none", "auto"] | None = None
    """None: as `anchorlwf train` does by default."""


class Asked(_Body):
    """A prompt to two models."""

    text: Annotated[str, Field(min_length=1, max_length=1_000_000)]


class Import(_Body):
    """A file's content."""

    format: Literal["records", "lawftrack", "prompts"]
    content: str
    span: Literal["first", "whole"] = "first"
    """lawftrack: which tokens of a replacement become anchors."""
