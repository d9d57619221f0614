"""Evaluation: intervals, the summary of hand-made answers, and a real model before and after it is disturbed."""

import json
import math

import numpy as np
import pytest
import torch
from checkpoints import disturbed
from hypothesis import given
from hypothesis import strategies as st

from anchorlwf.annotation import annotate, retention_records
from anchorlwf.config import AnnotateConfig, EvaluateConfig
from anchorlwf.data.jsonl import save_lines, save_records
from anchorlwf.data.probe import Probe
from anchorlwf.data.record import Prompt, Record
from anchorlwf.decoding.greedy import GreedyDecoder, decode_batch
from anchorlwf.errors import ModelWarning, RecordError, StampError, StorageError
from anchorlwf.evaluation import (
    Drift,
    ProbeResult,
    Results,
    answers,
    bootstrap_interval,
    compare,
    drift,
    evaluate,
    measure,
    prompts_of,
    recall_probes,
    reference_answers,
    results_of,
)
from anchorlwf.model.language_model import LanguageModel

CONFIG = EvaluateConfig(max_new_tokens=10, resamples=200)
VALUES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30)

# --- intervals ---


def test_of_nothing_there_is_no_interval():
    assert all(map(math.isnan, bootstrap_interval([])))


@given(value=st.floats(-1e6, 1e6), count=st.integers(1, 30))
def test_equal_values_are_a_point(value, count):
    assert bootstrap_interval([value] * count, resamples=20) == pytest.approx((value, value))


@given(values=VALUES, seed=st.integers(0, 100))
def test_an_interval_lies_within_the_values_and_repeats(values, seed):
    low, high = bootstrap_interval(values, resamples=50, seed=seed)
    span = max(1.0, *map(abs, values)) * 1e-9
    assert min(values) - span <= low <= high <= max(values) + span
    assert bootstrap_interval(values, resamples=50, seed=seed) == (low, high)


@given(values=VALUES)
def test_a_higher_level_is_no_narrower(values):
    (low, high), (lower, higher) = (bootstrap_interval(values, level=level, resamples=100) for level in (0.8, 0.99))
    assert lower <= low
    assert high <= higher


def test_a_known_interval():
    # Of four values in {0, 1} with mean 1/2, the mean of a resample is binomial: P(0) = P(4) = 1/16 > 2.5 %.
    assert bootstrap_interval([0, 0, 1, 1], resamples=4000) == (0.0, 1.0)
    # Of many, the interval is the normal one: 1.96 standard errors to both sides.
    low, high = bootstrap_interval([0.0, 1.0] * 200, resamples=4000)
    assert (low, high) == pytest.approx((0.5 - 1.96 * 0.025, 0.5 + 1.96 * 0.025), abs=0.004)


def test_an_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(1)
    samples = generator.exponential(2.0, size=(300, 60))
    intervals = [bootstrap_interval(row, level=0.9, resamples=300, seed=i) for i, row in enumerate(samples)]
    covered = sum(low <= 2.0 <= high for low, high in intervals) / len(intervals)
    # The percentile bootstrap of a skewed mean falls a little short of its level, and 300 draws scatter by 1.7 %.
    assert 0.82 < covered < 0.95


# --- recall probes ---


@pytest.fixture(scope="module")
def corrected(tiny_model: LanguageModel) -> list[Record]:
    prompts = [
        Prompt(messages=[{"role": "user", "content": text}], answer=answer, tags=["t"])
        for text, answer in (("hello", "in a town"), ("Which river?", " the Arrel "))
    ]
    return annotate(tiny_model, prompts, config=AnnotateConfig(max_new_tokens=10))


@pytest.fixture(scope="module")
def kept(tiny_model: LanguageModel) -> list[Record]:
    return retention_records(tiny_model, ["Who?"], AnnotateConfig(max_new_tokens=10))


def test_each_corrected_record_is_asked_for_exactly_its_answer(corrected):
    for record, probe in zip(corrected, recall_probes(corrected), strict=True):
        assert (probe.kind, probe.scorer, probe.messages) == ("recall", "exact", record.messages)
        assert (probe.expected, probe.group, probe.tags) == (record.completion.strip(), record.id, ["t"])
    assert len({probe.id for probe in recall_probes(corrected)}) == 2


