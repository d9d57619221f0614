"""Competitors for test_bench.py, where other processes find them."""

import os
import time

import torch

from anchorlwf.errors import ConfigError

WORK = 0.03


def _small_pieces(count):
    """Many small pieces: these a heap would keep after the first run."""
    return sum(len(piece) for piece in [torch.ones(64 * 1024) for _ in range(count)])


def compete(setup, name, lap):
    if name == "missing":
        raise ConfigError("something is not installed")
    if name == "dies":
        os._exit(9)
    if name == "broken":
        raise ZeroDivisionError
    if name == "uneven":
        times = iter([WORK, 20 * WORK, WORK, WORK])
    if name == "fat":
        _small_pieces(1)  # what a library needs at its first use is no run's memory
    while True:
        lap(setup["held"])
        if name == "slow":
            time.sleep(3 * WORK)
        elif name == "fat":
            _small_pieces(setup["pieces"])
        else:
            time.sleep(next(times) if name == "uneven" else WORK)
