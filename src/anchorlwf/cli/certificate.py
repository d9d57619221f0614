"""Check a certificate that evaluate --certificate wrote.

Is its content as it was written, does its verdict follow from its figures, was the gate passed, and, given a model,
does it speak of these weights? Weights are hashed on disk, not loaded. Exit code 3 if any answer is no.

Examples:
  anchorlwf certificate certificate.json
  anchorlwf certificate certificate.json --model ./my-model --adapter runs/first/adapter
  anchorlwf certificate certificate.json --model ./tuned --base ./base --json
"""

from pathlib import Path
from typing import Annotated

import typer

from anchorlwf.cli.shared import Adapter, AsJson, Base, Model, err, out, print_json, quiet_libraries


def certificate(
    path: Annotated[Path, typer.Argument(help="certificate.json")],
    model: Model = None,
    adapter: Adapter = None,
    base: Base = None,
    as_json: AsJson = False,
) -> None:
    from anchorlwf.evaluation import check_certificate, named_hashes

    quiet_libraries()
    weights = named_hashes(model, adapter, base) if model or adapter or base else None
    report, problems = check_certificate(path, weights)
    if as_json:
        print_json({"passed": report.passed, "weights_compared": weights is not None, "problems": problems})
    else:
        for check in report.checks:
            out.print(str(check), markup=False)
        for problem in problems:
            err.print(problem, markup=False)
        compared = "of these weights, " if weights is not None else ""
        out.print("NOT good" if problems else f"Good: {compared}unchanged, and the gate was passed")
    raise typer.Exit(3 if problems else 0)
