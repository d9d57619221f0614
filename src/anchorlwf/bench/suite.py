"""All benchmarks that `anchorlwf bench` runs, and the tables it prints."""

import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from anchorlwf.bench.annotation_time import annotate_many, measure_annotation, wrong_biographies
from anchorlwf.bench.correction_time import correction_of, measure_correction, prompt_of, steady_model
from anchorlwf.bench.loss_cost import GrowthSetup, LossSetup, compare_losses, measure_growth
from anchorlwf.bench.memory import in_its_own_process, train_many
from anchorlwf.bench.objectives import OBJECTIVES
from anchorlwf.bench.packing_gain import PackingSetup, measure_packing
from anchorlwf.bench.race import OnRun
from anchorlwf.bench.step_cost import STEPS, StepSetup, compare_steps
from anchorlwf.config import Config, Count, Listed
from anchorlwf.errors import ConfigError, wrong
from anchorlwf.extras import require_extra
from anchorlwf.model.language_model import load_model
from anchorlwf.run import environment

__all__ = ["BENCHMARKS", "bench", "bench_table", "machine", "options_of"]


class DecodeSetup(Config):
    """Answers of random models; a token near their start is corrected."""

    section: ClassVar[str] = "decode"

    tokens: Annotated[int, Field(ge=16, le=900)] = 512
    position: Count = 10
    """Position of the corrected token, within the answer."""
    steadiness: Annotated[tuple[Annotated[float, Field(gt=0, le=1000)], ...], Listed, Field(min_length=1)] = (4.0, 3.5)
    """See `bench.correction_time.steady_model`: the higher, the more of the old continuation returns."""
    seeds: Count = 3
    """Models for each of them."""

    @model_validator(mode="after")
    def _within(self) -> Self:
        if self.position >= self.tokens:
            raise ValueError(f"expected a position below the answer's {self.tokens} tokens")
        return self


class AnnotateSetup(Config):
    """Biographies of the embedded world whose answers hold wrong values."""

    section: ClassVar[str] = "annotate"

    records: Annotated[int, Field(ge=1, le=100)] = 64
    wrong: Annotated[int, Field(ge=1, le=5)] = 5
    """Values per answer that are replaced."""


class MemorySetup(Config):
    """Files of short records."""

    section: ClassVar[str] = "memory"

    records: Annotated[tuple[Count, ...], Listed] = (1_000, 10_000, 100_000)


@dataclass(frozen=True)
class Benchmark:
    """How one benchmark is set up, run and printed."""

    setup: type[Config]
    measure: Callable[["Order"], Any]
    """Returns plain data."""
    table: Callable[[Any], str]
    """That data as Markdown."""
    names: tuple[str, ...] = ()
    """The competitors to choose from."""


@dataclass(frozen=True)
class Order:
    """How one benchmark is to be run."""

    setup: Any
    """The options, of the benchmark's own type."""
    runs: int
    names: tuple[str, ...]
    on_run: OnRun


def bench(
    name: str,
    *,
    runs: int = 5,
    only: Sequence[str] = (),
    options: dict[str, Any] | None = None,
    on_run: OnRun = lambda _done, _of: None,
) -> dict[str, Any]:
    """Run one benchmark on this machine.

    Args:
        name: of `BENCHMARKS`.
        runs: of each competitor, in turn; medians are given.
        only: competitors; the first is what the others' times are divided by. Empty: all there are.
        options: of the benchmark's setup; the others take their default.
        on_run: called with (runs done, all).

    Returns:
        JSON-ready: `benchmark`, `setup`, `runs`, `machine`, `environment` and `found`.

    Raises:
        ConfigError: no such benchmark, competitor or option; TRL missing where it competes.
    """
    if name not in BENCHMARKS:
        raise ConfigError(wrong("benchmark", " or ".join(BENCHMARKS), repr(name), "Choose one of them."))
    if runs < 1:
        raise ConfigError(wrong("runs", "at least 1", runs, "Leave --runs out."))
    chosen = BENCHMARKS[name]
    unknown = [competitor for competitor in only if competitor not in chosen.names]
    if unknown:
        among = f"names among {', '.join(chosen.names)}" if chosen.names else "none, for this benchmark has no choice"
        raise ConfigError(wrong("competitors", among, ", ".join(unknown), "Leave --only out, or choose among them."))
    setup = chosen.setup.of(**(options or {}))
    if {"trl", "trl_sft"} & set(only or chosen.names):
        require_extra("rl", f"bench {name} beside TRL")
    before = machine()
    measured = chosen.measure(Order(setup, runs, tuple(only) or chosen.names, on_run))
    return {
        "benchmark": name,
        "setup": setup.model_dump(mode="json"),
        "runs": 1 if name == "memory" else runs,
        "machine": before,
        "environment": environment(),
        "found": measured,
    }


def options_of(pairs: Sequence[str]) -> dict[str, str]:
    """`name=value` strings as a dictionary. Raises `ConfigError` for others."""
    options = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise ConfigError(wrong("--set", "name=value", repr(pair), "Write, for instance, --set width=256."))
        options[name] = value
    return options


def bench_table(results: dict[str, Any]) -> str:
    """What `bench` returned, as a Markdown table."""
    return BENCHMARKS[results["benchmark"]].table(results["found"])


