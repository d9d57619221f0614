"""What the report's page shows, cut into rows and words: no mathematics here, and no HTML."""

import difflib
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from anchorlwf.arena.report.statistics import Estimate, Measure, extremes
from anchorlwf.arena.study_results import OURS, Cell, Example, Strip, Study, Trial

__all__ = [
    "MethodExamples",
    "Row",
    "Strips",
    "Table",
    "changes",
    "examples",
    "heat",
    "options",
    "settings",
    "strips",
    "sweeps",
    "table",
    "visible",
    "written",
]

EXAMPLES, STRIPS = 8, 12
"""At most so many are shown per method and per regime; the page says how many there are."""

_BIDI = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_HEAT = (0.001, 0.01, 0.05, 0.2, 1.0)
_PIECE = re.compile(r"\s+|\w+|[^\w\s]")


def visible(text: str) -> str:
    """Text whose unseen characters cannot act: controls, direction marks and half characters by their number."""
    return "".join(
        f"⟨U+{ord(char):04X}⟩"
        if char in _BIDI or (unicodedata.category(char) in {"Cc", "Cs"} and char not in "\n\t")
        else char
        for char in text
    )


_WRITTEN: dict[str, Callable[[float], str]] = {
    "fraction": lambda value: f"{100 * value:.1f}%",
    "nats": lambda value: f"{value:#.2g}".rstrip(".") if abs(value) >= 1e-4 else f"{value:.0e}".replace("e-0", "e-"),
    "bytes": lambda value: f"{value / 2**20:,.0f} MiB",
    "flops": lambda value: f"{value:.2g}".replace("e+", "e"),
    "seconds": lambda value: f"{value:.1f}",
    "count": lambda value: f"{value:,.0f}" if value == round(value) or value >= 100 else f"{value:,.1f}",
}


def written(value: float | None, unit: str) -> str:
    """A figure as people write it; a hyphen where there is none."""
    if value is None:
        return "-"
    # A divergence of float32 logits is known to about 1e-6 nats.
    nothing = abs(value) < 1e-6 if unit == "nats" else value == 0
    return "0" if nothing and unit != "fraction" else _WRITTEN[unit](value)


@dataclass(frozen=True)
class Figure:
    """One cell of a table."""

    text: str
    interval: str
    mark: Literal["best", "worst", ""]


@dataclass(frozen=True)
class Row:
    """One method."""

    name: str
    figures: list[Figure]
    seeds: int


@dataclass(frozen=True)
class Table:
    """Methods by measures; measures that nobody took are left out."""

    columns: list[Measure]
    rows: list[Row]


def _interval(estimate: Estimate, unit: str) -> str:
    low, high = (written(end, unit).removesuffix("%").removesuffix(" MiB") for end in (estimate.low, estimate.high))
    return "" if len(estimate.values) < 2 else f"{low}\u2013{high}"


def table(
    summed: Mapping[str, Mapping[str, Estimate | None]], measures: Sequence[Measure], seeds: Mapping[str, int]
) -> Table:
    """`summed` by method and measure, as a table with the best and the worst of each column marked."""
    columns = [measure for measure in measures if any(estimates[measure.name] for estimates in summed.values())]
    marked = {}
    for measure in columns:
        means = {name: estimates[measure.name] for name, estimates in summed.items()}
        marked[measure.name] = extremes(
            {name: None if estimate is None else estimate.mean for name, estimate in means.items()}, measure.better
        )
    rows = []
    for name, estimates in summed.items():
        figures = []
        for measure in columns:
            estimate = estimates[measure.name]
            text = written(None if estimate is None else estimate.mean, measure.unit)
            interval = "" if estimate is None else _interval(estimate, measure.unit)
            figures.append(Figure(text, interval, marked[measure.name].get(name, "")))
        rows.append(Row(name, figures, seeds[name]))
    return Table(columns, rows)


def _merged(words: Sequence[str], changed: Sequence[bool]) -> list[tuple[bool, str]]:
    """Runs of what changed and what did not; white space between two changed words belongs to them."""
    inner = [not word.isspace() or not 0 < i < len(words) - 1 for i, word in enumerate(words)]
    changed = [new or (not inner[i] and changed[i - 1] and changed[i + 1]) for i, new in enumerate(changed)]
    runs: list[tuple[bool, str]] = []
    for word, new in zip(words, changed, strict=True):
        if runs and runs[-1][0] == new:
            runs[-1] = (new, runs[-1][1] + word)
        else:
            runs.append((new, word))
    return runs


