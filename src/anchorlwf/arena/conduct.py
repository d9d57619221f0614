"""The whole arena in one call: run what is missing, collect, report; and check a slice of what was published."""

import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from anchorlwf.arena.cell import run_cell
from anchorlwf.arena.collect import collect, differences
from anchorlwf.arena.lab import Lab
from anchorlwf.arena.methods import METHODS
from anchorlwf.arena.plan import Plan, Regime
from anchorlwf.arena.report.page import write_report
from anchorlwf.arena.study import Job, Sources, run_study
from anchorlwf.config import YAML_ERRORS
from anchorlwf.errors import ConfigError, RecordError, wrong
from anchorlwf.extras import require_extra
from anchorlwf.files import ensure_writable, write_atomic
from anchorlwf.model.language_model import EMBEDDED, load_model

__all__ = ["arena", "check_results", "load_plan"]

_SLICE = (("short4", "anchorlwf", 1), ("short4", "sft_human", 1))
"""The cells that `make results-check` runs again."""


_BY_TRL = {"grpo", "dpo", "sdft"}
"""Trainers that TRL has."""


def load_plan(name: str) -> Plan:
    """A plan by name (`study`, `quick`, `real`) or by the path of a YAML file.

    All built-in methods can be named in it. One that is listed under `methods` as well has the fields that are given
    there, and is otherwise as built in.

    Raises:
        ConfigError: no such plan, a wrong option, or a regime that names an unknown method or regime.
    """
    shipped = files("anchorlwf") / "arena" / "plans" / f"{name}.yaml"
    try:
        text = shipped.read_text(encoding="utf-8") if shipped.is_file() else Path(name).read_text(encoding="utf-8")
        data = yaml.safe_load(text)
    except YAML_ERRORS as error:
        raise ConfigError(
            wrong("plan", "study, quick, real or a YAML file", f"{name} ({error})", "Check it.")
        ) from error
    if not isinstance(data, dict):
        raise ConfigError(wrong(f"plan {name}", "`option: value` lines", type(data).__name__, "Mend the file."))
    listed = data.pop("methods", [])
    plan = Plan.of(methods=_with_built_in(listed if isinstance(listed, list) else [listed]), **data)
    methods, regimes = {method.name for method in plan.methods}, {regime.name for regime in plan.regimes}
    for regime in plan.regimes:
        unknown = {*regime.methods, regime.baseline} - methods
        if unknown:
            got = ", ".join(sorted(unknown))
            raise ConfigError(wrong(f"regime {regime.name}", "known methods", got, f"Known: {', '.join(methods)}."))
        if regime.tuned_on is not None and regime.tuned_on not in regimes:
            fix = f"Known: {', '.join(regimes)}."
            raise ConfigError(wrong(f"regime {regime.name}: tuned_on", "a regime of the plan", regime.tuned_on, fix))
        _check_tuned(plan, regime)
    return plan


def _with_built_in(listed: list[Any]) -> list[Any]:
    """The built-in methods, in their order and with the fields that are given for them, and behind them the others."""
    methods = {method.name: method.model_dump() for method in METHODS}
    others = []
    for row in listed:
        name = row.get("name") if isinstance(row, dict) else None
        if isinstance(name, str) and name in methods:
            methods[name] = {**methods[name], **row}
        else:
            others.append(row)
    return [*methods.values(), *others]


def _check_tuned(plan: Plan, regime: Regime) -> None:
    """Every method that is swept takes part where its options are chosen."""
    there = plan.regime(regime.tuned_on or regime.name)
    for name in regime.methods:
        swept = plan.method(plan.method(name).like or name)
        if swept.sweep and (there.tuned_on is not None or swept.name not in there.methods):
            what = f"regime {regime.name}: method {name}"
            fix = f"Add {swept.name} to the methods of {there.name}, which sweeps itself, or leave out `tuned_on`."
            raise ConfigError(wrong(what, f"a sweep of {swept.name} in {there.name}", "none", fix))


