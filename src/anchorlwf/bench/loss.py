"""Time and memory of the loss against other ways to compute it.

Each competitor lives in a process of its own, so that none finds memory or threads that another left; the runs are
interleaved, so that whatever else the machine does falls on all of them alike.
"""

import multiprocessing
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from anchorlwf.errors import ConfigError, wrong
from anchorlwf.run import environment

__all__ = ["LossSetup", "compare_losses", "loss_table"]

_PROC = Path("/proc/self")


@dataclass(frozen=True)
class LossSetup:
    """The problem: float32, a frozen head shared with the reference."""

    tokens: int = 512
    width: int = 1024
    vocabulary: int = 151_936
    anchors: float = 0.05
    """Share of the tokens that are anchors of confidence 1."""
    threads: int = 2
    seed: int = 0


def compare_losses(
    setup: LossSetup, *, runs: int = 5, names: Sequence[str] = ("chunked", "dense", "trl", "top4", "matmuls")
) -> dict[str, Any]:
    """Forward and backward of each objective, `runs` times in turn; JSON-ready.

    Returns:
        `setup`, `environment`, and under `objectives`, by name: `seconds` and `cpu_seconds` (medians), `runs` (every
        run's seconds), `extra_bytes` (most resident memory above that before a run; None where it cannot be read),
        `ratio` (median over the runs of its seconds by those of the first name in the same round).

    Raises:
        ConfigError: fewer than one run, or a name that is not known.
    """
    known = ("chunked", "dense", "trl", "top4", "matmuls")
    if runs < 1 or not names or set(names) - set(known):
        got = f"{runs} runs of {', '.join(names) or 'nothing'}"
        raise ConfigError(wrong("benchmark", f"1 or more runs of {', '.join(known)}", got, "Change the options."))
    with _competitors(setup, names) as pipes:
        rounds = [{name: _one_run(pipe) for name, pipe in pipes.items()} for _ in range(runs)]
    objectives = {}
    for name in names:
        seconds = [each[name]["seconds"] for each in rounds]
        extra = [each[name]["extra_bytes"] for each in rounds]
        objectives[name] = {
            "seconds": statistics.median(seconds),
            "cpu_seconds": statistics.median(each[name]["cpu_seconds"] for each in rounds),
            "ratio": statistics.median(each[name]["seconds"] / each[names[0]]["seconds"] for each in rounds),
            "extra_bytes": None if None in extra else max(extra),
            "runs": seconds,
        }
    return {"setup": asdict(setup), "environment": environment(), "objectives": objectives}


def loss_table(results: dict[str, Any]) -> str:
    """Markdown, one row per objective."""
    lines = ["| objective | seconds | CPU seconds | time ratio | extra memory |", "|---|---|---|---|---|"]
    for name, row in results["objectives"].items():
        extra = "not measured" if row["extra_bytes"] is None else f"{row['extra_bytes'] / 2**20:.0f} MiB"
        lines.append(f"| {name} | {row['seconds']:.2f} | {row['cpu_seconds']:.2f} | {row['ratio']:.2f} | {extra} |")
    return "\n".join(lines)


@contextmanager
def _competitors(setup: LossSetup, names: Sequence[str]) -> Iterator[dict[str, Connection]]:
    """One process each, warmed up and waiting for orders."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    try:
        for name in names:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(setup, name, theirs), daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            pipes[name] = ours
            ours.recv()
        yield pipes
    finally:
        for pipe in pipes.values():
            pipe.close()
        for process in processes:
            process.join()


def _one_run(pipe: Connection) -> dict[str, Any]:
    pipe.send("run")
    found: dict[str, Any] = pipe.recv()
    return found


def _serve(setup: LossSetup, name: str, pipe: Connection) -> None:
    """In the competitor's process: one run for each order, until the pipe closes."""
    import torch

    from anchorlwf.bench.objectives import OBJECTIVES, make_problem

    torch.set_num_threads(setup.threads)
    run = OBJECTIVES[name]

    def problem_of(small: LossSetup) -> Any:
        return make_problem(small.tokens, small.width, small.vocabulary, small.anchors, small.seed)

    # A small problem first: libraries load their kernels at first use, and that is nobody's time or memory.
    run(problem_of(replace(setup, tokens=min(4, setup.tokens), vocabulary=min(1000, setup.vocabulary))))
    problem = problem_of(setup)
    pipe.send("ready")
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        before = _start_of_high_water()
        began, cpu = time.perf_counter(), time.process_time()
        run(problem)
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
        extra = None if before is None else _resident("VmHWM") - before
        pipe.send({"seconds": seconds, "cpu_seconds": cpu_seconds, "extra_bytes": extra})


def _start_of_high_water() -> int | None:
    """Begin a new high-water mark; bytes resident now. None where the kernel offers no such thing."""
    try:
        (_PROC / "clear_refs").write_text("5")
    except OSError:
        return None
    return _resident("VmRSS")


def _resident(key: str) -> int:
    """A figure of /proc/self/status in bytes."""
    lines = (_PROC / "status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))
