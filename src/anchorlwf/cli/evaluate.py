"""Measure what a tuned model learned and what it kept, by free-running greedy decoding.

Learned: recall and paraphrases. Kept: facts, near facts and skills that the base had right. Drift: KL(reference ||
model) per token on held-out continuations. Prints a table; --out writes results.json.

Examples:
  anchorlwf evaluate --adapter runs/demo/adapter --probes runs/demo/probes.jsonl --records runs/demo/records.jsonl
  anchorlwf evaluate --model ./tuned --base ./base --probes probes.jsonl --out results.json --json
"""

from pathlib import Path
from typing import Annotated

import typer

from anchorlwf.cli.shared import (
    Adapter,
    AsJson,
    Model,
    SkipBad,
    TrustCode,
    out,
    phase_progress,
    print_json,
    quiet_libraries,
)


def evaluate(
    probes: Annotated[Path, typer.Option(help="probes.jsonl: questions with right answers.")],
    model: Model = None,
    adapter: Adapter = None,
    base: Annotated[str | None, typer.Option(help="The model before training, for a fully tuned model.")] = None,
    records: Annotated[Path | None, typer.Option(help="The records it was trained on.")] = None,
    to: Annotated[Path | None, typer.Option("--out", "-o", help="Write results.json here.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Most tokens of an answer.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Prompts decoded together.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the bootstrap and the choice of KL prompts.")] = None,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
    trust_remote_code: TrustCode = False,
) -> None:
    from anchorlwf.config import EvaluateConfig
    from anchorlwf.evaluation import evaluate
    from anchorlwf.model import load_model

    quiet_libraries()
    config = EvaluateConfig.of(max_new_tokens=max_new_tokens, batch_size=batch_size, seed=seed)
    tuned = load_model(model, adapter=adapter, trust_remote_code=trust_remote_code)
    before = load_model(base, trust_remote_code=trust_remote_code) if base else None
    with phase_progress() as progress:
        results = evaluate(tuned, probes, records=records, base=before, out=to, config=config, skip_bad=skip_bad,
                           progress=progress)
    if as_json:
        print_json(results.as_dict())
    else:
        out.print(results.table())
