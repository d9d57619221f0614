"""`anchorlwf bench --gpu`: correctness, loss, step and memory on one card, in one go.

The most telling measurements come first, and the file is written after each, so that whoever has a card for a few
minutes has something to show whenever they must go.
"""

import importlib.util
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from anchorlwf.bench.gpu_measures import Row, measure_errors, measure_losses, measure_steps, profile_step
from anchorlwf.bench.race import quiet
from anchorlwf.bench.step_cost import StepSetup
from anchorlwf.errors import ConfigError, wrong
from anchorlwf.files import write_atomic
from anchorlwf.loss.inputs import MEMORY
from anchorlwf.run import environment

__all__ = ["GPU_STEP", "bench_gpu", "check_prerequisites", "gpu_table"]

GPU_STEP = StepSetup(
    records=8,
    tokens=1024,
    layers=28,
    width=2048,
    head_width=128,
    dtype="bfloat16",
    device="cuda" if torch.cuda.is_available() else "cpu",
)
"""The shape of Qwen3-1.7B."""
SHAPES = ((8_192, 4_096), (8_192, 1_024), (2_048, 2_048))
"""(N, D) of the loss."""
_LOSSES = ("ours", "trl", "without_triton")
_STEPS = ("ours", "trl_sft", "ours_uncached", "full_ce")
_TIMES = {4_096: 1.25, 1_024: 1.7}
"""By hidden width: how many times the three products the loss may take."""
_FASTER = 1.4
"""Than TRL's kernel."""


def check_prerequisites() -> None:
    """Raise `ConfigError` for what is missing here, all of it at once."""
    missing = [name for name in ("triton", "peft", "transformers") if importlib.util.find_spec(name) is None]
    got = [*(["no CUDA device"] if not torch.cuda.is_available() else []), *(f"no {name}" for name in missing)]
    if got:
        fix = "Run it where torch.cuda.is_available() is True, and pip install what is missing."
        raise ConfigError(wrong("bench --gpu", "a CUDA device, triton, peft and transformers", ", ".join(got), fix))


def bench_gpu(
    out: str | Path, *, seconds: float = 300.0, on_part: Callable[[str], None] = lambda _name: None
) -> dict[str, Any]:
    """Measure everything that `gpu_table` shows; the file is written after each part.

    Args:
        out: the JSON file.
        seconds: no part begins later than this; what is left out is named in `left_out`.
        on_part: called with the name of each part before it runs.

    Returns:
        JSON-ready: `machine`, `environment`, `seconds`, `errors`, `losses`, `steps`, `profiles`, `left_out`.

    Raises:
        ConfigError: something is missing here.
    """
    check_prerequisites()
    quiet()
    began = time.perf_counter()
    found: dict[str, Any] = {"machine": _card(), "environment": environment(), "left_out": []}
    for name, section, measure in _parts():
        if time.perf_counter() - began > seconds:
            found["left_out"].append(name)
        else:
            on_part(name)
            start = time.perf_counter()
            found.setdefault(section, []).extend(measure())
            found.setdefault("part_seconds", {})[name] = time.perf_counter() - start
            found["seconds"] = time.perf_counter() - began
        write_atomic(Path(out), json.dumps(found, indent=2) + "\n")
    return found


_Part = tuple[str, str, Callable[[], list[Row]]]
"""(name, section, what measures it)."""


def _parts() -> Iterator[_Part]:
    """The most telling first."""
    trl = importlib.util.find_spec("trl") is not None
    losses = [name for name in _LOSSES if name != "trl" or trl]
    steps = [name for name in _STEPS if name != "trl_sft" or trl]

    def loss(tokens: int, width: int) -> _Part:
        return f"loss {tokens} x {width}", "losses", partial(measure_losses, tokens, width, losses)

    yield from (loss(*shape) for shape in SHAPES[:2])
    yield from ((f"step {name}", "steps", partial(measure_steps, GPU_STEP, name)) for name in steps[:2])
    yield "errors", "errors", measure_errors
    yield from (loss(*shape) for shape in SHAPES[2:])
    yield from ((f"step {name}", "steps", partial(measure_steps, GPU_STEP, name)) for name in steps[2:])
    # Last, for launching kernels takes longer in a process that was profiled once.
    yield "profile ours", "profiles", partial(profile_step, GPU_STEP, "ours")


