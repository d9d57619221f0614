"""Measure speed and memory on this machine, compared with other ways of doing the same.

loss: the loss, from both models' logits and from the second pass on, against dense logits, TRL's kernel, lawftrack's
top-4 objective and the bare matrix products. growth: the same for growing numbers of completion tokens. step: one
optimizer step against TRL's SFT and plain loops over full logits. decode: a correction with the old continuation as a
draft. annotate: known answers, in batches and step by step. memory: the peak of annotating and training on files of
several sizes. packing: a training step on padded and on packed records.

Each competitor runs in its own process, in turn; figures are medians. Keep the machine quiet meanwhile: other work
disturbs the ratios too.

Examples:
  anchorlwf bench step
  anchorlwf bench loss --set width=256 --set tokens=2048 --runs 9
  anchorlwf bench loss --only ours --only trl --json
  anchorlwf bench loss --set device=cuda --set dtype=bfloat16 --only ours --only trl --only matmuls
  anchorlwf bench memory --set records=1000,10000
  anchorlwf bench packing --runs 11
"""

from typing import Annotated

import typer

from anchorlwf.cli.shared import AsJson, out, phase_progress, print_json, quiet_libraries


def bench(
    what: Annotated[str, typer.Argument(help="loss, growth, step, decode, annotate, memory or packing.")],
    runs: Annotated[int, typer.Option(min=1, help="How often each competitor runs.")] = 5,
    only: Annotated[
        list[str] | None, typer.Option(help="Run this competitor; repeatable. Ratios are to the first.")
    ] = None,
    options: Annotated[
        list[str] | None, typer.Option("--set", help="An option of the setup, name=value; repeatable.")
    ] = None,
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
