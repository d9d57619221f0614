"""Merge the adapter of a run into its base: one model, for servers without adapters.

The merged model is read back and compared with base and adapter, on the corrections and on answers to everyday prompts.
It is kept only if its logits agree (in half precision: if the drift is small) and every corrected answer is reproduced.
--dtype is that of the merged weights; by default it is that of the base's files.

Examples:
  anchorlwf merge runs/first --out merged
  anchorlwf merge runs/first --out merged --records records.jsonl --dtype float32
  anchorlwf merge ./adapter --out merged --model ./my-model --json
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from anchorlwf.cli.shared import AsJson, Config, Device, TrustCode, out, print_json, quiet_libraries

BaseModel = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Local folder or hub name of the base. Default: as the adapter says."),
]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16"] | None,
    typer.Option(help="Of the merged weights. Default: that of the base's files."),
]
Records = Annotated[Path | None, typer.Option(help="The corrections. Default: those of the run, where they still lie.")]


def merge(
    run: Annotated[Path, typer.Argument(help="Run folder, or the folder of an adapter.")],
    to: Annotated[Path, typer.Option("--out", "-o", help="Folder of the merged model.")],
    model: BaseModel = None,
    records: Records = None,
    config: Config = None,
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
    trust_remote_code: TrustCode = False,
) -> None:
    from anchorlwf.workflow.merge import merge

    quiet_libraries()
    loading: dict[str, Any] = {"dtype": dtype, "device": device, "trust_remote_code": trust_remote_code}
    report = merge(run, to, model=model, records=records, **loading)
    if as_json:
        print_json(asdict(report))
        return
    out.print(f"{to}: {report.base} with {report.adapter}, in {report.dtype}")
    gap = f"largest difference of a log-probability {report.largest_difference:.1e}, mean KL {report.mean_kl:.1e} nats"
    out.print(f"{gap}, other choices at {report.choices_changed} of {report.tokens} tokens")
    lost = report.records - report.known
    told = f" ({lost} not by base and adapter in {report.dtype} either)" if lost else ""
    checked = f"{report.reproduced} of {report.records}{told}" if report.records else "unknown; --records names them"
    out.print(f"corrected answers reproduced: {checked}")
