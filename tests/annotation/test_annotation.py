"""Annotation: the protocol's recursion, its shortcut for known answers, and a file that survives interruptions."""

import random
import re
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from other_user import nobody

from anchorlwf.annotation import (
    Accept,
    Correct,
    Quit,
    Reject,
    Session,
    TargetAnnotator,
    Undo,
    Verdict,
    View,
    annotate,
    as_prompts,
    drive,
    retention_records,
    target_record,
    verify_records,
)
from anchorlwf.config import AnnotateConfig
from anchorlwf.data.jsonl import BadLineWarning, load_records, save_lines
from anchorlwf.data.record import Prompt, Record
from anchorlwf.decoding.greedy import GreedyDecoder
from anchorlwf.errors import AnchorLwfError, NothingToDoError, PromptError, RecordError, StampError, StorageError
from anchorlwf.model.language_model import LanguageModel, load_model
from anchorlwf.world import build_world, draw_errata, templates

LIMIT = 16
CONFIG = AnnotateConfig(max_new_tokens=LIMIT, alternatives=4)


def ask(text: str, answer: str | None = None) -> Prompt:
    return Prompt(messages=[{"role": "user", "content": text}], answer=answer)


QUESTION = ask("Where was she born?")


def same(one: Record, other: Record) -> bool:
    """Equal in all that annotation decides; times, decoded originals and probabilities' last bits aside."""
    skipped = {"anchors", "original_ids"}
    anchors, others = (
        [(a.position, a.token_id, a.rejected_id, a.confidence, a.source) for a in record.anchors]
        for record in (one, other)
    )
    return anchors == others and one.model_dump(exclude=skipped) == other.model_dump(exclude=skipped)


def holds(model: LanguageModel, record: Record) -> bool:
    (finding,) = verify_records(model, [record])
    return finding.holds and not finding.idle


def ordinary(model: LanguageModel) -> list[int]:
    """Every id but the special ones."""
    tokenizer = model.codec.tokenizer
    return sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))


# --- the shortcut for known answers is the recursion ---


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
    prompts = world_targets(base)
    assert len(prompts) == 200
    decoder, counts = GreedyDecoder(base), []
    for prompt in prompts:
        record = target_record(base, prompt, CONFIG)
        assert same(step_by_step(base, prompt, record, decoder), record), prompt
        counts.append(len(record.anchors))
    # Answers that were right already, small corrections, and answers that share hardly a token with the model's own.
    assert counts.count(0) > 5
    assert sum(count in (1, 2) for count in counts) > 50
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


# --- one answer under correction ---


@pytest.fixture
def session(any_model: LanguageModel) -> Session:
    found = Session(any_model, QUESTION, CONFIG)
    assert len(found.state.completion_ids) == LIMIT
    return found


def correct(session: Session, position: int, *token_ids: int) -> list[int]:
    session.correct(position, list(token_ids), confidence=1.0, source="human:ada")
    return [anchor.position for anchor in session.state.anchors]


def others(model: LanguageModel, session: Session, prefix: list[int], count: int) -> list[int]:
    """Tokens the model would not choose behind `prefix`, by a forward pass of this test's own."""
    inputs = torch.tensor([[*session.prompt_ids, *prefix]])
    with torch.inference_mode():
        logits = model.net(input_ids=inputs, use_cache=False).logits[0, -1]
    ranked = [token for token in logits.argsort(descending=True).tolist() if token in set(ordinary(model))]
    return ranked[3 : 3 + count]


def next_choice(model: LanguageModel, session: Session, prefix: list[int]) -> int:
    inputs = torch.tensor([[*session.prompt_ids, *prefix]])
    with torch.inference_mode():
        return int(model.net(input_ids=inputs, use_cache=False).logits[0, -1].argmax())


