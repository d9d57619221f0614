"""Measure what a tuned model learned and what it kept, by free-running greedy decoding.

--generation own decodes as the model's generation_config.json has it, repetition penalty and sampling included.

Learned: recall and paraphrases. Kept: facts, near facts and skills that the base had right. Drift: KL(reference ||
model) per token on held-out continuations. Prints a table; --out writes results.json.

--tasks runs lm-evaluation-harness on base and tuned model, document by document (needs anchorlwf[evalharness]).
--certificate holds the results against the thresholds of a YAML file and writes certificate.json; exit code 3 if the
model falls short of one, or one was not measured.

Examples:
  anchorlwf evaluate --adapter runs/demo/adapter --probes runs/demo/probes.jsonl --records runs/demo/records.jsonl
  anchorlwf evaluate --model ./tuned --base ./base --probes probes.jsonl --out results.json --json
  anchorlwf evaluate --adapter runs/demo/adapter --probes probes.jsonl --certificate gate.yaml
  anchorlwf evaluate --model ./tuned --base ./base --probes probes.jsonl --tasks mmlu,gsm8k --task-limit 200
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from anchorlwf.cli.shared import (
    Adapter,
    AsJson,
    Base,
    Model,
    SkipBad,
    TrustCode,
    err,
    out,
    phase_progress,
    print_json,
    quiet_libraries,
)
from anchorlwf.config import EvaluateConfig, GateConfig
from anchorlwf.files import ensure_writable

Gate = Annotated[Path | None, typer.Option(help="YAML of thresholds the model must reach.")]
GateOut = Annotated[Path | None, typer.Option(help="Default: certificate.json, beside --out or here.")]


def evaluate(
    probes: Annotated[Path, typer.Option(help="probes.jsonl: questions with right answers.")],
    model: Model = None,
    adapter: Adapter = None,
    base: Base = None,
    records: Annotated[Path | None, typer.Option(help="The records it was trained on.")] = None,
    to: Annotated[Path | None, typer.Option("--out", "-o", help="Write results.json here.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML of options; those given here win.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Most tokens of an answer.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Prompts decoded together.")] = None,
    generation: Annotated[
        Literal["greedy", "own"] | None, typer.Option(help="greedy (default), or the model's own generation config.")
    ] = None,
    tasks: Annotated[str | None, typer.Option(help="lm-evaluation-harness tasks: name,name.")] = None,
    tasks_path: Annotated[str | None, typer.Option(help="Folder of task YAML files of your own.")] = None,
    task_limit: Annotated[int | None, typer.Option(help="Most documents per task.")] = None,
    certificate: Gate = None,
    certificate_out: GateOut = None,
    seed: Annotated[int | None, typer.Option(help="Of bootstrap, KL prompts and few-shot draws.")] = None,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
    trust_remote_code: TrustCode = False,
) -> None:
    from anchorlwf.evaluation import certify, evaluate, named_hashes
    from anchorlwf.model.language_model import load_model

    quiet_libraries()
    limits = {"max_new_tokens": max_new_tokens, "batch_size": batch_size, "task_limit": task_limit, "seed": seed}
    settings = EvaluateConfig.load(config) if config else EvaluateConfig()
    settings = settings.updated(tasks=_names(tasks), tasks_path=tasks_path, generation=generation, **limits)
    gate, goal = _gate(certificate, certificate_out, to)
    weights = named_hashes(model, adapter, base, fetch=True) if gate else None
    tuned = load_model(model, adapter=adapter, trust_remote_code=trust_remote_code)
    before = load_model(base, trust_remote_code=trust_remote_code) if base else None
    with phase_progress() as progress:
        results = evaluate(
            tuned, probes, records=records, base=before, out=to, config=settings, skip_bad=skip_bad, progress=progress
        )
    _print(results, as_json)
    if gate is not None:
        report = certify(results, gate, tuned, probes=probes, records=records, base=before, weights=weights, out=goal)
        _print_verdict(report, goal, as_json)
        raise typer.Exit(0 if report.passed else 3)


def _names(tasks: str | None) -> list[str] | None:
    return None if tasks is None else [name for part in tasks.split(",") if (name := part.strip())]


def _gate(certificate: Path | None, given: Path | None, to: Path | None) -> tuple[GateConfig | None, Path]:
    """The gate, and where its certificate goes; both are checked before the model is loaded."""
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
        out.print(results.table())
        if results.tasks:
            out.print(results.task_table())


def _print_verdict(report: Any, path: Path, as_json: bool) -> None:
    # With --json, standard output holds the results alone.
    console = err if as_json else out
    for check in report.checks:
        console.print(str(check))
    console.print(f"{'Passed' if report.passed else 'NOT passed'}: {path} (SHA-256 {report.sha256[:12]})")
