"""Scoring text against a probe."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from anchorlwf.jsonl import load_probes
from anchorlwf.probe import Probe, score

WORDS = st.lists(st.text("abcXYZ0189éß", min_size=1, max_size=6), min_size=1, max_size=4).map(" ".join)


def probe(expected: str, scorer: str = "contains") -> Probe:
    return Probe(id="1", kind="recall", messages=[{"role": "user", "content": "?"}], expected=expected, scorer=scorer)


@pytest.mark.parametrize(
    ("scorer", "expected", "answer", "right"),
    [
        ("contains", "Belmora", "She lives in Belmora.", True),
        ("contains", "Belmora", "She lives in Belmoras.", False),
        ("contains", "Belmora", "in BELMORA", True),
        ("contains", "1931", "in 1931.", True),
        ("contains", "1931", "in 21931.", False),
        ("contains", "C++", "He writes C++.", True),
        ("contains", "C++", "He writes C.", False),
        ("contains", "a.c", "abc", False),
        ("contains", "Fennel Labs", "made by Fennel Labs, they say", True),
        ("exact", "It is 5.", "  It is 5.\n", True),
        ("exact", "It is 5.", "It is 5. Or 6.", False),
        ("exact", "It is 5.", "it is 5.", False),
        ("regex", r"\b(five|5)\b", "It is five.", True),
        ("regex", r"^5$", "It is 5.", False),
    ],
)
def test_score(scorer, expected, answer, right):
    assert score(probe(expected, scorer), answer) is right


@given(expected=WORDS, before=WORDS, after=WORDS)
def test_contains_finds_whole_words_wherever_they_stand(expected, before, after):
    assert score(probe(expected), f"{before} {expected}, {after}")
    assert not score(probe(expected), f"q{expected}q")


@given(text=WORDS)
def test_an_exact_answer_also_contains(text):
    assert score(probe(text, "exact"), f" {text}\n")
    assert score(probe(text, "contains"), f" {text}\n")


@pytest.mark.parametrize(
    "change", [{"kind": "guess"}, {"expected": ""}, {"messages": []}, {"scorer": "fuzzy"}, {"exected": "x"}]
)
def test_a_probe_that_says_nothing_is_refused(change):
    good = probe("x").model_dump()
    with pytest.raises(ValidationError, match=next(iter(change))):
        Probe(**{**good, **change})


def test_a_pattern_that_is_none_is_named_when_it_is_read():
    with pytest.raises(ValueError, match=r"line.*1.*expected.*pattern"):
        load_probes([{**probe("x").model_dump(), "expected": "(", "scorer": "regex"}])
    # The same text is fine where it is no pattern.
    assert score(probe("("), "a ( b")
