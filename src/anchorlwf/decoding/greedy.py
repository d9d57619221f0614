"""Decoding: token ids in, token ids out. Greedy, over a cache that rewinds; or sampled, many at a time.

Shape suffixes: B prompts, T tokens, K alternatives, V vocabulary.
"""

import contextlib
import copy
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from anchorlwf.decoding.cache_use import cache_bytes, cache_use, generate_use, take_back, trim
from anchorlwf.decoding.speculation import Speculator
from anchorlwf.decoding.teacher_forcing import TIE, Choices, choices_of, greedy_choices
from anchorlwf.model.language_model import LanguageModel

__all__ = [
    "TIE",
    "Choices",
    "Decoded",
    "GreedyDecoder",
    "Pace",
    "Step",
    "decode_batch",
    "greedy_choices",
    "greedy_passes",
    "prefill",
    "sample_batch",
]


_PADDING, _BATCH_TOKENS = 32, 2**16
"""Tokens by which any prompt may be shorter than the longest of its batch; and of a batch with its answers, at most."""
Settings = Literal["greedy", "own"]
"""Plain greedy decoding, or the model's own generation config."""


@dataclass(frozen=True)
class Step:
    """One decoded token."""

    token_id: int
    probability: float
    """Of `token_id`, in [0, 1]."""
    alternatives: tuple[tuple[int, float], ...]
    """The top-k (id, probability), best first; `token_id` is the first of them."""
    entropy: float | None = None
    """Of the whole distribution, in nats; None where it was not asked for, or a server does not tell."""


@dataclass(frozen=True)
class Decoded:
    """A whole answer."""

    ids: list[int]
    """The end-of-turn token included, unless truncated."""
    truncated: bool
    """The token limit or the context ended it."""


