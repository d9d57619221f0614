"""Two plots of a study: differences to AnchorLwF, and learning curves."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from anchorlwf.arena.report.comparison import Comparison
from anchorlwf.arena.report.style import marks
from anchorlwf.arena.study_results import OURS, Study
from anchorlwf.evaluation.plotting import LIGHT, settle, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["curves", "differences"]

INK, CARD = LIGHT["ink"], LIGHT["card"]


def differences(study: Study, comparisons: Sequence[Comparison], regime: str) -> "Figure":
    """Every method minus AnchorLwF: recall and kept, with intervals; filled where it holds after correction.

    Where no facts could be lost there is no panel for kept.
    """
    with styled():
        from matplotlib.figure import Figure

        looks = marks(study)
        rows = [name for name in study.measured(regime) if name != OURS]
        compared = {comparison.measure for comparison in comparisons if comparison.regime == regime}
        measures = [measure for measure in ("recall", "kept") if measure in compared]
        figure = Figure(figsize=(2.8 + 3.4 * len(measures), 0.3 * len(rows) + 1.05))
        grid = list(figure.subplots(1, len(measures), sharey=True, squeeze=False).flat)
        for axes, measure in zip(grid, measures, strict=True):
            axes.axvline(0, color=LIGHT["anchorlwf"], linewidth=1.4, zorder=1)
            for comparison in comparisons:
                if comparison.regime == regime and comparison.measure == measure:
                    row, mark, paired = rows.index(comparison.method), looks[comparison.method], comparison.paired
                    size = 110 if mark.shape == "*" else 42
                    axes.plot([100 * paired.low, 100 * paired.high], [row, row], color=mark.colour, linewidth=1.6)
                    axes.scatter(
                        [100 * paired.difference],
                        [row],
                        s=size,
                        marker=mark.shape,
                        linewidths=1.4,
                        zorder=4,
                        edgecolors=mark.colour,
                        facecolors=mark.colour if comparison.differs else CARD,
                    )
            axes.set_xlabel(f"{measure}, points above AnchorLwF")
            axes.grid(visible=False, axis="y")
            axes.spines["left"].set_visible(False)
            axes.tick_params(axis="y", length=0)
            axes.margins(x=0.08)
        grid[0].set_yticks(range(len(rows)), [f"{looks[name].number}  {looks[name].title}" for name in rows])
        grid[0].set_ylim(len(rows) - 0.4, -0.6)
        settle(figure)
        return figure


def curves(study: Study, regime: str) -> "Figure | None":
    """A panel per method: each seed's loss, and the keep tokens' KL dashed. None where no cell recorded any."""
    with styled({"font.size": 8.5, "axes.titlesize": 9}):
        from matplotlib.figure import Figure
        from matplotlib.ticker import NullLocator

        cells = {name: [cell for cell in study.of(regime, name) if cell.curve] for name in study.methods}
        names = [name for name, recorded in cells.items() if recorded]
        if not names:
            return None
        across = min(4, len(names))
        down = -(-len(names) // across)
        figure = Figure(figsize=(max(2.4 * across, 5), 1.6 * down + 0.3))
        panels = list(figure.subplots(down, across, squeeze=False).flat)
        looks = marks(study)
        for axes, name in zip(panels, names, strict=False):
            losses = [point.loss for cell in cells[name] for point in cell.curve if point.loss is not None]
            for cell in cells[name]:
                steps = [point.step for point in cell.curve]
                for field, style in (("loss", "-"), ("keep_kl", (0, (2, 1.5)))):
                    values = [getattr(point, field) for point in cell.curve]
                    axes.plot(
                        steps,
                        [np.nan if value is None else value for value in values],
                        linestyle=style,
                        color=looks[name].colour,
                        linewidth=0.9,
                        alpha=0.7,
                    )
            if losses and min(losses) > 0:
                axes.set_yscale("log")
                axes.yaxis.set_minor_locator(NullLocator())
            title = textwrap.shorten(looks[name].title, 27, placeholder="…")
            axes.set_title(f"{looks[name].number}  {title}", fontweight="normal")
        for axes in panels[len(names) :]:
            axes.remove()
        figure.supxlabel("step", fontsize=9, color=INK)
        settle(figure)
        return figure
