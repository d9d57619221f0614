"""Compare methods: AnchorLwF, SFT, GRPO, DPO and others on the same corrections with the same compute.

Runs on the embedded world, or on your own model and data: --prompts holds right answers in the model's own words,
--human the same prompts with answers as a person words them, --probes the questions that judge, --keep unrelated
prompts. Every finished cell is saved to a file: after an interruption, run the same command again. Writes
results.json, report.html and plots/.

Examples:
  anchorlwf arena --quick
  anchorlwf arena --plan study --out runs/study --jobs 2
  anchorlwf arena --quick --model ./my-model --prompts prompts.jsonl --human human.jsonl --probes probes.jsonl
  anchorlwf arena --check docs/results/arena/results.json
"""

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from anchorlwf.cli.shared import (
    AsJson,
    Config,
    Device,
    DtypeName,
    Model,
    err,
    out,
    phase_progress,
    print_json,
    quiet_libraries,
)


def arena(
    to: Annotated[Path, typer.Option("--out", "-o", help="The study's folder.")] = Path("runs/arena"),
    quick: Annotated[
        bool, typer.Option("--quick", help="Run the plan `quick`, which takes minutes on a laptop.")
    ] = False,
    plan: Annotated[
        str | None, typer.Option(help="study (default), quick, real (after `make real`, with --model), or a YAML file.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Number of processes; they share the CPU threads.")] = 1,
    model: Model = None,
    config: Config = None,
    device: Device = None,
    dtype: Annotated[DtypeName, typer.Option(help="Of the weights in memory, on every device.")] = "float32",
    prompts: Annotated[
        Path | None, typer.Option(help="JSONL file of prompts with right answers in the model's words.")
    ] = None,
    human: Annotated[Path | None, typer.Option(help="The same prompts with human-worded answers.")] = None,
    probes: Annotated[Path | None, typer.Option(help="JSONL file of the probes that judge.")] = None,
    keep: Annotated[Path | None, typer.Option(help="Unrelated prompts, for keep records and replay.")] = None,
    check: Annotated[
        Path | None, typer.Option(help="Run a slice of these published results again and compare.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    from anchorlwf.arena import Sources, arena, check_results, load_plan

    quiet_libraries()
    if check is not None:
        _print_check(check_results(check, report=lambda text: err.print(text, style="dim")), as_json)
    chosen, command = load_plan(plan or ("quick" if quick else "study")), " ".join(["anchorlwf", *sys.argv[1:]])
    sources = Sources(model, prompts, probes, human, keep, device, dtype)
    with phase_progress() as progress:
        results = arena(chosen, to, sources, jobs=jobs, report=progress, setup=quiet_libraries, command=command)
    if as_json:
        print_json(results)
    else:
        out.print(f"{len(results['cells'])} cells, {len(results['failures'])} failures; {to / 'report.html'}")


def _print_check(differing: list[str], as_json: bool) -> NoReturn:
    if as_json:
        print_json({"differences": differing})
    else:
        out.print("\n".join(differing) or "the slice that was run again agrees with what was published")
    raise typer.Exit(1 if differing else 0)
