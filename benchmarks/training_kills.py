"""kill -9 of training at random moments: does every run resume, and does it end as if nothing had happened?

    python benchmarks/training_kills.py [--kills 40] [--seed 7]

`anchorlwf train` on the embedded model and three records, with dropout and a checkpoint after every step, is killed,
resumed, and killed again. Each run must end with the adapter, the metrics and the certificate of a run that nobody
disturbed, bit by bit, and leave no part of a file behind. (`kills.py` is the annotator's.) Prints JSON.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from killed_training import killed_runs

from anchorlwf.annotation import annotate
from anchorlwf.config import TrainConfig
from anchorlwf.data.jsonl import save_records
from anchorlwf.model.language_model import load_model
from anchorlwf.world import build_world, draw_errata

STEPS = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="anchorlwf-training-kills-") as name:
        folder = Path(name)
        errata = draw_errata(build_world(), 3, 0, seed=3)
        save_records(folder / "records.jsonl", annotate(load_model(), [one.prompts(1)[0] for one in errata]))
        # Two batches an epoch, so that most checkpoints lie within one; a budget that keeps beta moving.
        TrainConfig(max_steps=STEPS, stop=False, batch_size=2, lora_dropout=0.1, save_steps=1, drift_budget=1e-6).save(
            folder / "train.yaml"
        )
        arguments = ["train", folder / "records.jsonl", "--config", folder / "train.yaml"]
        report = asdict(killed_runs(folder, arguments, options.kills, options.seed))
    told = {**report, "seconds": round(time.perf_counter() - began), "load": round(os.getloadavg()[0], 1)}
    print(json.dumps(told, indent=2))
    sys.exit(1 if report["wrong"] else 0)


if __name__ == "__main__":
    main()
