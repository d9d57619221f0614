"""The two claims of the method, judged by the figures in every regime, and the sentence that sums them up."""

from collections.abc import Mapping
from dataclasses import dataclass

from anchorlwf.arena.report.comparison import Ratio, lost_ratio
from anchorlwf.arena.report.statistics import TOLERANCE, Front
from anchorlwf.arena.study_results import OURS, Study

__all__ = ["CLAIMS", "QUARTER", "Claim", "Judged", "headline", "judge"]

_FEW = 2
"""As many failures are told with their figures in the headline; more are named there, and told at their regimes."""
QUARTER = 0.25
"""AnchorLwF is claimed to lose at most this many times what the baseline loses."""
CLAIMS = (
    "With default settings AnchorLwF is on the Pareto front of learning and forgetting",
    "Against the baseline it loses at most a quarter as many facts, at equal or better recall",
)


@dataclass(frozen=True)
class Claim:
    """Pass or fail in one regime, and why."""

    regime: str
    holds: bool | None
    """None: it could not be judged."""
    text: str
    brief: str
    """The figures alone, for the headline."""
    point: tuple[float, float] | None = None
    """(learned, lost) of AnchorLwF."""
    dominated_by: tuple[str, ...] = ()
    ratio: Ratio | None = None


@dataclass(frozen=True)
class Judged:
    """Both claims in every regime, in the order of `CLAIMS`."""

    on_front: list[Claim]
    loses_less: list[Claim]


def _names(study: Study, names: list[str]) -> str:
    return ", ".join(study.methods[name].title for name in names)


def _times(value: float | None) -> str:
    return "infinity" if value is None else f"{value:.2f}"


def _front_claim(study: Study, regime: str, front: Front) -> Claim:
    if OURS not in front.points:
        text = "AnchorLwF was not run here or had no facts to lose, so nothing is said about its place."
        return Claim(regime, None, text, "not measured")
    learned, lost = point = front.points[OURS]
    share = f"{front.share[OURS]:.0%} of resamples of the seeds" if OURS in front.share else ""
    if OURS in front.members:
        tied = [b if a == OURS else a for a, b in front.ties if OURS in (a, b)]
        tie = f" Tied with {_names(study, tied)}." if tied else ""
        stays = f", and stays there in {share}" if share else ""
        text = f"On the front: it learned {learned:.1%} and lost {lost:.1%}{stays}.{tie}"
        return Claim(regime, True, text, f"learned {learned:.1%}, lost {lost:.1%}", point)
    # Two decimals: what dominates may do so by little.
    by = tuple(sorted(front.dominated_by[OURS], key=lambda name: front.points[name][1]))
    better = "; ".join(
        f"{study.methods[name].title} (learned {front.points[name][0]:.2%}, lost {front.points[name][1]:.2%})"
        for name in by
    )
    reached = f" AnchorLwF reaches the front in {share}." if share else ""
    text = f"Not on the front: it learned {learned:.2%} and lost {lost:.2%}. Dominated by {better}.{reached}"
    more, lost_more = front.points[by[0]]
    who = study.methods[by[0]].title + (f" and {len(by) - 1} more dominate it" if len(by) > 1 else " dominates it")
    brief = f"{who}: learned {more:.2%} against {learned:.2%}, lost {lost_more:.2%} against {lost:.2%}"
    return Claim(regime, False, text, brief, point, by)


