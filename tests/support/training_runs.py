"""Small training runs, and how two of them are compared."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from anchorlwf.annotation import Session, annotate
from anchorlwf.config import AnnotateConfig, TrainConfig
from anchorlwf.data.record import Prompt
from anchorlwf.world import build_world, draw_errata


def world_corrections(model, count):
    """Records of facts of the embedded world that are to become others."""
    return annotate(model, [erratum.prompts(1)[0] for erratum in draw_errata(build_world(), count, 0, seed=3)])


def corrections(model, count, *, confidence=1.0, length=12, seed=0, likely=False):
    """Records of the model's own answers with one token put in (random, or the second best), continued greedily."""
    generator = torch.Generator().manual_seed(seed)
    config = AnnotateConfig(max_new_tokens=length)
    records = []
    for index in range(count):
        session = Session(model, Prompt(messages=[{"role": "user", "content": f"question {index}"}]), config)
        position = min(2, len(session.state.completion_ids) - 1)
        token = int(torch.randint(40, 300, (1,), generator=generator))
        if likely:
            token = session.steps()[position].alternatives[1][0]
        session.correct(position, [token], confidence=confidence, source="test")
        records.append(session.record("complete"))
    return records


def adapter(folder):
    return load_file(Path(folder) / "adapter" / "adapter_model.safetensors")


def largest_gap(one, other):
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def steps(count, **options):
    # A steady beta, so that losses of different steps can be compared.
    return TrainConfig(**{"max_steps": count, "stop": False, "beta": 1.0, "drift_budget": 100.0, **options})
