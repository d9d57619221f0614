"""Check records against their model: is every token its greedy choice, a tie, or an anchor, and does each answer end?

Takes one forward pass per batch. The exit code is 2 if a record does not hold, or was made with another tokenizer or
chat template.

Examples:
  anchorlwf verify records.jsonl
  anchorlwf verify records.jsonl --model ./my-model --json
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from anchorlwf.cli.shared import (
    AsJson,
    Config,
    Device,
    Dtype,
    Model,
    SkipBad,
    TrustCode,
    err,
    out,
    print_json,
    quiet_libraries,
)


def verify(
    records: Annotated[Path, typer.Argument(help="JSONL file of records.")],
    model: Model = None,
    config: Config = None,
    device: Device = None,
    dtype: Dtype = None,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
    trust_remote_code: TrustCode = False,
) -> None:
    from anchorlwf.annotation import verify_records
    from anchorlwf.data.jsonl import load_records
    from anchorlwf.model.language_model import load_model

    quiet_libraries()
    loaded = load_records(records, skip_bad=skip_bad)
    net = load_model(model, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    findings = list(verify_records(net, loaded))
    _print(findings, as_json)
    raise typer.Exit(0 if all(finding.holds for finding in findings) else 2)


def _print(findings: list[Any], as_json: bool) -> None:
    broken = [finding for finding in findings if not finding.holds]
    if as_json:
        listed = [{"id": f.record.id, "positions": f.unexplained, "ending": f.ending} for f in broken]
        print_json({"records": len(findings), "hold": len(findings) - len(broken), "broken": listed})
        return
    out.print(f"{len(findings) - len(broken)} of {len(findings)} records hold")
    for finding in broken:
        where = ", ".join(map(str, finding.unexplained))
        reasons = [f"the model would choose another token at {where}"] if where else []
        reasons += [finding.ending] if finding.ending else []
        err.print(f"record {finding.record.id}: {'; '.join(reasons)}; annotate it again")
