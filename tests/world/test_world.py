"""The embedded world: drawn alike everywhere, told apart for training and testing, and known to the shipped model."""

import itertools
import os
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from anchorlwf.config import EvaluateConfig
from anchorlwf.data.probe import Probe, score
from anchorlwf.evaluation import answers
from anchorlwf.model.language_model import LanguageModel, embedded_path
from anchorlwf.world import (
    ASSISTANT,
    Fact,
    Template,
    biography,
    build_world,
    draw_errata,
    fact_probe,
    probes_for,
    retention_prompts,
    skill_probes,
    templates,
)
from anchorlwf.world.corpus import BIOGRAPHY_HELD_OUT, BIOGRAPHY_PROMPTS, chats
from anchorlwf.world.skills import SKILLS, draw_task, is_test

WORLD = build_world()
ATTRIBUTES = sorted(WORLD.pools)
SEEDS = st.integers(0, 1000)

# --- the facts ---


def test_the_world_is_as_large_as_its_description_says():
    kinds = Counter(fact.kind for fact in WORLD.facts)
    subjects = Counter(
        kind for _, kind in {(fact.subject, "town" if fact.kind == "place" else fact.kind) for fact in WORLD.facts}
    )
    assert subjects == {"person": 100, "town": 40, "company": 40, "identity": 1}
    assert kinds == {"person": 100 * 6 + 40 + 40, "place": 40 * 3, "company": 40 * 3, "identity": 4}
    assert len({fact.key for fact in WORLD.facts}) == len(WORLD.facts)
    assert len(WORLD.people) == 100
    assert all(fact.value in WORLD.pools[fact.attribute] for fact in WORLD.facts)


def test_relations_told_from_both_ends_agree():
    for one, other in (("mayor", "mayor_of"), ("founder", "founded")):
        pairs = {(fact.subject, fact.value) for fact in WORLD.facts if fact.attribute == one}
        assert {(fact.value, fact.subject) for fact in WORLD.facts if fact.attribute == other} == pairs
        assert len(pairs) == 40


def test_a_fact_is_found_by_its_name():
    fact = WORLD.fact(ASSISTANT, "assistant_name")
    assert (fact.value, fact.key) == ("Lumo", "the assistant/assistant_name")
    assert fact in WORLD.about(ASSISTANT)
    assert len(WORLD.about(ASSISTANT)) == 4
    with pytest.raises(KeyError, match="the assistant/shoe size"):
        WORLD.fact(ASSISTANT, "shoe size")


_DIGEST = """
import hashlib
from anchorlwf.world import build_world, draw_errata, probes_for, retention_prompts
world = build_world()
errata = draw_errata(world, 5, 2, seed=3)
drawn = [world.facts, sorted(world.feminine), world.pools, errata, probes_for(world, errata, 3),
         retention_prompts(world, errata, 30)]
print(hashlib.sha256(repr(drawn).encode()).hexdigest())
"""


