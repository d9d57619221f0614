"""Measure speed and memory on this machine, against other ways to do the same.

loss: the loss, over both models' logits and from the second pass on, against dense logits, TRL's kernel, lawftrack's
top-4 objective and the bare matrix products. growth: the same as completion tokens grow. step: one optimizer step
against TRL's SFT and plain loops over full logits. decode: a correction with the old continuation as a draft. annotate:
known answers, in batches and step by step. memory: the peak of annotating and training on files of several sizes.
Competitors have a process each and run in turn; figures are medians. Keep the machine quiet meanwhile: ratios suffer
from other work too.

Examples:
  anchorlwf bench step
  anchorlwf bench loss --set width=256 --set tokens=2048 --runs 9
  anchorlwf bench loss --only ours --only trl --json
  anchorlwf bench loss --set device=cuda --set dtype=bfloat16 --only ours --only trl --only matmuls
  anchorlwf bench memory --set records=1000,10000
"""

from typing import Annotated

import typer

from anchorlwf.cli.shared import AsJson, out, phase_progress, print_json, quiet_libraries


def bench(
    what: Annotated[str, typer.Argument(help="loss, growth, step, decode, annotate or memory.")],
    runs: Annotated[int, typer.Option(min=1, help="Of each competitor.")] = 5,
    only: Annotated[list[str] | None, typer.Option(help="A competitor; repeatable. Ratios are to the first.")] = None,
    options: Annotated[list[str] | None, typer.Option("--set", help="name=value of the setup; repeatable.")] = None,
    as_json: AsJson = False,
) -> None:
    from anchorlwf.bench.suite import bench, bench_table, options_of

    quiet_libraries()
    chosen = options_of(options or [])
    with phase_progress() as progress:
        results = bench(
            what, runs=runs, only=only or [], options=chosen, on_run=lambda done, of: progress(what, done, of)
        )
    if as_json:
        print_json(results)
    else:
        out.print(bench_table(results))