@dataclass
class Pace:
    """How many prompt tokens are fed at once: as many as take so long, for others wait meanwhile."""

    seconds: float
    smallest: int
    largest: int
    tokens: int = 64
    """The present number, between the two."""

    def took(self, tokens: int, seconds: float) -> None:
        """A pass over so many tokens took so long. A single slow one may have had other reasons: it halves at most."""
        wanted = int(tokens * self.seconds / max(seconds, 1e-9))
        near = min(max(wanted, self.tokens // 2), self.tokens * 2)
        self.tokens = min(max(near, self.smallest), self.largest)


class GreedyDecoder:
    """A key-value cache over one sequence, moved to any prefix at the least cost.

    Going back to a position drops the cache behind it. A sliding window keeps what has left it for some time, so that
    it can go back by 2,048 tokens or more; a cache that cannot rewind (state-space layers) is prefilled again, and a
    network without one is fed everything each time. Either way the ids are those of decoding from scratch (exactly in
    float32; in bfloat16 up to ties).

    Args:
        model: decoded as it is (adapter on unless inside `model.reference()`).
        top_k: alternatives given with each token.
        entropy: give each step its entropy.
        pace: of `prefill`, shared by all decoders of a model; None: it has nothing to do.
    """

    def __init__(
        self, model: LanguageModel, top_k: int = 1, *, entropy: bool = False, pace: Pace | None = None
    ) -> None:
        self._model, self._top_k, self._entropy, self._pace = model, top_k, entropy, pace
        self._use = cache_use(model)
        self._cache = self._use.empty(model)
        self._ids: list[int] = []
        self.stop_ids = model.stop_ids

    @property
    def rewinds(self) -> bool:
        """Tokens can be taken back at no cost, so that trying the expected ones is worth while."""
        return self._use.rewinds or self._cache is None

    @property
    def nbytes(self) -> int:
        """Bytes the cache holds."""
        return cache_bytes(self._cache)

    def _feed(self, ids: list[int], keep: int = 1) -> Tensor:
        """Logits (float32, [keep, V]) behind the last `keep` of `ids`, once these have been appended to the cache."""
        if self._ids and (self._cache is None or (len(ids) > 1 and not self._use.appends)):
            self._cache = self._use.empty(self._model)
            ids, self._ids = self._ids + ids, []
        inputs_BT = torch.tensor([ids], device=self._model.device)
        inputs: dict[str, Any] = {"input_ids": inputs_BT, "use_cache": False}
        if self._cache is not None:
            inputs = self._use.inputs(self._cache, len(self._ids), inputs_BT)
        try:
            output = self._model.net(**inputs, logits_to_keep=keep)
        except BaseException:  # out of memory, say: some layers hold the new tokens by now, and others do not
            self._cache, self._ids = self._use.empty(self._model), []
            raise
        self._ids += ids
        trim(self._cache)
        return _checked(self._model, output.logits[0, -keep:].float())

    def _rewind(self, length: int) -> None:
        removed = len(self._ids) - length
        if removed and length and self.rewinds and take_back(self._cache, removed):
            del self._ids[length:]
        elif removed:
            self._cache = self._use.empty(self._model)
            self._ids = []

    def shared(self, ids: Sequence[int]) -> int:
        """How many of the first `ids` the cache begins with."""
        shared = min(len(self._ids), len(ids))
        if self._ids[:shared] != list(ids[:shared]):
            shared = next(i for i, (ours, theirs) in enumerate(zip(self._ids, ids, strict=False)) if ours != theirs)
        return shared

    def is_within(self, ids: Sequence[int]) -> bool:
        """The cache holds nothing but the first of `ids`."""
        return self.shared(ids) == len(self._ids)

    def fork(self, ids: Sequence[int]) -> "GreedyDecoder | None":
        """A second decoder that holds what this one shares with `ids`; None: a cache that cannot go back so far.

        It costs nothing: the two share their memory until one of them goes on.
        """
        length = self.shared(ids)
        other = GreedyDecoder(self._model, self._top_k, entropy=self._entropy, pace=self._pace)
        if self._cache is not None and other._cache is not None:
            other._cache.layers = [copy.copy(layer) for layer in self._cache.layers]
        if not self.rewinds or not take_back(other._cache, len(self._ids) - length):
            return None
        other._ids = self._ids[:length]
        return other

    def _keep_shared(self, ids: list[int]) -> None:
        """Drop what the cache holds and `ids` do not; the last of `ids` is always left to be fed."""
        self._rewind(min(self.shared(ids), len(ids) - 1))

    def chunks(self, ids: list[int]) -> int:
        """How many chunks `ids` have at the most."""
        # What must be fed at once is not fed in chunks.
        return 0 if self._pace is None or not self._use.appends else len(ids) // self._pace.smallest

    @torch.inference_mode()
    def approach(self, ids: list[int]) -> bool:
        """Bring the cache a chunk nearer to the end of `ids`; False once it is within a chunk of it."""
        assert self._pace is not None
        chunk = self._pace.tokens
        if len(ids) - self.shared(ids) <= chunk:
            return False
        self._keep_shared(ids)
        began = time.perf_counter()
        self._feed(ids[len(self._ids) : len(self._ids) + chunk])
        self._pace.took(chunk, time.perf_counter() - began)
        return True

    @torch.inference_mode()
    def logits(self, ids: list[int], more: list[int]) -> Tensor:
        """Float32 logits [1 + len(more), V] of what follows `ids`, and of what follows each of `more` behind them."""
        self._keep_shared(ids)
        return self._feed([*ids[len(self._ids) :], *more], keep=1 + len(more))

    def read(self, ids: list[int], more: list[int]) -> list[Step]:
        """What the model would choose at each of `more`, which follow `ids`; the cache then holds all but the last."""
        return self._choose(self.logits(ids, more[:-1]))

    def _choose(self, logits_TV: Tensor) -> list[Step]:
        log_total_T = logits_TV.logsumexp(-1)
        entropies: list[float | None] = [None] * len(logits_TV)
        if self._entropy:
            log_TV = logits_TV - log_total_T[:, None]
            # A probability of zero has no logarithm, and no share in the sum.
            entropies = (-(log_TV.exp() * log_TV.clamp(min=-1e4)).sum(-1)).clamp(min=0.0).tolist()
        # topk breaks equal values differently from argmax; argmax (the lowest id) is the definition here.
        best_T = logits_TV.argmax(-1, keepdim=True)
        # Rounding may leave a certain token a hair above 1.
        own_T = (logits_TV.gather(-1, best_T)[:, 0] - log_total_T).exp().clamp(max=1.0)
        values_TK, ids_TK = logits_TV.topk(min(self._top_k, logits_TV.shape[-1]))
        odds_TK = (values_TK - log_total_T[:, None]).exp()
        steps = []
        for best, own, ids, odds, entropy in zip(
            best_T[:, 0].tolist(), own_T.tolist(), ids_TK.tolist(), odds_TK.tolist(), entropies, strict=True
        ):
            others = (pair for pair in zip(ids, odds, strict=True) if pair[0] != best)
            steps.append(Step(best, own, ((best, own), *others)[: self._top_k], entropy))
        return steps

    def advance(self, ids: list[int], proposed: list[int]) -> list[Step]:
        """Greedy tokens behind `ids`, from one forward pass.

        Args:
            ids: prompt and completion so far.
            proposed: what may come next (`Speculator.propose`).

        Returns:
            The proposed tokens up to the first that the model would not choose, and the one it chooses there: at
            least one token, and those of decoding one by one.
        """
        logits_TV = self.logits(ids, proposed)
        best = logits_TV[:-1].argmax(-1).tolist()
        accepted = next((i for i, token in enumerate(proposed) if best[i] != token), len(proposed))
        self._rewind(len(ids) + accepted)
        return self._choose(logits_TV[: accepted + 1])

    def stream(
        self, prompt_ids: list[int], prefix_ids: list[int], limit: int, expected_ids: Sequence[int] = ()
    ) -> Iterator[Step]:
        """Continue greedily behind prompt + prefix, token by token, through the end-of-turn token.

        Args:
            prompt_ids: the templated prompt.
            prefix_ids: completion tokens that stand already.
            limit: maximum number of completion tokens, prefix included.
            expected_ids: what may follow the prefix, such as the rest of the answer before a correction. It changes
                nothing but the time: as much of it as returns is verified many tokens at once. A cache that cannot
                rewind makes no use of it.

        Raises:
            PromptError: the prompt alone fills the context.
        """
        limit = self._model.room(prompt_ids, limit)
        for steps in greedy_passes(lambda: self, prompt_ids, prefix_ids, limit, expected_ids):
            yield from steps

    def complete(
        self, prompt_ids: list[int], prefix_ids: list[int], limit: int, expected_ids: Sequence[int] = ()
    ) -> Decoded:
        """`stream` to its end: prefix and continuation together."""
        steps = self.stream(prompt_ids, prefix_ids, limit, expected_ids)
        ids = [*prefix_ids, *(step.token_id for step in steps)]
        return Decoded(ids, truncated=not ids or ids[-1] not in self.stop_ids)

    def judge(self, prompt_ids: list[int], prefix_ids: list[int], token_ids: list[int]) -> Choices:
        """What the model would have chosen at each of `token_ids`, at least one, which follow the prefix."""
        return choices_of(self.logits([*prompt_ids, *prefix_ids], token_ids[:-1]), token_ids)

    def alternatives(self, prompt_ids: list[int], completion_ids: list[int]) -> list[Step]:
        """What the model would choose at every completion position, given the tokens before it (one forward pass)."""
        if not completion_ids:
            return []
        logits_TV = _completion_logits(self._model, [*prompt_ids, *completion_ids], len(prompt_ids))
        return self._choose(logits_TV)


def prefill(decoder: Callable[[], GreedyDecoder], ids: list[int]) -> Iterator[None]:
    """Bring the cache near the end of `ids`, a chunk at a time, so that others may be served between two.

    There are no more pauses than chunks: where others drop the cache again and again meanwhile, the next pass feeds all
    of `ids` at once, and both go on.
    """
    for _ in range(decoder().chunks(ids)):
        if not decoder().approach(ids):
            return
        yield


def greedy_passes(
    decoder: Callable[[], GreedyDecoder],
    prompt_ids: Sequence[int],
    prefix_ids: Sequence[int],
    limit: int,
    expected_ids: Sequence[int] = (),
) -> Iterator[list[Step]]:
    """Continue greedily behind prompt + prefix, a forward pass at a time, through the end-of-turn token.

    Args:
        decoder: gives the decoder for the next pass. It may be another one each time, of the same model: a cache that
            was dropped between two passes costs time and nothing else.
        prompt_ids, prefix_ids, expected_ids: as in `GreedyDecoder.stream`.
        limit: maximum number of completion tokens, prefix included, that the context has room for.

    Yields:
        The steps of each pass, without those behind the end; none where the pass only brought a long prompt nearer
        (`prefill`).
    """
    ids, end = [*prompt_ids, *prefix_ids], len(prompt_ids) + limit
    if prefix_ids and prefix_ids[-1] in decoder().stop_ids:
        return
    speculator = Speculator(expected_ids if decoder().rewinds else ())
    while len(ids) < end:
        for _ in prefill(decoder, ids):
            yield []
        proposed = speculator.propose(end - len(ids) - 1)
        steps = decoder().advance(ids, proposed)
        decoded = [step.token_id for step in steps]
        speculator.learn(len(proposed), decoded)
        stops = (index for index, token in enumerate(decoded, 1) if token in decoder().stop_ids)
        stop = next(stops, None)
        yield steps[:stop]
        if stop is not None:
            return
        ids += decoded


def _checked(model: LanguageModel, logits_TV: Tensor) -> Tensor:
    model.check_finite(logits_TV.amax(-1))
    return logits_TV


class _CheckedLogits(LogitsProcessor):
    """`_checked`, at every step of `generate`."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return _checked(self._model, scores)


@torch.inference_mode()
def _completion_logits(model: LanguageModel, ids: list[int], start: int) -> Tensor:
    """Float32 logits [T, V] that predict ids[start:]."""
    inputs_BT = torch.tensor([ids[:-1]], device=model.device)
    kept = len(ids) - start
    output = model.net(input_ids=inputs_BT, use_cache=False, logits_to_keep=kept)
    return _checked(model, output.logits[0, -kept:].float())


@contextlib.contextmanager
def _plain_generation(
    model: LanguageModel, stop_ids: frozenset[int] | None = None, **options: Any
) -> Iterator[GenerationConfig]:
    """These options and no other: `generate` would fill gaps of a passed config from the model's own, penalties too."""
    ends = sorted(model.stop_ids if stop_ids is None else stop_ids)
    plain = GenerationConfig(eos_token_id=ends, pad_token_id=model.codec.pad_id, **options)
    own, model.causal.generation_config = model.causal.generation_config, plain
    try:
        yield plain
    finally:
        model.causal.generation_config = own


@contextlib.contextmanager
def _own_generation(model: LanguageModel) -> Iterator[GenerationConfig]:
    """The model's own settings, but for what would change the form of the output."""
    own = model.causal.generation_config
    changed = copy.deepcopy(own)
    changed.update(
        num_return_sequences=1,
        return_dict_in_generate=False,
        max_length=None,
        pad_token_id=model.codec.pad_id,
        eos_token_id=sorted(model.stop_ids) if own.eos_token_id is None else own.eos_token_id,
    )
    model.causal.generation_config = changed
    try:
        yield changed
    finally:
        model.causal.generation_config = own


def _answers(
    model: LanguageModel,
    prompts: list[list[int]],
    room: int,
    generation: contextlib.AbstractContextManager[GenerationConfig],
) -> list[Decoded]:
    """The answers of `generate`, in one batch; or in one for each length where padding would change them."""
    use, answers = generate_use(model), dict[int, Decoded]()
    with generation as config:
        config.use_cache = use.use_cache
        ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        for alike in [range(len(prompts))] if use.pads else _by_length(prompts):
            rows = _generated(model, [prompts[index] for index in alike], room)
            for index, row in zip(alike, rows, strict=True):
                end = next((i + 1 for i, token in enumerate(row) if token in ends), None)
                answers[index] = Decoded(row[:end], truncated=end is None)
    return [answers[index] for index in range(len(prompts))]


def _by_length(prompts: list[list[int]]) -> list[list[int]]:
    """Indices of prompts of the same length, together."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    return [list(group) for _, group in itertools.groupby(order, key=lambda index: len(prompts[index]))]


def _generated(model: LanguageModel, prompts: list[list[int]], room: int) -> list[list[int]]:
    """What `generate` puts behind the prompts, which it pads on the left."""
    pad, width = model.codec.pad_id, max(map(len, prompts))
    left = [[pad] * (width - len(prompt)) for prompt in prompts]
    ids_BT = torch.tensor([gap + prompt for gap, prompt in zip(left, prompts, strict=True)], device=model.device)
    mask_BT = torch.tensor([[0] * len(gap) + [1] * (width - len(gap)) for gap in left], device=model.device)
    output_BT = model.net.generate(
        input_ids=ids_BT,
        attention_mask=mask_BT,
        max_new_tokens=room,
        tokenizer=model.codec.tokenizer,
        logits_processor=LogitsProcessorList([_CheckedLogits(model)]),
    )
    ids: list[list[int]] = output_BT[:, width:].tolist()
    return ids


@torch.inference_mode()
def decode_batch(
    model: LanguageModel, prompts: list[list[int]], limit: int, *, batch_size: int = 64, settings: Settings = "greedy"
) -> Iterator[list[tuple[int, Decoded]]]:
    """Greedy answers of many prompts, in length-sorted batches.

    Args:
        model: decoded as it is (adapter on unless inside `model.reference()`).
        prompts: token ids, any lengths.
        limit: maximum number of new tokens each.
        batch_size: prompts per batch.
        settings: greedy: the plain argmax. own: as the model's generation config has it, which may draw at random
            (torch's seed decides) and ends answers only where it says.

    Yields:
        One list per batch: (index into `prompts`, answer).
    """
    # Penalties of the model's own would count padding as text, so that only equal lengths go together.
    rooms = [(model.room(prompt, limit), len(prompt) if settings == "own" else 0) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    # Near the end of the context there is less room; such prompts go apart, so that they cut no other answer short.
    for (room, _), group in itertools.groupby(order, key=rooms.__getitem__):
        for chosen in _batches(list(group), prompts, batch_size, room):
            generation = _own_generation(model) if settings == "own" else _plain_generation(model, do_sample=False)
            answers = _answers(model, [prompts[index] for index in chosen], room, generation)
            yield list(zip(chosen, answers, strict=True))


def _batches(order: list[int], prompts: list[list[int]], most: int, room: int) -> Iterator[list[int]]:
    """Batches of at most so many, the longest prompt first, none of them mostly padding, nor too much for memory."""
    batch: list[int] = []
    for index in order:
        gap = len(prompts[batch[0]]) - len(prompts[index]) if batch else 0
        full = batch and (len(batch) + 1) * (len(prompts[batch[0]]) + room) > _BATCH_TOKENS
        if len(batch) == most or full or gap > max(_PADDING, len(prompts[index]) // 2):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@torch.inference_mode()
def sample_batch(
    model: LanguageModel,
    prompts: list[list[int]],
    limit: int,
    *,
    seed: int,
    temperature: float = 1.0,
    stop_ids: frozenset[int] | None = None,
) -> list[Decoded]:
    """One sampled continuation of each prompt, from the whole distribution (no top-k, no top-p), in one batch.

    The same seed and batch give the same ids on the same machine; the global random state is left as it was.

    Args:
        model: sampled as it is (adapter on unless inside `model.reference()`).
        prompts: token ids, any lengths.
        limit: maximum number of new tokens each; what fits behind the longest prompt, where that is less.
        seed: of the draws.
        temperature: above 0; 1 is the model's own distribution.
        stop_ids: what ends a continuation. None: the model's end-of-turn ids.

    Raises:
        PromptError: a prompt alone fills the context.
    """
    room = min(model.room(prompt, limit) for prompt in prompts)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        return _answers(model, prompts, room, _plain_generation(model, stop_ids, **sampling))
