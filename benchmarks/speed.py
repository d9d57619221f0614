"""Everything of docs/performance.md that `anchorlwf bench` measures: run it, and draw it.

python benchmarks/speed.py docs/results/speed                (half an hour; leave the machine alone meanwhile)
python benchmarks/speed.py docs/results/speed --only step    (one of them again)
python benchmarks/speed.py docs/results/speed --draw         (the plots alone, from what is there)
"""

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure

from anchorlwf.arena.report.plots import save, settle, styled
from anchorlwf.arena.report.style import LIGHT
from anchorlwf.bench.suite import bench, bench_table
from anchorlwf.files import write_atomic

RUNS = {
    "loss_256": {"name": "loss", "options": {"width": 256}},
    "loss_1024": {"name": "loss", "options": {"width": 1024}},
    "growth": {"name": "growth", "only": ["ours", "summary", "dense"], "options": {"width": 256}, "runs": 3},
    "step": {"name": "step"},
    "decode": {"name": "decode"},
    "annotate": {"name": "annotate", "runs": 3},
    "memory": {"name": "memory"},
}
OURS, OTHER, THIRD = LIGHT["anchorlwf"], LIGHT["quiet"], LIGHT["sft"]
NAMES = {
    "ours": "ours",
    "summary": "ours, kept",
    "dense": "dense logits",
    "ours_uncached": "ours, nothing kept",
    "ours_checkpointing": "ours, gradient checkpointing",
    "trl_sft": "TRL's SFT",
    "full_ce": "cross-entropy, full logits",
    "full_top4": "lawftrack's top 4, full logits",
}


def drawn(folder, name):
    return json.loads((folder / f"{name}.json").read_text())["found"]


def step_plot(found):
    """Bars of time and of memory, one competitor below the other."""
    figure = Figure((9, 3.2))
    time, memory = figure.subplots(1, 2, sharey=True)
    names = list(found)[::-1]
    colors = [OURS if name.startswith("ours") else OTHER for name in names]
    for axes, values, title, unit in (
        (time, [found[name]["seconds"] for name in names], "A step", "{:.1f} s"),
        (memory, [found[name]["extra_bytes"] / 2**30 for name in names], "Memory above the weights", "{:.2f} GiB"),
    ):
        axes.barh(range(len(names)), values, color=colors, height=0.62)
        axes.set_title(title)
        axes.grid(visible=False)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        axes.set_xlim(0, max(values) * 1.2)
        for place, value in enumerate(values):
            axes.annotate(unit.format(value), (value, place), (4, 0), textcoords="offset points", va="center")
    time.set_yticks(range(len(names)), [NAMES[name] for name in names])
    time.tick_params(length=0)
    memory.tick_params(length=0)
    return figure


def lines(axes, rows, x, y, name, color, lift=0):
    points = [(row[x], y(row)) for row in rows]
    axes.plot(*zip(*points, strict=True), "o-", color=color, markersize=4, linewidth=1.8)
    axes.annotate(name, points[-1], (7, lift), textcoords="offset points", va="center", color=color)


def growth_plot(found):
    """Seconds and extra memory by completion tokens."""
    figure = Figure((9, 3.4))
    time, memory = figure.subplots(1, 2)
    for name, color, lift in (("dense", OTHER, 0), ("ours", OURS, 7), ("summary", THIRD, -7)):
        rows = [{"tokens": row["tokens"], **row["competitors"][name]} for row in found]
        lines(time, rows, "tokens", lambda row: row["seconds"], NAMES[name], color)
        lines(memory, rows, "tokens", lambda row: row["extra_bytes"] / 2**20, NAMES[name], color, lift)
    time.set(title="Seconds, forward and backward", xlabel="completion tokens")
    memory.set(title="Memory above what was there, MiB", xlabel="completion tokens", yscale="log")
    time.set_ylim(bottom=0)
    memory.set_ylim(30, 15_000)
    memory.set_yticks([100, 1_000, 10_000], ["100", "1,000", "10,000"])
    memory.minorticks_off()
    for axes in (time, memory):
        axes.set_xlim(0, found[-1]["tokens"] * 1.6)
        shown = [row["tokens"] for row in found if row["tokens"] >= 512]
        axes.set_xticks(shown, [f"{tokens:,}" for tokens in shown])
    return figure


def memory_plot(found):
    """Peak resident memory by records, on a logarithmic axis."""
    figure = Figure((6, 3.2))
    axes = figure.subplots()
    for name, color in (("train", OURS), ("annotate", THIRD)):
        lines(axes, found[name], "records", lambda row: row["peak_mib"], name, color)
    axes.set(title="Most memory held by the process, MiB", xlabel="records in the file", xscale="log")
    axes.set_ylim(0, 1.15 * max(row["peak_mib"] for rows in found.values() for row in rows))
    axes.set_xlim(700, 300_000)
    axes.set_xticks([1_000, 10_000, 100_000], ["1,000", "10,000", "100,000"])
    axes.minorticks_off()
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=RUNS, action="append")
    parser.add_argument("--draw", action="store_true")
    options = parser.parse_args()
    for name in [] if options.draw else options.only or RUNS:
        results = bench(**RUNS[name])
        write_atomic(options.folder / f"{name}.json", json.dumps(results, indent=2) + "\n")
        print(f"{name}, load {results['machine']['load']:.2f}\n{bench_table(results)}\n", flush=True)
    for name, plot in (("step", step_plot), ("growth", growth_plot), ("memory", memory_plot)):
        if (options.folder / f"{name}.json").exists():
            with styled():
                figure = plot(drawn(options.folder, name))
                settle(figure)
            save(figure, options.folder, name)


if __name__ == "__main__":
    main()
