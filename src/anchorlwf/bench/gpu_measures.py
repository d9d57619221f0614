"""What is measured on a GPU: the loss against float64 and against the clock, an optimizer step, and its profile.

Everything runs in this process, one after another, so that libraries are imported and kernels compiled once; figures
are medians, and memory is what torch's allocator had in use at the most, above what it had before.

Shape suffixes: N completion tokens, D hidden width, V vocabulary.
"""

import gc
import math
import statistics
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from anchorlwf.bench.objectives import OBJECTIVES, make_problem, ours
from anchorlwf.bench.step_cost import STEPS, Lane, StepSetup, random_model, random_records
from anchorlwf.loss import Implementation, scored_loss
from anchorlwf.loss.inputs import Direction, Head, LossInputs

__all__ = ["PRODUCTS", "Row", "measure_errors", "measure_losses", "measure_steps", "profile_step", "timed"]

Row = dict[str, Any]
VOCABULARY = 151_936
PRODUCTS = "matmuls"
_LOSSES = {**OBJECTIVES, "without_triton": ours("chunked")}
DEVICE = "cuda"
_IMPLEMENTATIONS: tuple[Implementation, ...] = ("dense", "triton", "chunked")
LIMITS = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 2e-3}
"""Relative errors that are none, whatever the dense loss has."""
_REPEATS, _WARM = 7, 2
_STEPS, _WARM_STEPS = 8, 4
_ROWS_IN_PROFILE = 40


class _EnoughError(Exception):
    """Raised out of a training loop that would go on for ever."""


def measure_errors() -> list[Row]:
    """Gradients and values against the dense loss in float64: every implementation's errors in the narrow type.

    Relative to the largest value or gradient; `right` where ours are at most twice the dense loss's, or negligible.
    """
    shapes: dict[str, tuple[Direction, bool, float, float | None]] = {
        "forward": ("forward", False, 1.0, None),
        "forward, bias, scale, soft cap, own reference": ("forward", True, 0.5, 20.0),
        "reverse": ("reverse", False, 1.0, None),
    }
    rows = list[Row]()
    for name, (direction, everything, scale, softcap) in shapes.items():
        for dtype, limit in LIMITS.items():
            case = _case(dtype, everything, scale, softcap, direction)
            errors: dict[str, float] = {impl: _error(case, impl) for impl in _IMPLEMENTATIONS}
            allowed = max(limit, 2 * errors["dense"])
            row: Row = {"case": name, "dtype": dtype, "right": max(errors.values()) <= allowed}
            rows.append({**row, **errors})
    return rows


def _case(dtype: str, everything: bool, scale: float, softcap: float | None, direction: Direction) -> LossInputs:
    """300 tokens of confidences from 0 to 1, in `dtype` on the GPU."""
    count, vocabulary, width = 300, 5_003, 512
    problem = make_problem(count, width, vocabulary, 0.0, 0, dtype=dtype, device=DEVICE)
    confidence_N = torch.tensor([0.0, 0.5, 0.0, 0.999, 0.1, 0.0, 1.0]).repeat(count)[:count].to(DEVICE)
    confidence_N = confidence_N.clamp(max=0.999) if direction == "reverse" else confidence_N
    head = replace(problem.head, scale=scale, softcap=softcap)
    ref_head = head
    if everything:
        generator = torch.Generator().manual_seed(1)
        biases = (torch.randn(vocabulary, generator=generator).to(DEVICE, head.weight_VD.dtype) for _ in range(2))
        head, ref_head = (replace(head, bias_V=bias_V) for bias_V in biases)
        ref_head = replace(ref_head, weight_VD=head.weight_VD.flip(0).contiguous())
    states = problem.hidden_ND, problem.ref_hidden_ND
    return LossInputs(*states, head, ref_head, problem.token_ids_N, confidence_N, direction, 2**26)


def _error(case: LossInputs, impl: Implementation) -> float:
    """The larger relative error of values and gradients."""
    return max(
        float((found - truth).abs().max() / truth.abs().max())
        for found, truth in zip(_result(case, impl), _result(_widened(case), "dense"), strict=True)
    )


def _widened(case: LossInputs) -> LossInputs:
    def wide(head: Head) -> Head:
        return replace(
            head, weight_VD=head.weight_VD.double(), bias_V=None if head.bias_V is None else head.bias_V.double()
        )

    case = replace(case, head=wide(case.head), ref_head=wide(case.ref_head))
    return replace(case, hidden_ND=case.hidden_ND.double(), ref_hidden_ND=case.ref_hidden_ND.double())


def _result(case: LossInputs, impl: Implementation) -> tuple[Tensor, Tensor]:
    hidden_ND = case.hidden_ND.detach().clone().requires_grad_()
    divergence_N = scored_loss(replace(case, hidden_ND=hidden_ND), impl).divergence_N
    divergence_N.sum().backward()
    assert hidden_ND.grad is not None
    return divergence_N.detach().double(), hidden_ND.grad.double()


