"""Tokens as text: what stands behind what, and characters made of several tokens."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from anchorlwf.model.codec import Codec
from anchorlwf.model.vocabulary import TokenTable


@pytest.fixture(scope="module")
def table(base):
    return TokenTable(base.codec)


@pytest.fixture(scope="module")
def spaced():
    """A tokenizer that, as Llama 2's, puts a space before whatever it is given."""
    words = ["<s>", "<unk>", "\u2581", "\u2581Tarn", "Tarn", "\u2581I", "\u2581am", "m", ".", "\n", *"Tarnma\u2581I"]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))}
    merges = [
        ("T", "a"),
        ("Ta", "r"),
        ("Tar", "n"),
        ("\u2581", "Tarn"),
        ("\u2581", "I"),
        ("\u2581", "a"),
        ("\u2581a", "m"),
    ]
    for left, right in merges:
        vocabulary.setdefault(left + right, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    return TokenTable(Codec(PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")))


def texts(table, ids):
    return [table.token(number).text for number in ids]


@pytest.mark.parametrize(
    ("before", "text"),
    [
        ("It is Lum", "o"),
        ("42", "."),
        ("line\n", "Tarn"),
        ("a ", "b"),
        ("green.", "<|im_end|>"),
        ("", " Tarn"),
        ("x", ""),
    ],
)
def test_text_stands_there_as_it_was_given(table, before, text):
    before_ids = table.encode(before)
    ids = table.encode_behind(before_ids, text)
    assert table.codec.decode([*before_ids, *ids], special=True) == before + text


@pytest.mark.parametrize(
    ("before", "text", "expected"),
    [
        ("I am", " Tarn", [" Tarn"]),
        ("I am", "Tarn", ["Tarn"]),
        ("I", "m", ["m"]),
        ("I am Tarn", ".", ["."]),
        ("", "Tarn", ["Tarn"]),
    ],
)
def test_a_tokenizer_that_begins_everything_with_a_space_puts_none_into_an_answer(spaced, before, text, expected):
    assert texts(spaced, spaced.encode("Tarn")) == [" Tarn"]
    assert texts(spaced, spaced.encode_behind(spaced.encode(before) if before else [], text)) == expected


def test_part_of_a_character_is_shown_as_what_it_would_become(table):
    ids = table.encode("م你😀é")
    shown = [table.becomes(ids[:at], number) for at, number in enumerate(ids)]
    whole = [text for text in shown if text and not text.endswith("…")]
    assert whole == ["م", "你", "😀", "é"]
    begun = {text for text in shown if text and text.endswith("…")}
    assert begun == {"Arabic…", "CJK…", "Character…", "Symbol…", "Latin…"}
    assert table.becomes([], table.encode(" cat")[0]) is None
    assert table.becomes([], ids[-1]) is None  # nothing that it could end


def test_a_part_of_an_answer_is_read_with_whole_characters(table):
    ids = table.encode("a😀b")
    first = next(at for at, number in enumerate(ids) if table.token(number).hex)
    for at in range(first, first + 4):
        assert table.span(ids, at, at + 1) == "😀"
    assert table.span(ids, 0, first) == "a"
    assert table.span(ids, first + 4, len(ids)) == "b"
    assert table.span(ids[: first + 2], first + 1, first + 2) == "\ufffd"
