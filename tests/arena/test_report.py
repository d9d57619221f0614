"""The arena's report: its statistics against independent computations, its claims on studies made to decide them."""

import copy
import dataclasses
import itertools
import json
import math
import random
import re
import statistics
import struct
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from arena_data import EVIL, METHODS, REGIMES, made_up
from hypothesis import given
from hypothesis import strategies as st

from anchorlwf.arena.report import page_rows
from anchorlwf.arena.report.claims import headline, judge
from anchorlwf.arena.report.comparison import compare_all
from anchorlwf.arena.report.label_placement import place_labels
from anchorlwf.arena.report.page import summarize, write_plots, write_report
from anchorlwf.arena.report.statistics import TRADE_OFFS, estimates, extremes, front, pareto
from anchorlwf.arena.report.style import FAMILIES, glyph
from anchorlwf.arena.study_results import Study
from anchorlwf.errors import ConfigError, RecordError, StorageError
from anchorlwf.evaluation.plotting import DARK, LIGHT
from anchorlwf.evaluation.stats import bootstrap_interval, holm, paired_bootstrap, paired_ratio, sign_flip

SHARE = st.integers(0, 6).map(lambda value: value / 6)
POINTS = st.dictionaries(st.sampled_from("abcdefgh"), st.tuples(SHARE, SHARE), min_size=1)
P = st.floats(0, 1)


@pytest.fixture(scope="module")
def results():
    return made_up()


@pytest.fixture(scope="module")
def study(results):
    return Study.read(results)


@pytest.fixture(scope="module")
def page(results, tmp_path_factory):
    return write_report(results, tmp_path_factory.mktemp("arena"))


# --- statistics


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


# --- fronts and marks


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


# --- comparisons and claims


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
    assert {c.over for c in found if (c.regime, c.method) == ("few", "dpo")} == {"seeds"}
    assert {c.over for c in found if c.regime == "many"} == {"seeds and probes"}
    same = next(c for c in found if (c.regime, c.method, c.measure) == ("many", "sft_human", "recall"))
    assert same.verdict == "not distinguishable from zero after correction for 30 comparisons"


def small(**changed):
    """AnchorLwF and SFT in one regime, two seeds; `changed` measures by method."""
    data = made_up({name: METHODS[name] for name in ("anchorlwf", "sft_human")}, seeds=2)
    data["regimes"] = {"few": data["regimes"]["few"]}
    data["failures"], data["sweep"] = [], []
    data["cells"] = [cell for cell in data["cells"] if cell["regime"] == "few"]
    for cell in data["cells"]:
        cell["outcomes"] = {}
        lost, recall = changed.get(cell["method"], (0, 1.0))
        cell["measures"] |= {"recall": recall, "paraphrase": recall, "facts_lost": lost, "kept": 1 - lost / 300}
    return data


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


# --- what is read


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: data.update(schema_version=2), "schema_version"),
        (lambda data: data["cells"][0].update(method="nobody"), "'nobody' in 'few'"),
        (lambda data: data["cells"].append(data["cells"][0]), "('anchorlwf', 'few', 1) twice"),
        (lambda data: data["cells"][0]["measures"].update(recall=1.2), "cells.0.measures.recall"),
        (lambda data: data["cells"][0]["strips"][0]["kl"].pop(), "one kl per token, got 11 for 12"),
        (lambda data: data["methods"]["dpo"].update(family="magic"), "methods.dpo.family"),
        (lambda data: data["regimes"].update({"../up": data["regimes"]["few"]}), "regimes.../up"),
    ],
)
def test_wrong_results_are_named(results, damage, says):
    data = copy.deepcopy(results)
    damage(data)
    with pytest.raises(RecordError, match=re.escape(says)):
        Study.read(data)


def test_a_run_that_diverged_is_not_measured():
    data = made_up(seeds=1)
    data["cells"][0]["measures"] |= {"kl_short": math.inf, "recall": math.nan}
    data["cells"][0]["curve"][0]["loss"] = math.nan
    cell = Study.read(data).cells[0]
    assert (cell.measures.kl_short, cell.measures.recall, cell.measures.learned) == (None, None, None)


# --- what is shown

TEXT = st.text(st.characters(codec=None))


@given(TEXT, TEXT)
def test_changes_join_to_what_was_said(before, after):
    one, two = page_rows.changes(before, after)
    assert "".join(text for _, text in one) == before
    assert "".join(text for _, text in two) == after
    assert before != after or not any(new for new, _ in [*one, *two])