def test_of_several_tokens_only_those_the_model_would_not_pick_are_anchors(any_model, session):
    own = list(session.state.completion_ids)
    prefix = own[:5]
    (first,) = others(any_model, session, prefix, 1)
    second = next_choice(any_model, session, [*prefix, first])
    (third,) = others(any_model, session, [*prefix, first, second], 1)
    fourth = next_choice(any_model, session, [*prefix, first, second, third])
    assert correct(session, 5, first, second, third, fourth) == [5, 7]
    assert session.state.completion_ids[:9] == (*prefix, first, second, third, fourth)
    a, b = session.state.anchors
    assert (a.token_id, a.rejected_id) == (first, own[5])
    assert (b.token_id, b.rejected_id) == (third, next_choice(any_model, session, [*prefix, first, second]))
    assert 0 < (a.ref_probability or 0) < 0.5
    assert session.state.completion_ids[9] == next_choice(any_model, session, [*prefix, first, second, third, fourth])
    assert holds(any_model, session.record("complete"))


def test_correcting_at_an_anchor_replaces_it_and_drops_what_came_later(any_model, session):
    own = session.state.completion_ids
    one, other = others(any_model, session, list(own[:3]), 2)
    assert correct(session, 3, one) == [3]
    (later,) = others(any_model, session, list(session.state.completion_ids[:8]), 1)
    assert correct(session, 8, later) == [3, 8]
    assert correct(session, 3, other) == [3]
    assert session.state.completion_ids[:4] == (*own[:3], other)
    assert session.state.anchors[0].rejected_id == own[3]
    # And the model's own token again: nothing is left to learn.
    assert correct(session, 3, own[3]) == []
    assert session.state.completion_ids == own


def test_undo_takes_corrections_back_one_by_one(any_model, session):
    states = [session.state]
    for position in (10, 6, 2):
        (token,) = others(any_model, session, list(session.state.completion_ids[:position]), 1)
        correct(session, position, token)
        states.append(session.state)
    while len(states) > 1:
        assert session.state == states.pop()
        assert session.undo() is True
    assert session.state == states[0]
    assert session.undo() is False
    assert session.state == states[0]


def _refused(session: Session, kind: type[AnchorLwfError], message: str, position: int, *token_ids: int) -> None:
    before = session.state
    with pytest.raises(kind, match=message):
        correct(session, position, *token_ids)
    assert session.state is before


@pytest.mark.parametrize("position", [-1, LIMIT, LIMIT + 7])
def test_a_position_outside_the_answer_is_refused(session, position):
    _refused(session, RecordError, rf"position: expected 0 to {LIMIT - 1}, got {position}\.", position, 40)


def test_an_empty_correction_is_refused(session):
    _refused(session, RecordError, "correction: expected at least one token, got none", 3)


@pytest.mark.parametrize("bad", [-1, 100_000])
@pytest.mark.parametrize("tokens", [[], [40]])
def test_a_token_outside_the_vocabulary_is_refused(session, tokens, bad):
    message = rf"correction: expected token ids from 0 to \d+, got {bad}\."
    _refused(session, RecordError, message, 3, *tokens, bad)


@pytest.mark.parametrize("count", [1, 3])
def test_correcting_what_stands_by_the_same_is_nothing_to_do(session, count):
    standing = session.state.completion_ids[4 : 4 + count]
    _refused(session, NothingToDoError, "correction: expected tokens that differ", 4, *standing)


def test_the_end_of_turn_may_stand_last_only(any_model, session):
    (end,) = any_model.stop_ids
    _refused(session, RecordError, "correction: expected the end-of-turn token last", 4, end, 40)
    assert correct(session, 4, 40, end)
    assert session.state.completion_ids[4:] == (40, end)
    assert not session.state.truncated
    # Nothing follows the end, until it is corrected itself.
    (token,) = others(any_model, session, list(session.state.completion_ids[:5]), 1)
    correct(session, 5, token)
    assert len(session.state.completion_ids) == LIMIT
    assert session.state.truncated


