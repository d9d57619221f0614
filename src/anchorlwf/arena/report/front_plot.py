"""The plot of the study: what a method learned against what it forgot, and the Pareto front."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from anchorlwf.arena.report.label_placement import Box, place_labels
from anchorlwf.arena.report.statistics import Estimate, Front, TradeOff
from anchorlwf.arena.report.style import Mark, marks
from anchorlwf.arena.study_results import OURS, Study
from anchorlwf.evaluation.plotting import LIGHT, settle, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["pareto_plot"]

Estimates = Mapping[str, Mapping[str, Estimate | None]]
"""By method and measure."""
INK, QUIET, EDGE, CARD = (LIGHT[name] for name in ("ink", "quiet", "edge", "card"))


@dataclass(frozen=True)
class _Spot:
    """Where one method stands in a panel."""

    name: str
    mark: Mark
    x: float
    y: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    seeds: list[tuple[float, float]]

    @property
    def label(self) -> str:
        return f"{self.mark.number} {self.mark.title}" if self.name == OURS else str(self.mark.number)


def _spots(study: Study, by_method: Estimates, trade_off: TradeOff) -> list[_Spot]:
    spots, looks = [], marks(study)
    for name, summed in by_method.items():
        mark = looks[name]
        harm, learned = summed[trade_off.harm], summed["learned"]
        if harm is not None and learned is not None:
            seeds = [(harm.values[seed], learned.values[seed]) for seed in harm.values if seed in learned.values]
            spots.append(
                _Spot(name, mark, harm.mean, learned.mean, (harm.low, harm.high), (learned.low, learned.high), seeds)
            )
    # AnchorLwF is drawn last, on top, and labelled first.
    return sorted(spots, key=lambda spot: spot.name == OURS)


def _draw_spot(axes: "Axes", spot: _Spot, on_front: bool) -> None:
    colour, ours = spot.mark.colour, spot.name == OURS
    xs, ys = zip(*spot.seeds, strict=True)
    axes.scatter(
        xs,
        ys,
        s=22 if spot.mark.shape == "*" else 12,
        marker=spot.mark.shape,
        color=colour,
        alpha=0.28,
        linewidths=0,
        zorder=2,
        clip_on=False,
    )
    for across, up in ((spot.x_range, (spot.y, spot.y)), ((spot.x, spot.x), spot.y_range)):
        axes.plot(across, up, color=colour, linewidth=1.1, alpha=0.75, solid_capstyle="round", zorder=3)
    size = (260 if ours else 130) if spot.mark.shape == "*" else 55
    axes.scatter(
        [spot.x],
        [spot.y],
        s=size,
        marker=spot.mark.shape,
        zorder=5 if ours else 4,
        linewidths=1.4,
        clip_on=False,
        facecolors=colour if on_front else CARD,
        edgecolors=colour,
    )


def _stairs(front: Front) -> list[tuple[float, float]]:
    """Corners (harm, learned): from each member to the right at its height, up at the next one's harm."""
    corners: list[tuple[float, float]] = []
    for learned, harm in (front.points[name] for name in front.members):
        corners += [(harm, corners[-1][1] if corners else 0.0), (harm, learned)]
    return [*corners, (1.0, corners[-1][1])] if corners else []


def _label(axes: "Axes", spots: list[_Spot], front: Front, halo: bool) -> None:
    """Beside each point its number; the layout must be final."""
    from matplotlib.patheffects import withStroke

    order = spots[::-1]
    to_screen, back = axes.transData.transform, axes.transData.inverted().transform
    points = to_screen([(spot.x, spot.y) for spot in order])
    scale = axes.figure.dpi / 72
    sizes = [((len(spot.label) * (6.6 if spot.name == OURS else 5.8) + 2) * scale, 10 * scale) for spot in order]
    frame = axes.get_window_extent().extents
    lines = [*itertools.pairwise(_stairs(front))]
    for spot in spots:
        lines += [((spot.x_range[0], spot.y), (spot.x_range[1], spot.y))]
        lines += [((spot.x, spot.y_range[0]), (spot.x, spot.y_range[1]))]
    bars: list[Box] = []
    for line in lines:
        (left, low), (right, high) = to_screen(line)
        bars.append((left - 1, low - 1, right + 1, high + 1))
    boxes = place_labels([(x, y) for x, y in points], sizes, (frame[0], frame[1], frame[2], frame[3]), 7 * scale, bars)
    for spot, (left, bottom, right, top), (x, y) in zip(order, boxes, points, strict=True):
        middle = ((left + right) / 2, (bottom + top) / 2)
        if np.hypot(max(left - x, 0, x - right), max(bottom - y, 0, y - top)) > 12 * scale:
            axes.plot(*back([(x, y), middle]).T, color=EDGE, linewidth=0.7, zorder=1.5)
        ours = spot.name == OURS
        across, up = back(middle)
        axes.text(
            across,
            up,
            spot.label,
            ha="center",
            va="center",
            fontsize=9,
            zorder=6,
            clip_on=False,
            color=INK if ours else QUIET,
            fontweight="bold" if ours else "normal",
            path_effects=[withStroke(linewidth=2.5, foreground=CARD)] if halo else None,
        )


