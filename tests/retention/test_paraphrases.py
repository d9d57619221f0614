"""Other wordings that are found without people: which ones are made, which are asked for, and which are taken."""

import pytest

from anchorlwf.annotation import annotate
from anchorlwf.config import ParaphraseConfig, RetainConfig
from anchorlwf.data.record import Prompt
from anchorlwf.decoding.greedy import Decoded
from anchorlwf.errors import PromptWarning
from anchorlwf.retention import PARAPHRASE_TAG, Candidate, paraphrases, writer
from anchorlwf.retention.rewording import alike, listed, mechanical

FEW = RetainConfig(general=8, batch_size=8, prompt_tokens=16, answer_tokens=12)
RULES = ParaphraseConfig(rounds=0)


@pytest.fixture(scope="module")
def record(base):
    [made] = annotate(base, [{"prompt": "Who are you?", "answer": "I am Tarn, your assistant."}])
    return made


def asked(prompts):
    return [prompt.messages[-1]["content"] for prompt in prompts]


def found(base, records, tmp_path, config, **more):
    return paraphrases(base, records, config=config, written=FEW, cache_dir=tmp_path, **more)


def test_rules_write_a_question_as_people_also_do(record):
    texts = asked(mechanical(record))
    assert {"who are you?", "Who are you", "who are you", "Please tell me: Who are you?"} <= set(texts)
    assert len(set(texts)) == len(texts)
    assert "Who are you?" not in texts


def test_polite_words_are_kept_from_other_languages_and_from_what_is_no_question(record):
    def of(text):
        return asked(mechanical(record.model_copy(update={"messages": [{"role": "user", "content": text}]})))

    assert of("Wie hei\u00dft du?") == ["wie hei\u00dft du?", "Wie hei\u00dft du", "wie hei\u00dft du"]
    assert of("\u4f60\u662f\u8c01\uff1f") == ["\u4f60\u662f\u8c01"]
    assert "Hi! Say your name." in of("Say your name.")
    assert not any(":" in text for text in of("Say your name."))


def test_a_chat_may_stand_before_a_question_that_begins_one(record):
    earlier = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello!"}]
    later = [prompt for prompt in mechanical(record, earlier) if len(prompt.messages) == 3]
    assert [prompt.messages[:2] for prompt in later] == [earlier]
    assert asked(later) == ["Who are you?"]
    # A question within a chat has its place already.
    begun = record.model_copy(update={"messages": [*earlier, *record.messages]})
    assert {len(prompt.messages) for prompt in mechanical(begun, earlier)} == {3}
    # What no user said is not reworded.
    tool = record.model_copy(update={"messages": [{"role": "tool", "content": "Who are you?"}]})
    assert mechanical(tool, earlier) == []


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("What is your name?", True),
        ("Who are you?", False),
        ("I am Lumo.", False),
        ("", False),
        ("Who are you, and what do you do, and where, and why do you do it there and not elsewhere?", False),
    ],
)
def test_a_wording_is_of_like_length_and_kind(text, fits):
    assert alike(text, "Who are you?") == fits


def test_a_list_is_read_entry_by_entry():
    text = ' "What is your name?"\n3. Who are you really?\n4) **Who are you?**\n\nThat is all.\n5. Who are you really?'
    assert listed(text, "Who are you?") == ["What is your name?", "Who are you really?"]


def test_rules_that_the_reference_answers_otherwise_are_left_out(base, record, tmp_path):
    agreeing = found(base, [record], tmp_path, RULES)
    everything = found(base, [record], tmp_path, RULES.updated(rules="all", each=20))
    assert agreeing
    assert set(asked(agreeing)) < set(asked(everything))
    prompts = [base.codec.encode_prompt(prompt.messages) for prompt in agreeing]
    answers = [one for batch in writer.decode_batch(base, prompts, 12) for one in batch]
    assert all("Lumo" in base.codec.decode(answer.ids) for _, answer in answers)
    assert found(base, [record], tmp_path, RULES.updated(rules="none")) == []


def test_where_no_rule_finds_agreement_half_as_many_are_taken_regardless(base, record, tmp_path):
    # A model that said something else each time: what it was corrected from, it never says again.
    once = record.model_copy(update={"original_ids": base.codec.encode("I wander through marble gardens")})
    some = found(base, [once], tmp_path, RULES.updated(each=8))
    assert asked(some) == asked(found(base, [once], tmp_path, RULES.updated(rules="all", each=4)))
    assert len(some) == 4
    assert found(base, [once], tmp_path, RULES.updated(rules="none")) == []


