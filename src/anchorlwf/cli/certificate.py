"""Check a certificate that evaluate --certificate wrote.

Is its content as it was written, does its verdict follow from its figures, was the gate passed, and, given a model,
does it speak of this one: weights, configurations, tokenizer, template, all that decides an answer? Files are hashed
on disk, nothing is loaded. Probes and records are compared where they lie at the path it names, or where you say.
Exit code 3 if any answer is no.

Examples:
  anchorlwf certificate certificate.json
  anchorlwf certificate certificate.json --model ./my-model --adapter runs/first/adapter
  anchorlwf certificate certificate.json --model ./tuned --base ./base --probes probes.jsonl --gate gate.yaml --json
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from anchorlwf.cli.shared import Adapter, AsJson, Base, Model, err, out, print_json, quiet_libraries
from anchorlwf.config import GateConfig


def certificate(
    path: Annotated[Path, typer.Argument(help="certificate.json")],
    model: Model = None,
    adapter: Adapter = None,
    base: Base = None,
    probes: Annotated[Path | None, typer.Option(help="The probes it must speak of.")] = None,
    records: Annotated[Path | None, typer.Option(help="The records it must speak of.")] = None,
    gate: Annotated[Path | None, typer.Option(help="YAML of the thresholds it must have held.")] = None,
    as_json: AsJson = False,
) -> None:
    from anchorlwf.evaluation import check_certificate, compared_data, named_hashes

    quiet_libraries()
    thresholds = GateConfig.load(gate) if gate else None
    weights = named_hashes(model, adapter, base) if model or adapter or base else None
    report, problems = check_certificate(path, weights, probes=probes, records=records, gate=thresholds)
    compared = [*(["weights"] if weights is not None else []), *compared_data(report, probes, records)]
    _print(report, compared, problems, as_json)
    raise typer.Exit(3 if problems else 0)


def _print(report: Any, compared: list[str], problems: list[str], as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "passed": report.passed,
                "weights_compared": "weights" in compared,
                "compared": compared,
                "problems": problems,
            }
        )
        return
    for check in report.checks:
        out.print(str(check))
    for problem in problems:
        err.print(problem)
    of = f"of these {' and '.join(compared)}, " if compared else ""
    out.print("NOT good" if problems else f"Good: {of}unchanged, and the gate was passed")
