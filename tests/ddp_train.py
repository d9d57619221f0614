"""Started by torchrun from test_training.py: trains on two processes and saves the adapter."""

import os
import sys

from accelerate import PartialState

from anchorlwf.config import TrainConfig
from anchorlwf.training import train

model, records, out = sys.argv[1:]
assert os.environ["WORLD_SIZE"] == "2", "torchrun started another number of processes"
train(model, records, out=out, config=TrainConfig.load(f"{out}.yaml"))
PartialState().destroy_process_group()
