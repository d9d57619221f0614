"""Runs a study: sweeps first, then every cell. Each result is a file, so an interrupted study continues."""

import hashlib
import itertools
import json
import os
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from anchorlwf.arena.cell import run_cell, train_cell
from anchorlwf.arena.lab import Lab
from anchorlwf.arena.plan import Method, Plan, Regime
from anchorlwf.arena.questions import Task, user_task, world_task
from anchorlwf.arena.real_questions import real_task
from anchorlwf.config import BaselineConfig, RetainConfig, TrainConfig
from anchorlwf.errors import AnchorLwfError, ModelError, wrong
from anchorlwf.evaluation import named_hashes
from anchorlwf.files import file_sha, write_atomic
from anchorlwf.model.language_model import LanguageModel, load_model

__all__ = ["Job", "Sources", "jobs_of", "run_study"]

_LEARNED, _KEPT = ("recall", "paraphrase"), ("near", "kept", "skills")


@dataclass(frozen=True)
class Sources:
    """The model and, where it is not the embedded world's, the data."""

    model: str | None = None
    prompts: Path | None = None
    probes: Path | None = None
    human: Path | None = None
    keep: Path | None = None
    device: str | None = None
    """As for `load_model`."""
    dtype: str = "float32"
    """As for `load_model`. The same on every machine, for what several of them measured is put together."""
    cache: Path | None = None
    """Folder in which a real model's answers are remembered; None: the usual one."""

    @cached_property
    def key(self) -> list[Any]:
        """What results depend on: contents, for another machine has the files elsewhere.

        Raises:
            ModelError, StorageError: model or data cannot be read.
        """
        given = [self.prompts, self.probes, self.human, self.keep]
        weights = None if self.model is None else named_hashes(self.model, fetch=True)
        return [weights, self.dtype, *(None if path is None else file_sha(path) for path in given)]

    def task(self, base: LanguageModel, plan: Plan, regime: Regime, seed: int, *, validation: bool = False) -> Task:
        """The task of a regime; given files, it is the same for every seed. `validation`: options are being chosen."""
        if plan.world == "real":
            return real_task(base, plan, regime, seed, validation=validation, cache=self.cache)
        if self.prompts is None:
            return world_task(plan, regime, seed)
        assert self.probes is not None, "checked by the caller"
        return user_task(plan, self.prompts, self.probes, self.human, self.keep)


@dataclass(frozen=True)
class Job:
    """One file of the study: a sweep (no seed) or a cell."""

    regime: str
    method: str
    seed: int | None

    @property
    def file(self) -> str:
        """Path of its file, below the study's folder."""
        if self.seed is None:
            return f"sweeps/{self.regime}--{self.method}.json"
        return f"cells/{self.regime}--{self.method}--{self.seed}.json"


def jobs_of(plan: Plan) -> tuple[list[Job], list[Job]]:
    """(sweeps, cells). Cells go seed by seed, so that a study cut short has the same seeds everywhere."""
    sweeps = [
        Job(regime.name, name, None)
        for regime in plan.regimes
        if regime.tuned_on is None
        for name in regime.methods
        if plan.method(name).sweep
    ]
    cells = sorted(
        (
            Job(regime.name, name, seed)
            for regime in plan.regimes
            for name in regime.methods
            for seed in plan.seeds_of(regime, name)
        ),
        key=lambda job: job.seed or 0,
    )
    return sweeps, cells


def _key(plan: Plan, sources: Sources, job: Job, options: dict[str, Any] | None) -> str:
    """Changes when anything changes that the result depends on."""
    about = plan.model_dump(mode="json", exclude={"regimes", "methods", "seeds", "first_seed", "name"})
    told = {"methods", "seeds", "title", "about", "baseline"}
    regime = plan.regime(job.regime).model_dump(mode="json", exclude=told)
    method = plan.method(job.method).model_dump(mode="json", exclude={"title", "about", "seeds"})
    # A method without options has its defaults, which another release may change.
    defaults = [kind().model_dump(mode="json") for kind in (TrainConfig, RetainConfig, BaselineConfig)]
    parts = [about, regime, method, job.seed, options, sources.key, defaults]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _grid(method: Method) -> Iterator[dict[str, Any]]:
    """Every combination of options; the steps of our own trainer come as checkpoints of one run."""
    names = [name for name in method.sweep if not (name == "steps" and method.trainer == "anchor")]
    for values in itertools.product(*(method.sweep[name] for name in names)):
        yield dict(zip(names, values, strict=True))