def test_a_correction_may_reach_the_limit_and_no_further(session):
    tokens = [40, 41, 42, 43]
    assert session.state.truncated
    _refused(session, RecordError, rf"answer: expected at most {LIMIT} tokens, got {LIMIT + 1}", LIMIT - 3, *tokens)
    correct(session, LIMIT - 4, *tokens)
    assert session.state.completion_ids[-4:] == tuple(tokens)
    assert len(session.state.completion_ids) == LIMIT
    assert session.state.truncated


def test_the_context_is_a_limit_too(any_model):
    prompt = ask("she " * 30)
    session = Session(any_model, prompt, AnnotateConfig(max_new_tokens=500))
    room = 96 - len(session.prompt_ids)
    assert len(session.state.completion_ids) == room
    _refused(session, RecordError, f"answer: expected at most {room} tokens, got {room + 1}", room - 1, 40, 41)


def test_the_record_of_a_session_holds_what_was_done(any_model, session):
    own = list(session.state.completion_ids)
    (token,) = others(any_model, session, own[:2], 1)
    session.correct(2, [token], confidence=0.75, source="human:ada")
    record = session.record("complete")
    assert (record.original_ids, record.model, record.messages) == (own, any_model.stamp, QUESTION.messages)
    assert record.completion == any_model.codec.decode(record.completion_ids)
    assert record.truncated
    assert [(a.position, a.token_id, a.rejected_id, a.confidence, a.source) for a in record.anchors] == [
        (2, token, own[2], 0.75, "human:ada")
    ]


def test_a_draft_is_taken_up_where_it_was_left(any_model, session):
    (token,) = others(any_model, session, list(session.state.completion_ids[:2]), 1)
    correct(session, 2, token)
    draft = session.record("draft")
    resumed = Session(any_model, QUESTION, CONFIG, draft=Record.model_validate_json(draft.model_dump_json()))
    assert resumed.state == session.state
    assert resumed.undo() is False
    (later,) = others(any_model, session, list(session.state.completion_ids[:9]), 1)
    assert correct(resumed, 9, later) == correct(session, 9, later) == [2, 9]
    assert same(resumed.record("complete"), session.record("complete"))
    assert resumed.record("complete").original_ids == draft.original_ids


class Corrections(RuleBasedStateMachine):
    """Any corrections and undos, in any order, on one session; the history is kept beside it."""

    def __init__(self, model: LanguageModel, decoder: GreedyDecoder) -> None:
        super().__init__()
        self.model, self.decoder = model, decoder

    @initialize(text=st.sampled_from(["Where was she born?", "Which river?", "hello"]))
    def begin(self, text: str) -> None:
        self.session = Session(self.model, ask(text), CONFIG, decoder=self.decoder)
        self.history = [self.session.state]

    @rule(where=st.floats(0, 1), picks=st.lists(st.integers(3, 299), min_size=1, max_size=3), end=st.booleans())
    def correct(self, where: float, picks: list[int], end: bool) -> None:
        before = self.session.state
        position = round(where * (len(before.completion_ids) - 1))
        tokens = [*picks, *(self.model.stop_ids if end else [])][: LIMIT - position]
        if before.completion_ids[position : position + len(tokens)] == tuple(tokens):
            return
        after = self.session.correct(position, tokens, confidence=0.5, source="target")
        self.history.append(after)
        assert after.completion_ids[: position + len(tokens)] == (*before.completion_ids[:position], *tokens)
        assert [a for a in after.anchors if a.position < position] == [
            a for a in before.anchors if a.position < position
        ]
        assert all(a.position < position + len(tokens) for a in after.anchors)

    @precondition(lambda self: len(self.history) > 1)
    @rule()
    def undo(self) -> None:
        assert self.session.undo()
        self.history.pop()
        assert self.session.state is self.history[-1]

    @rule()
    def resume(self) -> None:
        # A draft keeps everything but the way back.
        self.session = Session(
            self.model, self.session.view().prompt, CONFIG, decoder=self.decoder, draft=self.session.record("draft")
        )
        assert self.session.state == self.history[-1]
        self.history = [self.session.state]

    @invariant()
    def every_token_is_the_models_choice_or_an_anchor(self) -> None:
        assert holds(self.model, self.session.record("complete"))

    @invariant()
    def an_answer_ends_once(self) -> None:
        state = self.session.state
        ends = [token in self.model.stop_ids for token in state.completion_ids]
        assert not any(ends[:-1])
        assert ends[-1] != state.truncated
        assert state.truncated == (not ends[-1] and len(ends) == LIMIT)