def changes(before: str, after: str) -> tuple[list[tuple[bool, str]], list[tuple[bool, str]]]:
    """Both texts as runs of (changed, text), by words; joined again they are what they were."""
    old_words, new_words = _PIECE.findall(before), _PIECE.findall(after)
    gone, new = [True] * len(old_words), [True] * len(new_words)
    for block in difflib.SequenceMatcher(a=old_words, b=new_words, autojunk=False).get_matching_blocks():
        gone[block.a : block.a + block.size] = [False] * block.size
        new[block.b : block.b + block.size] = [False] * block.size
    return _merged(old_words, gone), _merged(new_words, new)


@dataclass(frozen=True)
class MethodExamples:
    """The examples of one method: those of its first seed that has any."""

    name: str
    seed: int
    total: int
    shown: list[Example]


def examples(study: Study, regime: str) -> list[MethodExamples]:
    """Examples by method, kinds taking turns so that none crowds out another."""
    listed = []
    for name in study.methods:
        cell = next((cell for cell in study.of(regime, name) if cell.examples), None)
        if cell is not None:
            by_kind: dict[str, list[Example]] = {}
            for example in cell.examples:
                by_kind.setdefault(example.kind, []).append(example)
            longest = max(map(len, by_kind.values()))
            turns = [group[i] for i in range(longest) for group in by_kind.values() if i < len(group)]
            shown = sorted(turns[:EXAMPLES], key=lambda example: list(by_kind).index(example.kind))
            listed.append(MethodExamples(name, cell.seed, len(cell.examples), shown))
    return listed


@dataclass(frozen=True)
class Strips:
    """One method's continuation that drifted most."""

    cell: Cell
    strip: Strip


def strips(study: Study, regime: str) -> list[Strips]:
    """The worst strip of each method, the worst method first; AnchorLwF's is always among them."""
    worst: dict[str, Strips] = {}
    for cell in study.of(regime):
        for strip in cell.strips:
            if cell.method not in worst or strip.mean > worst[cell.method].strip.mean:
                worst[cell.method] = Strips(cell, strip)
    ordered = sorted(worst.values(), key=lambda drifted: -drifted.strip.mean)
    shown = ordered[:STRIPS]
    return shown + [drifted for drifted in ordered[STRIPS:] if drifted.cell.method == OURS]


def heat(kl: float | None) -> int:
    """0 to 5: how strongly a token's drift is tinted. Above 0 its figure is written out."""
    return 0 if kl is None else sum(kl >= step for step in _HEAT)


def options(chosen: Mapping[str, Any]) -> str:
    """Settings in one line."""
    return (
        ", ".join(f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in chosen.items())
        or "none"
    )


@dataclass(frozen=True)
class Tried:
    """One setting of a sweep: its mean score by regime, and where it was chosen."""

    options: str
    scores: dict[str, float | None]
    chosen: set[str]


def sweeps(study: Study) -> dict[str, list[Tried]]:
    """What was tried, by method."""
    trials_of: dict[str, dict[str, list[Trial]]] = {}
    for trial in study.sweep:
        trials_of.setdefault(trial.method, {}).setdefault(options(trial.options), []).append(trial)
    tried: dict[str, list[Tried]] = {}
    for method, by_options in trials_of.items():
        for line, trials in by_options.items():
            scores: dict[str, float | None] = {}
            for regime in study.regimes:
                known = [trial.score for trial in trials if trial.regime == regime and trial.score is not None]
                scores[regime] = sum(known) / len(known) if known else None
            chosen = {trial.regime for trial in trials if trial.chosen}
            tried.setdefault(method, []).append(Tried(line, scores, chosen))
    return tried


def settings(study: Study) -> list[tuple[str, str, str, str]]:
    """(method, regimes, seeds, options) that the cells ran with; alike ones in one row."""
    rows: dict[tuple[str, str], list[Cell]] = {}
    for cell in study.cells:
        rows.setdefault((cell.method, options(cell.options)), []).append(cell)
    order = list(study.methods)
    return [
        (
            method,
            ", ".join(dict.fromkeys(study.regimes[cell.regime].title for cell in cells)),
            ", ".join(map(str, sorted({cell.seed for cell in cells}))),
            line,
        )
        for (method, line), cells in sorted(rows.items(), key=lambda item: order.index(item[0][0]))
    ]