def measure_losses(tokens: int, width: int, names: Sequence[str]) -> list[Row]:
    """Forward and backward of each objective in bfloat16: milliseconds, how many times the products', extra bytes."""
    problem = make_problem(tokens, width, VOCABULARY, 0.05, 0, dtype="bfloat16", device=DEVICE)
    rows = list[Row]()
    for name in [PRODUCTS, *names]:
        try:
            milliseconds, extra = timed(partial(_LOSSES[name], problem))
        except Exception as error:  # noqa: BLE001 - one that fails here must not cost the others' figures
            rows.append({"name": name, "failed": f"{type(error).__name__}: {error}"[:300]})
            continue
        rows.append({"name": name, "ms": milliseconds, "extra_bytes": extra})
    products = rows[0].get("ms", math.nan)
    shape = {"tokens": tokens, "width": width}
    return [{**shape, **row, **({"ratio": row["ms"] / products} if "ms" in row else {})} for row in rows]


def timed(run: Callable[[], None]) -> tuple[float, int]:
    """Median milliseconds, and the most bytes in use beyond those before."""
    for _ in range(_WARM):
        run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    extra = torch.cuda.max_memory_allocated() - before
    laps = []
    for _ in range(_REPEATS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        laps.append(begin.elapsed_time(end))
    return statistics.median(laps), extra


def measure_steps(setup: StepSetup, name: str) -> list[Row]:
    """Milliseconds of an optimizer step of one competitor, by the wall clock over several, and the memory's peak."""
    done, found = [0], dict[str, Any]()

    def lap() -> None:
        done[0] += 1
        if done[0] == _WARM_STEPS:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            found["began"] = time.perf_counter()
        elif done[0] == _WARM_STEPS + _STEPS:
            torch.cuda.synchronize()
            found["ms"] = 1000 * (time.perf_counter() - found.pop("began")) / _STEPS
            found["peak_bytes"] = torch.cuda.max_memory_allocated()
            raise _EnoughError

    failed = _run_steps(setup, name, lap)
    if failed is not None:
        return [{"name": name, "failed": failed}]
    return [{"name": name, **found}]


def _run_steps(setup: StepSetup, name: str, lap: Callable[[], None]) -> str | None:
    """Step until `lap` has had enough; what went wrong, if anything did."""
    failed = None
    try:
        _step_on(setup, name, lap)
    except _EnoughError:
        pass
    except Exception as error:  # noqa: BLE001 - one that fails here must not cost the others' figures
        traceback.print_exc()
        failed = f"{type(error).__name__}: {error}"[:300]
    # Trainers know themselves, in circles.
    gc.collect()
    torch.cuda.empty_cache()
    return failed


def _step_on(setup: StepSetup, name: str, lap: Callable[[], None]) -> None:
    model = random_model(setup)
    STEPS[name](Lane(setup, model, random_records(setup, model), lap))


def profile_step(setup: StepSetup, name: str) -> list[Row]:
    """One step of a competitor under torch's profiler, and where another waits for the GPU.

    Returns:
        `table`: operations by their time on the GPU. `wall_ms` and `busy_ms`: of the step, and the kernels' sum.
        `waits`: places that wait for the GPU, with how often in one step.
    """
    found: Row = {"name": name, "waits": {}}
    laps, recorder = [0], profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])
    caught = warnings.catch_warnings(record=True)
    noted: list[Any] = []

    def lap() -> None:
        torch.cuda.synchronize()
        laps[0] += 1
        if laps[0] == _WARM_STEPS:
            noted.append(caught.__enter__())
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
        elif laps[0] == _WARM_STEPS + 1:
            torch.cuda.set_sync_debug_mode("default")
            caught.__exit__(None, None, None)
            recorder.__enter__()
            found["began"] = time.perf_counter()
        elif laps[0] == _WARM_STEPS + 2:
            found["wall_ms"] = 1000 * (time.perf_counter() - found.pop("began"))
            recorder.__exit__(None, None, None)
            raise _EnoughError

    failed = _run_steps(setup, name, lap)
    torch.cuda.set_sync_debug_mode("default")
    if failed is not None:
        return [{"name": name, "failed": failed}]
    places = Counter(f"{one.filename}:{one.lineno}" for one in noted[0] if "synchroniz" in str(one.message))
    averages = recorder.key_averages()
    kernels = [one for one in averages if "CUDA" in str(one.device_type)]
    found["busy_ms"] = sum(one.self_device_time_total for one in kernels) / 1000
    found["kernels"] = [
        {"name": one.key[:120], "ms": one.self_device_time_total / 1000, "calls": one.count}
        for one in sorted(kernels, key=lambda one: -one.self_device_time_total)[:_ROWS_IN_PROFILE]
    ]
    found["table"] = averages.table(sort_by="self_device_time_total", row_limit=_ROWS_IN_PROFILE)
    return [{**found, "waits": dict(places.most_common())}]