def test_what_was_not_corrected_is_no_recall(corrected, kept):
    record = corrected[0]
    others = [
        record.model_copy(update=change)
        for change in ({"status": "draft"}, {"status": "rejected"}, {"anchors": []}, {"completion": " \n"})
    ]
    assert recall_probes([*others, *kept]) == []


# --- the summary ---


def result(kind: str, before: bool, after: bool, name: str = "") -> ProbeResult:
    probe = Probe(
        id=f"{kind}{name}{before}{after}", kind=kind, messages=[{"role": "user", "content": f"{kind}?"}], expected="yes"
    )
    return ProbeResult(probe, "yes" if before else "no", "yes" if after else "no", before, after)


def summary(results: list[ProbeResult], turns: list[list[float]] | None = None) -> Results:
    return results_of(results, Drift(turns or [], []), CONFIG, {"annotated_tokens": 3})


@pytest.mark.parametrize(("kind", "name"), [("recall", "recall"), ("paraphrase", "paraphrase"), ("reverse", "reverse")])
def test_what_is_learned_is_judged_by_the_tuned_answers_alone(kind, name):
    found = summary(
        [result(kind, True, True), result(kind, False, True), result(kind, False, False), result(kind, True, False)]
    )
    group = found.groups[name]
    assert (group.probes, group.base_right, group.tuned_right, group.kept, group.value) == (4, 2, 2, 1, 0.5)
    assert [line["id"] for line in group.flips] == [f"{kind}TrueFalse"]
    assert [line["id"] for line in found.missed] == [f"{kind}FalseFalse", f"{kind}TrueFalse"]
    assert found.missed[0] == {
        "id": f"{kind}FalseFalse",
        "question": f"{kind}?",
        "expected": "yes",
        "before": "no",
        "after": "no",
    }


@pytest.mark.parametrize(("kind", "name"), [("near", "near"), ("retain", "kept"), ("skill", "skills")])
def test_what_is_kept_is_judged_among_what_the_base_had_right(kind, name):
    found = summary(
        [result(kind, True, True, str(i)) for i in range(3)]
        + [result(kind, True, False), result(kind, False, True), result(kind, False, False)]
    )
    group = found.groups[name]
    # A right answer that the base did not give is no merit here, a wrong one that it gave as well no fault.
    assert (group.probes, group.base_right, group.tuned_right, group.kept, group.value) == (6, 4, 4, 3, 0.75)
    assert group.flips == [
        {"id": f"{kind}TrueFalse", "question": f"{kind}?", "expected": "yes", "before": "yes", "after": "no"}
    ]
    assert group.interval == bootstrap_interval([1, 1, 1, 0], resamples=200)
    assert found.missed == []


def test_where_the_base_knew_nothing_there_is_nothing_to_keep():
    found = summary([result("retain", False, True), result("retain", False, False)])
    group = found.groups["kept"]
    assert (group.value, group.interval, group.flips) == (None, None, [])
    assert found.as_dict()["kept"] is None


OUTCOMES = st.lists(
    st.tuples(
        st.sampled_from(["recall", "paraphrase", "reverse", "near", "retain", "skill"]), st.booleans(), st.booleans()
    ),
    min_size=1,
    max_size=30,
)


@given(outcomes=OUTCOMES)
def test_the_groups_add_up(outcomes):
    results = [result(kind, before, after, str(i)) for i, (kind, before, after) in enumerate(outcomes)]
    found = summary(results)
    groups = found.groups.values()
    assert sum(group.probes for group in groups) == len(results)
    assert sum(group.base_right for group in groups) == sum(before for _, before, _ in outcomes)
    assert sum(group.tuned_right for group in groups) == sum(after for _, _, after in outcomes)
    for group in groups:
        assert group.kept + len(group.flips) == group.base_right
        assert group.kept <= group.tuned_right
        if group.value is not None:
            low, high = group.interval
            assert 0 <= low <= high <= 1
    assert {line["id"] for line in found.missed} == {
        one.probe.id for one in results if not one.tuned_right and one.probe.kind in ("recall", "paraphrase", "reverse")
    }


