"""The benchmarks: what they measure is what happened, and what cannot be measured is refused."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from racers import WORK, compete

from anchorlwf.bench.objectives import OBJECTIVES, make_problem, top4_loss
from anchorlwf.bench.race import race
from anchorlwf.bench.step_cost import StepSetup, random_model, random_records
from anchorlwf.bench.suite import BENCHMARKS, bench, bench_table, options_of
from anchorlwf.errors import ConfigError

SETUP = {"held": 12345, "pieces": 100}
TINY = {"layers": 1, "width": 128, "vocabulary": 1024, "tokens": 12, "prompt_tokens": 4, "threads": 1}


@pytest.fixture(scope="module")
def raced():
    """What came out, and the calls of on_run."""
    seen = []
    names = ["quick", "slow", "uneven", "fat"]
    return race(compete, SETUP, names, runs=3, threads=1, on_run=lambda *call: seen.append(call)), seen


class TestRace:
    def test_times_ratios_and_what_is_held(self, raced):
        quick, slow = raced[0]["quick"], raced[0]["slow"]
        assert min(quick["runs"]) >= WORK
        assert min(slow["runs"]) >= 3 * WORK
        assert len(slow["runs"]) == 3
        assert quick["ratio"] == 1
        assert 1.5 < slow["ratio"] < 4
        assert slow["held_bytes"] == SETUP["held"]

    def test_one_slow_run_does_not_move_the_median(self, raced):
        uneven = raced[0]["uneven"]
        assert max(uneven["runs"]) >= 20 * WORK
        assert uneven["seconds"] < 10 * WORK

    def test_memory_is_what_was_alive_even_where_a_heap_would_keep_it(self, raced):
        assert 0.9 < raced[0]["fat"]["extra_bytes"] / (SETUP["pieces"] * 64 * 1024 * 4) < 1.3

    def test_runs_are_counted(self, raced):
        assert raced[1] == [(number, 16) for number in range(1, 17)], "three timed rounds and one for the memory"

    @pytest.mark.parametrize(("name", "message"), [("missing", "not installed"), ("dies", "memory did not suffice")])
    def test_a_competitor_that_cannot_start_says_why(self, name, message):
        with pytest.raises(ConfigError, match=message):
            race(compete, SETUP, [name], runs=1, threads=1)

    def test_a_failure_of_its_own_is_told_with_its_kind(self):
        with pytest.raises(RuntimeError, match="benchmark of broken: ZeroDivisionError"):
            race(compete, SETUP, ["broken"], runs=1, threads=1)

    def test_nothing_to_run(self):
        with pytest.raises(ConfigError, match="1 or more"):
            race(compete, SETUP, [], runs=1, threads=1)


class TestObjectives:
    @given(st.integers(0, 10), st.integers(5, 40))
    def test_top4_is_zero_where_model_and_reference_agree(self, seed, vocabulary):
        logits_NV = torch.randn(3, vocabulary, generator=torch.Generator().manual_seed(seed))
        loss_N = top4_loss(logits_NV, logits_NV, torch.zeros(3, dtype=torch.long), torch.zeros(3))
        assert loss_N == pytest.approx([0.0] * 3, abs=1e-6)

    @given(st.integers(0, 10))
    def test_top4_at_a_sure_anchor_is_cross_entropy(self, seed):
        generator = torch.Generator().manual_seed(seed)
        logits_NV, ref_logits_NV = torch.randn(2, 4, 50, generator=generator)
        ids_N = torch.randint(0, 50, (4,), generator=generator)
        loss_N = top4_loss(logits_NV, ref_logits_NV, ids_N, torch.ones(4))
        expected_N = torch.nn.functional.cross_entropy(logits_NV, ids_N, reduction="none")
        assert loss_N == pytest.approx(expected_N, abs=1e-5)

    def test_top4_against_a_sum_by_hand(self):
        logits_NV, ref_logits_NV = torch.tensor([[0.0, 1, 2, 3, 4, 5]]), torch.tensor([[5.0, 3, 1, 1, 4, 2]])
        p, q = logits_NV[0].softmax(0).tolist(), ref_logits_NV[0].softmax(0).tolist()
        top = sorted(range(6), key=lambda token: -q[token])[:4]
        rest_p, rest_q = 1 - sum(p[token] for token in top), 1 - sum(q[token] for token in top)
        by_hand = sum(q[token] * math.log(q[token] / p[token]) for token in top) + rest_q * math.log(rest_q / rest_p)
        loss_N = top4_loss(logits_NV, ref_logits_NV, torch.tensor([0]), torch.zeros(1))
        assert float(loss_N) == pytest.approx(by_hand, rel=1e-5)

    @pytest.mark.parametrize("name", OBJECTIVES)
    def test_each_runs(self, name):
        pytest.importorskip("trl")
        OBJECTIVES[name](make_problem(6, 8, 50, 0.3, 0))

    def test_half_precision_problems(self):
        problem = make_problem(6, 8, 50, 0.5, 0, dtype="bfloat16")
        assert problem.weight_VD.dtype == torch.bfloat16
        assert int(problem.confidence_N.sum()) == 3
        OBJECTIVES["ours"](problem)


def test_the_steps_train_on_the_same_records():
    setup = StepSetup(**TINY)
    model = random_model(setup)
    one, other = random_records(setup, model), random_records(setup, model)
    assert [record.completion_ids for record in one] == [record.completion_ids for record in other]
    assert all(len(record.prompt_ids) == 4 and len(record.completion_ids) == 8 for record in one)
    assert all(record.anchors for record in one)


def test_every_step_takes_its_turn():
    pytest.importorskip("trl")
    names = ["ours", "trl_sft", "full_top4"]
    results = bench("step", runs=1, only=names, options=TINY)
    assert list(results["found"]) == names
    assert all(row["seconds"] > 0 for row in results["found"].values())
    weights = 1024 * 128 + 128  # embedding and last norm; the layer's come on top
    assert all(row["held_bytes"] > 4 * weights for row in results["found"].values())
    assert json.loads(json.dumps(results)) == results
    assert bench_table(results).count("\n") == len(names) + 1


SMALL = {
    "loss": {"tokens": 4, "width": 8, "vocabulary": 50},
    "growth": {"counts": "4", "width": 8, "vocabulary": 50},
    "decode": {"tokens": 24, "seeds": 1, "steadiness": "4"},
    "annotate": {"records": 2},
    "memory": {"records": "5"},
    "packing": {"records": 2},
}


@pytest.mark.parametrize("name", SMALL)
def test_each_benchmark_runs_and_has_a_table(name):
    only = {"loss": ["ours", "dense"], "growth": ["ours"], "memory": ["train"]}.get(name, [])
    results = bench(name, runs=1, only=only, options=SMALL[name])
    assert results["machine"]["cores"] >= 1
    assert results["environment"]["versions"]["torch"] == torch.__version__
    lines = bench_table(results).splitlines()
    assert len({line.count("|") for line in lines}) == 1, "a table of equal rows"
    assert len(lines) > 2
    assert json.loads(json.dumps(results)) == results


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "speed"}, "expected loss or growth"),
        ({"name": "loss", "runs": 0}, "at least 1"),
        ({"name": "loss", "only": ["ours", "theirs"]}, "theirs"),
        ({"name": "decode", "only": ["ours"]}, "no choice"),
        ({"name": "step", "options": {"width": 100}}, "multiple of 128"),
        ({"name": "step", "options": {"tokens": 8, "prompt_tokens": 8}}, "fewer than tokens"),
        ({"name": "memory", "options": {"records": "10,x"}}, "valid integer"),
        ({"name": "loss", "options": {"depth": 3}}, "Known options: tokens"),
        ({"name": "loss", "options": {"device": "tpu"}}, "expected cpu"),
        ({"name": "loss", "only": ["summary"], "options": {**SMALL["loss"], "dtype": "bfloat16"}}, "expected float32"),
    ],
)
def test_what_cannot_be_run_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        bench(**arguments)


def test_pairs_of_the_command_line():
    assert options_of(["width=256", "counts=1,2", "empty="]) == {"width": "256", "counts": "1,2", "empty": ""}
    for bad in ("width", "=3"):
        with pytest.raises(ConfigError, match="name=value"):
            options_of([bad])


def test_every_benchmark_is_named_in_the_help():
    from anchorlwf.cli import bench as command

    assert all(f"{name}:" in command.__doc__ for name in BENCHMARKS)