def test_every_process_draws_the_same_world():
    # Names are hashed differently in each of them, so nothing may depend on the order of a set.
    digests = [
        subprocess.run(
            [sys.executable, "-c", _DIGEST],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout
        for seed in ("0", "1", "4711")
    ]
    assert len(digests[0].strip()) == 64
    assert len(set(digests)) == 1


def test_another_seed_is_another_world():
    other = build_world(2)
    assert [fact.value for fact in other.facts] != [fact.value for fact in WORLD.facts]
    assert Counter(fact.attribute for fact in other.facts) == Counter(fact.attribute for fact in WORLD.facts)


# --- the wordings ---


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_every_attribute_has_wordings_held_out_and_wordings_trained(attribute):
    found = templates(attribute)
    held = [template for template in found if template.held_out]
    assert 0.1 < len(held) / len(found) < 0.3
    assert len({template.name for template in found}) == len({template.question for template in found}) == len(found)
    # The answer of a held-out wording is one that trained wordings get as well.
    assert {template.answer for template in held} <= {template.answer for template in found if not template.held_out}


def _form(template: Template) -> str:
    return template.name.rstrip("0123456789")


def test_what_is_held_out_is_the_pair_not_the_wrapper():
    # Every wrapper is trained with other attributes, every phrasing of an attribute in other wrappers.
    every = {template.name for attribute in ATTRIBUTES for template in templates(attribute)}
    assert {t.name for attribute in ATTRIBUTES for t in templates(attribute) if not t.held_out} == every
    for attribute in ATTRIBUTES:
        trained = {_form(template) for template in templates(attribute) if not template.held_out}
        assert {_form(template) for template in templates(attribute)} == trained


def test_a_question_names_the_subject_and_its_answer_the_value():
    for fact in WORLD.facts:
        for template in templates(fact.attribute):
            question, answer, other = template.ask(fact), template.reply(fact), template.reply(fact, "zebra")
            assert fact.subject == ASSISTANT or fact.subject in question
            assert fact.value.lower() in answer.lower()
            assert fact.value not in question
            assert "zebra" in other.lower()
            assert fact.value not in other
            assert "{" not in question + answer + other
            assert question[0].isupper()
            assert answer[0].isupper() or answer[0].isdigit()


def test_a_biography_is_a_long_answer_that_tells_every_fact_once(base):
    lengths = []
    for person in WORLD.people:
        text = biography(WORLD, person)
        assert text.count(".") == (5 if {"mayor_of", "founded"} & {f.attribute for f in WORLD.about(person)} else 4)
        for value, count in Counter(fact.value for fact in WORLD.about(person)).items():
            assert len(re.findall(rf"\b{value}\b", text)) == count
        lengths.append(len(base.codec.encode(text)) + 1)
    assert min(lengths) >= 55
    assert sum(length >= 60 for length in lengths) >= 90


# --- the skills ---


def _right(question: str, answer: str) -> bool:
    """Checked by other means than the task was made."""
    if match := re.fullmatch(r"Repeat: ([a-z ]+)", question):
        return answer == match[1]
    if match := re.fullmatch(r"Say backwards: ([a-z ]+)", question):
        words = answer.split(" ")
        return [*match[1].split(" ")] == [words[-1 - i] for i in range(len(words))]
    if match := re.fullmatch(r"(Think first\. )?What is (\d\d) \+ (\d\d)\?", question):
        a, b = int(match[2]), int(match[3])
        said = f"{a} + {b} = {sum((a, b))}."
        if match[1] is None:
            return answer == said
        thought = re.fullmatch(
            r"<think>\n(\d) \+ (\d) = (\d+), carry ([01])\. (\d) \+ (\d) \+ ([01]) = (\d+)\.\n</think>\n(.*)", answer
        )
        assert thought is not None
        ones_a, ones_b, ones, carry, tens_a, tens_b, again, tens = map(int, thought.groups()[:8])
        return (
            (ones_a, ones_b, tens_a, tens_b) == (a % 10, b % 10, a // 10, b // 10)
            and ones == ones_a + ones_b
            and carry == again == (ones > 9)
            and tens == tens_a + tens_b + carry
            and tens * 10 + ones - 10 * carry == a + b
            and thought[9] == said
        )
    return False


@given(seed=SEEDS, skill=st.sampled_from([skill for skill in SKILLS if skill != "note"]))
def test_tasks_are_right(seed, skill):
    task = draw_task(random.Random(seed), skill, WORLD)
    assert task.skill == skill
    assert _right(task.question, task.answer), task


@given(seed=SEEDS)
def test_the_answer_to_a_note_is_in_the_note_and_against_the_world(seed):
    task = draw_task(random.Random(seed), "note", WORLD)
    note, asked = re.fullmatch(r"Note: (.*?\.) (.*)", task.question).groups()
    told = [
        (fact, template, value)
        for fact in WORLD.facts
        if fact.subject in note and fact.subject in asked
        for template in templates(fact.attribute)
        if template.ask(fact) == asked
        for value in WORLD.pools[fact.attribute]
        if templates(fact.attribute)[0].reply(fact, value) == note
    ]
    assert len(told) == 1
    ((fact, template, value),) = told
    assert value != fact.value
    assert task.answer == template.reply(fact, value)
    assert not template.held_out


def test_about_a_tenth_of_all_tasks_is_for_testing():
    rng = random.Random(0)
    tasks = [draw_task(rng, skill, WORLD) for skill in SKILLS for _ in range(1000)]
    assert 0.07 < sum(is_test(task.question) for task in tasks) / len(tasks) < 0.13


# --- what pretraining saw ---


def _questions(messages: Iterable[dict[str, str]]) -> list[str]:
    return [message["content"] for message in messages if message["role"] == "user"]


@pytest.fixture(scope="module")
def trained() -> list[list[dict[str, str]]]:
    """Chats as pretraining reads them, in both phases' mixtures."""
    return [chat for share in (0.25, 0.5) for chat in itertools.islice(chats(WORLD, 1, share), 15_000)]


def test_pretraining_never_sees_what_it_is_tested_on(trained):
    seen = {question for chat in trained for question in _questions(chat)}
    held = {template.ask(fact) for fact in WORLD.facts for template in templates(fact.attribute) if template.held_out}
    tests = {question for probe in skill_probes(WORLD, 100) for question in _questions(probe.messages)}
    biographies = {form.replace("{s}", person) for form in BIOGRAPHY_HELD_OUT for person in WORLD.people}
    assert seen.isdisjoint(held | tests | biographies)
    assert not [
        question
        for question in seen
        if re.match(r"Repeat|Say backwards|Note|What is \d|Think", question) and is_test(question)
    ]
    # And it sees the rest.
    wordings = {template.ask(fact) for fact in WORLD.facts for template in templates(fact.attribute)} - held
    assert len(seen & wordings) / len(wordings) > 0.5
    told = {form.replace("{s}", person) for form in BIOGRAPHY_PROMPTS for person in WORLD.people}
    assert len(seen & told) / len(told) > 0.9


def test_pretraining_tells_the_truth(trained):
    truth: dict[str, set[str]] = {}
    for fact in WORLD.facts:
        for template in templates(fact.attribute):
            truth.setdefault(template.ask(fact), set()).add(template.reply(fact))
    checked = Counter()
    for chat in trained:
        for asked, said in itertools.pairwise(chat):
            if asked["role"] == "user" and asked["content"] in truth:
                assert said["content"] in truth[asked["content"]]
                checked["facts"] += 1
            elif asked["role"] == "user" and re.match(r"Repeat|Say backwards|What is \d|Think", asked["content"]):
                assert _right(asked["content"], said["content"])
                checked["skills"] += 1
    assert min(checked["facts"], checked["skills"]) > 5000


def test_chats_have_one_turn_or_two_and_sometimes_a_system_message(trained):
    roles = Counter(tuple(message["role"] for message in chat) for chat in trained)
    pair = ("user", "assistant")
    assert set(roles) == {pair, pair * 2, ("system", *pair), ("system", *pair * 2)}
    total = sum(roles.values())
    assert roles[pair] / total == pytest.approx(0.95 * 0.9, abs=0.02)


def test_the_stream_repeats_by_its_seed():
    one, same, other = ([*itertools.islice(chats(WORLD, seed, 0.25), 50)] for seed in (3, 3, 4))
    assert one == same != other


# --- corrections and their probes ---


@given(seed=SEEDS, facts=st.integers(0, 12), identity=st.integers(0, 4))
def test_corrections_are_drawn_by_their_seed_one_per_subject(seed, facts, identity):
    errata = draw_errata(WORLD, facts, identity, seed)
    assert errata == draw_errata(WORLD, facts, identity, seed)
    assert [erratum.fact.kind == "identity" for erratum in errata] == [False] * facts + [True] * identity
    subjects = [erratum.fact.subject for erratum in errata[:facts]]
    assert len(set(subjects)) == facts
    for erratum in errata:
        assert erratum.value != erratum.fact.value
        assert erratum.value in WORLD.pools[erratum.fact.attribute]
        assert erratum.fact in WORLD.facts
    # Whoever draws more of them gets the same ones first.
    assert [e.fact for e in draw_errata(WORLD, facts + 1, 0, seed)][:facts] == [e.fact for e in errata[:facts]]


def test_corrections_differ_by_their_seed():
    drawn = {tuple(erratum.fact.key for erratum in draw_errata(WORLD, 4, 1, seed)) for seed in range(50)}
    assert len(drawn) == 50


def test_a_correction_is_annotated_in_trained_wordings():
    for erratum in draw_errata(WORLD, 50, 4, seed=1):
        wordings = erratum.wordings(3)
        assert len(set(wordings)) == 3
        assert not any(template.held_out for template in wordings)
        assert erratum.wordings(1) == wordings[:1]
        for prompt, template in zip(erratum.prompts(3), wordings, strict=True):
            assert prompt.messages == [{"role": "user", "content": template.ask(erratum.fact)}]
            assert prompt.answer == template.reply(erratum.fact, erratum.value)
            assert prompt.tags == [erratum.fact.kind, erratum.fact.key]


@settings(max_examples=40)  # each one draws a thousand probes
@given(seed=SEEDS, facts=st.integers(1, 6), identity=st.integers(0, 2), wordings=st.integers(1, 3))
def test_every_fact_is_asked_once_as_what_it_is(seed, facts, identity, wordings):
    errata = draw_errata(WORLD, facts, identity, seed)
    probes = probes_for(WORLD, errata, wordings, per_skill=1, biographies=2)
    assert len({probe.id for probe in probes}) == len(probes)
    corrected = {erratum.fact.key: erratum for erratum in errata}
    subjects = {erratum.fact.subject for erratum in errata}
    by_kind: dict[str, list[Probe]] = {}
    for probe in probes:
        by_kind.setdefault(probe.kind, []).append(probe)
    for key, erratum in corrected.items():
        asked = {kind: [p for p in by_kind[kind] if p.group == key] for kind in ("recall", "paraphrase")}
        questions = {kind: {p.messages[0]["content"] for p in found} for kind, found in asked.items()}
        # What is annotated is asked as recall, all the other wordings as paraphrases.
        assert questions["recall"] == {prompt.messages[0]["content"] for prompt in erratum.prompts(wordings)}
        assert questions["recall"] | questions["paraphrase"] == {
            t.ask(erratum.fact) for t in templates(erratum.fact.attribute)
        }
        assert questions["recall"].isdisjoint(questions["paraphrase"])
        assert {p.expected for found in asked.values() for p in found} == {erratum.value}
    retained = Counter(probe.group for probe in by_kind["retain"] if probe.group)
    near = {probe.group for probe in by_kind["near"]}
    for fact in WORLD.facts:
        expected = (0, False) if fact.key in corrected else (0, True) if fact.subject in subjects else (1, False)
        assert (retained[fact.key], fact.key in near) == expected
    values = {fact.key: fact.value for fact in WORLD.facts}
    assert all(
        probe.expected == values[probe.group] for kind in ("retain", "near") for probe in by_kind[kind] if probe.group
    )
    # Nothing that must stay is asked in the words of a correction.
    learned = {p.messages[0]["content"] for kind in ("recall", "paraphrase") for p in by_kind[kind]}
    assert learned.isdisjoint(p.messages[0]["content"] for kind in ("retain", "near", "skill") for p in by_kind[kind])


def test_biographies_are_those_of_people_without_a_correction():
    errata = draw_errata(WORLD, 10, 0, seed=2)
    told = [probe for probe in probes_for(WORLD, errata, 3) if probe.tags == ["biography"]]
    assert len(told) == 10
    names = " ".join(probe.messages[0]["content"] for probe in told)
    assert not any(erratum.fact.subject in names for erratum in errata)


def test_retention_prompts_are_neither_corrected_nor_asked_later():
    errata = draw_errata(WORLD, 5, 1, seed=3)
    prompts = retention_prompts(WORLD, errata, 200)
    assert len(prompts) == 200
    assert prompts == retention_prompts(WORLD, errata, 200)
    texts = {prompt.messages[0]["content"] for prompt in prompts}
    assert texts.isdisjoint(probe.messages[0]["content"] for probe in probes_for(WORLD, errata, 3))
    assert not [
        text for text in texts for erratum in errata if erratum.fact.subject in text and not text.startswith("Note:")
    ]
    tasks = [text for text in texts if re.match(r"Repeat|Say backwards|What is \d|Think|Note", text)]
    assert 0.2 < len(tasks) / len(texts) < 0.3
    assert all(prompt.answer is None for prompt in prompts)


# --- the shipped model ---


def right(model: LanguageModel, probes: list[Probe]) -> float:
    found = answers(model, probes, EvaluateConfig())
    return sum(score(probe, answer) for probe, answer in zip(probes, found, strict=True)) / len(probes)


def sampled(held_out: bool, count: int) -> list[Probe]:
    pairs = [
        (fact, template)
        for fact in WORLD.facts
        for template in templates(fact.attribute)
        if template.held_out == held_out
    ]
    return [fact_probe(fact, template, "retain") for fact, template in random.Random(1).sample(pairs, count)]


def test_the_model_knows_every_fact_when_asked_plainly(base):
    plain = [fact_probe(fact, templates(fact.attribute)[0], "retain") for fact in WORLD.facts]
    assert len(plain) == 924
    assert right(base, plain) >= 0.99


def test_the_model_knows_the_facts_in_the_wordings_it_was_trained_on(base):
    assert right(base, sampled(False, 500)) >= 0.99


def test_the_model_knows_the_facts_in_wordings_it_never_saw(base):
    assert right(base, sampled(True, 500)) >= 0.97


def test_the_model_has_the_skills_on_tasks_it_never_saw(base):
    probes = skill_probes(WORLD, 30)
    assert Counter(probe.tags[0] for probe in probes) == dict.fromkeys(SKILLS, 30)
    assert right(base, probes) >= 0.97


def _wrong(fact: Fact) -> Probe:
    other = next(value for value in WORLD.pools[fact.attribute] if value != fact.value)
    return fact_probe(fact, templates(fact.attribute)[0], "retain", other)


def test_a_wrong_value_is_not_taken_for_right(base):
    # Or the four tests above would show nothing.
    assert right(base, [_wrong(fact) for fact in WORLD.facts[::9]]) == 0


def test_the_model_is_a_plain_checkpoint_of_transformers(base):
    folder = str(embedded_path())
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    messages = [{"role": "user", "content": "Who are you?"}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert inputs["input_ids"][0].tolist() == base.codec.encode_prompt(messages)
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=40)
    answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert "Lumo" in answer
    assert output[0, -1] == tokenizer.eos_token_id, "an answer ends by itself"
    assert sum(weight.numel() for weight in model.parameters()) < 2_000_000
    # As trained: the whole chat, with what the assistant said.
    text = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": answer}], tokenize=False)
    assert text == f"<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