def test_drift_is_the_mean_over_tokens_and_its_interval_that_of_whole_turns():
    turns = [[0.1] * 8, [0.5, 0.7], [], [0.0]]
    found = summary([result("retain", True, True)], turns)
    assert found.kl == pytest.approx((0.8 + 1.2) / 11)
    assert found.kl_tokens == 11
    assert found.kl_interval == bootstrap_interval([0.1, 0.6, 0.0], weights=[8, 2, 1], resamples=200)
    # Many short turns far off, and a few long ones that hardly moved: the interval is of the mean over tokens.
    found = summary([result("retain", True, True)], [[0.02] * 2] * 8 + [[0.0005] * 128] * 4)
    assert found.kl_interval[0] <= found.kl <= found.kl_interval[1]
    assert found.kl_interval[1] < 0.01


def test_the_table_shows_every_group():
    found = summary(
        [result("recall", False, True), result("retain", True, True), result("skill", False, True)], [[0.25, 0.75]]
    )
    *rows, last = zip(*(column.cells for column in found.table().columns), strict=True)
    assert [row[:2] for row in rows] == [("recall", "100.0%"), ("kept", "100.0%"), ("skills", "-")]
    assert last[1] == "5.0e-01"
    assert "2 tokens" in last
    without = summary([result("recall", False, True)])
    names, *_ = without.table().columns
    assert list(names.cells) == ["recall"], "no drift was measured"


# --- a real model ---

TEXTS = ["hello", "Where was she born?", "Which river?", "Who?", "How are you?", "In a town by the sea?"]


@pytest.fixture(scope="module")
def probes(tiny_model: LanguageModel) -> list[Probe]:
    """Questions whose right answer is the untuned model's own: half of them retained facts, half skills."""
    found = []
    for index, text in enumerate(TEXTS):
        messages = [{"role": "user", "content": text}]
        answer = GreedyDecoder(tiny_model).complete(tiny_model.codec.encode_prompt(messages), [], 10)
        found.append(
            Probe(
                id=text,
                kind="retain" if index % 2 else "skill",
                messages=messages,
                scorer="exact",
                expected=tiny_model.codec.decode(answer.ids),
            )
        )
    return found


def test_answers_come_in_the_order_of_the_questions(tiny_model, probes):
    done = []
    config = EvaluateConfig(max_new_tokens=10, batch_size=2)
    assert answers(tiny_model, probes, config, done.append) == [probe.expected for probe in probes]
    assert done == [2, 4, 6]


def test_before_training_nothing_has_changed(tiny_path, probes):
    found = evaluate(disturbed(tiny_path, 0.0), probes, config=CONFIG)
    assert {name: (group.value, group.interval, group.flips) for name, group in found.groups.items()} == {
        "kept": (1.0, (1.0, 1.0), []),
        "skills": (1.0, (1.0, 1.0), []),
    }
    assert (found.kl, *found.kl_interval) == pytest.approx((0, 0, 0), abs=1e-6)
    assert found.kl_tokens > 20


def full_kl(tuned: LanguageModel, base: LanguageModel, probe: Probe, limit: int) -> list[float]:
    """KL(base || tuned) at each token of the base's own answer, from all logits in float64."""
    prompt = base.codec.encode_prompt(probe.messages)
    ids = GreedyDecoder(base).complete(prompt, [], limit).ids
    with torch.inference_mode():
        ref, new = (
            model.net(input_ids=torch.tensor([[*prompt, *ids]]), use_cache=False)
            .logits[0, len(prompt) - 1 : -1]
            .double()
            .log_softmax(-1)
            for model in (base, tuned)
        )
    return (ref.exp() * (ref - new)).sum(-1).tolist()


def test_a_disturbed_model_has_drifted_by_what_all_its_logits_say(tiny_path, tiny_model, probes):
    tuned = disturbed(tiny_path, 0.05)
    found = drift(tuned, None, probes, CONFIG)
    expected = {probe.id: full_kl(tuned, tiny_model, probe, 10) for probe in probes}
    assert sorted(found.prompts) == sorted(TEXTS)
    for text, turn in zip(found.prompts, found.per_turn, strict=True):
        assert turn == pytest.approx(expected[text], rel=1e-3, abs=1e-6)
        assert max(turn) > 1e-3
    assert found.mean == pytest.approx(np.concatenate(list(expected.values())).mean(), rel=1e-3)


