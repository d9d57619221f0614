"""What the page shows: words, figures, examples, strips, labels and colours."""

import itertools
import re

import pytest
from arena_data import METHODS, made_up
from hypothesis import given
from hypothesis import strategies as st

from anchorlwf.arena.report import page_rows
from anchorlwf.arena.report.label_placement import place_labels
from anchorlwf.arena.report.style import FAMILIES, glyph
from anchorlwf.arena.study_results import Study
from anchorlwf.evaluation.plotting import DARK, LIGHT

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
        (-4e-8, "nats", "0"),
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
    told = page_rows.examples(Study.read(data), "few")[0]
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
