"""What the commands share: options, consoles, progress."""

import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer
from rich.console import Console

from anchorlwf.errors import AnchorLwfWarning
from anchorlwf.readable import harmless

if TYPE_CHECKING:
    from anchorlwf import config
    from anchorlwf.data.record import Record
    from anchorlwf.workflow.paraphrased import BesideConfig

__all__ = [
    "NOT_CONVERGED",
    "PACE",
    "Adapter",
    "AsJson",
    "Base",
    "Config",
    "Device",
    "DriftBudget",
    "Dtype",
    "DtypeName",
    "Model",
    "Paraphrase",
    "PlainProgress",
    "Retain",
    "SkipBad",
    "Targets",
    "Tokens",
    "TrustCode",
    "beside_from",
    "count_progress",
    "err",
    "fix_progress",
    "options_from",
    "out",
    "parted",
    "phase_progress",
    "plain_warnings",
    "print_json",
    "print_wordings",
    "quiet_libraries",
    "shown",
    "step_progress",
    "train_progress",
]

Model = Annotated[
    str | None, typer.Option("--model", "-m", help="Local folder or hub name. Default: the embedded model.")
]
Adapter = Annotated[str | None, typer.Option("--adapter", "-a", help="Folder with a LoRA adapter for the model.")]
Base = Annotated[str | None, typer.Option("--base", help="The model before training; needed for a fully tuned model.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps. Default: the first GPU, else the CPU.")]
DtypeName = Literal["float32", "bfloat16", "float16"]
Dtype = Annotated[
    DtypeName | None,
    typer.Option(help="Of the weights in memory. Default: bfloat16 on a GPU that has it, else float32."),
]


