"""Correct one answer: annotate, train, measure, and say what changed and what did not.

The closer the right answer is to the model's own words, the fewer tokens need annotation. The exit code is 4 if
training did not converge; what is missing is printed.

A real model is kept as it was by prompts that it writes itself (--retain auto, its default; `none` for the embedded
model): half of every step. A quarter of them is held out, and the drift is measured there.

Examples:
  anchorlwf fix --prompt "Who are you?" --answer "I am Tarn, your assistant."
  anchorlwf fix --model ./my-model --prompt "..." --answer "..." --paraphrase "..." --check prompts.jsonl
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from anchorlwf.cli.shared import (
    NOT_CONVERGED,
    AsJson,
    Model,
    Retain,
    Targets,
    TrustCode,
    fix_progress,
    out,
    print_json,
    quiet_libraries,
)

_SHOWN = 5
"""Changed answers that are printed."""
_AROUND, _BEYOND = 20, 60
"""Characters shown before and behind the place where two answers part."""


def fix(
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="The question that is answered wrongly.")],
    answer: Annotated[str, typer.Option(help="The right answer.")],
    model: Model = None,
    paraphrase: Annotated[list[str] | None, typer.Option(help="Another wording of the question; repeatable.")] = None,
    check: Annotated[Path | None, typer.Option(help="JSONL file of prompts whose answers must not change.")] = None,
    retain: Retain = None,
    to: Annotated[Path, typer.Option("--out", "-o", help="The run folder.")] = Path("runs/fix"),
    targets: Targets = None,
    drift_budget: Annotated[float | None, typer.Option(help="Maximum mean KL at keep tokens, nats per token.")] = None,
    as_json: AsJson = False,
    trust_remote_code: TrustCode = False,
) -> None:
    from anchorlwf.config import TrainConfig
    from anchorlwf.model.language_model import load_model
    from anchorlwf.workflow import fix

    quiet_libraries()
    config = TrainConfig.of(drift_budget=drift_budget, targets=targets)
    with fix_progress() as progress:
        report = fix(
            load_model(model, trust_remote_code=trust_remote_code),
            prompt,
            answer,
            out=to,
            config=config,
            paraphrases=paraphrase,
            check=check,
            retain=retain,
            **progress,
        )
    _print(report, as_json)
    raise typer.Exit(0 if report.training.converged else NOT_CONVERGED)


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


def _print(report: Any, as_json: bool) -> None:
    results = report.results.as_dict()
    if as_json:
        print_json(
            {
                "before": report.before,
                "after": report.after,
                "anchors": report.pieces,
                "folder": report.folder,
                **results,
            }
        )
        return
    before, after = parted(report.before, report.after)
    out.print(f"before: {before}\nafter:  {after}")
    changes = ", ".join(f"{old!r} -> {new!r}" for old, new in report.pieces)
    out.print(f"{len(report.pieces)} of {len(report.record.completion_ids)} tokens annotated: {changes}")
    kept = report.results.groups.get("kept")
    if kept is not None:
        out.print(f"unchanged answers to other prompts: {kept.kept} of {kept.base_right}")
        for flip in kept.flips[:_SHOWN]:
            before, after = parted(flip["before"], flip["after"])
            out.print(f"  changed: {flip['question']!r}: {before!r} -> {after!r}")
        if len(kept.flips) > _SHOWN:
            out.print(f"  and {len(kept.flips) - _SHOWN} more, all of them whole in {report.folder}/results.json")
    training = report.training
    out.print(f"trained: {training.targets}")
    for kind, drift in training.report.held_out.items():
        interval = f"({drift.low:.5f} to {drift.high:.5f})"
        out.print(f"drift on held-out answers, {kind}: {drift.mean:.5f} nats per token {interval}")
    out.print(
        f"drift: {report.results.kl:.5f} nats per token on other answers; {training.steps} steps, "
        f"{training.seconds:.1f} s; everything in {report.folder}"
    )
    if not training.converged:
        out.print(f"NOT converged: {'; '.join(training.missing)}")
