"""How every plot looks and is saved, the arena's and the benchmarks'. Matplotlib is imported when it is needed."""

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anchorlwf.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["DARK", "LIGHT", "png", "save", "settle", "styled", "svg"]

LIGHT = {
    "ink": "#1d2026",
    "quiet": "#585d67",
    "line": "#e2dfd9",
    "edge": "#84878e",
    "card": "#fffffe",
    "anchorlwf": "#0067a8",
    "sft": "#c24e00",
    "rl": "#00805c",
    "preference": "#ab4a86",
    "distillation": "#8a6500",
    "context": "#656c78",
}
DARK = {
    "ink": "#e7e6e3",
    "quiet": "#a6abb4",
    "line": "#30343a",
    "edge": "#747a84",
    "card": "#1b1d21",
    "anchorlwf": "#62b4f5",
    "sft": "#ff9152",
    "rl": "#3ecb9e",
    "preference": "#e591c4",
    "distillation": "#dcb53f",
    "context": "#a9b1bd",
}

_INK, _QUIET, _LINE, _EDGE, _CARD = (LIGHT[name] for name in ("ink", "quiet", "line", "edge", "card"))
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "svg.hashsalt": "anchorlwf",
    "figure.facecolor": _CARD,
    "axes.facecolor": _CARD,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "axes.edgecolor": _EDGE,
    "xtick.color": _EDGE,
    "ytick.color": _EDGE,
    "xtick.labelcolor": _QUIET,
    "ytick.labelcolor": _QUIET,
    "axes.grid": True,
    "grid.color": _LINE,
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
