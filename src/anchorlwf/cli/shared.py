"""What the commands share: options, consoles, progress."""

import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from anchorlwf.errors import AnchorLwfWarning

__all__ = [
    "NOT_CONVERGED",
    "PACE",
    "Adapter",
    "AsJson",
    "Base",
    "Model",
    "PlainProgress",
    "SkipBad",
    "Tokens",
    "TrustCode",
    "count_progress",
    "err",
    "out",
    "phase_progress",
    "plain_warnings",
    "print_json",
    "quiet_libraries",
    "step_progress",
    "train_progress",
]

Model = Annotated[
    str | None, typer.Option("--model", "-m", help="Local folder or hub name. Left out: the embedded model.")
]
Adapter = Annotated[str | None, typer.Option("--adapter", "-a", help="Folder of a LoRA adapter to put on the model.")]
Base = Annotated[str | None, typer.Option("--base", help="The model before training, for a fully tuned model.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Tokens = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Most tokens of an answer.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Go on after bad lines and name them.")]
TrustCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")]

NOT_CONVERGED = 4
"""Exit code: the weights are saved, but the stop rule's conditions are not met."""
PACE = 5.0
"""Seconds between two lines of progress where the output is no terminal."""

# Paths, questions and answers are printed, and "[/x]" or ":cat:" in them are what somebody wrote: nothing is markup.
out = Console(highlight=False, markup=False, emoji=False, soft_wrap=not sys.stdout.isatty())
err = Console(stderr=True, highlight=False, markup=False, emoji=False)


def quiet_libraries() -> None:
    """No telemetry, no progress bars of others, no advice meant for notebook users."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    plain_warnings()


def plain_warnings() -> None:
    """Our own warnings as lines on standard error; what a library warns of is for its developers."""
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", AnchorLwfWarning)
    # Without wrapping, for there are paths in them.
    warnings.showwarning = lambda message, *_rest, **_more: err.print(str(message), style="yellow", soft_wrap=True)


def print_json(data: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(data, indent=2, ensure_ascii=False, default=str))


class PlainProgress:
    """Progress as lines, where the output is no terminal: as each phase begins and ends, and at a steady pace between.

    Args:
        say: prints a line.
        now: a clock, in seconds.
    """

    def __init__(self, say: Callable[[str], None], now: Callable[[], float] = time.monotonic) -> None:
        self._say, self._now = say, now
        self._phase, self._latest, self._told = "", "", ""
        self._began = self._spoken = 0.0
        self._first = 0

    def show(self, text: str, done: int, count: int) -> None:
        """The state of a phase, which is named by the first word of `text`."""
        now, phase = self._now(), text.split(" ")[0]
        if phase != self._phase:
            self.close()
            self._phase, self._began, self._first = phase, now, done
            due = True
        else:
            due = done == count or now - self._spoken >= PACE
        self._latest = f"{text} {done}/{count}{self._left(now, done, count)}"
        if due:
            self._spoken = now
            self.close()

    def _left(self, now: float, done: int, count: int) -> str:
        if not self._first < done < count:
            return ""
        seconds = round((now - self._began) / (done - self._first) * (count - done))
        return f", up to {timedelta(seconds=seconds)} left"

    def close(self) -> None:
        """Tell the latest state, if it has not been told: a phase may end before it was expected to."""
        if self._latest != self._told:
            self._told = self._latest
            self._say(self._latest)


@contextmanager
def _bars() -> Iterator[Callable[[str, int, int], None]]:
    """Progress on standard error: bars on a terminal, lines elsewhere. Both say how much time is left."""
    if not err.is_terminal or os.environ.get("NO_COLOR"):
        plain = PlainProgress(partial(print, file=sys.stderr, flush=True))
        try:
            yield plain.show
        finally:
            plain.close()
        return
    elapsed, left = TimeElapsedColumn(), TimeRemainingColumn()
    description = TextColumn("{task.description}", markup=False)
    columns = (description, BarColumn(), MofNCompleteColumn(), elapsed, TextColumn("up to", markup=False), left)
    with Progress(*columns, console=err, transient=True) as progress:
        tasks: dict[str, Any] = {}

        def show(text: str, done: int, count: int) -> None:
            name = text.split(" ")[0]
            if name not in tasks:
                tasks[name] = progress.add_task(text, total=count)
            progress.update(tasks[name], completed=done, total=count, description=text)

        yield show


def _step(show: Callable[[str, int, int], None], row: dict[str, Any]) -> None:
    held, reproduced = f"{row['held']}/{row['anchors']}", f"{row['reproduced']}/{row['records']}"
    text = f"train  {held} anchors held, {reproduced} reproduced, drift {row['keep_kl']:.4f}"
    show(text, row["step"], row["max_steps"])


@contextmanager
def step_progress() -> Iterator[Callable[[dict[str, Any]], None]]:
    """For `train(on_step=...)`: anchors held, answers reproduced, drift and step."""
    with _bars() as show:
        yield partial(_step, show)


@contextmanager
def train_progress() -> Iterator[dict[str, Callable[..., None]]]:
    """For `train(**...)`: the steps, and before them the reference's batches."""
    with _bars() as show:
        yield {"on_step": partial(_step, show), "on_reference": partial(show, "reference")}


@contextmanager
def phase_progress() -> Iterator[Callable[[str, int, int], None]]:
    """For `evaluate(progress=...)`."""
    with _bars() as show:
        yield show


@contextmanager
def count_progress(name: str) -> Iterator[Callable[[Any, int, int], None]]:
    """For `annotate(on_record=...)`."""
    with _bars() as show:
        yield lambda _record, done, count: show(name, done, count)
