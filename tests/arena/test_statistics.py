"""The report's statistics and fronts against independent computations."""

import itertools
import math
import random
import statistics

import numpy as np
import pytest
from arena_data import METHODS
from hypothesis import given
from hypothesis import strategies as st

from anchorlwf.arena.report.statistics import TRADE_OFFS, estimates, extremes, front, pareto
from anchorlwf.evaluation.stats import bootstrap_interval, holm, paired_bootstrap, paired_ratio, sign_flip

P = st.floats(0, 1)


def test_the_bootstrap_draws_what_it_drew_one_resample_at_a_time():
    values = random.Random(1).choices([0.0, 0.5, 1.0], k=700)
    generator, data = np.random.default_rng(0), np.array(values)
    means = [data[generator.integers(0, 700, 700)].mean() for _ in range(2000)]
    assert bootstrap_interval(values) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=1e-12)


def test_the_paired_bootstrap_agrees_with_a_plain_loop():
    draw = random.Random(3)
    blocks = [[draw.choice([-1.0, 0.0, 0.0, 1.0, 1.0]) for _ in range(count)] for count in (12, 30, 7, 20, 15)]
    means = []
    for _ in range(4000):
        seeds = [draw.choice(blocks) for _ in blocks]
        means.append(statistics.mean(statistics.mean(draw.choices(block, k=len(block))) for block in seeds))
    found = paired_bootstrap(blocks)
    assert found.difference == pytest.approx(statistics.mean(map(statistics.mean, blocks)))
    low, high = np.quantile(means, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.015)
    assert found.p == pytest.approx(2 * min(sum(m <= 0 for m in means), sum(m >= 0 for m in means)) / 4000, abs=0.02)


def test_a_difference_of_nothing_is_not_distinguishable():
    found = paired_bootstrap([[0.0] * 5] * 5)
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)
    assert paired_bootstrap([[1.0] * 5] * 5).p == pytest.approx(2 / 10_001)
    assert paired_bootstrap([[-1.0]]).p == 1, "one difference says nothing about others"
    with pytest.raises(ValueError, match="got an empty one"):
        paired_bootstrap([[1.0], []])


@pytest.mark.parametrize(
    ("pairs", "ratio"), [([[(1, 4)], [(2, 8)]], 0.25), ([[(0, 0)]], 0), ([[(1, 0)]], math.inf), ([[(0, 3)]], 0)]
)
def test_ratios_of_nothing_are_said_to_be_so(pairs, ratio):
    assert paired_ratio(pairs) == (ratio, ratio, ratio)


def test_a_ratio_has_an_interval_around_it():
    draw = random.Random(2)
    value, low, high = paired_ratio(
        [[(float(draw.random() < 0.1), float(draw.random() < 0.4)) for _ in range(200)] for _ in range(5)]
    )
    assert low < value < high
    assert 0.1 < low < 0.25 < high < 0.5


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=7))
def test_sign_flips_count_what_is_as_far_from_zero(values):
    totals = [
        abs(sum(s * v for s, v in zip(signs, values, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(values))
    ]
    assert sign_flip(values) == pytest.approx(sum(t >= abs(sum(values)) for t in totals) / len(totals))


def test_five_seeds_cannot_show_a_difference_by_themselves():
    assert sign_flip([0.3, 0.2, 0.4, 0.1, 0.2]) == 0.0625
    assert sign_flip([0.1] * 17) < 0.001


def test_holm_as_in_the_textbook():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(P, min_size=1, max_size=12), st.randoms())
def test_holm_is_monotone_conservative_and_blind_to_order(values, rng):
    adjusted = holm(values)
    assert all(raw <= corrected <= 1 for raw, corrected in zip(values, adjusted, strict=True))
    by_raw = [corrected for _, corrected in sorted(zip(values, adjusted, strict=True))]
    assert by_raw == sorted(by_raw)
    order = rng.sample(range(len(values)), len(values))
    assert holm([values[i] for i in order]) == [adjusted[i] for i in order]
    # Never more severe than Bonferroni.
    assert all(corrected <= min(1, len(values) * raw) + 1e-15 for raw, corrected in zip(values, adjusted, strict=True))


SHARE = st.integers(0, 6).map(lambda value: value / 6)


POINTS = st.dictionaries(st.sampled_from("abcdefgh"), st.tuples(SHARE, SHARE), min_size=1)


def dominates(one, other):
    return one[0] >= other[0] and one[1] <= other[1] and one != other


@given(POINTS)
def test_a_front_is_never_dominated_and_everything_else_is(points):
    found = pareto(points)
    assert found.members
    for name, point in points.items():
        by = {other for other in points if dominates(points[other], point)}
        assert (name in found.members) == (not by)
        assert set(found.dominated_by.get(name, [])) == by
    equal = {frozenset(pair) for pair in itertools.combinations(found.members, 2) if points[pair[0]] == points[pair[1]]}
    assert set(map(frozenset, found.ties)) == equal
    harms = [points[name][1] for name in found.members]
    assert harms == sorted(harms)


@given(st.dictionaries(st.integers(), st.tuples(P, P), min_size=1, max_size=9), st.floats(0, 0.5))
def test_a_front_is_never_empty_whatever_counts_as_a_tie(points, tolerance):
    assert pareto(points, tolerance).members


def test_differences_of_rounding_are_ties():
    found = pareto({"a": (0.3, 0.1), "b": (0.1 + 0.2, 0.1)})
    assert set(found.members) == {"a", "b"}
    assert found.ties == [("a", "b")]


def test_the_front_of_a_study_and_how_sure_it_is(study):
    found = front(study, "many", TRADE_OFFS[0])
    for name in METHODS:
        cells = study.of("many", name)
        learned = statistics.mean((cell.measures.recall + cell.measures.paraphrase) / 2 for cell in cells)
        assert found.points[name] == pytest.approx((learned, 1 - statistics.mean(c.measures.kept for c in cells)))
    assert found.members == ["in_context", "anchorlwf"]
    assert found.share["in_context"] == 1
    assert found.share["grpo"] == 0
    # The same by a plain loop, over the four seeds that all methods share.
    draw, there = random.Random(0), 0
    for _ in range(500):
        seeds = draw.choices([1, 2, 3, 4], k=4)
        means = {}
        for name in METHODS:
            cells = {cell.seed: cell.measures for cell in study.of("many", name)}
            means[name] = (
                statistics.mean(cells[s].learned for s in seeds),
                statistics.mean(cells[s].lost for s in seeds),
            )
        there += not any(dominates(means[other], means["anchorlwf"]) for other in METHODS)
    assert found.share["anchorlwf"] == pytest.approx(there / 500, abs=0.08)


def test_best_and_worst_share_their_marks():
    assert extremes({"a": 1.0, "b": 1.0, "c": 0.2, "d": None}, "higher") == {"a": "best", "b": "best", "c": "worst"}
    assert extremes({"a": 1.0, "c": 0.2}, "lower") == {"a": "worst", "c": "best"}
    assert extremes({"a": 1.0, "b": 1.0}, "lower") == {}


def test_estimates_are_means_over_seeds_and_nothing_is_made_of_nulls(study):
    found = estimates(study, "many", "grpo")
    values = [cell.measures.recall for cell in study.of("many", "grpo")]
    assert len(values) == 4, "seed 5 failed"
    assert found["recall"].mean == pytest.approx(statistics.mean(values))
    assert min(values) <= found["recall"].low <= found["recall"].mean <= found["recall"].high <= max(values)
    assert found["peak_memory_bytes"] is None
    assert estimates(study, "one", "dpo")["reverse"] is None