def arena(
    plan: Plan,
    out: str | Path,
    sources: Sources | None = None,
    *,
    jobs: int = 1,
    command: str = "arena()",
    report: Callable[[str, int, int], None] = lambda what, done, count: None,
    setup: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Run a study (or what is missing of it) and write results.json, report.html and plots/ to `out`.

    Args:
        plan: from `load_plan`.
        out: the study's folder.
        sources: model and data; None: the embedded world.
        jobs: processes.
        command: how this was called, for the reader.
        report: called with (what, done, all).
        setup: called first in every process; a function of a module.

    Returns:
        results.json.

    Raises:
        ConfigError, RecordError, ModelError: a plan, data or a model that cannot be used; or an extra is missing.
        StorageError: `out` cannot be written.
    """
    folder, sources = Path(out), sources or Sources()
    _check_sources(plan, sources)
    ensure_writable(folder / "results.json")
    require_extra("arena", "the arena's report")
    if any(plan.method(name).trainer in _BY_TRL for regime in plan.regimes for name in regime.methods):
        require_extra("rl", f"plan {plan.name}")
    run_study(plan, folder, sources, jobs=jobs, report=report, setup=setup)
    results = collect(plan, folder, command)
    write_atomic(folder / "results.json", json.dumps(results, ensure_ascii=False, indent=1) + "\n")
    write_report(results, folder)
    return results


def _check_sources(plan: Plan, sources: Sources) -> None:
    """No data that would be left aside, and no model that is asked about people it never heard of."""
    names = ("prompts", "probes", "human", "keep")
    given = [name for name in names if getattr(sources, name) is not None]
    if plan.world == "real":
        if given:
            fix = "Leave it out, or take another plan."
            raise ConfigError(
                wrong(f"plan {plan.name}", "a model alone, as it has its own data", ", ".join(given), fix)
            )
        if sources.model in (None, EMBEDDED):
            got, fix = "the embedded one, which knows invented facts alone", "Give --model (after `make real`, say)."
            raise ConfigError(wrong(f"plan {plan.name}", "a model of the real world", got, fix))
        return
    if given and not {"prompts", "probes"} <= set(given):
        fix = "Give --prompts, whose answers are corrected, and --probes, which judge the model."
        raise ConfigError(wrong("data", "prompts and probes", ", ".join(given), fix))
    if sources.model not in (None, EMBEDDED) and not given:
        fix = "Give --prompts and --probes, or --plan real (after `make real`)."
        raise ConfigError(wrong(f"model {sources.model}", "data that it can be asked about", "none", fix))


def check_results(
    path: str | Path, *, tolerance: float = 0.02, report: Callable[[str], None] = lambda what: None
) -> list[str]:
    """Run a slice of published results again on the embedded world; one line per measure that differs.

    Args:
        path: results.json.
        tolerance: largest difference of a fraction that counts as the same.
        report: told what is run.

    Raises:
        RecordError: no results, or without the cells of the slice.
    """
    try:
        published = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecordError(wrong(str(path), "a results.json", error, "Give the file that the arena wrote.")) from error
    if not isinstance(published, dict) or not {"plan", "cells"} <= published.keys():
        fix = "Give the file that the arena wrote."
        raise RecordError(wrong(str(path), "a results.json of the arena, with its plan and cells", "another file", fix))
    plan, sources = Plan.of(**published["plan"]), Sources()
    lab = Lab(load_model(dtype=sources.dtype))

    def run(job: Job, options: dict[str, Any]) -> dict[str, Any]:
        report(f"{job.regime} {job.method} {job.seed}")
        regime, method = plan.regime(job.regime), plan.method(job.method)
        assert job.seed is not None
        task = sources.task(lab.base, plan, regime, job.seed)
        return run_cell(lab, plan, method, regime, task, options, job.seed)

    return differences(published, list(_SLICE), run, tolerance)
