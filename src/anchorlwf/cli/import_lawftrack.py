"""Turn a data set of lawftrack, the paper's own annotation tool, into records.

The file is an export of a data set, or training JSONL. It holds texts and token numbers: everything is tokenised again
by the model that was annotated (only its tokenizer is read), and an anchor that does not stand where it should is
flagged. Records with a flagged anchor are drafts: `annotate --web` on the same records goes on with them. Traces of the
author's experiments (annotation_trace.json) hold token ids, and come in by these.

Examples:
  anchorlwf import-lawftrack dataset.json --out records.jsonl --model ./annotated-model
  anchorlwf import-lawftrack train.jsonl --out records.jsonl --model ./annotated-model --span whole
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from anchorlwf.cli.shared import AsJson, Model, TrustCode, err, out, print_json, quiet_libraries

Span = Annotated[Literal["first", "whole"], typer.Option(help="Which tokens of a replacement become anchors.")]


def import_lawftrack(
    path: Annotated[Path, typer.Argument(help="The data set's or trace's JSON or JSONL file.")],
    to: Annotated[Path, typer.Option("--out", "-o", help="Records are added to this file.")],
    model: Model = None,
    span: Span = "first",
    as_json: AsJson = False,
    trust_remote_code: TrustCode = False,
) -> None:
    from anchorlwf.annotation import import_lawftrack

    quiet_libraries()
    _print(import_lawftrack(path, to, model, span=span, trust_remote_code=trust_remote_code), to, as_json)


def _print(found: Any, to: Path, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "records": found.records,
                "anchors": found.anchors,
                "drafts": found.drafts,
                "known": found.known,
                "flagged": [asdict(flag) for flag in found.flags],
                "out": str(to),
            }
        )
        return
    out.print(f"{found.records} records, {found.anchors} anchors, in {to}", markup=False)
    if found.known:
        out.print(f"{found.known} were there already and stay as they are")
    if found.flags:
        out.print(f"{len(found.flags)} places flagged, {found.drafts} records are drafts because of them")
    for flag in found.flags:
        err.print(str(flag), markup=False)