def machine() -> dict[str, Any]:
    """Processor, cores and how busy they were (mean number of running processes in the last minute)."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {"processor": names[0] if names else "unknown", "cores": os.cpu_count(), "load": os.getloadavg()[0]}


def _raced(compare: Callable[..., Any]) -> Callable[[Order], Any]:
    return lambda order: compare(order.setup, runs=order.runs, names=order.names, on_run=order.on_run)


def _decode(order: Order) -> list[dict[str, Any]]:
    setup: DecodeSetup = order.setup
    cases = [(steadiness, seed) for steadiness in setup.steadiness for seed in range(setup.seeds)]
    rows = []
    for number, (steadiness, seed) in enumerate(cases, 1):
        model = steady_model(steadiness, seed=seed)
        case = correction_of(model, prompt_of(model), setup.position, setup.tokens, seed)
        rows.append({"steadiness": steadiness, "seed": seed, **measure_correction(model, case, repeats=order.runs)})
        order.on_run(number, len(cases))
    return rows


def _annotate(order: Order) -> dict[str, Any]:
    prompts = wrong_biographies(order.setup.records, wrong=order.setup.wrong)
    measured = measure_annotation(load_model(dtype="float32", device="cpu"), prompts, repeats=order.runs)
    order.on_run(1, 1)
    return measured


def _memory(order: Order) -> dict[str, list[dict[str, Any]]]:
    """One run each: a peak varies little, and 100,000 records take their time."""
    measures = {"annotate": annotate_many, "train": train_many}
    cases = [(name, count) for name in order.names for count in order.setup.records]
    rows_of: dict[str, list[dict[str, Any]]] = {name: [] for name in order.names}
    for number, (name, count) in enumerate(cases, 1):
        with tempfile.TemporaryDirectory() as folder:
            rows_of[name].append(in_its_own_process(measures[name], count, folder))
        order.on_run(number, len(cases))
    return rows_of


def _packing(order: Order) -> list[dict[str, Any]]:
    return measure_packing(order.setup, runs=order.runs, on_run=order.on_run)


def _rows(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def _mib(amount: int | None) -> str:
    return "not measured" if amount is None else f"{amount / 2**20:,.0f} MiB"


def _race_table(competitors: dict[str, dict[str, Any]]) -> str:
    return _rows(
        ("competitor", "seconds", "CPU seconds", "time ratio", "extra memory", "weights"),
        (
            (
                name,
                f"{row['seconds']:.2f}",
                f"{row['cpu_seconds']:.2f}",
                f"{row['ratio']:.2f}",
                _mib(row["extra_bytes"]),
                _mib(row["held_bytes"]),
            )
            for name, row in competitors.items()
        ),
    )


def _growth_table(sizes: list[dict[str, Any]]) -> str:
    return _rows(
        ("tokens", "competitor", "seconds", "ms per token", "extra memory"),
        (
            (
                f"{size['tokens']:,}",
                name,
                f"{row['seconds']:.2f}",
                f"{row['seconds'] / size['tokens'] * 1000:.2f}",
                _mib(row["extra_bytes"]),
            )
            for size in sizes
            for name, row in size["competitors"].items()
        ),
    )


def _decode_table(rows: list[dict[str, Any]]) -> str:
    return _rows(
        ("steadiness", "seed", "agreement", "passes", "plain, s", "draft, s", "draft / plain", "same ids"),
        (
            (
                row["steadiness"],
                row["seed"],
                f"{row['agreement']:.1%}",
                row["passes"],
                f"{row['plain_seconds']:.3f}",
                f"{row['draft_seconds']:.3f}",
                f"{row['ratio']:.3f}",
                row["identical"],
            )
            for row in rows
        ),
    )


def _annotate_table(measured: dict[str, Any]) -> str:
    faster = {"recursion": 1.0, **measured["times_faster"]}
    seconds = measured["seconds_per_record"]
    return _rows(
        ("way", "ms per record", "times faster than the recursion"),
        ((name, f"{seconds[name] * 1000:.1f}", f"{faster[name]:.1f}") for name in seconds),
    )


def _memory_table(rows_of: dict[str, list[dict[str, Any]]]) -> str:
    return _rows(
        ("stage", "records", "seconds", "peak MiB"),
        (
            (name, f"{row['records']:,}", f"{row['seconds']:.0f}", f"{row['peak_mib']:.1f}")
            for name, rows in rows_of.items()
            for row in rows
        ),
    )


def _packing_table(rows: list[dict[str, Any]]) -> str:
    return _rows(
        ("lengths", "tokens", "with padding", "padded, ms", "packed, ms", "padded / packed"),
        (
            (
                row["lengths"],
                f"{row['tokens']:,}",
                f"{row['padded_tokens']:,}",
                f"{row['padded_seconds'] * 1000:.1f}",
                f"{row['packed_seconds'] * 1000:.1f}",
                f"{row['ratio']:.2f}",
            )
            for row in rows
        ),
    )


BENCHMARKS = {
    "loss": Benchmark(LossSetup, _raced(compare_losses), _race_table, tuple(OBJECTIVES)),
    "growth": Benchmark(GrowthSetup, _raced(measure_growth), _growth_table, tuple(OBJECTIVES)),
    "step": Benchmark(StepSetup, _raced(compare_steps), _race_table, tuple(STEPS)),
    "decode": Benchmark(DecodeSetup, _decode, _decode_table),
    "annotate": Benchmark(AnnotateSetup, _annotate, _annotate_table),
    "memory": Benchmark(MemorySetup, _memory, _memory_table, ("annotate", "train")),
    "packing": Benchmark(PackingSetup, _packing, _packing_table),
}
"""loss: the loss against others. growth: the same as completion tokens grow. step: one optimizer step against others.
decode: a correction with the old continuation as a draft. annotate: known answers, in batches and step by step.
memory: the peak of annotating and of training on files of several sizes. packing: a training step on padded and on
packed records."""
