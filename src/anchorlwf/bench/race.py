"""Competitors run in turn, each in a process of its own.

A process of its own, so that none finds memory or threads that another left; in turn, so that whatever else the machine
does falls on all of them alike.
"""

import multiprocessing
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator

from anchorlwf.errors import AnchorLwfError, ConfigError, wrong

__all__ = ["Compete", "DeviceHere", "Lap", "OnRun", "quiet", "race", "resident"]

Compete = Callable[[Any, str, "Lap"], None]
"""(setup, name, lap): builds what `name` is, calls `lap` once ready and after each run, and never returns. Ready means
that what a library needs at its first use has been paid."""
OnRun = Callable[[int, int], None]
"""Called with (runs done, all)."""


def _is_here(device: str) -> str:
    if device != "cpu" and not (device.startswith("cuda") and torch.cuda.is_available()):
        raise ValueError(f"expected cpu{', or cuda' if torch.cuda.is_available() else ', for no GPU is here'}")
    return device


DeviceHere = Annotated[str, AfterValidator(_is_here)]
"""Of a setup: the CPU, or a GPU that this machine has."""
_PROC = Path("/proc/self")


class Lap:
    """Waits for an order to run once more; before that, reports time and memory of the run that has just ended.

    It ends the process (`SystemExit`) when there are no more orders.

    Args:
        pipe: to the process that gives the orders.
        device: where the work happens; on a GPU its work is waited for and its own memory counted.
    """

    def __init__(self, pipe: Connection, device: str = "cpu") -> None:
        self._pipe, self._gpu = pipe, torch.device(device).type == "cuda"
        self._began: tuple[float, float, int | None] | None = None

    def __call__(self, held_bytes: int = 0) -> None:
        """Once ready, and after each run.

        Args:
            held_bytes: what lives between runs and belongs to the competitor, such as weights.
        """
        if self._gpu:
            torch.cuda.synchronize()
        self._pipe.send({"held_bytes": held_bytes} if self._began is None else self._report(*self._began))
        try:
            self._pipe.recv()
        except EOFError:
            raise SystemExit(0) from None
        before = self._new_high_water()
        self._began = time.perf_counter(), time.process_time(), before

    def _report(self, wall: float, cpu: float, before: int | None) -> dict[str, Any]:
        seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
        extra = None
        if before is not None:
            extra = (torch.cuda.max_memory_allocated() if self._gpu else resident("VmHWM")) - before
        return {"seconds": seconds, "cpu_seconds": cpu_seconds, "extra_bytes": extra}

    def _new_high_water(self) -> int | None:
        """Begin a new high-water mark; bytes in use now. None where there is no such thing."""
        if self._gpu:
            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated()
        try:
            (_PROC / "clear_refs").write_text("5")
        except OSError:
            return None
        return resident("VmRSS")


def race(
    compete: Compete,
    setup: Any,
    names: Sequence[str],
    *,
    runs: int,
    threads: int,
    device: str = "cpu",
    on_run: OnRun | None = None,
) -> dict[str, dict[str, Any]]:
    """Run all competitors `runs` times in turn, and each once more alone, for its memory.

    Args:
        compete: a function of a module, for other processes must find it.
        setup: its first argument.
        names: the competitors; the first is what the others are compared with.
        runs: of each.
        threads: of torch, per process.
        device: where they work.
        on_run: see `OnRun`.

    Returns:
        By name: `seconds` and `cpu_seconds` (medians), `ratio` (median over the rounds of its seconds by those of the
        first name in the same round), `held_bytes` (see `Lap`), `extra_bytes` (the most that was alive in a run above
        what was there before it; None where that cannot be read), `runs` (every run's seconds).

    Raises:
        ConfigError: fewer than one run, no competitor, or one that could not start.
    """
    if runs < 1 or not names:
        got = f"{runs} runs of {len(names)} competitors"
        raise ConfigError(wrong("benchmark", "1 or more runs of 1 or more competitors", got, "Change the options."))
    rounds: list[dict[str, dict[str, Any]]] = [{} for _ in range(runs)]
    memory: dict[str, int | None] = {}
    with _competitors(compete, setup, names, threads, device) as (pipes, held):
        for index, times in enumerate(rounds):
            for number, (name, pipe) in enumerate(pipes.items(), 1):
                times[name] = _run(name, pipe)
                if on_run is not None:
                    on_run(index * len(names) + number, (runs + 1) * len(names))
    for number, name in enumerate(names, 1):
        with _eager_allocator(), _competitors(compete, setup, [name], threads, device) as (pipes, _):
            memory[name] = _run(name, pipes[name])["extra_bytes"]
        if on_run is not None:
            on_run(runs * len(names) + number, (runs + 1) * len(names))
    return {
        name: {**_summary(rounds, name, names[0]), "extra_bytes": memory[name], "held_bytes": held[name]}
        for name in names
    }


@contextmanager
def _eager_allocator() -> Iterator[None]:
    """Processes started meanwhile give freed memory back at once, where they use glibc: slow, but nothing is hidden.

    Otherwise a high-water mark is also what the allocator keeps, and a run may find the memory of the run before.
    """
    wanted = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _summary(rounds: list[dict[str, dict[str, Any]]], name: str, first: str) -> dict[str, Any]:
    return {
        "seconds": statistics.median(each[name]["seconds"] for each in rounds),
        "cpu_seconds": statistics.median(each[name]["cpu_seconds"] for each in rounds),
        "ratio": statistics.median(each[name]["seconds"] / each[first]["seconds"] for each in rounds),
        "runs": [each[name]["seconds"] for each in rounds],
    }


@contextmanager
def _competitors(
    compete: Compete, setup: Any, names: Sequence[str], threads: int, device: str
) -> Iterator[tuple[dict[str, Connection], dict[str, int]]]:
    """One process each, ready and waiting for orders; and what each holds, in bytes."""
    context = multiprocessing.get_context("spawn")
    pipes, processes, held = dict[str, Connection](), [], dict[str, int]()
    try:
        for name in names:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(compete, setup, name, threads, device, theirs), daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            pipes[name] = ours
            # One after the other: two that start at once would be slow together.
            held[name] = _received(name, ours)["held_bytes"]
        yield pipes, held
    finally:
        for pipe in pipes.values():
            pipe.close()
        for process in processes:
            process.join()


def _run(name: str, pipe: Connection) -> dict[str, Any]:
    pipe.send("run")
    return _received(name, pipe)


def _received(name: str, pipe: Connection) -> dict[str, Any]:
    try:
        reply = pipe.recv()
    except EOFError:
        fix = "It was killed; most likely the memory did not suffice. Make the problem smaller."
        raise ConfigError(wrong(f"benchmark of {name}", "a process that lives", "one that died", fix)) from None
    if isinstance(reply, Exception):
        raise reply
    return dict(reply)


def _serve(compete: Compete, setup: Any, name: str, threads: int, device: str, pipe: Connection) -> None:
    """In the competitor's process."""
    torch.set_num_threads(threads)
    try:
        compete(setup, name, Lap(pipe, device))
    except AnchorLwfError as error:
        pipe.send(error)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is told where the orders come from
        pipe.send(RuntimeError(f"benchmark of {name}: {type(error).__name__}: {error}"))
    except KeyboardInterrupt:  # the parent says so itself
        sys.exit(130)


def quiet() -> None:
    """For processes that measure: what their libraries say helps nobody."""
    import transformers

    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def resident(key: str) -> int:
    """A figure of /proc/self/status in bytes."""
    lines = (_PROC / "status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))
