"""Probes: questions that measure a tuned model, each with the text that makes an answer right."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["Probe", "ProbeKind", "score"]

ProbeKind = Literal["recall", "paraphrase", "reverse", "near", "retain", "skill"]


class Probe(BaseModel):
    """A question, what a right answer must look like, and what the answer tells about the model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    """Unique within a file."""
    kind: ProbeKind
    """recall: an annotated prompt. paraphrase: the same fact in words never trained on. reverse: the fact asked from
    its other end. near: another attribute of a corrected subject. retain: an unrelated fact. skill: an ability."""
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    """The chat to answer."""
    tools: list[dict[str, Any]] = []
    """Tool descriptions given to the chat template."""
    expected: Annotated[str, Field(min_length=1)]
    """The text (or pattern) of a right answer."""
    scorer: Literal["exact", "contains", "regex"] = "contains"
    """exact: the whole answer, but for white space at its ends. contains: as whole words, in any case. regex: found."""
    group: str | None = None
    """Which correction or fact this probe belongs to."""
    tags: list[str] = []

    @model_validator(mode="after")
    def _pattern(self) -> Self:
        if self.scorer == "regex":
            try:
                re.compile(self.expected)
            except re.error as error:
                raise ValueError(f"expected a pattern that re takes; got {self.expected!r} ({error})") from None
        return self


def score(probe: Probe, answer: str) -> bool:
    """Whether the answer is right, by the probe's own scorer. Text in, bool out; no model involved."""
    if probe.scorer == "exact":
        return answer.strip() == probe.expected.strip()
    if probe.scorer == "regex":
        return re.search(probe.expected, answer) is not None
    pattern = rf"(?<!\w){re.escape(probe.expected)}(?!\w)"
    return re.search(pattern, answer, re.IGNORECASE) is not None