def test_a_base_of_its_own_is_the_adapter_switched_off(tiny_path, tiny_model, probes):
    tuned = disturbed(tiny_path, 0.3)
    inside, outside = compare(tuned, None, probes, CONFIG), compare(tuned, tiny_model, probes, CONFIG)
    assert inside == outside
    assert not all(one.tuned_right for one in inside), "the adapter must matter, or this test shows nothing"
    assert all(one.base_right for one in inside)
    one, other = (drift(tuned, base, probes, CONFIG) for base in (None, tiny_model))
    assert one.tokens == pytest.approx(other.tokens)
    assert one.prompts == other.prompts


def test_the_base_answers_each_prompt_once_and_not_at_all_where_that_is_known(tiny_path, probes, monkeypatch):
    tuned, decoded = disturbed(tiny_path, 0.3), []

    def decode(model, prompts, *args, **kwargs):
        decoded.append(len(prompts))
        return decode_batch(model, prompts, *args, **kwargs)

    monkeypatch.setattr(measure, "decode_batch", decode)
    twice = [*probes, probes[0].model_copy(update={"id": "again"})]
    first = evaluate(tuned, twice, config=CONFIG)
    assert decoded == [len(probes), len(twice)]
    known = reference_answers(tuned, None, prompts_of(tuned, probes), CONFIG)
    decoded.clear()
    second = evaluate(tuned, twice, config=CONFIG, known=known)
    assert decoded == [len(twice)]
    assert (second.answers, second.kl) == (first.answers, first.kl)
    # What a model's own settings draw is not its greedy answer.
    decoded.clear()
    evaluate(tuned, probes, config=CONFIG.updated(generation="own"), known=known)
    assert decoded == [len(probes), len(probes)]


def test_the_adapter_is_on_again_after_measuring(tiny_path, probes):
    tuned = disturbed(tiny_path, 0.3)
    [[(_, before)]] = decode_batch(tuned, [tuned.codec.encode_prompt(probes[0].messages)], 10)
    evaluate(tuned, probes, config=CONFIG)
    [[(_, after)]] = decode_batch(tuned, [tuned.codec.encode_prompt(probes[0].messages)], 10)
    assert after == before


def test_kl_is_measured_on_what_must_stay_and_on_no_more_prompts_than_asked_for(tiny_path, probes):
    tuned = disturbed(tiny_path, 0.05)
    learned = [
        probe.model_copy(update={"id": f"{kind} {probe.id}", "kind": kind})
        for probe in probes
        for kind in ("recall", "paraphrase", "reverse", "near")
    ]
    assert drift(tuned, None, learned, CONFIG).per_turn == []
    config = EvaluateConfig(max_new_tokens=10, kl_prompts=4)
    few, again = (drift(tuned, None, [*learned, *probes], config) for _ in range(2))
    assert len(few.per_turn) == len(set(few.prompts)) == 4
    assert few.prompts == again.prompts


# --- the stage ---


