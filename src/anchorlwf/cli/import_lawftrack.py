"""Turn a data set of lawftrack, the paper's own annotation tool, into records.

The input is the export of a data set, or training JSONL. Both hold texts and token numbers, so everything is tokenized
again with the annotated model's tokenizer (its weights are not read), and an anchor that is not where it should be is
flagged. Records with a flagged anchor become drafts, which `annotate --web` on the same records continues. Traces of
the author's experiments (annotation_trace.json) hold token ids and are imported by these.

Examples:
  anchorlwf import-lawftrack dataset.json --out records.jsonl --model ./annotated-model
  anchorlwf import-lawftrack train.jsonl --out records.jsonl --model ./annotated-model --span whole
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from anchorlwf.cli.shared import AsJson, Config, Model, TrustCode, err, out, print_json, quiet_libraries

Span = Annotated[Literal["first", "whole"], typer.Option(help="Which tokens of a replacement become anchors.")]


def import_lawftrack(
    path: Annotated[Path, typer.Argument(help="JSON or JSONL file of the data set or trace.")],
    to: Annotated[Path, typer.Option("--out", "-o", help="File to which records are appended.")],
    model: Model = None,
    config: Config = None,
    span: Span = "first",
    as_json: AsJson = False,
    trust_remote_code: TrustCode = False,
) -> None:
    from anchorlwf.annotation import import_lawftrack

    quiet_libraries()
    _print(import_lawftrack(path, to, model, span=span, trust_remote_code=trust_remote_code), to, as_json)


def _print(imported: Any, to: Path, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "records": imported.records,
                "anchors": imported.anchors,
                "drafts": imported.drafts,
                "known": imported.known,
                "flagged": [asdict(flag) for flag in imported.flags],
                "out": str(to),
            }
        )
        return
    out.print(f"{imported.records} records, {imported.anchors} anchors, in {to}")
    if imported.known:
        out.print(f"{imported.known} were there already and stay as they are")
    if imported.flags:
        out.print(f"{len(imported.flags)} places flagged, {imported.drafts} records are drafts because of them")
    for flag in imported.flags:
        err.print(str(flag))
