"""A training step's forward and backward pass on padded and on packed records, in turn; the embedded model.

Shape suffixes: N completion tokens, D hidden width.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from anchorlwf.config import Config, Count, Seed
from anchorlwf.divergence import completion_hidden, divergence
from anchorlwf.model.batch import Batch, KeepTurn, collate, pack
from anchorlwf.model.head import read_head, reference_head
from anchorlwf.model.language_model import LanguageModel, load_model

__all__ = ["PackingSetup", "measure_packing"]

_LENGTHS = {"mixed": (20, 200), "equal": (110, 110), "equal, short": (30, 30), "short": (20, 40), "tiny": (4, 12)}
"""Shortest and longest record, in tokens."""
_SHORT, _LONG = 20, 400
"""Tokens of the records in `one long`."""
_WARM_UP = 2


class PackingSetup(Config):
    """A batch of records of random token ids. Half of each is prompt; every twentieth completion token is an anchor."""

    section: ClassVar[str] = "packing"

    records: Count = 16
    seed: Seed = 0


def measure_packing(setup: PackingSetup, *, runs: int, on_run: Callable[[int, int], None]) -> list[dict[str, Any]]:
    """Median processor seconds of both kinds of batch, for several distributions of record lengths.

    Processor time, so that other work on the machine disturbs less. The reference's hidden states are computed
    beforehand, as in training, and the optimizer's step is left out.

    Args:
        setup: how many records.
        runs: timed passes of each kind.
        on_run: called with (distributions done, all).

    Returns:
        By distribution: `lengths`, `tokens`, `padded_tokens`, `padded_seconds`, `packed_seconds` and their `ratio`.
    """
    model = load_model(dtype="float32", device="cpu")
    model.attach_lora(8, 64.0, 0.0, "mlp", setup.seed)
    model.net.train()
    rows = []
    drawn = _drawn_lengths(setup)
    for number, (name, lengths) in enumerate(drawn.items(), 1):
        seconds = _seconds(model, lengths, runs, setup.seed)
        rows.append(
            {
                "lengths": name,
                "tokens": sum(lengths),
                "padded_tokens": max(lengths) * len(lengths),
                **{f"{kind}_seconds": value for kind, value in seconds.items()},
                "ratio": seconds["padded"] / seconds["packed"],
            }
        )
        on_run(number, len(drawn))
    return rows


def _drawn_lengths(setup: PackingSetup) -> dict[str, list[int]]:
    generator = torch.Generator().manual_seed(setup.seed)
    drawn = {
        name: torch.randint(shortest, longest + 1, (setup.records,), generator=generator).tolist()
        for name, (shortest, longest) in _LENGTHS.items()
    }
    return {**drawn, "one long": [_SHORT] * (setup.records - 1) + [_LONG]}


def _seconds(model: LanguageModel, lengths: list[int], runs: int, seed: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(seed)
    turns = []
    for length in lengths:
        ids = torch.randint(0, model.vocabulary, (length + 1,), generator=generator).tolist()
        turns.append(KeepTurn(ids[: length // 2], ids[length // 2 :]))
    batches = {
        kind: batch._replace(confidence_N=(torch.arange(len(batch.token_ids_N)) % 20 == 0).float())
        for kind, batch in (("padded", collate(turns, model.codec.pad_id)), ("packed", pack(turns)))
    }
    with model.as_reference() as reference:
        known = {kind: completion_hidden(reference.net, reference.backbone, batch) for kind, batch in batches.items()}
    seconds: dict[str, list[float]] = {kind: [] for kind in batches}
    for run in range(_WARM_UP + runs):
        for kind, batch in batches.items():
            spent = _pass(model, batch, known[kind])
            if run >= _WARM_UP:
                seconds[kind].append(spent)
    return {kind: statistics.median(spent) for kind, spent in seconds.items()}


def _pass(model: LanguageModel, batch: Batch, ref_hidden_ND: Tensor) -> float:
    """Processor seconds of one forward and backward pass."""
    heads = read_head(model), reference_head(model)
    began = time.process_time()
    hidden_ND = completion_hidden(model.net, model.backbone, batch)
    scored = divergence(hidden_ND, ref_hidden_ND, heads, batch.token_ids_N, batch.confidence_N)
    scored.divergence_N.mean().backward()
    spent = time.process_time() - began
    model.net.zero_grad()
    return spent
