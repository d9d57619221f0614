"""Training on two processes, and again from the checkpoint before the last."""

import os
import sys
from pathlib import Path

from accelerate import PartialState

from anchorlwf.config import TrainConfig
from anchorlwf.training import train


def train_twice(model: str, records: str, out: str) -> None:
    """In each of the two processes, as torchrun starts them or `as_rank`."""
    assert os.environ["WORLD_SIZE"] == "2", "another number of processes was started"
    config = TrainConfig.load(f"{out}.yaml")
    train(model, records, out=out, config=config)
    if PartialState().is_main_process:
        Path(out, "adapter").rename(f"{out}-first")
    train(model, records, out=out, config=config, resume=True)
    PartialState().destroy_process_group()


def as_rank(rank: int, port: int, log: Path, arguments: list[str]) -> None:
    """In a process that was forked: what torchrun would have started it with."""
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ |= {name: str(value) for name, value in own.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with log.open("a") as stderr:
        os.dup2(stderr.fileno(), 2)
    train_twice(*arguments)


if __name__ == "__main__":
    train_twice(*sys.argv[1:])
