"""Correct four facts and the assistant's identity on the embedded model, and show that nothing else changed.

The exit code is 4 if training did not converge.

Examples:
  anchorlwf demo
  anchorlwf demo --out runs/again --json
"""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from anchorlwf.cli.shared import (
    NOT_CONVERGED,
    AsJson,
    Config,
    Device,
    Dtype,
    err,
    options_from,
    out,
    print_json,
    quiet_libraries,
    step_progress,
)


def demo(
    to: Annotated[Path, typer.Option("--out", "-o", help="The run folder.")] = Path("runs/demo"),
    config: Config = None,
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    from anchorlwf.config import TrainConfig
    from anchorlwf.model.language_model import load_model
    from anchorlwf.workflow import demo

    quiet_libraries()
    settings = options_from(TrainConfig, config)
    with step_progress() as progress:
        model = load_model(dtype=dtype, device=device)
        report = demo(to, model, config=settings, say=lambda text: err.print(text, style="dim"), on_step=progress)
    if as_json:
        print_json(report.results.as_dict())
    else:
        show(report, out)
    raise typer.Exit(0 if report.training.converged else NOT_CONVERGED)


def show(report: Any, console: Console) -> None:
    """Print a `DemoReport`: answers before and after, measures, costs."""
    from rich.table import Table
    from rich.text import Text

    table = Table("question", "before", "after", title="corrected answers (the first of three wordings each)")
    for question, before, after in report.answers[:: report.wordings]:
        table.add_row(Text(question), Text(before), Text(after))
    console.print(table)
    console.print(report.results.table())
    facts = report.results.facts
    console.print(
        f"{facts['annotated_tokens']} of {facts['completion_tokens']} tokens annotated; {facts['steps']} steps, "
        f"{facts['train_seconds']:.1f} s of training; {report.seconds:.1f} s in all; results in {report.folder}"
    )
    if not report.training.converged:
        console.print(f"NOT converged: {'; '.join(report.training.missing)}")