def test_changed_words_are_marked_and_no_others():
    one, two = page_rows.changes("She was born in Orrel.", "She was born in Tallin Bay.")
    assert one == [(False, "She was born in "), (True, "Orrel"), (False, ".")]
    assert two == [(False, "She was born in "), (True, "Tallin Bay"), (False, ".")]


@given(TEXT)
def test_no_unseen_character_can_act(text):
    shown = page_rows.visible(text)
    assert not set(shown) & set("\u202e\u202d\u200f\u2066\0\x1b")
    shown.encode()


def test_what_people_can_read_stays_as_it_is():
    text = "مرحبا، می\u200cروم 👩\u200d🔬\n\tö"
    assert page_rows.visible(text) == text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "nats", "-"),
        (0.99876, "fraction", "99.9%"),
        (0.0, "fraction", "0.0%"),
        (0.0123, "nats", "0.012"),
        (0.002, "nats", "0.0020"),
        (3.2e-6, "nats", "3e-6"),
        (0.0, "nats", "0"),
        (12_345.4, "count", "12,345"),
        (17.6, "count", "17.6"),
        (3 * 2**20, "bytes", "3 MiB"),
        (7.1e12, "flops", "7.1e12"),
        (11.04, "seconds", "11.0"),
    ],
)
def test_figures_are_written_as_people_write_them(value, unit, text):
    assert page_rows.written(value, unit) == text


def test_examples_of_all_kinds_are_shown():
    data = made_up({"anchorlwf": METHODS["anchorlwf"]}, seeds=1)
    one, other = data["cells"][0]["examples"]
    data["cells"][0]["examples"] = [one] * 20 + [other] * 3
    told = page_rows.told(Study.read(data), "few")[0]
    assert (told.total, len(told.shown)) == (23, 8)
    assert [example.kind for example in told.shown] == ["recall"] * 5 + ["retain"] * 3


def test_strips_show_the_worst_of_each_method(study):
    found = page_rows.strips(study, "few")
    assert {one.cell.method for one in found} == set(METHODS)
    means = [one.strip.mean for one in found]
    assert means == sorted(means, reverse=True)
    every = [strip.mean for cell in study.of("few", "dpo") for strip in cell.strips]
    assert max(every) == next(one.strip.mean for one in found if one.cell.method == "dpo")
    assert [page_rows.heat(kl) for kl in (None, 0.0, 0.001, 0.3, 5.0)] == [0, 0, 1, 4, 5]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=20, unique=True))
def test_labels_of_points_apart_cover_nothing(cells):
    points = [(60.0 * x + 60, 60.0 * y + 60) for x, y in cells]
    boxes = place_labels(points, [(12.0, 10.0)] * len(points), (0, 0, 700, 700), gap=7)
    marks = [(x - 7, y - 7, x + 7, y + 7) for x, y in points]
    for one, other in itertools.combinations([*boxes, *marks], 2):
        assert (
            min(one[2], other[2]) - max(one[0], other[0]) <= 1e-9
            or min(one[3], other[3]) - max(one[1], other[1]) <= 1e-9
        )


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_can_be_told_from_their_ground(theme):
    assert theme.keys() == LIGHT.keys()
    assert min(contrast(theme[name], theme["card"]) for name in ("ink", "quiet")) >= 4.5
    assert min(contrast(theme[family], theme["card"]) for family in FAMILIES) >= 3
    assert contrast(theme["edge"], theme["card"]) >= 3
    assert len(set(theme.values())) == len(theme), "inlining tells colours apart by their value"


def test_every_family_has_its_own_shape():
    shapes = {glyph(family) for family in FAMILIES}
    assert len(shapes) == len(FAMILIES)
    assert all(re.fullmatch(r"M[-\d. MLQCZ]+Z", shape) for shape in shapes)


# --- the page


