"""List runs with what they learned and what drifted, or compare two.

Given a folder, lists the runs in it; given two runs, shows their figures side by side and the options that differ.
Recall, kept and flips are those of results.json in the run folder (`evaluate --out RUN/results.json`); the drift is
that of training, in nats per token.

Examples:
  anchorlwf runs
  anchorlwf runs experiments --json
  anchorlwf runs runs/first runs/second
  anchorlwf runs runs/first --plot first.svg
"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from anchorlwf.cli.shared import AsJson, out, print_json


def runs(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="A folder of runs, or two runs. Default: the folder runs.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw one run to this file (.png or .svg): anchors, drift and beta by step.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    from anchorlwf.data.run_summary import is_run, run_differences, runs_below, summary_of

    chosen = folders or [Path("runs")]
    if plot is not None:
        _plot(chosen, plot)
    single = len(chosen) == 1 and not is_run(chosen[0])
    found = runs_below(chosen[0]) if single else [summary_of(folder) for folder in chosen]
    differing = run_differences(*found) if not single and len(found) == 2 else {}
    if as_json:
        print_json({"runs": [asdict(run) for run in found], **({"options": differing} if differing else {})})
        return
    _print(found)
    for name, (before, after) in differing.items():
        out.print(f"{name}: {before} -> {after}")


def _plot(folders: list[Path], to: Path) -> None:
    from anchorlwf.errors import ConfigError, wrong
    from anchorlwf.evaluation.run_plot import plot_run
    from anchorlwf.extras import require_extra

    if len(folders) != 1:
        raise ConfigError(wrong("--plot", "one run", f"{len(folders)}", "Name the run to draw."))
    require_extra("arena", "runs --plot")
    plot_run(folders[0], to)


_COLUMNS: dict[str, Callable[[Any], str]] = {
    "run": lambda run: run.folder,
    "date": lambda run: (run.date or "-")[:16].replace("T", " "),
    "model": lambda run: run.model or "-",
    "converged": lambda run: _verdict(run.converged),
    "steps": lambda run: _number(run.steps),
    "held": lambda run: _share(run.anchors_held, run.anchors),
    "reproduced": lambda run: _share(run.reproduced, run.corrections),
    "drift": lambda run: "-" if run.drift is None else f"{run.drift:.5f}",
    "recall": lambda run: "-" if run.recall is None else f"{run.recall:.1%}",
    "kept": lambda run: "-" if run.kept is None else f"{run.kept:.1%}",
    "flips": lambda run: _number(run.flips),
    "certificate": lambda run: {None: "-", True: "passed", False: "NOT passed"}[run.certificate],
}
_LISTED = ("run", "converged", "reproduced", "drift", "recall", "kept", "certificate")
"""What fits beside one another."""
_WIDE = 160


def _verdict(value: bool | None) -> str:
    return {None: "unfinished", True: "yes", False: "NO"}[value]


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _share(part: int | None, whole: int | None) -> str:
    return "-" if part is None else f"{part} of {whole}"


def _print(found: list[Any]) -> None:
    """A row per run; two are compared in columns, which leaves room for every figure."""
    from rich.table import Column, Table

    if len(found) == 2:
        table = Table("", *(Column(run.folder, overflow="fold") for run in found))
        for name, show in list(_COLUMNS.items())[1:]:
            table.add_row(name, *(show(run) for run in found))
    else:
        table = Table(*(Column(name, overflow="fold", no_wrap=name != "run") for name in _LISTED))
        for run in found:
            table.add_row(*(_COLUMNS[name](run) for name in _LISTED))
    # A file or a pipe has no width; there a row stays a line.
    console = out if out.is_terminal else Console(width=_WIDE, highlight=False, markup=False, emoji=False)
    console.print(table)
