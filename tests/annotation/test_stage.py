"""Many prompts, one file of records that survives interruptions, and keep records."""

import re
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import pytest
from annotation_cases import CONFIG, LIMIT, QUESTIONS, Scripted, ask, counting_passes, holds, same
from other_user import nobody

from anchorlwf.annotation import Accept, Correct, Quit, Reject, Session, Undo, annotate, as_prompts, retention_records
from anchorlwf.config import AnnotateConfig
from anchorlwf.data.jsonl import BadLineWarning, load_records, save_lines
from anchorlwf.data.record import Prompt, Record
from anchorlwf.errors import PromptError, RecordError, StorageError
from anchorlwf.world import build_world, draw_errata, templates


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
