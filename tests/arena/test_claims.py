"""Comparisons and claims, on studies made to decide them."""

import dataclasses
import statistics

import pytest
from arena_data import METHODS, REGIMES, made_up, small

from anchorlwf.arena.report.claims import headline, judge
from anchorlwf.arena.report.comparison import compare_all
from anchorlwf.arena.report.page import summarize
from anchorlwf.arena.report.statistics import TRADE_OFFS, front
from anchorlwf.arena.study_results import Study


def test_comparisons_are_paired_by_seed_and_corrected_as_one_family(study):
    found = compare_all(study)
    assert len(found) == len(REGIMES) * (len(METHODS) - 1) * 2
    assert {one.family for one in found} == {30}
    one = next(c for c in found if (c.regime, c.method, c.measure) == ("many", "grpo", "recall"))
    assert one.seeds == 4
    ours = {cell.seed: cell.measures.recall for cell in study.of("many", "anchorlwf")}
    expected = statistics.mean(cell.measures.recall - ours[cell.seed] for cell in study.of("many", "grpo"))
    assert one.paired.difference == pytest.approx(expected)
    assert one.differs
    assert one.verdict == "lower than AnchorLwF after correction for 30 comparisons"
    # Without outcomes only the seeds can be drawn again.
    alone = [c for c in found if (c.regime, c.method) == ("few", "dpo")]
    assert {c.over for c in alone} == {"seeds"}
    assert all(c.paired.p == c.sign_flip for c in alone), "drawing a few of one sign again says nothing"
    assert not any(c.differs for c in alone)
    assert {c.over for c in found if c.regime == "many"} == {"seeds and probes"}
    same = next(c for c in found if (c.regime, c.method, c.measure) == ("many", "sft_human", "recall"))
    assert same.verdict == "not distinguishable from zero after correction for 30 comparisons"


def claims(data):
    study = Study.read(data)
    judged = judge(study, {"few": front(study, "few", TRADE_OFFS[0])})
    return judged.on_front[0], judged.loses_less[0]


def test_both_claims_hold():
    on, less = claims(small(anchorlwf=(5, 1.0), sft_human=(20, 1.0)))
    assert on.holds
    assert less.holds
    assert less.ratio.value == 0.25
    assert "(0.25 times as many, 95% interval 0.25 to 0.25 over seeds); recall 100.0% against 100.0%." in less.text


def test_a_dominated_method_is_told_by_whom():
    on, less = claims(small(anchorlwf=(6, 0.9), sft_human=(3, 0.95)))
    assert not on.holds
    assert on.dominated_by == ("sft_human",)
    assert "Dominated by SFT, human answers (learned 95.00%, lost 1.00%)" in on.text
    assert not less.holds
    assert "Fails by more than a quarter and less recall." in less.text
    first, second, third = summarize(small(anchorlwf=(6, 0.9), sft_human=(3, 0.95))).headline
    assert first == (
        "AnchorLwF with default settings learned 90.0% of what it was taught and lost 2.0% of what the model knew."
    )
    assert second == (
        "It is on the Pareto front of the two in 0 of 1 regimes, not in Four facts (SFT, human answers dominates it: "
        "learned 95.00% against 90.00%, lost 1.00% against 2.00%)."
    )
    assert third == (
        "It loses 2.00 times as many facts as SFT, human answers: at most a quarter, at equal or better recall, in 0 "
        "of 1 regimes, not in Four facts (2.00 times as many, recall 90.0% against 95.0%)."
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "holds", "says"),
    [
        ((0, 1.0), (0, 1.0), True, "neither lost any"),
        ((2, 1.0), (0, 1.0), False, "infinity times as many"),
        ((6, 1.0), (20, 1.0), False, "Fails by more than a quarter."),
        ((0, 0.9), (20, 1.0), False, "Fails by less recall."),
    ],
)
def test_the_second_claim_at_its_edges(ours, theirs, holds, says):
    _, less = claims(small(anchorlwf=ours, sft_human=theirs))
    assert less.holds == holds
    assert says in less.text


def test_nothing_is_claimed_where_there_was_nothing_to_lose():
    data = small(anchorlwf=(0, 1.0), sft_human=(0, 1.0))
    for cell in data["cells"]:
        cell["measures"] |= {"facts_known": 0, "kept": None}
    on, less = claims(data)
    assert (on.holds, less.holds) == (None, None)
    assert less.text.endswith("share no seed that measured recall and had facts to lose.")


def test_ties_are_on_the_front_together():
    on, _ = claims(small(anchorlwf=(3, 0.9), sft_human=(3, 0.9)))
    assert on.holds
    assert "Tied with SFT, human answers." in on.text


def test_what_was_not_measured_is_not_judged():
    data = small()
    data["cells"] = [cell for cell in data["cells"] if cell["method"] != "anchorlwf"]
    on, less = claims(data)
    assert (on.holds, less.holds) == (None, None)
    first, second = summarize(data).headline
    assert first == (
        "AnchorLwF with default settings is on the Pareto front of learning and forgetting in 0 of 0 regimes; not "
        "measured in Four facts."
    )
    assert second.endswith("in 0 of 0 regimes; not measured in Four facts.")


def test_the_interval_of_a_ratio_draws_facts_where_the_outcomes_account_for_them(study):
    with_outcomes = judge(study, {name: front(study, name, TRADE_OFFS[0]) for name in REGIMES}).loses_less
    assert {claim.ratio.over for claim in with_outcomes} == {"seeds and probes"}
    for claim in with_outcomes:
        lost = [
            sum(cell.measures.facts_lost for cell in study.of(claim.regime, method))
            for method in ("anchorlwf", "sft_human")
        ]
        assert claim.ratio.value == pytest.approx(lost[0] / lost[1])
        assert claim.ratio.low <= claim.ratio.value <= claim.ratio.high


def test_many_failures_are_named_in_the_headline_and_told_at_their_regimes():
    told = summarize(made_up())
    failed = [dataclasses.replace(claim, holds=False, brief="figures") for claim in told.judged.on_front]
    few, many = (headline(told.study, dataclasses.replace(told.judged, on_front=failed[:count]))[1] for count in (2, 3))
    assert few.count("(figures)") == 2
    assert "figures" not in many
    assert all(told.study.regimes[claim.regime].title in many for claim in failed[:3])