def _take_from_file(context: typer.Context, path: Path | None) -> Path | None:
    """Let the file say which model, device and dtype, where the command line does not."""
    if path is not None:
        from anchorlwf.config import loading_options

        context.default_map = {**(context.default_map or {}), **loading_options(path)}
    return path


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        is_eager=True,
        callback=_take_from_file,
        help="YAML file of options: model, device, dtype, and those of the stages. Options given here take precedence.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Tokens = Annotated[
    int | None, typer.Option("--max-new-tokens", min=1, help="Maximum number of tokens in an answer. Default: 512.")
]
Retain = Annotated[
    str | None,
    typer.Option(
        "--retain",
        help="What is trained to stay: auto (prompts the model writes itself), none, or a JSONL file of prompts. "
        "Default: auto, but none for the embedded model, and for records among which are some that `retain` wrote.",
    ),
]
DriftBudget = Annotated[
    float | None, typer.Option(help="Maximum mean KL at keep tokens, nats per token. Default: 0.002.")
]
Targets = Annotated[
    str | None,
    typer.Option(
        help="Layers that get LoRA: auto (default), mlp, all-linear, a pattern, or names separated by commas."
    ),
]
Paraphrase = Annotated[
    list[str] | None,
    typer.Option(
        "--paraphrase",
        help="Other wordings that are corrected too: auto (found without people), none, a .jsonl or .txt file, or a "
        "wording itself; repeatable. Default: none.",
    ),
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Skip bad lines and name each one, instead of stopping.")]
TrustCode = Annotated[bool, typer.Option("--trust-remote-code", help="Allow code shipped with the model to run.")]

NOT_CONVERGED = 4
"""Exit code: the weights are saved, but the stop rule's conditions are not met."""
_AROUND, _BEYOND = 20, 60
"""Characters shown before and behind the place where two answers part."""
_WORDINGS = 3
"""Other wordings that are printed."""
PACE = 5.0
"""Seconds between two lines of progress where the output is not a terminal."""

# Nothing printed is markup: "[/x]" or ":cat:" in a path, a question or an answer is what somebody wrote.
out = Console(highlight=False, markup=False, emoji=False, soft_wrap=not sys.stdout.isatty())
err = Console(stderr=True, highlight=False, markup=False, emoji=False)


class _Said(logging.Handler):
    """Prints what a logger of ours says on standard error, each line once."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._lines: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        # Under torchrun, one process speaks for all.
        if line not in self._lines and os.environ.get("RANK", "0") == "0":
            self._lines.add(line)
            err.print(line, style="dim", soft_wrap=True)


def quiet_libraries() -> None:
    """No telemetry, no progress bars of other libraries, no advice meant for notebooks. Each model loaded is told."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    loading = logging.getLogger("anchorlwf.model.language_model")
    loading.setLevel(logging.INFO)
    loading.handlers = [_Said()]
    plain_warnings()


def plain_warnings() -> None:
    """Print our own warnings as lines on standard error; those of libraries are meant for their developers."""
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", AnchorLwfWarning)
    # Without wrapping, for there are paths in them.
    warnings.showwarning = lambda message, *_rest, **_more: err.print(str(message), style="yellow", soft_wrap=True)


Settings = TypeVar("Settings", bound="config.Config")


def options_from(kind: type[Settings], path: Path | None, **options: Any) -> Settings:
    """The options of a YAML file, or the defaults, with those of the command line in their place (None: not given)."""
    return (kind.load(path) if path else kind()).updated(**options)


def beside_from(path: Path | None) -> "BesideConfig":
    """What a YAML file says of the prompts and wordings that are found without people, or the defaults."""
    from anchorlwf.workflow.paraphrased import BesideConfig

    return BesideConfig.load(path)


def print_json(data: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(data, indent=2, ensure_ascii=False, default=str))


def shown(text: str) -> str:
    """What people and models wrote, for standard output: nothing in it commands a terminal."""
    return harmless(text) if out.is_terminal else text


def parted(before: str, after: str) -> tuple[str, str]:
    """Two answers, long ones cut to the place where they part; `...` stands for what is left out."""
    pairs = enumerate(zip(before, after, strict=False))
    same = next((index for index, (one, other) in pairs if one != other), min(len(before), len(after)))
    start = max(0, same - _AROUND)
    return _cut(before, start, same + _BEYOND), _cut(after, start, same + _BEYOND)


def _cut(text: str, start: int, end: int) -> str:
    if len(text) <= _AROUND + _BEYOND:
        return text
    return ("..." if start else "") + text[start:end] + ("..." if end < len(text) else "")


def print_wordings(records: Sequence["Record"], folder: str | Path) -> None:
    """How many other wordings were corrected, a few of them, and where the others can be looked through."""
    if not records:
        return
    asked = [str(record.messages[-1].get("content")) for record in records[:_WORDINGS]]
    more = len(records) - len(asked)
    shown = ", ".join(map(repr, asked)) + (f" and {more} more" if more else "")
    out.print(f"{len(records)} other wordings corrected as well: {shown} (all in {folder}/paraphrases.jsonl)")


class PlainProgress:
    """Progress as lines where the output is not a terminal: as a phase begins and ends, and every few seconds between.

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
        """Print the latest state if it has not been printed: a phase may end earlier than expected."""
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
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

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


def _retained(show: Callable[[str, int, int], None], kind: str, done: int, count: int) -> None:
    show(f"{kind} prompts", done, count)


@contextmanager
def step_progress() -> Iterator[Callable[[dict[str, Any]], None]]:
    """For `train(on_step=...)`: anchors held, answers reproduced, drift and step."""
    with _bars() as show:
        yield partial(_step, show)


@contextmanager
def train_progress() -> Iterator[dict[str, Callable[..., None]]]:
    """For `train(**...)`: the steps, and before them the reference's batches.

    `on_retain`, for `records_beside`: the prompts that the model writes before that.
    """
    with _bars() as show:
        yield {
            "on_step": partial(_step, show),
            "on_reference": partial(show, "reference"),
            "on_retain": partial(_retained, show),
        }


@contextmanager
def fix_progress() -> Iterator[dict[str, Callable[..., None]]]:
    """For `fix(**...)`: the prompts that the model writes, the steps, and the answers before and after."""
    with _bars() as show:
        yield {"on_step": partial(_step, show), "on_retain": partial(_retained, show), "on_phase": show}


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
