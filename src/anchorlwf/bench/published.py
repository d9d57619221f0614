"""Everything in docs/performance.md that `anchorlwf bench` measures: runs it, and draws it.

python -m anchorlwf.bench.published docs/results/speed              (half an hour; keep the machine quiet meanwhile)
python -m anchorlwf.bench.published docs/results/speed --only step  (one of them again)
python -m anchorlwf.bench.published docs/results/speed --draw       (only the plots, from what is there)
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anchorlwf.bench.suite import bench, bench_table
from anchorlwf.evaluation.plotting import LIGHT, save, settle, styled
from anchorlwf.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["PLOTS", "RUNS", "draw_plots"]

RUNS: dict[str, dict[str, Any]] = {
    "loss_256": {"name": "loss", "options": {"width": 256}},
    "loss_1024": {"name": "loss", "options": {"width": 1024}},
    "growth": {"name": "growth", "only": ["ours", "summary", "dense"], "options": {"width": 256}, "runs": 3},
    "step": {"name": "step"},
    "decode": {"name": "decode"},
    "annotate": {"name": "annotate", "runs": 3},
    "memory": {"name": "memory"},
}
"""Name of the JSON file -> arguments of `bench`."""
_OURS, _OTHER, _THIRD = LIGHT["anchorlwf"], LIGHT["quiet"], LIGHT["sft"]
_LABELS = {
    "ours": "ours",
    "summary": "ours, kept",
    "dense": "dense logits",
    "ours_uncached": "ours, nothing kept",
    "ours_checkpointing": "ours, gradient checkpointing",
    "trl_sft": "TRL's SFT",
    "full_ce": "cross-entropy, full logits",
    "full_top4": "lawftrack's top 4, full logits",
}


def _step_plot(measured: dict[str, dict[str, Any]]) -> "Figure":
    """Bars of time and of memory, one competitor below the other."""
    from matplotlib.figure import Figure

    figure = Figure((9, 3.2))
    time, memory = figure.subplots(1, 2, sharey=True)
    names = list(measured)[::-1]
    colours = [_OURS if name.startswith("ours") else _OTHER for name in names]
    for axes, values, title, unit in (
        (time, [measured[name]["seconds"] for name in names], "A step", "{:.1f} s"),
        (memory, [measured[name]["extra_bytes"] / 2**30 for name in names], "Memory above the weights", "{:.2f} GiB"),
    ):
        axes.barh(range(len(names)), values, color=colours, height=0.62)
        axes.set_title(title)
        axes.grid(visible=False)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        axes.set_xlim(0, max(values) * 1.2)
        for row, value in enumerate(values):
            axes.annotate(unit.format(value), (value, row), (4, 0), textcoords="offset points", va="center")
    time.set_yticks(range(len(names)), [_LABELS[name] for name in names])
    time.tick_params(length=0)
    memory.tick_params(length=0)
    return figure


def _line(axes: "Axes", xs: Sequence[float], ys: Sequence[float], label: str, colour: str, lift: float = 0) -> None:
    """A line that bears its name at its end, `lift` points above it."""
    axes.plot(xs, ys, "o-", color=colour, markersize=4, linewidth=1.8)
    axes.annotate(label, (xs[-1], ys[-1]), (7, lift), textcoords="offset points", va="center", color=colour)


def _growth_plot(measured: list[dict[str, Any]]) -> "Figure":
    """Seconds and extra memory by completion tokens."""
    from matplotlib.figure import Figure

    figure = Figure((9, 3.4))
    time, memory = figure.subplots(1, 2)
    tokens = [size["tokens"] for size in measured]
    for name, colour, lift in (("dense", _OTHER, 0), ("ours", _OURS, 7), ("summary", _THIRD, -7)):
        rows = [size["competitors"][name] for size in measured]
        _line(time, tokens, [row["seconds"] for row in rows], _LABELS[name], colour)
        _line(memory, tokens, [row["extra_bytes"] / 2**20 for row in rows], _LABELS[name], colour, lift)
    time.set(title="Seconds, forward and backward", xlabel="completion tokens")
    memory.set(title="Memory above what was there, MiB", xlabel="completion tokens", yscale="log")
    time.set_ylim(bottom=0)
    memory.set_ylim(30, 15_000)
    memory.set_yticks([100, 1_000, 10_000], ["100", "1,000", "10,000"])
    memory.minorticks_off()
    for axes in (time, memory):
        axes.set_xlim(0, tokens[-1] * 1.6)
        labelled = [count for count in tokens if count >= 512]
        axes.set_xticks(labelled, [f"{count:,}" for count in labelled])
    return figure


def _memory_plot(measured: dict[str, list[dict[str, Any]]]) -> "Figure":
    """Peak resident memory by records, on a logarithmic axis."""
    from matplotlib.figure import Figure

    figure = Figure((6, 3.2))
    axes = figure.subplots()
    for name, colour in (("train", _OURS), ("annotate", _THIRD)):
        rows = measured[name]
        _line(axes, [row["records"] for row in rows], [row["peak_mib"] for row in rows], name, colour)
    axes.set(title="Maximum memory held by the process, MiB", xlabel="records in the file", xscale="log")
    axes.set_ylim(0, 1.15 * max(row["peak_mib"] for rows in measured.values() for row in rows))
    axes.set_xlim(700, 300_000)
    axes.set_xticks([1_000, 10_000, 100_000], ["1,000", "10,000", "100,000"])
    axes.minorticks_off()
    return figure


PLOTS: dict[str, Callable[[Any], "Figure"]] = {"step": _step_plot, "growth": _growth_plot, "memory": _memory_plot}
"""Of the runs with these names."""


def draw_plots(folder: Path) -> list[str]:
    """Draw each plot whose JSON file lies in the folder, as SVG and PNG beside it; returns their names."""
    drawn = [name for name in PLOTS if (folder / f"{name}.json").is_file()]
    for name in drawn:
        measured = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))["found"]
        with styled():
            figure = PLOTS[name](measured)
            settle(figure)
        save(figure, folder, name)
    return drawn


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the JSON files and plots go")
    parser.add_argument("--only", choices=RUNS, action="append", help="run this one; repeatable")
    parser.add_argument("--draw", action="store_true", help="run nothing, draw what is there")
    options = parser.parse_args()
    for name in [] if options.draw else options.only or RUNS:
        results = bench(**RUNS[name])
        write_atomic(options.folder / f"{name}.json", json.dumps(results, indent=2) + "\n")
        print(f"{name}, load {results['machine']['load']:.2f}\n{bench_table(results)}\n", flush=True)
    draw_plots(options.folder)


if __name__ == "__main__":
    _main()