def _score(measures: dict[str, float | None]) -> float:
    """What options are chosen by: the mean of what is learned times the mean of what is kept."""

    def mean(names: tuple[str, ...]) -> float:
        known = [value for name in names if (value := measures.get(name)) is not None]
        return sum(known) / len(known) if known else 1.0

    return mean(_LEARNED) * mean(_KEPT)


def run_sweep(lab: Lab, plan: Plan, method: Method, regime: Regime, task: Task) -> list[dict[str, Any]]:
    """Try every combination on the validation split: rows as results.json holds them, the best one `chosen`.

    Raises:
        AnchorLwfError: none of them could be trained with.
    """
    rows: list[dict[str, Any]] = []
    failed: AnchorLwfError | None = None
    for options in _grid(method):
        shares = method.sweep.get("steps", []) if method.trainer == "anchor" else []
        budget = regime.steps * method.effort
        points = {max(1, round(share * budget)): share for share in shares}
        seen = set[float]()

        def look(
            model: LanguageModel,
            row: dict[str, Any],
            options: dict[str, Any] = options,
            points: dict[int, float] = points,
            seen: set[float] = seen,
        ) -> None:
            if row["step"] in points:
                seen.add(points[row["step"]])
                model.net.eval()
                rows.append(
                    {
                        "options": {**options, "steps": points[row["step"]]},
                        "measures": lab.score(model, task.validation, regime.answer_tokens),
                    }
                )
                model.net.train()

        run_options = {**options, "steps": max(shares)} if shares else options
        try:
            tuned = train_cell(lab, method, regime, task, run_options, plan.validation_seed, look if shares else None)
        except AnchorLwfError as error:  # a rate at which the loss becomes NaN is no reason to try no other
            failed = error
            continue
        # What the stop rule ended before a share of the steps is what that share gives.
        rest: list[dict[str, Any]] = [{"steps": share} for share in shares if share not in seen] if shares else [{}]
        if rest:
            measures = lab.score(tuned.model, task.validation, regime.answer_tokens)
            rows.extend({"options": {**options, **steps}, "measures": measures} for steps in rest)
    if failed is not None and not rows:
        raise failed
    scores = [_score(row["measures"]) for row in rows]
    return [
        {
            "method": method.name,
            "regime": regime.name,
            "seed": plan.validation_seed,
            **row,
            "score": score,
            "chosen": index == scores.index(max(scores)),
        }
        for index, (row, score) in enumerate(zip(rows, scores, strict=True))
    ]


_LAB: list[Lab] = []


def _end_with_parent() -> None:
    """Wait for the end of the process that began this one, and end, too: a study that is killed cannot tell it."""
    parent = parent_process()
    assert parent is not None, "runs in a worker"
    parent.join()
    os._exit(1)


def _prepare(sources: Sources, threads: int, setup: Callable[[], None] | None) -> None:
    Thread(target=_end_with_parent, daemon=True).start()
    if setup is not None:
        setup()
    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        # Products in TF32, eight times as fast; base and tuned models alike.
        torch.set_float32_matmul_precision("high")
    _LAB.append(Lab(load_model(sources.model, dtype=sources.dtype, device=sources.device)))