class Page(HTMLParser):
    """Where the page would reach, and what it holds."""

    def __init__(self):
        super().__init__()
        self.reaches, self.tags, self.ids, self.text, self.open = [], [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name in {"src", "href", "xlink:href", "action", "srcset", "poster", "data"}:
                self.reaches.append(value)
            elif name == "id":
                self.ids.append(value)
            elif name.startswith("on"):
                self.reaches.append(f"{name}={value}")

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_reaches_for_nothing(page):
    source = page.read_text(encoding="utf-8")
    parsed = Page()
    parsed.feed(source)
    assert {reach for reach in parsed.reaches if not reach.startswith("#")} == {"data:,"}
    assert {reach[1:] for reach in parsed.reaches if reach.startswith("#")} <= set(parsed.ids)
    assert len(set(parsed.ids)) == len(parsed.ids)
    assert not {"script", "iframe", "object", "embed", "img", "form", "base"} & set(parsed.tags)
    assert "@import" not in source
    assert not re.search(r"url\((?!#)", source)
    assert "var(--anchorlwf)" in source
    drawn = "".join(re.findall(r"<svg role.*?</svg>", source, re.DOTALL))
    assert not re.findall(r"#[0-9a-f]{6}\b", drawn), "a colour that no theme would change"


def test_what_a_model_says_is_text(page):
    source = page.read_text(encoding="utf-8")
    assert EVIL[:25] not in source
    assert "&lt;script&gt;alert(1)&lt;/script&gt;⟨U+202E⟩⟨U+200F⟩" in source
    assert "⟨U+D800⟩⟨U+0000⟩" in source
    assert not set(source) & set("\u202e\u200f\0")
    assert "OutOfMemoryError: &lt;b&gt;no&lt;/b&gt; room" in source


def test_the_page_says_where_it_comes_from_and_how_much_it_can_say(page):
    parsed = Page()
    parsed.feed(page.read_text(encoding="utf-8"))
    text = " ".join(" ".join(parsed.text).split())
    for expected in (
        "anchorlwf arena --seeds 5 --out runs/arena",
        "torch 2.13.0",
        "1, 2, 3, 4, 5",
        "Methods ran 4 to 5 seeds",
        "only 4 of 5 seeds",
        "cannot fall below 0.0625",
        "correction for 30 comparisons",
        "learning_rate 0.001",
    ):
        assert expected in text
    for sentence in summarize(made_up()).headline:
        assert sentence in text


def test_the_summary_is_plain_json_and_tells_what_the_page_tells(page, results):
    def constant(name):
        raise AssertionError(name)

    told = json.loads((page.parent / "summary.json").read_text(), parse_constant=constant)
    assert told == json.loads(json.dumps(summarize(results).as_dict()))
    assert all(sentence in page.read_text(encoding="utf-8") for sentence in told["headline"])


def test_every_plot_lies_beside_the_page(page):
    names = {"pareto", "pareto_near", *(f"{kind}_{regime}" for kind in ("curves", "differences") for regime in REGIMES)}
    found = {path.name for path in (page.parent / "plots").iterdir()}
    assert found == {f"{name}.{kind}" for name in names for kind in ("svg", "png")}
    for name in names:
        drawn = (page.parent / "plots" / f"{name}.svg").read_text(encoding="utf-8")
        assert "<text" not in drawn, "outlines look alike everywhere"
        assert LIGHT["card"] in drawn, "opaque: it is shown on light and dark"
        size = struct.unpack(">8s8xII", (page.parent / "plots" / f"{name}.png").read_bytes()[:24])
        assert size[0] == b"\x89PNG\r\n\x1a\n"
        wide, high = map(float, re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', drawn).groups())
        assert size[1:] == pytest.approx((wide / 72 * 160, high / 72 * 160), abs=1)


def test_a_study_of_almost_nothing_has_a_report(tmp_path):
    data = made_up({"anchorlwf": METHODS["anchorlwf"]}, seeds=1)
    data["cells"] = [cell for cell in data["cells"] if cell["regime"] == "few"]
    for name in ("examples", "strips", "curve", "costs", "outcomes", "options"):
        del data["cells"][0][name]
    data["failures"], data["sweep"], data["environment"] = [], [], {}
    page = write_report(data, tmp_path)
    # The same from the same.
    first = page.read_bytes()
    assert write_report(data, tmp_path).read_bytes() == first
    assert "None: every cell was measured." in page.read_text()


def test_a_place_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(StorageError, match="cannot write"):
        write_plots(small(), tmp_path / "file")


@pytest.mark.parametrize("missing", ["matplotlib", "jinja2"])
def test_without_the_extra_it_says_how_to_get_it(monkeypatch, tmp_path, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match=r"pip install 'anchorlwf\[arena\]'"):
        write_report(small(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_many_failures_are_named_in_the_headline_and_told_at_their_regimes():
    told = summarize(made_up())
    failed = [dataclasses.replace(claim, holds=False, brief="figures") for claim in told.judged.on_front]
    few, many = (headline(told.study, dataclasses.replace(told.judged, on_front=failed[:count]))[1] for count in (2, 3))
    assert few.count("(figures)") == 2
    assert "figures" not in many
    assert all(told.study.regimes[claim.regime].title in many for claim in failed[:3])
