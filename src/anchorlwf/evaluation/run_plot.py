"""A run as a picture: are the anchors learned, how far has the model drifted, and how hard was it held?"""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anchorlwf.errors import RecordError, wrong
from anchorlwf.evaluation.plotting import LIGHT, png, settle, styled, svg
from anchorlwf.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_run"]

_KINDS = {"general": "anchorlwf", "near": "sft", "all": "ink"}
"""Colour of each kind of held-out record."""


def plot_run(folder: str | Path, out: str | Path) -> None:
    """Draw a run's metrics.jsonl: probability of the anchors, drift in nats per token, and beta, by step.

    The drift is that on held-out records, with its interval, or without any that on the keep tokens in training.

    Args:
        folder: of the run.
        out: an image file; its ending (.png or .svg) says which kind.

    Raises:
        RecordError: there are no metrics, or `out` has another ending.
        StorageError: `out` cannot be written.
        ImportError: matplotlib is not installed (`anchorlwf[arena]`).
    """
    rows, kind = _rows(Path(folder) / "metrics.jsonl"), Path(out).suffix.lower()
    if kind not in (".png", ".svg"):
        raise RecordError(wrong(str(out), "a file that ends in .png or .svg", kind or "no ending", "Rename it."))
    figure = _figure(rows)
    write_atomic(out, png(figure) if kind == ".png" else svg(figure, text=False))


def _figure(rows: list[dict[str, Any]]) -> "Figure":
    with styled():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.2, 6.0))
        anchors, drift, beta = figure.subplots(3, 1, sharex=True)
        steps = [row["step"] for row in rows]
        anchors.plot(steps, [row["anchor_probability"] for row in rows], color=LIGHT["anchorlwf"])
        anchors.set_ylim(0, 1.02)
        anchors.set_title("Probability of the anchors, geometric mean")
        _draw_drift(drift, rows)
        drift.set_title("Drift from the reference, nats per token")
        beta.plot(steps, [row["beta"] for row in rows], color=LIGHT["ink"])
        beta.set_yscale("log")
        beta.set_title("Beta, the weight of the keep tokens")
        beta.set_xlabel("step")
        settle(figure)
        return figure


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise RecordError(wrong(str(path), "the metrics of a run", error, "Give the folder of a run.")) from error
    if not rows:
        raise RecordError(wrong(str(path), "the metrics of a run", "no step yet", "Wait until it has begun."))
    return rows


def _draw_drift(axes: "Axes", rows: list[dict[str, Any]]) -> None:
    measured = [row for row in rows if row.get("held_out")]
    if not measured:
        steps, values = [row["step"] for row in rows], [row["keep_kl"] for row in rows]
        axes.plot(steps, [value or math.nan for value in values], color=LIGHT["ink"], label="keep tokens in training")
    for kind, colour in _KINDS.items():
        having = [(row["step"], row["held_out"][kind]) for row in measured if kind in row["held_out"]]
        # Where there is one kind only, it is all of them.
        if not having or (kind == "all" and len(measured[0]["held_out"]) == 2):
            continue
        steps = [step for step, _ in having]
        axes.plot(steps, [drift["mean"] for _, drift in having], color=LIGHT[colour], label=f"held out, {kind}")
        low, high = ([drift[end] for _, drift in having] for end in ("low", "high"))
        axes.fill_between(steps, low, high, color=LIGHT[colour], alpha=0.15, linewidth=0)
    axes.set_yscale("log")
    # Below that is rounding: the first step finds the model as it was.
    axes.set_ylim(bottom=max(1e-6, axes.get_ylim()[0]))
    axes.legend()
