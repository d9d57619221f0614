"""What every process forked by a test begins with: see `forks`. Nothing else imports this module."""

import gc

import torch

from anchorlwf.model.language_model import load_model

# A pool of threads would not come along with a fork.
torch.set_num_threads(1)
# The first model of a process takes a second of looking things up, the next ones a twentieth.
load_model(dtype="float32", device="cpu")
# What is here now is here for good: a fork need not go through it whenever it collects garbage.
gc.collect()
gc.freeze()
