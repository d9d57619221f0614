"""Probes: questions that measure a tuned model, each with the text that makes an answer right."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from anchorlwf.data.record import Frozen, Messages, Tools
from anchorlwf.data.words import contains_words, same_text

__all__ = ["Probe", "ProbeKind", "Scorer", "score"]

ProbeKind = Literal["recall", "paraphrase", "reverse", "near", "retain", "skill"]
Scorer = Literal["exact", "contains", "regex"]
_Text = Annotated[str, StringConstraints(min_length=1, pattern=r"\S")]


class Probe(Frozen):
    """A question, the criterion for a right answer, and what the answer says about the model."""

    id: str
    """Unique within a file."""
    kind: ProbeKind
    """recall: an annotated prompt. paraphrase: the same fact in words never trained on. reverse: the fact asked in
    the opposite direction. near: another attribute of a corrected subject. retain: an unrelated fact. skill: an
    ability."""
    messages: Messages
    """The chat to answer."""
    tools: Tools = Field(default_factory=list)
    """Tool descriptions given to the chat template."""
    expected: _Text | Annotated[list[_Text], Field(min_length=1)]
    """The text (or pattern) of a right answer, or a list of them, of which any one is enough."""
    scorer: Scorer = "contains"
    """exact: the whole answer, apart from white space at its ends. contains: as whole words (`anchorlwf.data.words`),
    ignoring case. regex: the pattern is found in the answer."""
    group: str | None = None
    """Which correction or fact this probe belongs to."""
    tags: list[str] = Field(default_factory=list)

    @property
    def accepted(self) -> list[str]:
        """All of `expected`."""
        return [self.expected] if isinstance(self.expected, str) else self.expected

    @model_validator(mode="after")
    def _pattern(self) -> Self:
        for text in self.accepted if self.scorer == "regex" else ():
            try:
                re.compile(text)
            except (re.error, OverflowError, RecursionError) as error:
                raise ValueError(f"expected a pattern that re takes; got {text!r} ({error})") from None
        return self


def score(probe: Probe, answer: str) -> bool:
    """Whether the answer is right, by the probe's own scorer. Text in, bool out; no model involved."""
    return any(_right(probe.scorer, text, answer) for text in probe.accepted)


def _right(scorer: Scorer, expected: str, answer: str) -> bool:
    if scorer == "exact":
        return same_text(expected, answer)
    if scorer == "regex":
        return re.search(expected, answer) is not None
    return contains_words(expected, answer)
