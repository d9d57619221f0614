"""Time and memory of the loss against other ways to compute it."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from anchorlwf.bench.objectives import OBJECTIVES, Problem, make_problem
from anchorlwf.bench.race import DeviceHere, Lap, OnRun, race
from anchorlwf.config import Config, Count, Fraction, Listed
from anchorlwf.errors import ConfigError, wrong

__all__ = ["GrowthSetup", "LossSetup", "compare_losses", "measure_growth"]


class LossSetup(Config):
    """The problem: a frozen head shared with the reference."""

    section: ClassVar[str] = "loss"

    tokens: Count = 512
    """N, completion tokens."""
    width: Count = 1024
    """D."""
    vocabulary: Annotated[int, Field(ge=8)] = 151_936
    """V."""
    anchors: Fraction = 0.05
    """Share of the tokens that are anchors of confidence 1."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of hidden states and head."""
    device: DeviceHere = "cpu"
    threads: Count = 2
    seed: int = 0


class GrowthSetup(LossSetup):
    """The same problem at several numbers of tokens."""

    section: ClassVar[str] = "growth"

    counts: Annotated[tuple[Count, ...], Listed] = (128, 256, 512, 1024, 2048)
    """Completion tokens, one after the other, in place of `tokens`."""


def compare_losses(
    setup: LossSetup, *, runs: int = 5, names: Sequence[str] = tuple(OBJECTIVES), on_run: OnRun | None = None
) -> dict[str, dict[str, Any]]:
    """Forward and backward of each objective, in turn; what `race` returns.

    Raises:
        ConfigError: fewer than one run, or an objective that is missing something (TRL).
    """
    return race(_compete, setup, names, runs=runs, threads=setup.threads, device=setup.device, on_run=on_run)


def measure_growth(
    setup: GrowthSetup, *, runs: int = 5, names: Sequence[str] = tuple(OBJECTIVES), on_run: OnRun | None = None
) -> list[dict[str, Any]]:
    """`compare_losses` for each of the counts: `tokens` and `competitors`."""
    sizes = []
    for index, count in enumerate(setup.counts):

        def report(done: int, of: int, before: int = index) -> None:
            if on_run is not None:
                on_run(before * of + done, len(setup.counts) * of)

        competitors = compare_losses(setup.updated(tokens=count), runs=runs, names=names, on_run=report)
        sizes.append({"tokens": count, "competitors": competitors})
    return sizes


def _problem(setup: LossSetup) -> Problem:
    return make_problem(
        setup.tokens, setup.width, setup.vocabulary, setup.anchors, setup.seed, dtype=setup.dtype, device=setup.device
    )


def _compete(setup: LossSetup, name: str, lap: Lap) -> None:
    if name == "summary" and setup.dtype != "float32":
        raise ConfigError(wrong("summary", "float32", setup.dtype, "Choose others with --only."))
    run = OBJECTIVES[name]
    problem = _problem(setup)
    # Once beforehand: libraries load their kernels at first use, and that is nobody's time or memory.
    run(problem)
    while True:
        lap()
        run(problem)
