"""Corrections of the embedded model over many seeds: what is learned and what is kept, as JSON and a Markdown table.

python -m anchorlwf.bench.seeds --seeds 8 --facts 4 --out docs/results/seeds_4.json
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from anchorlwf.annotation import annotate
from anchorlwf.bench.race import quiet
from anchorlwf.config import TrainConfig
from anchorlwf.evaluation import evaluate
from anchorlwf.files import write_atomic
from anchorlwf.model.language_model import load_model
from anchorlwf.run import environment
from anchorlwf.training import train
from anchorlwf.world import build_world, draw_errata, probes_for

__all__ = ["measure_seed", "seeds_table"]

_FRACTIONS = ("recall", "paraphrase", "near", "kept", "skills")
_COSTS = ("kl", "anchors", "steps", "train_seconds")


def measure_seed(seed: int, facts: int, wordings: int, config: TrainConfig) -> dict[str, Any]:
    """Annotate, train and evaluate the corrections that a seed draws.

    Args:
        seed: draws the facts.
        facts: how many are corrected, beside one identity.
        wordings: of each fact, that are annotated; others are asked as paraphrases.
        config: of training.
    """
    model, world = load_model(), build_world()
    errata = draw_errata(world, facts, 1, seed)
    records = annotate(model, [prompt for erratum in errata for prompt in erratum.prompts(wordings)], "target")
    with tempfile.TemporaryDirectory() as folder:
        training = train(model, records, out=folder, config=config)
    results = evaluate(model, probes_for(world, errata, wordings), records=records).as_dict()
    return {
        "seed": seed,
        **{name: results[name] for name in (*_FRACTIONS, "kl")},
        "anchors": training.anchors,
        "steps": training.steps,
        "converged": training.converged,
        "train_seconds": round(training.seconds, 2),
    }


def seeds_table(rows: list[dict[str, Any]]) -> str:
    """Markdown: one row per seed, then the mean and the worst."""
    names = (*_FRACTIONS, *_COSTS)
    mean = {name: statistics.mean(row[name] for row in rows) for name in names}
    worst = {name: (max if name in _COSTS else min)(row[name] for row in rows) for name in names}
    lines = [
        "| seed | recall | paraphrase | near | kept | skills | kl | anchors | steps | seconds |",
        "|---" * 10 + "|",
    ]
    for label, row in [*((row["seed"], row) for row in rows), ("mean", mean), ("worst", worst)]:
        fractions = " | ".join(f"{row[name]:.1%}" for name in _FRACTIONS)
        costs = f"{row['kl']:.5f} | {row['anchors']:.0f} | {row['steps']:.0f} | {row['train_seconds']:.1f}"
        lines.append(f"| {label} | {fractions} | {costs} |")
    return "\n".join(lines)


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8, help="how many, from 1 on")
    parser.add_argument("--facts", type=int, default=4, help="facts corrected, beside one identity")
    parser.add_argument("--wordings", type=int, default=3, choices=(1, 2, 3), help="annotated wordings of each")
    parser.add_argument("--config", type=Path, help="YAML file of training options")
    parser.add_argument("--out", type=Path, required=True, help="JSON file, written after every seed")
    options = parser.parse_args()
    quiet()
    config = TrainConfig.load(options.config) if options.config else TrainConfig()
    rows = []
    for seed in range(1, options.seeds + 1):
        rows.append(measure_seed(seed, options.facts, options.wordings, config))
        print(rows[-1], file=sys.stderr, flush=True)
        report = {
            "command": " ".join(["python -m anchorlwf.bench.seeds", *sys.argv[1:]]),
            "environment": environment(),
            "config": config.model_dump(),
            "facts": options.facts,
            "wordings": options.wordings,
            "rows": rows,
        }
        write_atomic(options.out, json.dumps(report, indent=2) + "\n")
    print(seeds_table(rows))


if __name__ == "__main__":
    _main()
