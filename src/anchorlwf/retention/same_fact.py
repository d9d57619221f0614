"""Whether a prompt asks for a corrected fact: then its answer must not be kept, but it may serve as a paraphrase.

Words that turn up in many of the model's own prompts and answers distinguish nothing, or little; that needs no list of
words, and so works in any language that writes words apart.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from anchorlwf.data.record import Prompt, Record
from anchorlwf.model.language_model import LanguageModel
from anchorlwf.retention.rounds import Answered
from anchorlwf.retention.screening import words

__all__ = ["Background", "Candidate", "Corrected", "same_fact"]

_COMMON = 0.1
"""A word in more of the texts than this share distinguishes nothing."""


class Background:
    """How common words are in what the model writes.

    Args:
        general: texts about anything.
        near: texts that begin like a corrected prompt.
    """

    def __init__(self, general: Iterable[str], near: Iterable[str] = ()) -> None:
        vocabularies = [set(words(text)) for text in general]
        self._bound = max(1.0, _COMMON * len(vocabularies))
        self._general = Counter(word for vocabulary in vocabularies for word in vocabulary)
        vocabularies += [set(words(text)) for text in near]
        self._all = Counter(word for vocabulary in vocabularies for word in vocabulary)
        self._texts = len(vocabularies)

    def rare(self, candidates: Iterable[str]) -> frozenset[str]:
        """Those of the words that distinguish something among texts about anything."""
        return frozenset(word for word in candidates if self._general[word] <= self._bound)

    def weight(self, word: str) -> float:
        """How much a word says about what a text is about: the logarithm of how rare it is, near texts included.

        "City" is rare in general, but not among questions about cities.
        """
        return math.log((self._texts + 2) / (self._all[word] + 1))


@dataclass(frozen=True)
class Candidate:
    """A prompt that seems to ask for a corrected fact in other words."""

    prompt: Prompt
    answer: str
    """What the reference says, cut at the token limit."""
    record_id: str
    """The correction it belongs to."""
    holds_rejected: bool
    """The answer holds what was rejected."""
    holds_words: bool
    """The prompt holds all words that distinguish the corrected one."""

    @property
    def certain(self) -> bool:
        """Both signs agree."""
        return self.holds_rejected and self.holds_words


class Corrected:
    """One correction, as far as other prompts may ask for the same.

    Args:
        model: whose tokens the record holds.
        record: with anchors.
        limit: tokens to which the answers that are compared were cut.
        background: of the model's own prompts and answers.
    """

    def __init__(self, model: LanguageModel, record: Record, limit: int, background: Background) -> None:
        asked = words(str(record.messages[-1].get("content", "")))
        distinguishing = background.rare(asked)
        # One word alone, such as "who" in "Who are you?", would fit far too much.
        self._asked = distinguishing if len(distinguishing) > 1 else frozenset(asked)
        codec = model.codec
        ids = record.original_ids[:limit] or [a.rejected_id for a in record.anchors if a.rejected_id is not None]
        self._original = words(codec.decode(ids))
        corrected = {*words(codec.decode(record.completion_ids)), *asked}
        rejected = {word for word in self._original if word not in corrected}
        self._rare = background.rare(rejected)
        self._rejected = {word: background.weight(word) for word in rejected}
        self.record = record

    def holds_words(self, prompt: str) -> bool:
        """The prompt holds every word that distinguishes the corrected one."""
        return bool(self._asked) and self._asked <= set(words(prompt))

    def holds_rejected(self, answer: str) -> bool:
        """The answer holds half of what was rejected, by weight of words; where all are common, it is that answer."""
        said = words(answer)
        if not self._rare:
            return bool(said) and said == self._original
        held = self._rejected.keys() & set(said)
        weight = sum(self._rejected[word] for word in held)
        return not self._rare.isdisjoint(held) and 2 * weight >= sum(self._rejected.values())


def same_fact(answered: Answered, corrections: Sequence[Corrected]) -> Candidate | None:
    """The first correction whose fact the prompt asks for; None: it asks for something else.

    Of a near prompt, the correction that it was begun from is tried first.
    """
    for correction in sorted(corrections, key=lambda corrected: corrected.record.id != answered.of):
        rejected, asked = correction.holds_rejected(answered.completion), correction.holds_words(answered.text)
        if rejected or asked:
            return Candidate(answered.prompt, answered.completion, correction.record.id, rejected, asked)
    return None
