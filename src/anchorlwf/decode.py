"""Greedy decoding: token ids in, token ids out, over a cache that rewinds.

Shape suffixes: B prompts, T tokens, V vocabulary.
"""

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer

from anchorlwf.model import LanguageModel

__all__ = ["TIE", "Decoded", "GreedyDecoder", "Step", "decode_batch", "greedy_choices"]

TIE = 1e-3
"""Two logits closer than this (nats) are a tie: batched and incremental passes may rank them either way."""


@dataclass(frozen=True)
class Step:
    """One decoded token."""

    token_id: int
    probability: float
    """Of `token_id`, in [0, 1]."""
    alternatives: tuple[tuple[int, float], ...]
    """The top-k (id, probability), best first; `token_id` is the first of them."""


@dataclass(frozen=True)
class Decoded:
    """A whole greedy answer."""

    ids: list[int]
    """The end-of-turn token included, unless truncated."""
    truncated: bool
    """The token limit or the context ended it."""


class GreedyDecoder:
    """A key-value cache over one sequence, moved to any prefix at the least cost.

    Going back to a position drops the cache behind it; a cache that cannot rewind (sliding windows, state-space
    layers) is prefilled again. Either way the ids are those of decoding from scratch (exactly in float32; in bfloat16
    up to ties).
    """

    def __init__(self, model: LanguageModel, top_k: int = 1) -> None:
        self._model, self._top_k = model, top_k
        self._cache = DynamicCache(config=model.causal.config)
        self._ids: list[int] = []
        self._stop_ids = model.stop_ids

    @torch.inference_mode()
    def _feed(self, ids: list[int]) -> Tensor:
        """Logits (float32, [V]) after `ids` have been appended to the cache."""
        inputs_BT = torch.tensor([ids], device=self._model.device)
        output = self._model.net(input_ids=inputs_BT, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._ids += ids
        return output.logits[0, -1].float()

    def _rewind(self, length: int) -> None:
        removed = len(self._ids) - length
        # `is_croppable` claims too much for sliding and hybrid caches, so only the plain layer is trusted.
        if removed and length and all(type(layer) is DynamicLayer for layer in self._cache.layers):
            self._cache.crop(-removed)
            del self._ids[length:]
        elif removed:
            self._cache = DynamicCache(config=self._model.causal.config)
            self._ids = []

    def _move_to(self, ids: list[int]) -> Tensor:
        shared = 0
        for ours, theirs in zip(self._ids, ids[:-1], strict=False):
            if ours != theirs:
                break
            shared += 1
        self._rewind(shared)
        return self._feed(ids[len(self._ids) :])

    def _choose(self, logits_V: Tensor) -> Step:
        log_total = torch.logsumexp(logits_V, dim=-1)
        # topk breaks equal values differently from argmax; argmax (the lowest id) is the definition here.
        best = int(logits_V.argmax())
        values, ids = logits_V.topk(min(self._top_k, len(logits_V)))
        pairs = [(int(i), float((v - log_total).exp())) for v, i in zip(values, ids, strict=True) if int(i) != best]
        probability = float((logits_V[best] - log_total).exp())
        return Step(best, probability, ((best, probability), *pairs)[: self._top_k])

    def stream(self, prompt_ids: list[int], prefix_ids: list[int], limit: int) -> Iterator[Step]:
        """Continue greedily behind prompt + prefix, token by token, through the end-of-turn token.

        Args:
            prompt_ids: the templated prompt.
            prefix_ids: completion tokens that stand already.
            limit: most completion tokens in all, prefix included.

        Raises:
            PromptError: the prompt alone fills the context.
        """
        limit = self._model.room(prompt_ids, limit)
        count = len(prefix_ids)
        if count >= limit or (prefix_ids and prefix_ids[-1] in self._stop_ids):
            return
        logits_V = self._move_to([*prompt_ids, *prefix_ids])
        while True:
            step = self._choose(logits_V)
            yield step
            count += 1
            if step.token_id in self._stop_ids or count >= limit:
                return
            logits_V = self._feed([step.token_id])

    def complete(self, prompt_ids: list[int], prefix_ids: list[int], limit: int) -> Decoded:
        """`stream` to its end: prefix and continuation together."""
        ids = [*prefix_ids, *(step.token_id for step in self.stream(prompt_ids, prefix_ids, limit))]
        return Decoded(ids, truncated=not ids or ids[-1] not in self._stop_ids)

    def alternatives(self, prompt_ids: list[int], completion_ids: list[int]) -> list[Step]:
        """What the model would choose at every completion position, given the tokens before it (one forward pass)."""
        if not completion_ids:
            return []
        logits_TV = _completion_logits(self._model, [*prompt_ids, *completion_ids], len(prompt_ids))
        return [self._choose(logits_V) for logits_V in logits_TV]


@torch.inference_mode()
def _completion_logits(model: LanguageModel, ids: list[int], start: int) -> Tensor:
    """Float32 logits [T, V] that predict ids[start:]."""
    inputs_BT = torch.tensor([ids[:-1]], device=model.device)
    kept = len(ids) - start
    return model.net(input_ids=inputs_BT, use_cache=False, logits_to_keep=kept).logits[0, -kept:].float()


@dataclass(frozen=True)
class Choices:
    """The reference's view of a given completion, one entry per completion token."""

    best_ids: list[int]
    """Its greedy choice given the tokens before."""
    probabilities: list[float]
    """Its probability of the token that stands there."""
    tied: list[bool]
    """The standing token is not its choice, but within `TIE` of it."""


def greedy_choices(model: LanguageModel, prompt_ids: list[int], completion_ids: list[int]) -> Choices:
    """Replay a completion in ONE forward pass: the invariant of `docs/method.md` is read off the result."""
    if not completion_ids:
        return Choices([], [], [])
    logits_TV = _completion_logits(model, [*prompt_ids, *completion_ids], len(prompt_ids))
    stands_T = torch.tensor(completion_ids, device=logits_TV.device)[:, None]
    best_T = logits_TV.argmax(-1)
    own_T = logits_TV.gather(-1, stands_T)[:, 0]
    gap_T = logits_TV.max(-1).values - own_T
    probability_T = (own_T - logits_TV.logsumexp(-1)).exp()
    tied_T = (gap_T < TIE) & (best_T != stands_T[:, 0])
    return Choices(best_T.tolist(), probability_T.tolist(), tied_T.tolist())


@contextlib.contextmanager
def _plain_generation(model: LanguageModel) -> Iterator[GenerationConfig]:
    """Greedy and nothing else: `generate` would fill gaps of a passed config from the model's own, penalties too."""
    plain = GenerationConfig(do_sample=False, eos_token_id=sorted(model.stop_ids), pad_token_id=model.codec.pad_id)
    own, model.causal.generation_config = model.causal.generation_config, plain
    try:
        yield plain
    finally:
        model.causal.generation_config = own


def _answers(model: LanguageModel, prompts: list[list[int]], room: int) -> list[Decoded]:
    pad, width = model.codec.pad_id, max(map(len, prompts))
    left = [[pad] * (width - len(prompt)) for prompt in prompts]
    ids_BT = torch.tensor([gap + prompt for gap, prompt in zip(left, prompts, strict=True)], device=model.device)
    mask_BT = torch.tensor([[0] * len(gap) + [1] * (width - len(gap)) for gap in left], device=model.device)
    with _plain_generation(model):
        output_BT = model.net.generate(input_ids=ids_BT, attention_mask=mask_BT, max_new_tokens=room)
    answers = []
    for row in output_BT[:, width:].tolist():
        end = next((i + 1 for i, token in enumerate(row) if token in model.stop_ids), None)
        answers.append(Decoded(row[:end], truncated=end is None))
    return answers


@torch.inference_mode()
def decode_batch(
    model: LanguageModel, prompts: list[list[int]], limit: int, *, batch_size: int = 64
) -> Iterator[list[tuple[int, Decoded]]]:
    """Greedy answers of many prompts, in length-sorted batches.

    Args:
        model: decoded as it is (adapter on unless inside `model.reference()`).
        prompts: token ids, any lengths.
        limit: most new tokens each.
        batch_size: prompts per batch.

    Yields:
        One list per batch: (index into `prompts`, answer).
    """
    rooms = [model.room(prompt, limit) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    # Near the end of the context there is less room; such prompts go apart, so that they cut no other answer short.
    for room, group in itertools.groupby(order, key=rooms.__getitem__):
        alike = list(group)
        for start in range(0, len(alike), batch_size):
            chosen = alike[start : start + batch_size]
            answers = _answers(model, [prompts[index] for index in chosen], room)
            yield list(zip(chosen, answers, strict=True))
