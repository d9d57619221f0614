"""Measure speed and memory on this machine, compared with other ways of doing the same.

loss: the loss, from both models' logits and from the second pass on, against dense logits, TRL's kernel, lawftrack's
top-4 objective and the bare matrix products. growth: the same for growing numbers of completion tokens. step: one
optimizer step against TRL's SFT and plain loops over full logits. decode: a correction with the old continuation as a
draft. annotate: known answers, in batches and step by step. memory: the peak of annotating and training on files of
several sizes. packing: a training step on padded and on packed records.

--gpu measures correctness, loss, step and memory on one card, in a few minutes: one table, and a JSON file that is
written after each part, the most telling ones first. It needs torch with CUDA, triton, transformers and peft; TRL,
where it is installed, competes.

Otherwise each competitor runs in its own process, in turn; figures are medians. Keep the machine quiet meanwhile:
other work disturbs the ratios too.

Examples:
  anchorlwf bench step
  anchorlwf bench loss --set width=256 --set tokens=2048 --runs 9
  anchorlwf bench loss --only ours --only trl --json
  anchorlwf bench loss --set device=cuda --set dtype=bfloat16 --only ours --only trl --only matmuls
  anchorlwf bench memory --set records=1000,10000
  anchorlwf bench packing --runs 11
  anchorlwf bench --gpu --seconds 150 --out gpu.json
"""

from pathlib import Path
from typing import Annotated

import typer

from anchorlwf.cli.shared import AsJson, err, out, phase_progress, print_json, quiet_libraries


def _print_gpu(path: Path, seconds: float, as_json: bool) -> None:
    from anchorlwf.bench.gpu import bench_gpu, gpu_table

    found = bench_gpu(path, seconds=seconds, on_part=lambda name: err.print(f"{name} ..."))
    if as_json:
        print_json(found)
    else:
        out.print(gpu_table(found))


def bench(
    what: Annotated[
        str | None, typer.Argument(help="loss, growth, step, decode, annotate, memory or packing.", show_default=False)
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="How often each competitor runs.")] = 5,
    only: Annotated[
        list[str] | None, typer.Option(help="Run this competitor; repeatable. Ratios are to the first.")
    ] = None,
    options: Annotated[
        list[str] | None, typer.Option("--set", help="An option of the setup, name=value; repeatable.")
    ] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="Everything on this machine's GPU instead.")] = False,
    gpu_out: Annotated[Path, typer.Option("--out", help="With --gpu: the JSON file.")] = Path("bench-gpu.json"),
    seconds: Annotated[float, typer.Option(min=1, help="With --gpu: no part begins later than this.")] = 300,
    as_json: AsJson = False,
) -> None:
    from anchorlwf.bench.suite import bench, bench_table, options_of

    quiet_libraries()
    if gpu:
        _print_gpu(gpu_out, seconds, as_json)
        return
    chosen = options_of(options or [])
    with phase_progress() as progress:
        results = bench(
            what or "",
            runs=runs,
            only=only or [],
            options=chosen,
            on_run=lambda done, of: progress(what or "", done, of),
        )
    if as_json:
        print_json(results)
    else:
        out.print(bench_table(results))
