"""Turn a knowledge-editing data set (zsRE, CounterFact, KnowEdit) into prompts and probes.

The file is the data set's own JSON. Prompts hold each edit with its new target as the answer; probes ask for the edit
(recall), for its rewordings and consequences (paraphrase), and for what must stay (near or retain). Which fields were
read, and which were not, is printed with how many entries have them.

Examples:
  anchorlwf import-edits zsre_mend_eval.json --prompts prompts.jsonl --probes probes.jsonl --limit 128
  anchorlwf import-edits recent_test.json --prompts prompts.jsonl --probes probes.jsonl --layout knowedit
"""

from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

import typer

from anchorlwf.cli.shared import AsJson, out, print_json
from anchorlwf.data.edit_data import Edits, Layout, load_edits
from anchorlwf.data.jsonl import save_lines

Kind = Annotated[Literal["near", "retain"] | None, typer.Option(help="Kind of what must stay; retain: in the KL, too.")]


def import_edits(
    path: Annotated[Path, typer.Argument(help="The data set's JSON file.")],
    prompts: Annotated[Path, typer.Option(help="Write prompts here.")],
    probes: Annotated[Path, typer.Option(help="Write probes here.")],
    layout: Annotated[Layout | None, typer.Option(help="Left out: told by the first entry.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most edits: the first ones.")] = None,
    locality: Kind = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Go on after bad entries and name them.")] = False,
    as_json: AsJson = False,
) -> None:
    edits = load_edits(path, layout=layout, limit=limit, locality=locality, skip_bad=skip_bad)
    save_lines(prompts, edits.prompts)
    save_lines(probes, edits.probes)
    _print(edits, prompts, probes, as_json)


def _print(edits: Edits, prompts: Path, probes: Path, as_json: bool) -> None:
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
