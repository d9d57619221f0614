"""What every process forked by a test begins with: see `forks`. Nothing else imports this module."""

import gc

from anchorlwf.model.language_model import load_model

# The first model of a process takes a second of looking things up, the next ones a twentieth.
load_model(dtype="float32", device="cpu")
# What is here now is here for good: a fork need not go through it whenever it collects garbage.
gc.collect()
gc.freeze()
