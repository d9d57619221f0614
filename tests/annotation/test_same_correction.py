"""The same correction in other wordings: what was wrong in one answer is made right in the others, and nothing else."""

import sys

import pytest

from anchorlwf.annotation import annotate, same_correction, verify_records
from anchorlwf.annotation.same_correction import Change
from anchorlwf.config import AnnotateConfig
from anchorlwf.data.record import Prompt


@pytest.mark.parametrize(
    ("original", "corrected", "change"),
    [
        ("The capital is Lagos.", "The capital is Abuja.", ("Lagos", "Abuja")),
        ("It began in 1914, in Bosnia.", "It began in 1912, in Bosnia.", ("1914", "1912")),
        ("I am Lumo, your helper.", "I am Zed the Great, your helper.", ("Lumo", "Zed the Great")),
        ("Paris", "It is Rome", ("Paris", "It is Rome")),
        # Nothing stood there that could be looked for elsewhere.
        ("He lives here.", "He lives right here.", ("", "right")),
        ("It is a hill.", "It is a very high hill.", ("", "very high")),
        # The words that went are still said: they are no wrong value.
        ("Yes.", "Say yes, sir.", ("", "Say yes, sir")),
    ],
)
def test_what_changed_is_what_two_answers_do_not_share(original, corrected, change):
    found = Change.between(original, corrected)
    assert found.right == change[1]
    assert found.rejected == change[0]


@pytest.mark.parametrize(
    ("answer", "made"),
    [
        ("Lagos is the capital, and LAGOS is large.", "Abuja is the capital, and Abuja is large."),
        ("It is called Lagosia.", None),
        ("The capital is Accra.", None),
        ("", None),
    ],
)
def test_it_is_made_where_the_rejected_words_stand_as_words(answer, made):
    assert Change("Lagos", "Abuja").made_in(answer) == made


def wording(text, **more):
    return Prompt(messages=[{"role": "user", "content": text}], **more)


def test_another_wording_keeps_its_own_words_and_gets_the_right_value(base):
    [record] = annotate(base, [{"prompt": "Who are you?", "answer": "I am Tarn, your assistant."}])
    asked = wording("Tell me your name.", tags=["paraphrase"])
    [found] = same_correction(base, [(record, asked)])
    assert found.completion == "My name is Tarn."
    assert found.tags == ["paraphrase"]
    assert base.codec.decode(found.original_ids) == "My name is Lumo."
    # One value, a few tokens: everything else is kept.
    assert len(found.anchors) <= len(record.anchors)
    assert all(finding.holds for finding in verify_records(base, [found]))


def test_an_answer_without_the_rejected_value_becomes_the_corrected_one(base):
    [record] = annotate(base, [{"prompt": "Who are you?", "answer": "I am Tarn, your assistant."}])
    unlike = wording("Who made you?")
    [found] = same_correction(base, [(record, unlike)])
    assert found.completion == record.completion
    # So does one that the limit cuts off.
    [cut] = same_correction(base, [(record, wording("Tell me your name."))], AnnotateConfig(max_new_tokens=2))
    assert cut.completion == record.completion


def test_an_own_answer_may_have_twice_the_tokens_of_the_longest_corrected_one(base, monkeypatch):
    [record] = annotate(base, [{"prompt": "Who are you?", "answer": "I am Tarn, your assistant."}])
    limits, module = [], sys.modules[Change.__module__]
    plain = module.decode_batch
    monkeypatch.setattr(module, "decode_batch", lambda *given: limits.append(given[2]) or plain(*given))
    same_correction(base, [(record, wording("Tell me your name."))])
    assert limits == [2 * len(record.completion_ids)]
    assert same_correction(base, []) == []


def test_an_answer_that_is_given_stays_and_what_is_right_already_is_left_out(base):
    [record] = annotate(base, [{"prompt": "Who are you?", "answer": "I am Tarn, your assistant."}])
    given, right = (
        wording("Tell me your name.", answer="Tarn."),
        wording("Tell me your name.", answer="My name is Lumo."),
    )
    found = same_correction(base, [(record, given), (record, right)])
    assert [one.completion for one in found] == ["Tarn."]


def test_a_correction_that_was_cut_off_teaches_no_early_end(base):
    [cut] = annotate(base, [{"prompt": "Who are you?", "answer": "I am Tarn, your assistant."}])
    whole = base.codec.decode(cut.completion_ids)
    half = cut.completion_ids[:-3]
    cut = cut.model_copy(update={"completion_ids": half, "completion": base.codec.decode(half), "truncated": True})
    asked = Prompt(messages=[{"role": "user", "content": "Say: river"}])  # its answer has nothing that was rejected
    assert same_correction(base, [(cut, asked)]) == []
    given = asked.model_copy(update={"answer": whole})
    assert [record.completion for record in same_correction(base, [(cut, given)])] == [whole]
