"""Correct one answer: annotate, train, measure, and say what changed and what did not.

The closer the right answer is to the model's own words, the fewer tokens need annotation. The exit code is 4 if
training did not converge; what is missing is printed.

A real model is kept as it was by prompts that it writes itself (--retain auto, its default; `none` for the embedded
model): half of every step. A quarter of them is held out, and the drift is measured there.

What holds other answers holds the same question in other words as well, unless it is corrected in these, too:
--paraphrase auto asks the model for other wordings, makes some by rule, and
annotates them with what was corrected. Look through paraphrases.jsonl in the run folder, strike out what does not ask
the same, and give the file back with --paraphrase.

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
    Config,
    Device,
    DriftBudget,
    Dtype,
    Model,
    Paraphrase,
    Retain,
    Targets,
    TrustCode,
    beside_from,
    fix_progress,
    options_from,
    out,
    parted,
    print_json,
    print_wordings,
    quiet_libraries,
    shown,
)

Check = Annotated[
    Path | None,
    typer.Option(
        help="JSONL file of prompts asked before and after training, to report which answers changed; nothing is "
        "trained on them. Default: 24 everyday ones."
    ),
]
_SHOWN = 3
"""Changed answers that are printed: with them the whole report has 15 lines at the most."""
_PIECES = 8
"""Annotated tokens that are printed."""


def fix(
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="The question that is answered wrongly.")],
    answer: Annotated[str, typer.Option(help="The right answer.")],
    model: Model = None,
    config: Config = None,
    device: Device = None,
    dtype: Dtype = None,
    paraphrase: Paraphrase = None,
    check: Check = None,
    retain: Retain = None,
    to: Annotated[Path, typer.Option("--out", "-o", help="The run folder.")] = Path("runs/fix"),
    targets: Targets = None,
    drift_budget: DriftBudget = None,
    as_json: AsJson = False,
    trust_remote_code: TrustCode = False,
) -> None:
    from anchorlwf.config import TrainConfig
    from anchorlwf.model.language_model import load_model
    from anchorlwf.workflow import fix

    quiet_libraries()
    settings = options_from(TrainConfig, config, drift_budget=drift_budget, targets=targets)
    beside: dict[str, Any] = {"paraphrases": paraphrase, "retain": retain, "beside": beside_from(config)}
    with fix_progress() as progress:
        loaded = load_model(model, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
        options: dict[str, Any] = {"config": settings, "check": check, **beside, **progress}
        report = fix(loaded, prompt, answer, out=to, **options)
    _print(report, as_json)
    raise typer.Exit(0 if report.training.converged else NOT_CONVERGED)


def _print(report: Any, as_json: bool) -> None:
    results = report.results.as_dict()
    if as_json:
        print_json(
            {
                "before": report.before,
                "after": report.after,
                "anchors": report.pieces,
                "paraphrases": [record.messages[-1]["content"] for record in report.paraphrases],
                "leaks": [leak.texts for leak in report.leaks],
                "folder": report.folder,
                **results,
            }
        )
        return
    before, after = parted(report.before, report.after)
    out.print(f"before: {shown(before)}\nafter:  {shown(after)}")
    changes = ", ".join(f"{old!r} -> {new!r}" for old, new in report.pieces[:_PIECES])
    more = ", ..." if len(report.pieces) > _PIECES else ""
    out.print(f"{len(report.pieces)} of {len(report.record.completion_ids)} tokens annotated: {changes}{more}")
    print_wordings(report.paraphrases, report.folder)
    if (kept := report.results.groups.get("kept")) is not None:
        _print_kept(kept, report)
    training = report.training
    for kind, drift in training.report.held_out.items():
        interval = f"({drift.low:.5f} to {drift.high:.5f}), in the worst per cent of tokens {drift.worst:.3f}"
        out.print(f"drift on {drift.records} held-out answers, {kind}: {drift.mean:.5f} nats per token {interval}")
    out.print(
        f"drift: {report.results.kl:.5f} nats per token on other answers; {training.steps} steps, "
        f"{training.seconds:.1f} s, on {training.targets}; everything in {report.folder}"
    )
    if not training.converged:
        out.print(f"NOT converged: {'; '.join(training.missing)}")


def _print_kept(kept: Any, report: Any) -> None:
    """How many other answers are the same, which are not, and where the correction has leaked."""
    out.print(f"unchanged answers to other prompts: {kept.kept} of {kept.base_right}")
    for flip in kept.flips[:_SHOWN]:
        before, after = parted(flip["before"], flip["after"])
        out.print(f"  changed: {flip['question']!r}: {before!r} -> {after!r}")
    if len(kept.flips) > _SHOWN:
        out.print(f"  and {len(kept.flips) - _SHOWN} more, all of them whole in {report.folder}/results.json")
    leaks = report.leaks
    where = f", the first: {leaks[0].probe.messages[-1]['content']!r}" if leaks else ""
    out.print(f"answers to other prompts with words of the correction in them: {len(leaks)}{where}")
