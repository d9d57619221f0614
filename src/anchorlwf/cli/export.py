"""Export records for other trainers, as JSONL.

sft: prompt and completion, for TRL's SFTTrainer. dpo: prompt, chosen (the corrected answer) and rejected (the original
one), for TRL's DPOTrainer; this reads the tokenizer of the annotated model, but not its weights.

Examples:
  anchorlwf export records.jsonl --to sft --out sft.jsonl
  anchorlwf export records.jsonl --to dpo --out dpo.jsonl --model ./my-model
"""

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from anchorlwf.cli.shared import Config, Model, SkipBad, TrustCode, out, plain_warnings, quiet_libraries


def export(
    records: Annotated[Path, typer.Argument(help="JSONL file of records.")],
    path: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")],
    to: Annotated[Literal["sft", "dpo"], typer.Option(help="The format.")] = "sft",
    model: Model = None,
    config: Config = None,
    skip_bad: SkipBad = False,
    trust_remote_code: TrustCode = False,
) -> None:
    from anchorlwf.data.jsonl import load_records, save_lines
    from anchorlwf.data.trl_rows import dpo_rows, sft_rows

    plain_warnings()
    if to == "sft":
        loaded = load_records(records, skip_bad=skip_bad)
        rows = sft_rows(loaded)
    else:
        codec, check = _codec(model, trust_remote_code)
        loaded = load_records(records, skip_bad=skip_bad, check=check)
        rows = dpo_rows(loaded, codec.decode)
    save_lines(path, rows)
    out.print(f"{len(rows)} of {len(loaded)} records in {path}")


def _codec(model: str | None, trust: bool) -> tuple[Any, Any]:
    """The tokenizer, and whether a record's ids are its own: those of the original answer are all that DPO has."""
    from anchorlwf.model.language_model import EMBEDDED, load_codec

    quiet_libraries()
    name = model or EMBEDDED
    codec, _ = load_codec(name, trust)
    return codec, partial(codec.check_record, ours=codec.stamp(name), vocabulary=len(codec.tokenizer))
