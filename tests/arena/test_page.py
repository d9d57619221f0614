"""What is read of a results.json, and the page, plots and summary made of it."""

import copy
import json
import math
import re
import struct
import sys
from html.parser import HTMLParser

import pytest
from arena_data import EVIL, METHODS, REGIMES, made_up, small

from anchorlwf.arena.report.front_plot import pareto_plot
from anchorlwf.arena.report.page import summarize, write_plots, write_report
from anchorlwf.arena.report.plots import differences
from anchorlwf.arena.report.statistics import TRADE_OFFS
from anchorlwf.arena.study_results import OURS, Study
from anchorlwf.errors import ConfigError, RecordError, StorageError
from anchorlwf.evaluation.plotting import LIGHT


@pytest.fixture(scope="module")
def page(results, tmp_path_factory):
    return write_report(results, tmp_path_factory.mktemp("arena"))


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


def test_a_regime_shows_only_what_was_measured_in_it(results):
    pytest.importorskip("matplotlib")
    one, other, *_ = REGIMES
    missing = next(cell["method"] for cell in results["cells"] if cell["method"] != OURS)
    fewer = copy.deepcopy(results)
    fewer["cells"] = [cell for cell in fewer["cells"] if (cell["method"], cell["regime"]) != (missing, one)]
    summary = summarize(fewer)
    [legend] = pareto_plot(
        summary.study, summary.estimates, summary.fronts["pareto"], TRADE_OFFS[0], [one], alone=True
    ).legends
    listed = {text.get_text().partition("  ")[2] for text in legend.get_texts()}
    assert summary.study.methods[missing].title not in listed
    assert summary.study.methods[OURS].title in listed
    of_recall = [comparison for comparison in summary.comparisons if comparison.measure == "recall"]
    for compared, measures in ((summary.comparisons, ["recall", "kept"]), (of_recall, ["recall"])):
        panels = differences(summary.study, compared, other).axes
        assert [axes.get_xlabel().partition(",")[0] for axes in panels] == measures


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


def test_without_the_extra_it_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pip install 'anchorlwf\[arena\]'"):
        write_report(small(), tmp_path)
    assert not list(tmp_path.iterdir())
