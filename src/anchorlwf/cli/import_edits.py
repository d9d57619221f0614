"""Turn a knowledge-editing data set (zsRE, CounterFact, KnowEdit) into prompts and probes.

The input is the data set's own JSON file. Each edit becomes a prompt with the new target as its answer; probes ask for
the edit itself (recall), for its rewordings and consequences (paraphrase), and for what must stay (near or retain). The
command prints which fields it read and which it did not, and how many entries have them.

Examples:
  anchorlwf import-edits zsre_mend_eval.json --prompts prompts.jsonl --probes probes.jsonl --limit 128
  anchorlwf import-edits recent_test.json --prompts prompts.jsonl --probes probes.jsonl --layout knowedit
"""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from anchorlwf.cli.shared import AsJson, out, print_json

if TYPE_CHECKING:
    from anchorlwf.data.edit_data import Edits

Kind = Annotated[
    Literal["near", "retain"] | None,
    typer.Option(help="Kind of the probes for what must stay; retain counts for drift."),
]
Layout = Annotated[
    Literal["zsre", "counterfact", "knowedit"] | None, typer.Option(help="Default: recognized from the first entry.")
]


def import_edits(
    path: Annotated[Path, typer.Argument(help="The data set's JSON file.")],
    prompts: Annotated[Path, typer.Option(help="File to which prompts are written.")],
    probes: Annotated[Path, typer.Option(help="File to which probes are written.")],
    layout: Layout = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of edits, from the first on.")] = None,
    locality: Kind = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Skip bad entries and name each one, instead of stopping.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    from anchorlwf.data.edit_data import load_edits
    from anchorlwf.data.jsonl import save_lines

    edits = load_edits(path, layout=layout, limit=limit, locality=locality, skip_bad=skip_bad)
    save_lines(prompts, edits.prompts)
    save_lines(probes, edits.probes)
    _print(edits, prompts, probes, as_json)


def _print(edits: "Edits", prompts: Path, probes: Path, as_json: bool) -> None:
    kinds = Counter(probe.kind for probe in edits.probes)
    if as_json:
        counted = {"layout": edits.layout, "prompts": len(edits.prompts), "probes": dict(kinds)}
        print_json({**counted, "read": edits.read, "not_read": edits.unread})
        return
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    out.print(f"{edits.layout}: {len(edits.prompts)} prompts in {prompts}, probes in {probes}: {counts}")
    for what, fields in (("read", edits.read), ("not read", edits.unread)):
        if fields:
            out.print(f"{what}: {', '.join(f'{name} ({count})' for name, count in fields.items())}")