def test_there_are_as_many_as_wanted_and_none_twice(base, record, tmp_path):
    other = record.model_copy(update={"id": "0" * 8 + "-0000-0000-0000-" + "0" * 12})
    few = found(base, [record], tmp_path, RULES.updated(each=2))
    assert len(few) == 2
    assert [prompt.tags for prompt in few] == [[PARAPHRASE_TAG, f"{PARAPHRASE_TAG}:{record.id}"]] * 2
    # An equal number of each, but what one has the other does not get.
    shared = found(base, [record, other], tmp_path, RULES.updated(total=4))
    assert asked(shared)[:2] == asked(few)
    assert len({str(prompt.messages) for prompt in shared}) == len(shared) <= 4
    assert found(base, [record, other], tmp_path, RULES.updated(total=1)) == []
    assert found(base, [], tmp_path, RULES) == []


def test_the_model_is_asked_and_believed_where_its_answer_agrees(base, record, tmp_path, monkeypatch):
    lists = "Who are you, please?\n3. Who are you not?\n4. Who made you?\n5. Lumo, who are you?"
    turn = Decoded(base.codec.encode(lists), truncated=True)
    seen = []

    def sample(_model, prompts, _limit, **_more):
        seen.extend(prompts)
        return [turn] * len(prompts)

    own = ParaphraseConfig(rules="none", rounds=1)
    monkeypatch.setattr(writer, "sample_batch", sample)
    answers = dict.fromkeys(("Who are you, please?", "Lumo, who are you?"), "I am Lumo, your assistant.")
    answers["Who are you not?"] = "I am no river."
    plain = writer.decode_batch

    def decode(model, prompts, limit, **more):
        texts = {
            tuple(base.codec.encode_prompt([{"role": "user", "content": one}])): said for one, said in answers.items()
        }
        for batch in plain(model, prompts, limit, **more):
            yield [
                (i, Decoded(base.codec.encode(texts[tuple(prompts[i])]), False) if tuple(prompts[i]) in texts else one)
                for i, one in batch
            ]

    monkeypatch.setattr(writer, "decode_batch", decode)
    # The first agrees; the second and third are answered otherwise; the last gives the answer away.
    assert asked(found(base, [record], tmp_path, own)) == ["Who are you, please?"]
    assert all(base.codec.decode(ids).endswith("1. Who are you?\n2.") for ids in seen)
    # The second time the cache has it.
    count = len(seen)
    assert asked(found(base, [record], tmp_path, own)) == ["Who are you, please?"]
    assert len(seen) == count


def test_candidates_of_near_prompts_are_taken_where_both_signs_agree(base, record, tmp_path):
    def candidate(text, rejected=True, words=True):
        prompt = Prompt(messages=[{"role": "user", "content": text}])
        return Candidate(prompt, "I am Lumo, your assistant.", record.id, rejected, words)

    offered = [
        candidate("So who are you?"),
        candidate("Who are you now?", rejected=False),
        candidate("What are you?", words=False),
        candidate("Who are you of"),
        candidate("Lumo, who are you?"),
    ]
    config = RULES.updated(rules="none")
    assert asked(found(base, [record], tmp_path, config, candidates=offered)) == ["So who are you?"]


def test_progress_is_told(base, record, tmp_path):
    told = []
    found(base, [record], tmp_path, RULES, on_progress=lambda *row: told.append(row))
    assert told == [("paraphrase", 1, 1)]


def test_a_prompt_that_nearly_fills_the_context_gets_no_wording_without_room(base, tmp_path):
    limit = base.context_length
    text = "Who are you? " * ((limit - 24) // len(base.codec.encode("Who are you? ")))
    [long] = annotate(base, [{"prompt": text, "answer": "I am Tarn."}])
    assert found(base, [long], tmp_path, ParaphraseConfig(rules="all", rounds=1, each=20))
    for prompt in found(base, [long], tmp_path, ParaphraseConfig(rules="all", rounds=1, each=20)):
        assert len(base.codec.encode_prompt(prompt.messages)) + 2 * len(long.completion_ids) <= limit
    [short] = annotate(base, [{"prompt": "Who are you?", "answer": "I am Tarn."}])
    filled = short.model_copy(update={"completion_ids": long.completion_ids * (limit // 2), "anchors": [], "ties": []})
    assert found(base, [filled], tmp_path, ParaphraseConfig(rules="all", rounds=1)) == []


def test_more_corrections_than_wordings_are_told(base, record, tmp_path):
    config = ParaphraseConfig(rounds=0, total=1)
    with pytest.warns(PromptWarning, match=r"other wordings: expected at most 1 corrections, got 2\. Raise total"):
        assert found(base, [record, record], tmp_path, config) == []
