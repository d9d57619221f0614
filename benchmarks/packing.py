"""A training step's forward and backward pass on padded and on packed records, in turn, medians; the embedded model.

    OMP_NUM_THREADS=1 python benchmarks/packing.py [--repeats 15]

The reference's hidden states are known beforehand, as in training; the optimizer's step is left out. Processor time, so
that other work on the machine disturbs less.
"""

import argparse
import os
import statistics
import time

import torch
from torch import Tensor

from anchorlwf.divergence import completion_hidden, divergence
from anchorlwf.model.batch import Batch, KeepTurn, collate, pack
from anchorlwf.model.head import read_head, reference_head
from anchorlwf.model.language_model import LanguageModel, load_model

RECORDS, SEED = 16, 0
RANGES = {"mixed": (20, 200), "equal": (110, 110), "equal, short": (30, 30), "short": (20, 40), "tiny": (4, 12)}
"""Shortest and longest record, in tokens."""


def step(model: LanguageModel, batch: Batch, ref_hidden_ND: Tensor) -> float:
    """Processor seconds of one forward and backward pass."""
    heads = read_head(model), reference_head(model)
    begin = time.process_time()
    hidden_ND = completion_hidden(model.net, model.backbone, batch)
    divergence(hidden_ND, ref_hidden_ND, heads, batch.token_ids_N, batch.confidence_N).mean().backward()
    seconds = time.process_time() - begin
    model.net.zero_grad()
    return seconds


def measure(model: LanguageModel, lengths: list[int], repeats: int) -> dict[str, float]:
    """Median seconds by kind of batch. Half a record is prompt; every twentieth completion token is an anchor."""
    generator = torch.Generator().manual_seed(SEED)
    records = []
    for length in lengths:
        ids = torch.randint(0, model.vocabulary, (length + 1,), generator=generator).tolist()
        records.append(KeepTurn(ids[: length // 2], ids[length // 2 :]))
    batches = {"padded": collate(records, model.codec.pad_id), "packed": pack(records)}
    known = {}
    for kind, batch in batches.items():
        batches[kind] = batch._replace(confidence_N=(torch.arange(len(batch.token_ids_N)) % 20 == 0).float())
        with model.as_reference() as reference:
            known[kind] = completion_hidden(reference.net, reference.backbone, batch)
    seconds: dict[str, list[float]] = {kind: [] for kind in batches}
    for repeat in range(repeats + 2):
        for kind, batch in batches.items():
            took = step(model, batch, known[kind])
            if repeat >= 2:  # the first two warm up
                seconds[kind].append(took)
    return {kind: statistics.median(times) for kind, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    model = load_model(dtype="float32", device="cpu")
    model.attach_lora(8, 64.0, 0.0, "mlp", SEED)
    model.net.train()
    generator = torch.Generator().manual_seed(SEED)
    rows = {
        name: torch.randint(low, high + 1, (RECORDS,), generator=generator).tolist()
        for name, (low, high) in RANGES.items()
    }
    rows["one long"] = [20] * (RECORDS - 1) + [400]
    print(f"load {os.getloadavg()[0]:.1f}, {torch.get_num_threads()} threads")
    for name, lengths in rows.items():
        found, padded = measure(model, lengths, options.repeats), max(lengths) * RECORDS
        print(
            f"{name:14s} {sum(lengths):5d} of {padded:5d} tokens ({padded / sum(lengths):4.2f})  "
            f"padded {found['padded'] * 1e3:7.1f} ms  packed {found['packed'] * 1e3:7.1f} ms  "
            f"ratio {found['padded'] / found['packed']:.2f}"
        )
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
