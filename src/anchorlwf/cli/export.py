"""Export records for other trainers, as JSONL.

sft: prompt and completion, for TRL's SFTTrainer. dpo: prompt, chosen (corrected) and rejected (original), for TRL's
DPOTrainer.

Examples:
  anchorlwf export records.jsonl --to sft --out sft.jsonl
  anchorlwf export records.jsonl --to dpo --out dpo.jsonl --model ./my-model
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from anchorlwf.cli.shared import Model, SkipBad, TrustCode, out, plain_warnings, quiet_libraries


def export(
    records: Annotated[Path, typer.Argument(help="records.jsonl")],
    path: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")],
    to: Annotated[Literal["sft", "dpo"], typer.Option(help="Which view.")] = "sft",
    model: Model = None,
    skip_bad: SkipBad = False,
    trust_remote_code: TrustCode = False,
) -> None:
    from anchorlwf.export import dpo_rows, sft_rows
    from anchorlwf.jsonl import load_records, save_lines

    plain_warnings()
    loaded = load_records(records, skip_bad=skip_bad)
    if to == "sft":
        rows = sft_rows(loaded)
    else:
        from anchorlwf.model import load_model

        quiet_libraries()
        rows = dpo_rows(loaded, load_model(model, trust_remote_code=trust_remote_code).codec.decode)
    save_lines(path, rows)
    out.print(f"{len(rows)} of {len(loaded)} records in {path}")
