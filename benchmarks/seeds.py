"""Corrections of the embedded model over many seeds: what is learned, what is kept. Writes JSON and a Markdown table.

python benchmarks/seeds.py --seeds 8 --facts 4 --out docs/results/seeds_4.json
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from anchorlwf.annotation import annotate
from anchorlwf.cli.shared import quiet_libraries
from anchorlwf.config import TrainConfig
from anchorlwf.evaluation import evaluate
from anchorlwf.files import write_atomic
from anchorlwf.model.language_model import load_model
from anchorlwf.run import environment
from anchorlwf.training import train
from anchorlwf.world import build_world, draw_errata, probes_for

MEASURES = ("recall", "paraphrase", "near", "kept", "skills", "kl")


def one_seed(seed, facts, wordings, config):
    """Annotate, train and evaluate the corrections that this seed draws."""
    model, world = load_model(), build_world()
    errata = draw_errata(world, facts, 1, seed)
    records = annotate(model, [prompt for erratum in errata for prompt in erratum.prompts(wordings)], "target")
    with tempfile.TemporaryDirectory() as folder:
        training = train(model, records, out=folder, config=config)
    results = evaluate(model, probes_for(world, errata, wordings), records=records).as_dict()
    return {
        "seed": seed,
        **{name: results[name] for name in MEASURES},
        "anchors": training.anchors,
        "steps": training.steps,
        "converged": training.converged,
        "train_seconds": round(training.seconds, 2),
    }


def table(rows):
    """Markdown: one row per seed, then the mean and the worst."""
    heading = "| seed | recall | paraphrase | near | kept | skills | kl | anchors | steps | seconds |"
    lines = [heading, "|---" * 10 + "|"]
    shown = [(row["seed"], row) for row in rows]
    numbers = [*MEASURES, "anchors", "steps", "train_seconds"]
    shown.append(("mean", {name: statistics.mean(row[name] for row in rows) for name in numbers}))
    worst = {
        name: (max if name in ("kl", "anchors", "steps", "train_seconds") else min)(row[name] for row in rows)
        for name in numbers
    }
    shown.append(("worst", worst))
    for name, row in shown:
        percents = " | ".join(f"{row[measure]:.1%}" for measure in MEASURES[:-1])
        lines.append(
            f"| {name} | {percents} | {row['kl']:.5f} | {row['anchors']:.0f} | {row['steps']:.0f} | "
            f"{row['train_seconds']:.1f} |"
        )
    return "\n".join(lines)


def main():
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--facts", type=int, default=4)
    parser.add_argument("--wordings", type=int, default=3, choices=(1, 2, 3))
    parser.add_argument("--config", type=Path, help="YAML of training options")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    quiet_libraries()
    config = TrainConfig.load(arguments.config) if arguments.config else TrainConfig()
    rows = []
    for seed in range(1, arguments.seeds + 1):
        rows.append(one_seed(seed, arguments.facts, arguments.wordings, config))
        print(rows[-1], file=sys.stderr, flush=True)
        report = {
            "command": " ".join(sys.argv),
            "environment": environment(),
            "config": config.model_dump(),
            "facts": arguments.facts,
            "wordings": arguments.wordings,
            "rows": rows,
        }
        write_atomic(arguments.out, json.dumps(report, indent=2) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