def _loss_claim(study: Study, regime: str) -> Claim:
    baseline = study.regimes[regime].baseline
    title = study.methods[baseline].title if baseline in study.methods else baseline
    ratio = lost_ratio(study, regime, baseline)
    recalls = [(ours.measures.recall, theirs.measures.recall) for ours, theirs in study.pairs(regime, OURS, baseline)]
    known = [(ours, theirs) for ours, theirs in recalls if ours is not None and theirs is not None]
    if ratio is None or not known:
        text = f"AnchorLwF and {title} share no seed that measured recall and had facts to lose."
        return Claim(regime, None, text, "not measured", ratio=ratio)
    ours, theirs = (sum(side) / len(known) for side in zip(*known, strict=True))
    few = ratio.value is not None and ratio.value <= QUARTER + TOLERANCE
    recalled = ours >= theirs - TOLERANCE
    times = f"{_times(ratio.value)} times as many"
    counts = f"{ratio.ours:.1f} facts lost against {ratio.theirs:.1f} of {title}"
    span = (
        f"{times}, 95% interval {_times(ratio.low)} to {_times(ratio.high)} over {ratio.over}"
        if ratio.ours or ratio.theirs
        else "neither lost any"
    )
    broken = [*([] if few else ["more than a quarter"]), *([] if recalled else ["less recall"])]
    unsure = few and (ratio.high is None or ratio.high > QUARTER)
    end = (
        f" Fails by {' and '.join(broken)}."
        if broken
        else " The interval reaches past a quarter: other seeds may say otherwise."
        if unsure
        else ""
    )
    text = f"{counts} ({span}); recall {ours:.1%} against {theirs:.1%}.{end}"
    brief = f"{times}, recall {ours:.1%} against {theirs:.1%}"
    return Claim(regime, few and recalled, text, brief, ratio=ratio)


def judge(study: Study, fronts: Mapping[str, Front]) -> Judged:
    """Judge the two claims; `fronts` are those of unrelated facts lost, by regime."""
    return Judged(
        [_front_claim(study, regime, fronts[regime]) for regime in study.regimes],
        [_loss_claim(study, regime) for regime in study.regimes],
    )


def _tally(study: Study, claims: list[Claim]) -> str:
    """In how many regimes it holds, and what is to be said of the others."""
    judged = [claim for claim in claims if claim.holds is not None]
    count = f"{sum(bool(claim.holds) for claim in judged)} of {len(judged)} regimes"
    failed = [claim for claim in judged if not claim.holds]
    fails = "; ".join(f"{study.regimes[claim.regime].title} ({claim.brief})" for claim in failed)
    if len(failed) > _FEW:
        fails = "; ".join(study.regimes[claim.regime].title for claim in failed) + " (each says why)"
    missing = ", ".join(study.regimes[claim.regime].title for claim in claims if claim.holds is None)
    return count + (f", not in {fails}" if fails else "") + (f"; not measured in {missing}" if missing else "")


def _span(values: list[float], form: str) -> str:
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low.removesuffix('%')} to {high}"


def headline(study: Study, judged: Judged) -> list[str]:
    """What was measured, then a sentence for each claim that names every place where it fails."""
    points = [claim.point for claim in judged.on_front if claim.point is not None]
    ratios = [claim.ratio for claim in judged.loses_less if claim.ratio is not None]
    titles = (
        _names(
            study,
            list(
                dict.fromkeys(regime.baseline for regime in study.regimes.values() if regime.baseline in study.methods)
            ),
        )
        or "its baseline"
    )
    said = []
    if points:
        said.append(
            f"AnchorLwF with default settings learned {_span([learned for learned, _ in points], '.1%')} of what it "
            f"was taught and lost {_span([lost for _, lost in points], '.1%')} of what the model knew."
        )
    who = "It" if points else "AnchorLwF with default settings"
    what = "the two" if points else "learning and forgetting"
    said.append(f"{who} is on the Pareto front of {what} in {_tally(study, judged.on_front)}.")
    finite = [ratio.value for ratio in ratios if ratio.value is not None]
    times = f"loses {_span(finite, '.2f')} times as many facts as {titles}: " if len(finite) == len(ratios) > 0 else ""
    quarter = "at most a quarter" if times else f"loses at most a quarter of the facts that {titles} does"
    said.append(f"It {times}{quarter}, at equal or better recall, in {_tally(study, judged.loses_less)}.")
    return said
