"""Which sampled prompts are worth an answer. Text in, a reason or nothing out; no model involved."""

import re
from collections.abc import Iterable

__all__ = ["Screen", "words"]

_ANY_SCRIPT = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """The words of a text, without case and punctuation."""
    return _ANY_SCRIPT.findall(text.casefold())


class Screen:
    """Remembers the prompts it let through, so that none comes twice.

    Args:
        taken: prompts that stand already.
        similarity: share of all words of two prompts that both must hold to count as near-duplicates: 1 where one
            other word makes another question of it.
    """

    def __init__(self, taken: Iterable[str], similarity: float) -> None:
        self._similarity = similarity
        self._seen = [frozenset(words(text)) for text in taken]

    def reason(self, text: str) -> str | None:
        """Why a prompt is left out; None: it is not, and counts as taken from now on."""
        if "\ufffd" in text:
            return "broken characters"
        own = frozenset(words(text))
        if not own:
            return "empty"
        if own in self._seen:
            return "duplicate"
        if any(len(own & other) >= self._similarity * len(own | other) for other in self._seen):
            return "near-duplicate"
        self._seen.append(own)
        return None