def test_whatever_is_corrected_and_undone_the_record_holds(any_model):
    machine = partial(Corrections, any_model, GreedyDecoder(any_model, 2))
    run_state_machine_as_test(machine, settings=settings(max_examples=12, stateful_step_count=8))


# --- many prompts, one file ---


class Scripted:
    """Answers with the given verdicts, one per review; an exception among them is raised."""

    source = "human:ada"

    def __init__(self, *verdicts: Verdict | BaseException) -> None:
        self.verdicts, self.views = list(verdicts), list[View]()
        self.complaints: list[str] = []

    def review(self, view: View) -> Verdict:
        self.views.append(view)
        verdict = self.verdicts.pop(0)
        if isinstance(verdict, BaseException):
            raise verdict
        return verdict

    def complain(self, error: AnchorLwfError) -> None:
        self.complaints.append(str(error))


QUESTIONS = ["Where was she born?", "Which river?", "hello", "How are you?", "Who?"]


@contextmanager
def counting_passes(model: LanguageModel) -> Iterator[list[int]]:
    passes: list[int] = []
    handle = model.net.register_forward_pre_hook(lambda *_: passes.append(1))
    try:
        yield passes
    finally:
        handle.remove()


def test_an_interrupted_person_goes_on_without_doing_anything_twice(tiny_model, tmp_path):
    out = tmp_path / "r.jsonl"
    first = Scripted(Correct(3, [40]), Accept(), Reject(), Accept(), KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        annotate(tiny_model, QUESTIONS, first, out=out, config=CONFIG)
    kept = out.read_bytes()
    assert [record.status for record in load_records(out)] == ["complete", "rejected", "complete"]
    second = Scripted(Accept(), Correct(0, [41]), Accept())
    seen = []
    new = annotate(
        tiny_model,
        QUESTIONS,
        second,
        out=out,
        config=CONFIG,
        on_record=lambda record, done, count: seen.append((record.messages[0]["content"], done, count)),
    )
    assert seen == [("How are you?", 1, 2), ("Who?", 2, 2)]
    assert not second.verdicts
    assert out.read_bytes().startswith(kept)
    assert load_records(out)[3:] == new
    assert [record.messages[0]["content"] for record in load_records(out)] == QUESTIONS
    # And a third time there is nothing left.
    assert annotate(tiny_model, QUESTIONS, Scripted(), out=out, config=CONFIG) == []


def test_an_interrupted_run_over_targets_goes_on_where_it_was(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("anchorlwf.annotation.stage._WINDOW", 2)
    prompts = [ask(text, "in a small town") for text in QUESTIONS]

    def stop(_record: Record, done: int, _count: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    out = tmp_path / "r.jsonl"
    with pytest.raises(KeyboardInterrupt):
        annotate(tiny_model, prompts, out=out, config=CONFIG, on_record=stop)
    assert len(load_records(out)) == 2
    assert [record.messages[0]["content"] for record in annotate(tiny_model, prompts, out=out, config=CONFIG)] == (
        QUESTIONS[2:]
    )
    assert len(out.read_text().splitlines()) == 5
    whole = annotate(tiny_model, prompts, config=CONFIG)
    assert all(same(one, other) for one, other in zip(load_records(out), whole, strict=True))


def test_another_answer_to_the_same_question_is_another_record(tiny_model, tmp_path):
    out = tmp_path / "r.jsonl"
    for answer in ("in a town", "by the sea", "in a town"):
        annotate(tiny_model, [ask("Where was she born?", answer)], out=out, config=CONFIG)
    assert [record.completion for record in load_records(out)] == ["in a town", "by the sea"]


def test_quitting_keeps_a_draft_that_the_next_run_takes_up(tiny_model, tmp_path):
    out = tmp_path / "r.jsonl"
    first = Scripted(Accept(), Correct(3, [40]), Quit())
    records = annotate(tiny_model, QUESTIONS, first, out=out, config=CONFIG)
    assert [record.status for record in records] == ["complete", "draft"]
    second = Scripted(Correct(6, [41]), Undo(), Undo(), Correct(9, [42]), Accept(), Quit())
    done, left = annotate(tiny_model, QUESTIONS[:3], second, out=out, config=CONFIG)
    # What the draft holds cannot be undone, what came later can.
    assert [[a.position for a in view.anchors] for view in second.views[:5]] == [[3], [3, 6], [3], [3], [3, 9]]
    assert [anchor.position for anchor in done.anchors] == [3, 9]
    assert done.original_ids == records[1].original_ids
    assert (done.id, left.status) == (records[1].id, "draft")
    assert [record.status for record in load_records(out)] == ["complete", "complete", "draft"]


def test_a_refused_correction_is_complained_about_and_asked_again(tiny_model):
    person = Scripted(Correct(99, [40]), Correct(2, []), Correct(2, [41]), Accept())
    (record,) = annotate(tiny_model, ["hello"], person, config=CONFIG)
    assert [re.split(r"[:,]", line)[0] for line in person.complaints] == ["position", "correction"]
    assert [anchor.position for anchor in record.anchors] == [2]


def test_what_is_shown_is_what_the_model_would_say(any_model):
    person = Scripted(Accept())
    annotate(any_model, ["hello"], person, config=CONFIG)
    (view,) = person.views
    assert view.prompt == ask("hello")
    assert [step.token_id for step in view.steps()] == view.completion_ids
    assert all(len(step.alternatives) == CONFIG.alternatives for step in view.steps())
    assert (view.truncated, view.anchors) == (True, [])


def test_a_right_answer_becomes_a_keep_record(base):
    world = build_world()
    fact = world.facts[0]
    wording = templates(fact.attribute)[0]
    (record,) = annotate(base, [ask(wording.ask(fact), wording.reply(fact))])
    assert (record.anchors, record.status, record.truncated) == ([], "complete", False)
    assert record.completion_ids == record.original_ids
    assert record.completion == wording.reply(fact)
    assert holds(base, record)


def test_a_corrected_fact_needs_few_anchors(base):
    (erratum,) = draw_errata(build_world(), 1, 0, seed=4)
    for record in annotate(base, erratum.prompts(2)):
        assert 1 <= len(record.anchors) < len(record.completion_ids) / 2
        assert erratum.value in record.completion
        assert erratum.fact.value in base.codec.decode(record.original_ids)


def test_the_models_own_answer_can_be_left_undecoded(tiny_model):
    prompt = ask("hello", "in a town")
    (with_it,), (without,) = (
        annotate(tiny_model, [prompt], config=AnnotateConfig(original=wanted, max_new_tokens=LIMIT, confidence=0.5))
        for wanted in (True, False)
    )
    assert (len(with_it.original_ids), without.original_ids) == (LIMIT, [])
    assert same(with_it, without)
    assert {anchor.confidence for anchor in without.anchors} == {0.5}


@pytest.mark.parametrize(("answer", "got"), [(None, "nothing"), ("", "''")])
def test_a_target_that_is_missing_is_refused(tiny_model, answer, got):
    with pytest.raises(RecordError, match=rf"target answer: expected some text, got {got}\."):
        annotate(tiny_model, [ask("hello", answer)], config=CONFIG)


@pytest.mark.parametrize("annotator", ["target", Scripted(Accept())])
def test_a_prompt_longer_than_the_context_is_refused(tiny_model, annotator):
    told = []
    with (
        counting_passes(tiny_model) as passes,
        pytest.raises(PromptError, match=r"line 2: prompt: expected fewer than 96 tokens \(context\), got \d+"),
    ):
        annotate(
            tiny_model,
            [ask("hello", "in a town"), ask("she " * 200, "in a town")],
            annotator,
            config=CONFIG,
            on_record=lambda *_: told.append(1),
        )
    assert (passes, told) == ([], [])


def below_a_file(folder: Path) -> Path:
    (folder / "file").write_text("old")
    return folder / "file" / "r.jsonl"


def a_folder(folder: Path) -> Path:
    (folder / "r.jsonl").mkdir()
    return folder / "r.jsonl"


@pytest.mark.parametrize("place", [below_a_file, a_folder])
def test_a_place_that_cannot_be_written_is_told_before_any_work(tiny_model, tmp_path, place: Callable[[Path], Path]):
    with counting_passes(tiny_model) as passes, pytest.raises(StorageError, match=r"r\.jsonl: expected a writable"):
        annotate(tiny_model, QUESTIONS, Scripted(), out=place(tmp_path), config=CONFIG)
    assert not passes


def test_a_file_of_somebody_else_is_told_before_any_work(tiny_model, tmp_path):
    home = tmp_path / "home"
    home.mkdir(mode=0o555)
    prompts = [ask("hello", "in a town")]
    with chdir(home), counting_passes(tiny_model) as passes:
        with nobody(), pytest.raises(StorageError, match="Permission denied"):
            annotate(tiny_model, prompts, out="r.jsonl", config=CONFIG)
        assert not passes


def test_a_file_of_something_else_is_left_alone(tiny_model, tmp_path):
    # `--out prompts.jsonl` by mistake.
    out = tmp_path / "prompts.jsonl"
    save_lines(out, [ask("hello", "in a town")])
    before = out.read_bytes()
    with pytest.raises(RecordError, match="line 1: id: expected the field"):
        annotate(tiny_model, out, out=out, config=CONFIG)
    assert out.read_bytes() == before


def test_prompts_may_be_texts_dicts_or_prompts_in_a_file_or_not(tmp_path):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "c"}]
    given = ["a", {"prompt": "b", "answer": "B", "tags": ["x"]}, {"messages": chat}, ask("d", "D")]
    found = as_prompts(given)
    assert found[:2] == [ask("a"), Prompt(messages=[{"role": "user", "content": "b"}], answer="B", tags=["x"])]
    assert (found[2].messages, found[3]) == (chat, ask("d", "D"))
    save_lines(tmp_path / "p.jsonl", found)
    assert as_prompts(tmp_path / "p.jsonl") == as_prompts(str(tmp_path / "p.jsonl")) == found
    assert as_prompts([]) == []


def test_a_prompt_that_is_none_is_named():
    with pytest.raises(RecordError, match=r"line 2: messages: .*at least 1 item"):
        as_prompts(["a", {"messages": []}])


# --- do records still hold? ---


@pytest.fixture(scope="module")
def corrected(any_model: LanguageModel) -> Record:
    session = Session(any_model, QUESTION, CONFIG)
    for position in (3, 8):
        correct(session, position, *others(any_model, session, list(session.state.completion_ids[:position]), 1))
    return session.record("complete")


def changed(record: Record, **fields: object) -> Record:
    return Record.model_validate({**record.model_dump(), **fields})


def test_a_changed_token_is_named(any_model, corrected):
    ids = list(corrected.completion_ids)
    ids[5] = next(token for token in ordinary(any_model) if token != ids[5])
    text = any_model.codec.decode(ids)
    (finding,) = verify_records(any_model, [changed(corrected, completion_ids=ids, completion=text)])
    # What follows was chosen behind the old token, so other positions may be named as well; none before it.
    assert finding.unexplained[0] == 5
    assert not finding.holds


def test_a_removed_anchor_is_named(any_model, corrected):
    (finding,) = verify_records(any_model, [changed(corrected, anchors=corrected.anchors[1:])])
    assert (finding.unexplained, finding.idle, finding.holds) == ([3], [], False)


def test_an_anchor_that_the_model_picks_itself_is_idle(any_model, corrected):
    extra = {"position": 5, "token_id": corrected.completion_ids[5]}
    anchors = sorted([*corrected.model_dump()["anchors"], extra], key=lambda anchor: anchor["position"])
    (finding,) = verify_records(any_model, [changed(corrected, anchors=anchors)])
    assert (finding.unexplained, finding.idle, finding.holds) == ([], [5], True)


def test_a_confidence_below_one_makes_no_difference(any_model, corrected):
    anchors = [{**anchor, "confidence": 0.3} for anchor in corrected.model_dump()["anchors"]]
    assert holds(any_model, changed(corrected, anchors=anchors))


@pytest.mark.parametrize("field", ["tokenizer_sha", "template_sha"])
def test_a_record_of_another_tokenizer_or_template_is_not_replayed(any_model, corrected, field):
    other = changed(corrected, model={**corrected.model.model_dump(), field: "f" * 64})
    found = verify_records(any_model, [corrected, other])
    assert next(found).holds
    with pytest.raises(StampError, match=rf"record {other.id}: .*: expected ffffffffffff .*, got"):
        next(found)


@pytest.mark.parametrize("field", ["prompt_ids", "completion_ids"])
def test_a_token_that_the_model_does_not_have_is_named(any_model, corrected, field):
    ids = [*getattr(corrected, field), 5_000]
    with pytest.raises(StampError, match=r"token ids: expected less than \d+, got 5000"):
        list(verify_records(any_model, [changed(corrected, **{field: ids})]))


def test_records_are_replayed_on_the_reference_not_on_the_tuned_model(any_path, corrected):
    model = load_model(str(any_path), dtype="float32", device="cpu")
    model.attach_lora(4, 8.0, 0.0, "all-linear", seed=0)
    assert holds(model, corrected)
    for name, weight in model.net.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5, generator=torch.Generator().manual_seed(len(name)))
    again = Session(model, QUESTION, CONFIG).record("complete")
    assert again.completion_ids != corrected.original_ids, "the adapter must matter, or this test shows nothing"
    assert holds(model, corrected)


