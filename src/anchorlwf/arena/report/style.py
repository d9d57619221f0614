"""Colours, shapes and numbers: the same in every plot, table and legend.

Okabe and Ito's hues, darkened until each has 3:1 against its background; shape tells a family where colour cannot. The
plots are drawn in the light colours; in the page each becomes a CSS variable, which is what makes them follow the
reader's theme.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from anchorlwf.arena.plan import Family
from anchorlwf.arena.study_results import Study
from anchorlwf.evaluation.plotting import LIGHT

__all__ = ["FAMILIES", "SHAPES", "Mark", "glyph", "inline", "marks"]

FAMILIES: dict[Family, str] = {
    "anchorlwf": "AnchorLwF",
    "sft": "supervised fine-tuning",
    "rl": "reinforcement learning",
    "preference": "preference optimisation",
    "distillation": "distillation",
    "context": "in context",
}
SHAPES: dict[Family, str] = {
    "anchorlwf": "*",
    "sft": "o",
    "rl": "s",
    "preference": "^",
    "distillation": "D",
    "context": "P",
}


@dataclass(frozen=True)
class Mark:
    """How one method looks."""

    number: int
    """Its place in the study's list, from 1; what stands beside its point."""
    title: str
    family: Family

    @property
    def colour(self) -> str:
        """Its family's, light."""
        return LIGHT[self.family]

    @property
    def shape(self) -> str:
        """Its family's, as matplotlib names markers."""
        return SHAPES[self.family]


def marks(study: Study) -> dict[str, Mark]:
    """Number the methods in their listed order."""
    return {
        name: Mark(number, method.title, method.family)
        for number, (name, method) in enumerate(study.methods.items(), 1)
    }


def glyph(family: Family) -> str:
    """The family's marker as the `d` of an SVG path within -1..1."""
    from matplotlib.markers import MarkerStyle
    from matplotlib.path import Path

    style = MarkerStyle(SHAPES[family])
    path = style.get_path().transformed(style.get_transform())
    scale = np.abs(np.asarray(path.vertices)).max()
    letters = {int(Path.MOVETO): "M", int(Path.LINETO): "L", int(Path.CURVE3): "Q", int(Path.CURVE4): "C"}
    parts = []
    for corners, code in path.iter_segments(simplify=False):
        if code in letters:
            points = np.asarray(corners).reshape(-1, 2) / scale
            parts.append(letters[int(code)] + " ".join(f"{x:.2f} {-y:.2f}" for x, y in points))
    return "".join(parts) + "Z"


_ENLARGED = 1.7
"""Of its own width, how wide a plot is shown at the most."""


def inline(svg: str, name: str, alt: str, colours: Mapping[str, str] = LIGHT) -> str:
    """An SVG file of matplotlib's as an element of a page: ids its own, colours as CSS variables, described by `alt`.

    `alt` must be escaped already.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, count=1, flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r"url\(#", f"url(#{name}-", body)
    body = re.sub(r'xlink:href="#', f'href="#{name}-', body)
    body = (
        re.sub(r' (?:xmlns:xlink|version|width|height)="[^"]*"', "", body[: body.index(">")]) + body[body.index(">") :]
    )
    # Verdana has DejaVu's widths, so what was laid out with the one fits with the other.
    body = body.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")
    for variable, colour in colours.items():
        body = body.replace(colour, f"var(--{variable})")
    # A single panel would fill the page, with letters three times as large as the text around it.
    [width] = re.findall(r'viewBox="0 0 ([\d.]+)', body[: body.index(">")])
    widest = f"{_ENLARGED * float(width):.0f}pt"
    return body.replace("<svg", f'<svg role="img" aria-label="{alt}" class="plot" style="--widest: {widest}"', 1)
