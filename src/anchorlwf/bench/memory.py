"""The maximum of a process's memory, and how much training needs on few and on many records."""

import math
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from anchorlwf.bench.race import quiet, resident
from anchorlwf.config import TrainConfig
from anchorlwf.data.record import Anchor, Prompt, Record, new_id
from anchorlwf.model.language_model import LanguageModel, load_model
from anchorlwf.training import train

__all__ = ["in_its_own_process", "peak_mib", "synthetic_records", "train_many"]

_BATCH = 64


def peak_mib() -> float:
    """Maximum resident memory of this process since it was started."""
    if Path("/proc/self/status").is_file():
        # `getrusage` goes on from what the parent held when it forked.
        return resident("VmHWM") / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << (20 if sys.platform == "darwin" else 10))


def in_its_own_process(
    function: Callable[[int, str], dict[str, Any]], count: int, folder: str | Path
) -> dict[str, Any]:
    """`function(count, folder)` in a fresh process, for a peak never falls."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, (count, str(folder)))


def synthetic_records(model: LanguageModel, count: int) -> Iterator[Record]:
    """Short records of one anchor each, all different, one after another; no model is run."""
    stamp, stop = model.stamp, min(model.stop_ids)
    # Counted down, so that a few are as long as most of many.
    for number in range(99_999, 99_999 - count, -1):
        messages = [{"role": "user", "content": f"What is number {number}?"}]
        completion = f"Number {number} is {number * 7919 % 1000}."
        prompt_ids, ids = model.codec.encode_prompt(messages), [*model.codec.encode(completion), stop]
        anchor = Anchor(position=len(ids) - 2, token_id=ids[-2], source="target")
        yield Record.build(
            Prompt(messages=messages),
            stamp,
            prompt_ids=prompt_ids,
            completion_ids=ids,
            decode=model.codec.decode,
            record_id=new_id(number),
            anchors=[anchor],
        )


def train_many(count: int, folder: str | Path) -> dict[str, Any]:
    """Train the embedded model on a file of `count` short records: one pass, one step more, and the certificate.

    Returns:
        Steps, seconds with the reference cache and without writing the file, and the peak of this process's memory.
    """
    quiet()
    source, model = Path(folder) / f"records-{count}.jsonl", load_model()
    with open(source, "w", encoding="utf-8") as stream:
        stream.writelines(f"{record.model_dump_json()}\n" for record in synthetic_records(model, count))
    # With a single pass there would be no cache.
    config = TrainConfig(batch_size=_BATCH, max_steps=math.ceil(count / _BATCH) + 1, stop=False)
    begin = time.perf_counter()
    result = train(model, source, out=Path(folder) / f"run-{count}", config=config)
    assert result.records == count, "every line is another record"
    seconds = time.perf_counter() - begin
    return {"records": count, "steps": result.steps, "seconds": seconds, "peak_mib": peak_mib()}