# --- what must stay as it is ---


def test_retention_records_are_the_models_own_answers_without_anchors(any_model):
    prompts = [ask(text).model_copy(update={"tags": ["t"]}) for text in QUESTIONS]
    records = retention_records(any_model, prompts, CONFIG)
    for text, record in zip(QUESTIONS, records, strict=True):
        own = Session(any_model, ask(text), CONFIG).state
        assert tuple(record.completion_ids) == tuple(record.original_ids) == own.completion_ids
        assert (record.anchors, record.tags, record.truncated) == ([], ["t", "retain"], own.truncated)
        assert record.messages[0]["content"] == text
        assert holds(any_model, record)
    assert len({record.id for record in records}) == len(QUESTIONS)


def test_a_line_torn_by_a_crash_does_not_keep_the_work_from_going_on(base, tmp_path):
    out = tmp_path / "records.jsonl"
    prompts = [{"prompt": "Who are you?", "answer": "I am Tarn."}, {"prompt": "Who made you?", "answer": "I was."}]
    annotate(base, prompts[:1], out=out)
    with open(out, "a") as stream:
        stream.write('{"schema_version": 1, "id": "half')
    with pytest.warns(BadLineWarning, match="line 2"):
        assert len(annotate(base, prompts, out=out)) == 1
    with pytest.warns(BadLineWarning, match="line 2"):
        assert len(load_records(out, skip_bad=True)) == 2


def test_a_prompt_that_stands_twice_is_asked_once(base):
    assert len(annotate(base, ["Who are you?"] * 2, Scripted(Accept()))) == 1