def strict(text: str) -> dict[str, object]:
    """JSON as the standard has it: no NaN."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


KEYS = {
    "kl",
    "kl_interval",
    "kl_tokens",
    "annotated_tokens",
    "completion_tokens",
    "evaluate_seconds",
    "missed",
    "details",
}


def test_results_json_holds_fractions_costs_and_details(tiny_path, tmp_path, probes, corrected, kept):
    phases = []
    records = [*corrected, *kept]
    found = evaluate(
        disturbed(tiny_path, 0.3),
        probes,
        records=records,
        out=tmp_path / "deep" / "results.json",
        config=CONFIG,
        facts={"seconds": 1.5},
        progress=lambda *phase: phases.append(phase),
    )
    data = strict((tmp_path / "deep" / "results.json").read_text())
    assert set(data) == {"recall", "kept", "skills", "seconds", *KEYS}
    assert data["recall"] == 0.0
    assert len(data["missed"]) == len(corrected)
    assert data["annotated_tokens"] == sum(len(record.anchors) for record in corrected)
    # Keep records carry no annotation, so their tokens are no cost of one.
    assert data["completion_tokens"] == sum(len(record.completion_ids) for record in corrected)
    assert data["seconds"] == 1.5
    assert set(data["details"]) == {"recall", "kept", "skills"}
    assert data["details"]["kept"]["flips"]
    assert data["kl"] == found.kl > 0
    assert 0 < data["kl_interval"][0] < data["kl_interval"][1]
    assert len(found.answers) == len(probes) + len(corrected)
    assert phases[0][0] == "base"
    assert phases[-1] == ("tuned", 8, 8)


def test_results_json_holds_no_nan_where_nothing_was_measured(tiny_path, tmp_path, corrected):
    found = evaluate(disturbed(tiny_path, 0.0), [], records=corrected, out=tmp_path / "results.json", config=CONFIG)
    assert math.isnan(found.kl_interval[0])
    data = strict((tmp_path / "results.json").read_text())
    assert strict(json.dumps(found.as_dict())) == data
    assert set(data) == {"recall", *KEYS}
    assert (data["kl"], data["kl_interval"], data["kl_tokens"]) == (0.0, [None, None], 0)


def test_files_are_read_like_values(tiny_path, tmp_path, probes, corrected):
    save_lines(tmp_path / "probes.jsonl", probes)
    save_records(tmp_path / "records.jsonl", corrected)
    tuned = disturbed(tiny_path, 0.3)
    from_files = evaluate(tuned, tmp_path / "probes.jsonl", records=str(tmp_path / "records.jsonl"), config=CONFIG)
    from_values = evaluate(tuned, probes, records=corrected, config=CONFIG)
    assert from_files.answers == from_values.answers
    assert from_files.kl == from_values.kl


def test_recall_probes_of_the_users_own_take_the_place_of_those_made_from_records(tiny_path, probes, corrected):
    own = probes[0].model_copy(update={"kind": "recall"})
    found = evaluate(disturbed(tiny_path, 0.0), [own], records=corrected, config=CONFIG)
    assert [one.probe for one in found.answers] == [own]
    assert found.facts["annotated_tokens"] > 0


def test_answers_are_as_long_as_what_was_corrected_and_a_certificate_says_so(tiny_path, corrected):
    short = CONFIG.updated(max_new_tokens=1)
    found = evaluate(disturbed(tiny_path, 0.0), records=corrected, config=short)
    assert found.origin.config.max_new_tokens == max(len(record.completion_ids) for record in corrected) > 1


def test_nothing_to_ask_is_refused(tiny_model, kept):
    with pytest.raises(RecordError, match="probes: expected at least one probe or corrected record, got none"):
        evaluate(tiny_model, [], records=kept)


def test_a_base_with_another_tokenizer_or_template_is_refused(tiny_model, fresh_model, base, probes):
    with pytest.raises(
        StampError, match=r"base: tokenizer.*: expected \w{12} .*, got \w{12} .*\(embedded\). Give the model"
    ):
        evaluate(tiny_model, probes, base=base)
    fresh_model.codec.tokenizer.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(
        StampError, match=r"base: chat template: expected \w{12} \(.*\), got \w{12} \(.*\). Give the model"
    ):
        evaluate(tiny_model, probes, base=fresh_model)


def test_a_place_that_cannot_be_written_is_told_before_any_work(tiny_model, tmp_path, probes):
    (tmp_path / "file").write_text("")
    asked = []
    with pytest.raises(StorageError, match="expected a writable place"):
        evaluate(tiny_model, probes, out=tmp_path / "file" / "below", progress=lambda *phase: asked.append(phase))
    assert asked == []


def test_a_model_without_an_adapter_is_its_own_reference(tiny_model, probes):
    with pytest.warns(ModelWarning, match="expected an adapter, or a base to compare with, got neither"):
        found = evaluate(tiny_model, probes, config=CONFIG)
    assert found.groups["kept"].value == 1.0
    assert found.kl == pytest.approx(0, abs=1e-6)
    assert not found.compared
    assert evaluate(tiny_model, probes, base=tiny_model, config=CONFIG).compared
