"""What the commands share: options, consoles, progress."""

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from anchorlwf.errors import ModelWarning
from anchorlwf.jsonl import BadLineWarning

__all__ = [
    "Adapter",
    "AsJson",
    "Base",
    "Model",
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

out = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
err = Console(stderr=True, highlight=False)


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
    for ours in (BadLineWarning, ModelWarning):
        warnings.simplefilter("always", ours)
    warnings.showwarning = lambda message, *_rest, **_more: err.print(str(message), style="yellow", markup=False)


def print_json(data: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(data, indent=2, ensure_ascii=False, default=str))


@contextmanager
def _bars() -> Iterator[Callable[[str, int, int], None]]:
    """Progress on standard error: bars on a terminal, a line per phase elsewhere."""
    if not err.is_terminal or os.environ.get("NO_COLOR"):
        seen: set[str] = set()

        def plain(text: str, done: int, count: int) -> None:
            name = text.split(" ")[0]
            if name not in seen or done == count or done % 50 == 0:
                seen.add(name)
                print(f"{text} {done}/{count}", file=sys.stderr, flush=True)

        yield plain
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        tasks: dict[str, Any] = {}

        def show(text: str, done: int, count: int) -> None:
            name = text.split(" ")[0]
            if name not in tasks:
                tasks[name] = progress.add_task(text, total=count)
            progress.update(tasks[name], completed=done, total=count, description=text)

        yield show


def _step(show: Callable[[str, int, int], None], row: dict[str, Any]) -> None:
    text = f"train  {row['held']}/{row['anchors']} anchors held, drift {row['keep_kl']:.4f}"
    show(text, row["step"], row["max_steps"])


@contextmanager
def step_progress() -> Iterator[Callable[[dict[str, Any]], None]]:
    """For `train(on_step=...)`: step, anchors held, drift."""
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
