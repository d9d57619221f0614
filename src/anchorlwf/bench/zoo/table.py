"""The table in docs/models.md: one correction of a tiny random model of every architecture, each in its own process.

python -m anchorlwf.bench.zoo.table docs/models.md               (minutes; `make models`)
python -m anchorlwf.bench.zoo.table docs/models.md --only Llama  (prints that row, and writes nothing)
"""

import argparse
import multiprocessing
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import transformers

from anchorlwf.bench.race import quiet
from anchorlwf.bench.zoo.architectures import ARCHITECTURES, Architecture, known
from anchorlwf.bench.zoo.trial import TOLERANCE, Trial, try_out
from anchorlwf.errors import AnchorLwfError, ConfigError, wrong
from anchorlwf.files import write_atomic

__all__ = ["Row", "rows", "written"]

_TIMEOUT = 300.0
"""Seconds for one architecture; it takes about ten where nothing else runs."""
_MARKS = ("<!-- table: python -m anchorlwf.bench.zoo.table docs/models.md -->", "<!-- end of the table -->")


@dataclass(frozen=True)
class Row:
    """One architecture, and what became of it."""

    architecture: Architecture
    trial: Trial | None
    """None: it was refused, failed, or is not there."""
    reason: str = ""
    """Why it does not work; empty where it does."""

    @property
    def works(self) -> bool:
        """The correction was learned, is recalled, and plain PEFT reloads it."""
        return not self.reason

    def cells(self) -> list[str]:
        """Architecture, works, targets, cache, reason."""
        name = f"{self.architecture.name} (`{self.architecture.model_type}`)"
        if self.trial is None:
            return [name, "no", "", "", self.reason]
        cache = "rewinds" if self.trial.rewinds else "prefills"
        return [name, "yes" if self.works else "no", self.trial.targets, cache, self.reason]


def _reason(trial: Trial) -> str:
    if trial.gap > TOLERANCE:
        return f"plain PEFT reloads other logits ({trial.gap:.0e})"
    return "" if trial.recalled else f"not learned in {trial.steps} steps"


def _serve(name: str, pipe: Connection) -> None:
    """In the process of its own: send the trial, or why there is none."""
    torch.set_num_threads(1)
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        try:
            pipe.send(try_out(ARCHITECTURES[name], Path(folder)))
        except AnchorLwfError as error:
            pipe.send(f"refused: {error}".replace(folder, ""))
        except Exception as error:  # noqa: BLE001 - whatever it is becomes a row
            pipe.send(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")


def _row(name: str, timeout: float) -> Row:
    architecture = ARCHITECTURES[name]
    if not known(architecture):
        return Row(architecture, None, f"transformers {transformers.__version__} does not have it")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["anchorlwf.bench.zoo.trial"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(name, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        found = ours.recv() if ours.poll(timeout) else f"no result within {timeout:.0f} s"
    except EOFError:
        found = "the process died"
    process.kill()
    process.join()
    return Row(architecture, found, _reason(found)) if isinstance(found, Trial) else Row(architecture, None, found)


def rows(
    names: Sequence[str], *, jobs: int = 2, timeout: float = _TIMEOUT, on_row: Callable[[Row], None] = lambda row: None
) -> Iterator[Row]:
    """Try architectures, `jobs` at a time; a crash or a timeout is one row.

    Args:
        names: of `ARCHITECTURES`.
        jobs: processes at once, of one thread each.
        timeout: seconds for each.
        on_row: called with each row as it is done.

    Raises:
        ConfigError: an architecture that is not in the list.
    """
    unknown = [name for name in names if name not in ARCHITECTURES]
    if unknown:
        fix = f"Choose from: {', '.join(ARCHITECTURES)}."
        raise ConfigError(wrong("architectures", "names of the list", ", ".join(unknown), fix))
    with ThreadPoolExecutor(jobs) as pool:
        for row in pool.map(lambda name: _row(name, timeout), names):
            on_row(row)
            yield row


def _markdown(all_rows: Sequence[Row]) -> str:
    working = sum(row.works for row in all_rows)
    head = ["architecture", "works", "targets: auto", "cache", "why not"]
    lines = [head, ["---"] * len(head), *(row.cells() for row in all_rows)]
    table = "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{working} of {len(all_rows)} architectures work ({versions}).\n\n{table}"


def written(page: str, all_rows: Sequence[Row]) -> str:
    """The page with the table between its marks.

    Raises:
        ConfigError: the marks are not there.
    """
    begin, end = map(re.escape, _MARKS)
    table = f"{_MARKS[0]}\n{_markdown(all_rows)}\n{_MARKS[1]}"
    new, count = re.subn(f"{begin}.*{end}", lambda _: table, page, flags=re.DOTALL)
    if count != 1:
        raise ConfigError(
            wrong("the page", f"{_MARKS[0]} and {_MARKS[1]}, once", f"{count} of them", "Put them there.")
        )
    return new


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; its exit code is 1 if an architecture that this transformers has does not work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args(arguments)
    chosen = options.only or list(ARCHITECTURES)
    done = list(rows(chosen, jobs=options.jobs, on_row=lambda row: print(*row.cells(), sep="  ", flush=True)))
    if options.only is None:
        write_atomic(options.page, written(options.page.read_text(encoding="utf-8"), done))
    return int(any(not row.works and known(row.architecture) for row in done))


if __name__ == "__main__":
    sys.exit(main())
