"""Competitors for test_bench.py, where other processes find them."""

import os
import time

import torch

from anchorlwf.errors import ConfigError

WORK = 0.03


def compete(setup, name, turn):
    if name == "missing":
        raise ConfigError("something is not installed")
    if name == "dies":
        os._exit(9)
    if name == "broken":
        raise ZeroDivisionError
    if name == "uneven":
        times = iter([WORK, 20 * WORK, WORK, WORK])
    while True:
        turn(setup["held"])
        if name == "slow":
            time.sleep(3 * WORK)
        elif name == "fat":
            # Many small pieces: these a heap would keep after the first run.
            pieces = [torch.ones(64 * 1024) for _ in range(setup["pieces"])]
            del pieces
        else:
            time.sleep(next(times) if name == "uneven" else WORK)
