"""Training that is killed again and again: a few times by test_checkpoint.py, many by benchmarks/kills.py.

Each life is a process that runs `anchorlwf train` as the console script does. It is forked, so that lives cost a
second instead of ten.
"""

import json
import os
import random
import time
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

from forks import forks

__all__ = ["Report", "killed_runs", "life"]

_ENDED = {0, 4}
"""Exit codes of training that came to its end, converged or not."""
_NOTHING_YET = "expected a checkpoint in checkpoints/, got none"


@dataclass
class Report:
    """What came of the kills."""

    kills: int = 0
    runs: int = 0
    resumed: int = 0
    started_anew: int = 0
    """Lives killed before the run's first checkpoint: there was nothing to resume, and that was said."""
    parts_left: int = 0
    """Kills that left a file or folder half-written (and put aside)."""
    wrong: list[str] = field(default_factory=list)


def _live(arguments: list[str], log: Path) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    from anchorlwf.cli import main

    main(arguments)


def life(arguments: list[object], log: Path) -> BaseProcess:
    """A process that runs the command and writes all it says to `log`; started."""
    process = forks().Process(target=_live, args=([str(argument) for argument in arguments], log))
    process.start()
    return process


def killed_runs(folder: Path, arguments: list[object], kills: int, seed: int) -> Report:
    """Train once undisturbed; then train and kill, and resume and kill, until `kills` are used up; compare each run.

    Every other kill comes at a random moment of a whole life, the others at one soon after a life's first checkpoint.

    Args:
        folder: empty; run folders and logs go there.
        arguments: of `anchorlwf train`, with short `--save-steps`; without `--out`.
        kills: how many.
        seed: of the moments.
    """
    rng, report, log = random.Random(seed), Report(), folder / "log.txt"
    life(["--help"], log).join()  # the server has imported everything by then
    began = time.perf_counter()
    whole = life([*arguments, "--out", folder / "whole"], log)
    whole.join()
    assert whole.exitcode in _ENDED, log.read_text()
    span = time.perf_counter() - began
    while report.kills < kills:
        report.runs += 1
        run = folder / f"run-{report.runs}"
        _one_run(run, [*arguments, "--out", run], log, span, kills, rng, report)
        report.wrong += [f"{run.name}: {what}" for what in _differences(folder / "whole", run)]
    return report


def _one_run(
    run: Path, arguments: list[object], log: Path, span: float, kills: int, rng: random.Random, report: Report
) -> None:
    resume = False
    while True:
        process = life([*arguments, *(["--resume"] if resume else [])], log)
        if report.kills < kills and _killed(process, run, span, rng, aimed=report.kills % 2 == 1):
            report.kills += 1
            report.parts_left += any(path.name.startswith(".") and path.name != ".lock" for path in run.rglob("*"))
            report.resumed += resume
            resume = True
            continue
        process.join()
        if process.exitcode in _ENDED:
            report.resumed += resume
            return
        if not (resume and process.exitcode == 2 and _NOTHING_YET in log.read_text()):
            report.wrong.append(f"{run.name}: exit {process.exitcode}: {log.read_text()[-500:]}")
            return
        report.started_anew += 1
        resume = False


def _killed(process: BaseProcess, run: Path, span: float, rng: random.Random, *, aimed: bool) -> bool:
    """Kill the process at a random moment; False if it had ended before."""
    before = _checkpoints(run)
    while aimed and process.is_alive() and _checkpoints(run) <= before:
        time.sleep(0.002)
    process.join(rng.uniform(0, span / 4 if aimed else span))
    if not process.is_alive():
        return False
    process.kill()
    process.join()
    return True


def _checkpoints(run: Path) -> set[str]:
    return {path.name for path in (run / "checkpoints").glob("checkpoint-*")}


def _differences(whole: Path, run: Path) -> list[str]:
    """What is not, bit by bit, as in the run that nobody disturbed."""
    told = [
        f"{name} differs"
        for name in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "metrics.jsonl")
        if not (run / name).exists() or (run / name).read_bytes() != (whole / name).read_bytes()
    ]
    if (run / "train.json").exists():
        reports = [json.loads((place / "train.json").read_text())["report"] for place in (whole, run)]
        told += [] if reports[0] == reports[1] else ["the stop report differs"]
    else:
        told.append("no train.json")
    parts = [path.name for path in run.rglob(".*")]
    return told + ([f"left behind: {parts}"] if parts else [])