def _work(plan: Plan, sources: Sources, job: Job, options: dict[str, Any]) -> dict[str, Any]:
    """In a worker: the content of the job's file. An error becomes its content too."""
    regime, method = plan.regime(job.regime), plan.method(job.method)
    seed = plan.validation_seed if job.seed is None else job.seed
    try:
        task = sources.task(_LAB[0].base, plan, regime, seed, validation=job.seed is None)
        if job.seed is None:
            return {"rows": run_sweep(_LAB[0], plan, method, regime, task)}
        return {"cell": run_cell(_LAB[0], plan, method, regime, task, options, job.seed)}
    except AnchorLwfError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    except Exception:  # noqa: BLE001 - one broken cell must not end a study of hours; it is told in the report
        return {"error": traceback.format_exc(limit=4)}


def _read(path: Path, key: str) -> dict[str, Any] | None:
    """A finished file of the same key, or nothing."""
    if not path.is_file():
        return None
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content if content.get("key") == key and "error" not in content else None


def _run_all(
    plan: Plan,
    sources: Sources,
    out: Path,
    listed: list[tuple[Job, dict[str, Any] | None]],
    pool: ProcessPoolExecutor,
    report: Callable[[str, int, int], None],
) -> None:
    waiting = {}
    keys = {job: _key(plan, sources, job, options) for job, options in listed}
    done = 0
    for job, options in listed:
        if _read(out / job.file, keys[job]) is not None:
            done += 1
        elif options is None:
            content = {"key": keys[job], "error": f"no options were chosen: see {_sweep_of(plan, job).file}"}
            write_atomic(out / job.file, json.dumps(content) + "\n")
            done += 1
        else:
            waiting[pool.submit(_work, plan, sources, job, options)] = job
    for future in as_completed(waiting):
        job = waiting[future]
        content = {"key": keys[job], **future.result()}
        write_atomic(out / job.file, json.dumps(content, ensure_ascii=False) + "\n")
        done += 1
        report(f"{job.file.split('/')[0]}  {job.regime} {job.method}", done, len(listed))


def _sweep_of(plan: Plan, job: Job) -> Job:
    """The sweep that chooses the options of a cell."""
    return Job(plan.regime(job.regime).tuned_on or job.regime, plan.method(job.method).like or job.method, None)


def _chosen(plan: Plan, sources: Sources, out: Path, job: Job) -> dict[str, Any] | None:
    """The options that the sweep chose for a cell: none where nothing is swept, and None where the sweep failed."""
    regime, tuned = plan.regime(job.regime), _sweep_of(plan, job)
    if not plan.method(tuned.method).sweep:
        return {}
    sweep = _read(out / tuned.file, _key(plan, sources, tuned, {}))
    if sweep is None:
        return None
    options: dict[str, Any] = next(row["options"] for row in sweep["rows"] if row["chosen"])
    # Whoever is overtrained does not get to choose fewer steps.
    return {**options, "steps": 1.0} if regime.overtrain > 1 and "steps" in options else options


def run_study(
    plan: Plan,
    out: Path,
    sources: Sources,
    *,
    jobs: int = 1,
    report: Callable[[str, int, int], None],
    setup: Callable[[], None] | None = None,
) -> None:
    """Run what is not finished yet, in `jobs` processes of one thread each (all threads where there is one process).

    Args:
        plan: what to run.
        out: the study's folder; receives sweeps/ and cells/, a file each.
        sources: model and data.
        jobs: processes.
        report: called with (what, done, all).
        setup: called first in every process; a function of a module.

    Raises:
        ModelError, StorageError: model or data cannot be read; or a process of the study died.
    """
    sweeps, cells = jobs_of(plan)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    try:
        with ProcessPoolExecutor(
            jobs, mp_context=get_context("spawn"), initializer=_prepare, initargs=(sources, threads, setup)
        ) as pool:
            _run_all(plan, sources, out, [(job, {}) for job in sweeps], pool, report)
            _run_all(plan, sources, out, [(job, _chosen(plan, sources, out, job)) for job in cells], pool, report)
    except BrokenProcessPool as error:
        got = "one that died: the model cannot be loaded, as said above, or memory ran out"
        fix = "With less memory take fewer --jobs. What was finished is kept: run the same command again."
        raise ModelError(wrong("study", "processes that live to its end", got, fix)) from error