def _card() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    return {"device": properties.name, "memory": properties.total_memory, "cuda": torch.version.cuda}


def gpu_table(found: dict[str, Any]) -> str:
    """Everything as one Markdown table, with what is aimed at beside it."""
    rows = [*_loss_rows(found.get("losses", [])), *_step_rows(found.get("steps", [])), *_profile_rows(found)]
    rows += [
        (
            f"error, {row['case']}, {row['dtype']}",
            ", ".join(f"{impl} {row[impl]:.1e}" for impl in ("triton", "chunked", "dense") if impl in row),
            "at most twice the dense loss's",
            _met(row["right"]),
        )
        for row in found.get("errors", [])
    ]
    rows += [(name, "left out: no time", "", "") for name in found["left_out"]]
    lines = [("measurement", "figure", "aim", "met"), ("---",) * 4, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _met(reached: bool) -> str:
    return "yes" if reached else "NO"


def _loss_rows(losses: list[Row]) -> Iterator[tuple[str, ...]]:
    trl = {(row["tokens"], row["width"]): row["ms"] for row in losses if row["name"] == "trl" and "ms" in row}
    for row in losses:
        what = f"loss {row['name']}, N {row['tokens']:,}, D {row['width']:,}"
        if "failed" in row:
            yield what, row["failed"].replace("|", "/").partition("\n")[0], "", ""
            continue
        mib = row["extra_bytes"] / 2**20
        figure = f"{row['ms']:.1f} ms, {row['ratio']:.2f} x the products, {mib:,.0f} MiB"
        if row["name"] != "ours":
            yield what, figure, "3 x at most" if row["name"] == "without_triton" else "", ""
            continue
        aims, reached = [f"{MEMORY / 2**20:,.0f} MiB"], [row["extra_bytes"] <= MEMORY]
        if row["width"] in _TIMES and row["tokens"] == SHAPES[0][0]:
            aims.append(f"{_TIMES[row['width']]} x")
            reached.append(row["ratio"] <= _TIMES[row["width"]])
        ours, theirs = row["ms"], trl.get((row["tokens"], row["width"]))
        if theirs is not None:
            aims.append(f"{_FASTER} times as fast as TRL ({theirs / ours:.2f})")
            reached.append(theirs / ours >= _FASTER)
        yield what, figure, "; ".join(aims), _met(all(reached))


def _step_rows(steps: list[Row]) -> Iterator[tuple[str, ...]]:
    trl = next((row for row in steps if row["name"] == "trl_sft" and "ms" in row), None)
    for row in steps:
        what = f"step {row['name']}, 1.7B shape, {GPU_STEP.records} x {GPU_STEP.tokens:,} tokens"
        if "failed" in row:
            yield what, row["failed"].replace("|", "/").partition("\n")[0], "", ""
            continue
        figure = f"{row['ms']:.0f} ms, peak {row['peak_bytes'] / 2**30:.1f} GiB"
        aim, met = "", ""
        if trl is not None:
            figure += f", {row['ms'] / trl['ms']:.2f} x TRL"
            if row["name"] == "ours":
                aim = "1.0 x TRL, no more memory"
                met = _met(row["ms"] <= trl["ms"] and row["peak_bytes"] <= trl["peak_bytes"])
        yield what, figure, aim, met


def _profile_rows(found: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for row in found.get("profiles", []):
        if "failed" in row:
            yield f"profile {row['name']}", row["failed"].replace("|", "/").partition("\n")[0], "", ""
            continue
        waits = sum(row["waits"].values())
        yield f"profile {row['name']}", f"{row['wall_ms']:.0f} ms, GPU busy {row['busy_ms']:.0f} ms", "", ""
        yield f"waits for the GPU in a step, {row['name']}", str(waits), "", ""
