"""Started by torchrun from test_training.py: trains on two processes, and again from the checkpoint before the last."""

import os
import sys
from pathlib import Path

from accelerate import PartialState

from anchorlwf.config import TrainConfig
from anchorlwf.training import train

model, records, out = sys.argv[1:]
assert os.environ["WORLD_SIZE"] == "2", "torchrun started another number of processes"
config = TrainConfig.load(f"{out}.yaml")
train(model, records, out=out, config=config)
if PartialState().is_main_process:
    Path(out, "adapter").rename(f"{out}-first")
train(model, records, out=out, config=config, resume=True)
PartialState().destroy_process_group()
