"""Check a release certificate that evaluate --certificate wrote.

Is its content unchanged, does its verdict follow from its figures, was the gate passed? Given a model, is the
certificate about this one: weights, configuration, tokenizer, chat template and everything else that decides an answer?
Files are hashed on disk; no model is loaded. Probes and records are compared where they still lie at the path in the
certificate, or at the path given here. The exit code is 3 if any answer is no.

Examples:
  anchorlwf certificate certificate.json
  anchorlwf certificate certificate.json --model ./my-model --adapter runs/first/adapter
  anchorlwf certificate certificate.json --model ./tuned --base ./base --probes probes.jsonl --gate gate.yaml --json
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from anchorlwf.cli.shared import Adapter, AsJson, Base, Config, err, out, print_json, quiet_libraries

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="Local folder or hub name of the model it must be about. Default: none is compared; with --adapter, the "
        "embedded model.",
    ),
]


def certificate(
    path: Annotated[Path, typer.Argument(help="The certificate, a JSON file.")],
    model: Model = None,
    adapter: Adapter = None,
    base: Base = None,
    config: Config = None,
    probes: Annotated[Path | None, typer.Option(help="The probes it must be about.")] = None,
    records: Annotated[Path | None, typer.Option(help="The records it must be about.")] = None,
    gate: Annotated[Path | None, typer.Option(help="YAML file of the thresholds it must have met.")] = None,
    as_json: AsJson = False,
) -> None:
    from anchorlwf.config import GateConfig
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
