r"""Does an answer hold a text as whole words? Where words end is told by script, as Unicode segments text.

`\w` on both sides would do for English. It finds no word at all in Chinese, where none is set apart, and takes the
first half of a product code for the code. So here:

- Han, Hiragana, Thai and the other scripts that put no space between words: any character may begin or end a word.
- Katakana and letters, digits and marks of all other scripts: a word ends where its kind of character does.
- Hangul: so does a word's beginning, but its end may carry a particle (`서울` in `서울은`).
- A combining mark belongs to the character before it, and é is é however it is encoded.
- A number goes on across a decimal point and a thousands separator (`3` is not in `3.5`).
- A code, parts joined by hyphens or dots, is one word: `NS-Vale-17` is not in `NS-Vale-17-Beta`.
"""

import itertools
import unicodedata
from typing import Final

import regex

__all__ = ["contains_words", "replace_words", "same_text", "words_of"]

_SPACELESS: Final = r"\p{Han}\p{Hiragana}\p{Line_Break=Complex_Context}"
_KIND = regex.compile(
    rf"(?P<spaceless>[{_SPACELESS}])|(?P<katakana>\p{{Word_Break=Katakana}})|(?P<hangul>\p{{Hangul}})|(?P<letter>\w)"
)
# Variation selectors choose how a character is drawn, not which one it is.
_EXTENDS = regex.compile(
    r"(?![\ufe0e\ufe0f])[\p{Grapheme_Cluster_Break=Extend}"
    r"\p{Grapheme_Cluster_Break=SpacingMark}\p{Grapheme_Cluster_Break=ZWJ}]"
)
_RUN = regex.compile(rf"[{_SPACELESS}][{_SPACELESS}\p{{M}}]*|[^\W{_SPACELESS}]+")
_PART: Final = rf"[^\W{_SPACELESS}\p{{Word_Break=Katakana}}\p{{Hangul}}]+"
# A dot before a capitalised word ends a sentence whose space was forgotten.
_JOINED = regex.compile(rf"{_PART}(?:(?:[-\u2010\u2011]|\.(?!\p{{Lu}}\p{{Ll}})){_PART})+")
_CODE = regex.compile(r"(?=.*\d).*\p{Lu}")
_NUMBER = regex.compile(r"\d+(?:\.\d+|,\d{3}(?!\d))+")


def same_text(first: str, second: str) -> bool:
    """Whether two texts are the same but for white space at their ends and how accents are encoded."""
    return _normal(first) == _normal(second)


def contains_words(text: str, answer: str) -> bool:
    """Whether `text` stands in `answer` as whole words, in any case. The module's docstring says what a word is."""
    text, answer = _normal(text), _normal(answer)
    matches = _found(text).finditer(answer, overlapped=True)
    return any(_whole(text, answer, match.start(), match.end()) for match in matches)


def replace_words(text: str, other: str, answer: str) -> str:
    """The answer, trimmed, with `other` wherever `text` stands in it as whole words, in any case."""
    text, answer = _normal(text), _normal(answer)

    def chosen(match: "regex.Match[str]") -> str:
        return other if _whole(text, answer, match.start(), match.end()) else match.group()

    return _found(text).sub(chosen, answer)


def words_of(text: str) -> set[str]:
    """The words of a text in lower case, those of one character left out.

    Of scripts that put no space between words, every two characters that stand together count as one, as in searching.
    """
    found = set[str]()
    for run in _RUN.findall(_normal(text).casefold()):
        if _kind(run, 0) == "spaceless":
            characters = regex.findall(r"\X", run)
            found.update(map("".join, itertools.pairwise(characters)))
        elif len(run) > 1:
            found.add(run)
    return found


def _found(text: str) -> "regex.Pattern[str]":
    return regex.compile(regex.escape(text), regex.IGNORECASE)


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()


def _whole(text: str, answer: str, start: int, end: int) -> bool:
    if end < len(answer) and _EXTENDS.match(answer, end):
        return False
    if _kind(answer, start - 1) == _kind(answer, start) in ("letter", "katakana", "hangul"):
        return False
    if _kind(answer, end - 1) == _kind(answer, end) in ("letter", "katakana"):
        return False
    return not _inside(_NUMBER, answer, start, end) and not _part_of_code(text, answer, start, end)


def _kind(text: str, index: int) -> str | None:
    """What the character is for words; None for white space, punctuation and what lies outside the text."""
    match = _KIND.match(text, index) if 0 <= index < len(text) else None
    return match.lastgroup if match else None


def _inside(pattern: "regex.Pattern[str]", answer: str, start: int, end: int) -> list[str]:
    """The matches of a pattern that the stretch from `start` to `end` cuts through."""
    return [
        run.group()
        for run in pattern.finditer(answer)
        if run.start() < end and start < run.end() and (run.start() < start or end < run.end())
    ]


def _part_of_code(text: str, answer: str, start: int, end: int) -> bool:
    # Prose joins words as well, and they remain words: French-speaking, 17-year-old, 1927-2010. A code has a digit and
    # a capital letter; or the text is itself joined, and then what goes on behind its last part is another one.
    runs = _inside(_JOINED, answer, start, end)
    return any(_CODE.match(run) or _JOINED.search(text) for run in runs)
