"""One correction of a tiny model from beginning to end: annotate, train, reload with plain PEFT, compare, recall."""

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from anchorlwf.annotation import Session
from anchorlwf.bench.zoo.architectures import Architecture, build
from anchorlwf.config import AnnotateConfig, TrainConfig
from anchorlwf.data.record import Prompt, Record
from anchorlwf.decoding.cache_use import cache_use
from anchorlwf.decoding.greedy import GreedyDecoder
from anchorlwf.model.language_model import LanguageModel, load_model
from anchorlwf.training import train

__all__ = ["TOLERANCE", "Trial", "try_out"]

TOLERANCE = 1e-5
"""Largest difference of logits between the tuned model and its adapter on a base loaded without us, by the largest."""
_QUESTIONS, _ANSWER, _STEPS, _RATE = 8, 8, 100, 1e-2


@dataclass(frozen=True)
class Trial:
    """What became of one architecture."""

    targets: str
    """What trained, in words."""
    rewinds: bool
    """A correction drops the cache behind it; otherwise the prompt is prefilled again."""
    steps: int
    gap: float
    """See `TOLERANCE`."""
    recalled: bool
    """The tuned model, decoded greedily, gives the corrected answer."""


def try_out(architecture: Architecture, folder: Path) -> Trial:
    """Build, correct, train, reload and compare one architecture in `folder`.

    Raises:
        AnchorLwfError: the architecture is refused, and why.
    """
    base = folder / "base"
    net, tokenizer = build(architecture)
    net.save_pretrained(base)
    tokenizer.save_pretrained(base)
    model = load_model(str(base), dtype="float32", device="cpu")
    record = _corrected(model)
    config = TrainConfig(max_steps=_STEPS, learning_rate=_RATE, drift_budget=1.0)
    result = train(model, [record], out=folder / "run", config=config)
    decoder = GreedyDecoder(model)
    recalled = decoder.complete(record.prompt_ids, [], len(record.completion_ids)).ids == record.completion_ids
    gap = _reloaded_gap(architecture, model, base, Path(result.weights), record)
    return Trial(str(model.targets), cache_use(model).rewinds, result.steps, gap, recalled)


def _corrected(model: LanguageModel) -> Record:
    """The correction whose other tokens the model is surest of: with random weights it often hardly prefers any."""
    records = [_corrected_answer(model, f"Where was she born? {number}") for number in range(_QUESTIONS)]
    return max((record for record in records if record.anchors), key=lambda record: _margin(model, record))


def _corrected_answer(model: LanguageModel, question: str) -> Record:
    """The model's own answer with its third token replaced by the second best, continued greedily."""
    prompt = Prompt(messages=[{"role": "user", "content": question}])
    session = Session(model, prompt, AnnotateConfig(max_new_tokens=_ANSWER))
    place = min(2, len(session.state.completion_ids) - 1)
    second = session.steps()[place].alternatives[1][0]
    session.correct(place, [second], confidence=1.0, source="trial")
    return session.record("complete")


def _margin(model: LanguageModel, record: Record) -> float:
    """The smallest lead of a keep token over the next best, in nats."""
    steps = GreedyDecoder(model, top_k=2).alternatives(record.prompt_ids, record.completion_ids)
    anchors = {anchor.position for anchor in record.anchors}
    leads = (math.log(one / other) for (_, one), (_, other) in (step.alternatives for step in steps))
    return min(lead for place, lead in enumerate(leads) if place not in anchors)


@torch.no_grad()
def _reloaded_gap(architecture: Architecture, model: LanguageModel, base: Path, adapter: Path, record: Record) -> float:
    kind = AutoModelForImageTextToText if architecture.vision else AutoModelForCausalLM
    plain = kind.from_pretrained(base, dtype=torch.float32)
    reloaded = PeftModel.from_pretrained(plain, str(adapter)).eval()
    ids_BT = torch.tensor([[*record.prompt_ids, *record.completion_ids]])
    ours_BTV, theirs_BTV = (net(input_ids=ids_BT, use_cache=False).logits for net in (model.net, reloaded))
    with plain_base(reloaded):
        base_BTV = reloaded(input_ids=ids_BT, use_cache=False).logits
    assert not torch.allclose(base_BTV, ours_BTV), "the adapter changes nothing"
    return float((ours_BTV - theirs_BTV).abs().max() / ours_BTV.abs().max())


def plain_base(net: PeftModel) -> contextlib.AbstractContextManager[None]:
    """The base under the adapter."""
    return net.disable_adapter()
