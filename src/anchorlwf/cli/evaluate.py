"""Measure what a tuned model learned and what it kept, by free-running greedy decoding.

Learned: recall and paraphrases. Kept: facts, near facts and skills that the base answered correctly. Drift:
KL(reference || model) per token on held-out continuations. Prints a table and the first answers that were right before
and are wrong now; --out writes results.json, which has all of them. Without --probes, the corrected --records are
asked, or only --tasks run. With --generation own, answers are decoded as the model's generation_config.json says,
repetition penalty and sampling included.

--tasks runs lm-evaluation-harness on the base and the tuned model, document by document (needs anchorlwf[harness]).
--certificate checks the results against the thresholds of a YAML file and writes certificate.json; the exit code is 3
if a threshold is missed or was not measured.

Examples:
  anchorlwf evaluate --adapter runs/demo/adapter --probes runs/demo/probes.jsonl --records runs/demo/records.jsonl
  anchorlwf evaluate --model ./tuned --base ./base --probes probes.jsonl --out results.json --json
  anchorlwf evaluate --adapter runs/demo/adapter --probes probes.jsonl --certificate gate.yaml
  anchorlwf evaluate --model ./tuned --base ./base --tasks mmlu,gsm8k --task-limit 200
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from anchorlwf.cli.shared import (
    Adapter,
    AsJson,
    Base,
    Config,
    Device,
    Dtype,
    Model,
    SkipBad,
    TrustCode,
    err,
    options_from,
    out,
    parted,
    phase_progress,
    print_json,
    quiet_libraries,
)
from anchorlwf.errors import ConfigError, wrong
from anchorlwf.extras import require_extra

_SHOWN = 10
"""Flipped answers that are named."""

if TYPE_CHECKING:
    from anchorlwf.config import GateConfig

Gate = Annotated[Path | None, typer.Option(help="YAML file of thresholds that the model must reach.")]
GateOut = Annotated[Path | None, typer.Option(help="Default: certificate.json beside --out, or in this folder.")]


def evaluate(
    model: Model = None,
    adapter: Adapter = None,
    base: Base = None,
    probes: Annotated[Path | None, typer.Option(help="JSONL file of questions with right answers.")] = None,
    device: Device = None,
    dtype: Dtype = None,
    records: Annotated[Path | None, typer.Option(help="The records the model was trained on.")] = None,
    to: Annotated[Path | None, typer.Option("--out", "-o", help="Write results.json to this path.")] = None,
    config: Config = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(help="Maximum number of tokens in an answer; more where a corrected one is longer. Default: 128."),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="How many prompts are decoded together. Default: 128.")] = None,
    generation: Annotated[
        Literal["greedy", "own"] | None,
        typer.Option(help="greedy (default), or as the model's own generation config says."),
    ] = None,
    tasks: Annotated[str | None, typer.Option(help="Tasks of lm-evaluation-harness, separated by commas.")] = None,
    tasks_path: Annotated[str | None, typer.Option(help="Folder with your own task YAML files.")] = None,
    task_limit: Annotated[int | None, typer.Option(help="Maximum number of documents per task. Default: all.")] = None,
    certificate: Gate = None,
    certificate_out: GateOut = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the bootstrap, the KL prompts and few-shot draws. Default: 0.")
    ] = None,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
    trust_remote_code: TrustCode = False,
) -> None:
    from anchorlwf.config import EvaluateConfig
    from anchorlwf.evaluation import certify, evaluate, named_hashes
    from anchorlwf.model.language_model import load_model

    quiet_libraries()
    given = {key: value for key, value in locals().items() if key in EvaluateConfig.model_fields}
    settings = options_from(EvaluateConfig, config, **given)
    gate, goal = _checked(settings.tasks, probes or records, certificate, certificate_out, to)
    weights = named_hashes(model, adapter, base, fetch=True) if gate else None
    load = partial(load_model, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    tuned, before = load(model, adapter=adapter), load(base) if base else None
    with phase_progress() as progress:
        results = evaluate(
            tuned, probes, records=records, base=before, out=to, config=settings, skip_bad=skip_bad, progress=progress
        )
    _print(results, as_json)
    if gate is not None:
        report = certify(results, gate, tuned, probes=probes, records=records, base=before, weights=weights, out=goal)
        _print_verdict(report, goal, as_json)
        raise typer.Exit(0 if report.passed else 3)


def _checked(
    tasks: list[str], data: Path | None, certificate: Path | None, given: Path | None, to: Path | None
) -> tuple["GateConfig | None", Path]:
    """What can be told before a model is loaded; and the gate, and where its certificate goes."""
    from anchorlwf.config import GateConfig
    from anchorlwf.files import ensure_writable

    if not tasks and data is None:
        fix = "Add --probes, --records or --tasks."
        raise ConfigError(wrong("evaluate", "something to ask", "nothing", fix))
    if tasks:
        require_extra("harness", "--tasks")
    path = given or (to.parent if to else Path()) / "certificate.json"
    if certificate is None:
        return None, path
    gate = GateConfig.load(certificate)
    ensure_writable(path)
    return gate, path


def _print(results: Any, as_json: bool) -> None:
    if as_json:
        print_json(results.as_dict())
    else:
        if results.answers:
            out.print(results.table())
        if results.tasks:
            out.print(results.task_table())
        _show_flips(results)


def _show_flips(results: Any) -> None:
    """The first answers that were right before and are wrong now, and the first documents of tasks."""
    flips = [(name, flip) for name, group in results.groups.items() for flip in group.flips]
    for name, flip in flips[:_SHOWN]:
        before, after = parted(flip["before"], flip["after"])
        out.print(f"flipped, {name}: {flip['question']!r}: {before!r} -> {after!r}")
    for name, task in results.tasks.items():
        for metric, change in task.metrics.items():
            if documents := change.right_to_wrong:
                more = f" and {len(documents) - _SHOWN} more" if len(documents) > _SHOWN else ""
                out.print(f"flipped, {name} {metric}: documents {', '.join(documents[:_SHOWN])}{more}")
    if len(flips) > _SHOWN:
        out.print(f"and {len(flips) - _SHOWN} more, all of them in --json and --out")


def _print_verdict(report: Any, path: Path, as_json: bool) -> None:
    # With --json, standard output holds the results alone.
    console = err if as_json else out
    for check in report.checks:
        console.print(str(check))
    console.print(f"{'Passed' if report.passed else 'NOT passed'}: {path} (SHA-256 {report.sha256[:12]})")
