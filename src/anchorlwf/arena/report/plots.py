"""How every plot looks and is saved, and two of them: differences to AnchorLwF, and learning curves."""

import contextlib
import io
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from anchorlwf.arena.report.comparison import Comparison
from anchorlwf.arena.report.style import LIGHT, marks
from anchorlwf.arena.study_results import OURS, Study
from anchorlwf.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["curves", "differences", "png", "save", "settle", "styled", "svg"]

INK, QUIET, LINE, EDGE, CARD = (LIGHT[name] for name in ("ink", "quiet", "line", "edge", "card"))
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "svg.hashsalt": "anchorlwf",
    "figure.facecolor": CARD,
    "axes.facecolor": CARD,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": EDGE,
    "xtick.color": EDGE,
    "ytick.color": EDGE,
    "xtick.labelcolor": QUIET,
    "ytick.labelcolor": QUIET,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


@contextlib.contextmanager
def styled(more: dict[Any, Any] | None = None) -> Iterator[None]:
    """The look of every plot, for what is drawn and saved within."""
    import matplotlib as mpl

    with mpl.rc_context(_STYLE | (more or {})):
        yield


def settle(figure: "Figure") -> None:
    """Lay the figure out once and for all: what is placed by its coordinates stays right, and saving it is quick."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def svg(figure: "Figure", *, text: bool) -> str:
    """The same SVG for the same figure. `text`: letters stay letters, for a page; else outlines, alike everywhere."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    stream = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with styled({"svg.fonttype": "none" if text else "path"}):
        # Not savefig: it draws everything twice, the first time for a layout that is settled already.
        FigureCanvasSVG(figure).print_svg(stream, metadata=nothing)
    return re.sub(r"[ \t]+$", "", stream.getvalue(), flags=re.MULTILINE)


def png(figure: "Figure") -> bytes:
    """At 160 dots per inch, opaque."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    stream = io.BytesIO()
    figure.dpi = 160  # SVG leaves it at its own 72
    with styled():
        FigureCanvasAgg(figure).print_png(stream, metadata={"Software": None})
    return stream.getvalue()


def save(figure: "Figure", folder: Path, name: str) -> None:
    """Write NAME.svg and NAME.png, each atomically. Raises `StorageError`."""
    write_atomic(folder / f"{name}.svg", svg(figure, text=False))
    write_atomic(folder / f"{name}.png", png(figure))


def differences(study: Study, comparisons: Sequence[Comparison], regime: str) -> "Figure":
    """Every method minus AnchorLwF: recall and kept, with intervals; filled where it holds after correction."""
    with styled():
        from matplotlib.figure import Figure

        looks = marks(study)
        rows = [name for name in study.measured(regime) if name != OURS]
        figure = Figure(figsize=(9.6, 0.3 * len(rows) + 1.05))
        grid = figure.subplots(1, 2, sharey=True)
        for axes, measure in zip(grid, ("recall", "kept"), strict=True):
            axes.axvline(0, color=LIGHT["anchorlwf"], linewidth=1.4, zorder=1)
            for one in comparisons:
                if one.regime == regime and one.measure == measure:
                    row, mark, paired = rows.index(one.method), looks[one.method], one.paired
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
                        facecolors=mark.colour if one.differs else CARD,
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
        names = [name for name, found in cells.items() if found]
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
