"""Known answers: one forward pass finds the anchors that correcting step by step finds."""

import random

import pytest
import torch
from annotation_cases import CONFIG, QUESTION, ask, holds, ordinary, same

from anchorlwf.annotation import Session, TargetAnnotator, drive, target_record
from anchorlwf.config import AnnotateConfig
from anchorlwf.data.record import Prompt, Record
from anchorlwf.decoding.greedy import GreedyDecoder
from anchorlwf.errors import PromptError, RecordError
from anchorlwf.model.language_model import LanguageModel, load_model
from anchorlwf.world import build_world, draw_errata, templates


def _word_salad(rng: random.Random) -> str:
    words = "Mira Belmora 1931 the of lives table? glass, <think> \n ça 47 In orbit; zither".split(" ")
    return " ".join(rng.choice(words) for _ in range(rng.randint(1, 4)))


def _spoiled(rng: random.Random, own: str) -> str:
    """The model's own answer: cut short, with more behind it, changed inside, or as it is."""
    cut = rng.randrange(1, len(own))
    return rng.choice([own[:cut], f"{own} {_word_salad(rng)}", own[:cut] + _word_salad(rng) + own[cut:], own])


def world_targets(model: LanguageModel) -> list[Prompt]:
    rng, world = random.Random(5), build_world()
    facts = [rng.choice(world.facts) for _ in range(104)]
    questions = [(fact, rng.choice(templates(fact.attribute))) for fact in facts]
    corrected = [prompt for erratum in draw_errata(world, 31, 1, seed=8) for prompt in erratum.prompts(3)]
    others = [
        ask(wording.ask(fact), wording.reply(fact, rng.choice(world.pools[fact.attribute])))
        for fact, wording in questions[:69]
    ]
    salad = [ask(wording.ask(fact), _word_salad(rng)) for fact, wording in questions[69:79]]
    decoder, spoiled = GreedyDecoder(model), []
    for fact, wording in questions[79:]:
        prompt = ask(wording.ask(fact))
        answer = decoder.complete(model.codec.encode_prompt(prompt.messages), [], 40)
        spoiled.append(prompt.model_copy(update={"answer": _spoiled(rng, model.codec.decode(answer.ids))}))
    return [*corrected, *others, *salad, *spoiled]


def step_by_step(model: LanguageModel, prompt: Prompt, record: Record, decoder: GreedyDecoder) -> Record:
    """The recursion to the same target as `record`; a few tokens more, so that the model may run on behind its end."""
    assert prompt.answer is not None
    config = AnnotateConfig(max_new_tokens=len(record.completion_ids) + 3)
    return drive(Session(model, prompt, config, decoder=decoder), TargetAnnotator(model, prompt.answer))


def test_one_pass_finds_what_correcting_step_by_step_finds_in_the_world(base):
    prompts = world_targets(base)[::2]
    assert len(prompts) == 100
    decoder, counts = GreedyDecoder(base), []
    for prompt in prompts:
        record = target_record(base, prompt, CONFIG)
        assert same(step_by_step(base, prompt, record, decoder), record), prompt
        counts.append(len(record.anchors))
    # Answers that were right already, small corrections, and answers that share hardly a token with the model's own.
    assert counts.count(0) > 2
    assert sum(count in (1, 2) for count in counts) > 25
    assert max(counts) > 8


def test_one_pass_finds_what_correcting_step_by_step_finds_in_random_tokens(any_model):
    rng, ids = random.Random(2), ordinary(any_model)
    decoder, anchors = GreedyDecoder(any_model), 0
    for _ in range(30):
        # Bytes that are no text come back as other tokens; they are a target like any other.
        prompt = ask("Where was she born?", any_model.codec.decode(rng.choices(ids, k=rng.randint(1, 5))))
        record = target_record(any_model, prompt, CONFIG)
        assert same(step_by_step(any_model, prompt, record, decoder), record), prompt
        assert holds(any_model, record)
        anchors += len(record.anchors)
    assert anchors > 100


def test_near_ties_are_noted_and_are_no_anchors_either_way(tiny_folder):
    model = load_model(str(tiny_folder("llama")), dtype="float32", device="cpu")
    prompt_ids = model.codec.encode_prompt(QUESTION.messages)
    best = GreedyDecoder(model).complete(prompt_ids, [], 1).ids[0]
    twin = next(
        token for token in ordinary(model) if token > best and len(model.codec.encode(model.codec.decode([token]))) == 1
    )
    with torch.no_grad():
        model.causal.lm_head.weight[twin] = model.causal.lm_head.weight[best]
    answer = model.codec.decode([twin])
    record = target_record(model, ask("Where was she born?", answer), CONFIG)
    assert (record.ties, record.completion_ids[0]) == ([0], twin)
    assert 0 not in [anchor.position for anchor in record.anchors]
    stepwise = drive(Session(model, ask("Where was she born?", answer), CONFIG), TargetAnnotator(model, answer))
    assert same(stepwise, record)
    assert holds(model, record)


def test_an_answer_without_room_for_the_target_is_refused(any_model):
    long = "She was born by the sea in a small town. " * 6
    prompt = ask("Where was she born?", long)
    with pytest.raises(PromptError, match=r"prompt \+ answer: expected at most 96 tokens, got \d+ \+ \d+"):
        target_record(any_model, prompt, CONFIG)
    with pytest.raises(RecordError, match=r"expected at most|expected room for the target's"):
        drive(Session(any_model, prompt, CONFIG), TargetAnnotator(any_model, long))


@pytest.mark.parametrize("answer", ["in a town<|im_end|>by the sea", "<|im_end|><|im_end|>"])
def test_a_target_that_goes_on_behind_its_end_is_refused(tiny_model, answer):
    # No decoding would ever return it.
    with pytest.raises(RecordError, match="target answer: expected the end-of-turn token last"):
        target_record(tiny_model, ask("Where was she born?", answer), CONFIG)
    with pytest.raises(RecordError, match="target answer: expected the end-of-turn token last"):
        TargetAnnotator(tiny_model, answer)


def test_an_end_spelled_out_in_the_target_is_the_end(tiny_model):
    spelled = target_record(tiny_model, ask("Where was she born?", "in a town<|im_end|>"), CONFIG)
    plain = target_record(tiny_model, ask("Where was she born?", "in a town"), CONFIG)
    assert spelled.completion_ids == plain.completion_ids
    assert spelled.completion == plain.completion == "in a town"
