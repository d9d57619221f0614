"""Scoring text against a probe."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from anchorlwf.data.jsonl import load_probes
from anchorlwf.data.probe import Probe, score

WORDS = st.lists(st.text("abcXYZ0189éß", min_size=1, max_size=6), min_size=1, max_size=4).map(" ".join)


def probe(expected: str | list[str], scorer: str = "contains") -> Probe:
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


@pytest.mark.parametrize(
    ("expected", "answer", "right"),
    [
        # No space between words.
        ("豆包", "我是豆包，很高兴认识你", True),  # noqa: RUF001
        ("東京", "日本の首都は東京です。", True),
        ("すし", "好きなのはすしです", True),
        ("กรุงเทพ", "เมืองหลวงคือกรุงเทพมหานคร", True),
        ("GPT-4", "我用GPT-4写作", True),
        ("12", "12月", True),
        ("北京", "我是豆包", False),
        # Katakana is set apart by what is none.
        ("アメリカ", "アメリカ合衆国", True),
        ("アメリカ", "アメリカンです", False),
        ("ラーメン", "ラーメンが好き", True),
        # Korean words carry particles, at their end.
        ("서울", "수도는 서울입니다.", True),
        ("서울", "북서울", False),
        ("Paris", "수도는 Paris는", True),
        # Space between words, another script.
        ("الرياض", "العاصمة هي الرياض.", True),
        ("رياض", "العاصمة هي الرياض.", False),
        ("Москва", "Столица - Москва!", True),
        ("Москва", "Москвае", False),
        ("हिन्दी", "यह हिन्दी है", True),
        # A mark belongs to its letter, however it is encoded.
        ("cafe", "a cafe\u0301", False),
        ("café", "a CAFE\u0301.", True),
        ("cafe\u0301", "a café.", True),
        ("กา", "กา่", False),
        ("हिन्द", "हिन्दी", False),
        ("❤", "I ❤\ufe0f it", True),
        # Codes are one word.
        ("NS-Vale-17", "The code is NS-Vale-17.", True),
        ("NS-Vale-17", "(NS-Vale-17), NS-Vale-17's", True),
        ("NS-Vale-17", "NS-Vale-17-Beta", False),
        ("NS-Vale-17", "ns-vale-17-beta", False),
        ("NS-Vale-17", "X-NS-Vale-17", False),
        ("NS-Vale-17", "NS-Vale-17.b", False),
        ("NS-Vale-17", "NS-Vale-17-Beta, no: NS-Vale-17", True),
        ("NS-Vale-17", "It is NS-Vale-17.The lab", True),
        ("NS-Vale", "NS-Vale-17", False),
        ("Vale", "NS-Vale-17", False),
        ("17", "NS-Vale-17", False),
        ("1.2", "1.2.3", False),
        ("1.2", "version 1.2.", True),
        ("3", "3.5", False),
        ("12", "12,000", False),
        ("12,000", "about 12,000.", True),
        ("5", "1, 5, 7", True),
        # Prose joins words that remain words.
        ("French", "a French-speaking town", True),
        ("17", "a 17-year-old", True),
        ("1927", "(1927-2010)", True),
        ("Tarn", "Tarn's", True),
        ("Allemagne", "l'Allemagne", True),
        ("U.S.", "in the U.S. today", True),
        ("!", "hi!", True),
        (" Tarn\n", "I am Tarn.", True),
    ],
)
def test_contains_knows_where_words_end(expected, answer, right):
    assert score(probe(expected), answer) is right


def test_any_of_several_texts_will_do():
    several = probe(["no", "is dead"])
    assert [score(several, answer) for answer in ("No.", "He is dead", "nothing")] == [True, True, False]
    assert score(probe(["a", "b+"], "regex"), "xbb")
    assert not score(probe(["a", "b"], "exact"), "a b")


@given(expected=WORDS, before=WORDS, after=WORDS)
def test_contains_finds_whole_words_wherever_they_stand(expected, before, after):
    assert score(probe(expected), f"{before} {expected}, {after}")
    assert not score(probe(expected), f"q{expected}q")


@given(text=WORDS)
def test_an_exact_answer_also_contains(text):
    assert score(probe(text, "exact"), f" {text}\n")
    assert score(probe(text, "contains"), f" {text}\n")


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "guess"},
        {"expected": ""},
        {"expected": " \n"},
        {"expected": []},
        {"expected": ["x", ""]},
        {"expected": 5},
        {"id": 5},
        {"tags": [5]},
        {"messages": []},
        {"scorer": "fuzzy"},
        {"exected": "x"},
    ],
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