def _root(x: np.ndarray) -> np.ndarray:
    return np.sign(x) * np.sqrt(np.abs(x))


def _square(x: np.ndarray) -> np.ndarray:
    return np.sign(x) * np.square(x)


def _ticks(end: float, apart: float) -> list[float]:
    """Round shares of 0..end that stand clearly apart on a square-root scale."""
    ticks = [0.0]
    for tick in (0.0001, 0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0):
        if tick <= end and np.sqrt(tick / end) - np.sqrt(ticks[-1] / end) > apart:
            ticks.append(tick)
    return ticks


def _scale(panels: Sequence["Axes"], spots: list[_Spot]) -> None:
    """One scale for all panels: the square root of what is lacking. It keeps 0 and still tells 0.1 % from 1 %."""
    from matplotlib.ticker import FixedLocator, FuncFormatter

    seeds = [seed for spot in spots for seed in spot.seeds]
    right = max(1.12 * max((harm for harm, _ in seeds), default=0), 0.005)
    bottom = min(max(1.12 * (1 - min((learned for _, learned in seeds), default=1)), 0.02), 1.0)
    for axes in panels:
        axes.set_xscale("function", functions=(_root, _square))
        axes.set_yscale("function", functions=(lambda y: -_root(1 - y), lambda y: 1 - _square(-y)))
        # A little beyond 0 % and 100 %, so that a marker there is seen whole.
        axes.set_xlim(-0.0012 * right, right)
        axes.set_ylim(1 - bottom, 1 + 0.008 * bottom)
        axes.xaxis.set_major_locator(FixedLocator(_ticks(right, 0.13)))
        axes.yaxis.set_major_locator(FixedLocator([1 - tick for tick in _ticks(bottom, 0.08)]))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))


def pareto_plot(
    study: Study,
    summed: Mapping[str, Estimates],
    fronts: Mapping[str, Front],
    trade_off: TradeOff,
    regimes: Sequence[str],
    *,
    alone: bool,
) -> "Figure":
    """Learned against harm, a panel for each of `regimes`, all on the scale of all of `summed`; filled: on the front.

    `alone`: with titles and a legend, to stand by itself.
    """
    with styled():
        from matplotlib.figure import Figure

        across = min(3, len(regimes))
        down = -(-len(regimes) // across)
        spots_of = {regime: _spots(study, by_method, trade_off) for regime, by_method in summed.items()}
        drawn = [spots_of[regime] for regime in regimes]
        listed = {spot.name for spots in drawn for spot in spots}
        legend_rows = -(-len(listed) // (across + 1)) if alone else 0
        figure = Figure(figsize=(max(3.75 * across, 6.4 if alone else 0), 3.7 * down + 0.2 * legend_rows + 0.2 * alone))
        panels = list(figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).flat)
        for index, (axes, regime, spots) in enumerate(zip(panels, regimes, drawn, strict=False)):
            for spot in spots:
                _draw_spot(axes, spot, spot.name in fronts[regime].members)
            if alone:
                axes.set_title(study.regimes[regime].title)
            axes.set_xlabel(trade_off.title)
            axes.tick_params(labelbottom=True)
            if index % across == 0:
                axes.set_ylabel("learned")
        for axes in panels[len(regimes) :]:
            axes.remove()
        _scale(panels[: len(regimes)], [spot for spots in spots_of.values() for spot in spots])
        for axes, regime in zip(panels, regimes, strict=False):
            stairs = np.array(_stairs(fronts[regime])).reshape(-1, 2)
            axes.plot(*stairs.T, color=QUIET, linewidth=1.2, linestyle=(0, (4, 2.5)), zorder=1)
        if alone:
            _legend(figure, [mark for name, mark in marks(study).items() if name in listed], across + 1)
        settle(figure)
        for axes, regime, spots in zip(panels, regimes, drawn, strict=False):
            if spots:
                _label(axes, spots, fronts[regime], halo=alone)
        return figure


def _legend(figure: "Figure", listed: Sequence[Mark], across: int) -> None:
    from matplotlib.lines import Line2D

    entries = [
        Line2D(
            [],
            [],
            linestyle="",
            marker=mark.shape,
            color=mark.colour,
            markersize=11 if mark.shape == "*" else 6.5,
            label=f"{mark.number}  {mark.title}",
        )
        for mark in listed
    ]
    note = (
        "Filled: on the Pareto front (dashed). Faint: single seeds. Bars: 95% bootstrap intervals over seeds. "
        "Square-root scales."
    )
    legend = figure.legend(
        handles=entries,
        loc="outside lower left",
        ncols=across,
        fontsize=9,
        handletextpad=0.3,
        columnspacing=1.2,
        title=note if across > 2 else note.replace("Bars", "\nBars"),
        alignment="left",
        title_fontproperties={"size": 8.5},
    )
    legend.get_title().set_color(QUIET)
