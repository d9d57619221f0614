"""From a study's files to results.json, and back: does a slice run again give the same?"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from anchorlwf.arena.plan import Plan
from anchorlwf.arena.study import Job, jobs_of
from anchorlwf.errors import RecordError, wrong
from anchorlwf.run import environment

__all__ = ["collect", "differences"]


def _listed(out: Path, jobs: list[Job]) -> list[tuple[Job, dict[str, Any]]]:
    return [
        (job, json.loads((out / job.file).read_text(encoding="utf-8"))) for job in jobs if (out / job.file).is_file()
    ]


def collect(plan: Plan, out: Path, command: str) -> dict[str, Any]:
    """Everything the study has found so far, as results.json holds it (docs/arena_results.md).

    Args:
        plan: of the study.
        out: its folder.
        command: how it was run, for the reader.

    Raises:
        RecordError: nothing has been finished yet.
    """
    sweeps, cells = jobs_of(plan)
    done, tried = _listed(out, cells), _listed(out, sweeps)
    if not any("cell" in content for _, content in done):
        raise RecordError(wrong(str(out), "at least one finished cell", "none", "Run the study first."))
    failures = [
        {
            "method": job.method,
            "regime": job.regime,
            "error": content["error"],
            "seed": plan.validation_seed if job.seed is None else job.seed,
        }
        for job, content in [*tried, *done]
        if "error" in content
    ]
    used = environment()
    return {
        "schema_version": 1,
        "command": command,
        "date": used["date"],
        "environment": used,
        "plan": plan.model_dump(mode="json"),
        "methods": {
            method.name: method.info.model_dump()
            for method in plan.methods
            if any(method.name in regime.methods for regime in plan.regimes)
        },
        "regimes": {regime.name: regime.info.model_dump() for regime in plan.regimes},
        "cells": [content["cell"] for _, content in done if "cell" in content],
        "sweep": [row for _, content in tried for row in content.get("rows", [])],
        "failures": failures,
    }


def differences(
    published: dict[str, Any],
    chosen: list[tuple[str, str, int]],
    run: Callable[[Job, dict[str, Any]], Any],
    tolerance: float,
) -> list[str]:
    """Run some cells again and compare their measures with the published ones.

    Args:
        published: results.json.
        chosen: (regime, method, seed) of the cells.
        run: runs one job with its options and returns the cell.
        tolerance: largest difference of a fraction that counts as the same (another machine adds up in another order).

    Returns:
        One line per measure that differs; empty where all agree.

    Raises:
        RecordError: a cell that was not published.
    """
    known = {(cell["regime"], cell["method"], cell["seed"]): cell for cell in published["cells"]}
    differing = []
    for regime, method, seed in chosen:
        published_cell = known.get((regime, method, seed))
        if published_cell is None:
            raise RecordError(wrong("results", f"a cell {regime} {method} {seed}", "none", "Choose a published one."))
        again = run(Job(regime, method, seed), published_cell["options"])
        for name in ("recall", "paraphrase", "near", "kept", "skills"):
            before, now = published_cell["measures"][name], again["measures"][name]
            if (before is None) != (now is None) or (before is not None and abs(before - now) > tolerance):
                differing.append(f"{regime} {method} {seed}: {name} was {before}, is {now}")
    return differing
