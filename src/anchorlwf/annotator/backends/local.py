"""The local model as many people's decoder: fair turns, one cache per session, a bound on their memory.

Shape suffix: V vocabulary.
"""

from collections import OrderedDict
from collections.abc import Generator, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from peft import PeftModel
from torch import Tensor

from anchorlwf.annotator.backends.scheduler import Several, Turns
from anchorlwf.data.record import ModelStamp
from anchorlwf.decoding.greedy import Choices, GreedyDecoder, Step
from anchorlwf.decoding.speculation import Draft
from anchorlwf.divergence import token_kl
from anchorlwf.errors import ModelError, wrong
from anchorlwf.model.batch import KeepTurn
from anchorlwf.model.language_model import LanguageModel
from anchorlwf.model.vocabulary import TokenTable

__all__ = ["Chosen", "Decoder", "LocalDecoder", "Stream"]

_CHUNK = 512
"""Prompt tokens per forward pass: a long prompt holds nobody else up for longer than this."""


@dataclass(frozen=True)
class Chosen(Step):
    """One greedy token with what else was likely."""

    entropy: float | None = None
    """Of the whole distribution, in nats; None where a server does not tell."""


class Stream(Protocol):
    """Tokens as they come."""

    def __iter__(self) -> Iterator[Chosen]:
        """Blocks until the next token is there."""
        ...

    def close(self) -> None:
        """Cancel what has not come yet; from any thread."""
        ...


class Decoder(Protocol):
    """What a session asks of a model, wherever it runs. `key` names a session: its cache is kept for it."""

    table: TokenTable
    stamp: ModelStamp
    """Of the records made here; its date is the project's."""
    stop_ids: frozenset[int]
    remote: bool

    def room(self, prompt_ids: Sequence[int], wanted: int) -> int:
        """How many of the `wanted` completion tokens fit. Raises `PromptError`."""
        ...

    def stream(
        self,
        key: Hashable,
        prompt_ids: Sequence[int],
        prefix_ids: Sequence[int],
        limit: int,
        *,
        ahead: bool = False,
        draft_ids: Sequence[int] = (),
    ) -> Stream:
        """Greedy tokens behind the prefix, to the end of turn or `limit` completion tokens.

        `ahead`: nobody waits for it yet. `draft_ids`: what may follow; of use to the time only.
        """
        ...

    def judge(
        self, key: Hashable, prompt_ids: Sequence[int], prefix_ids: Sequence[int], token_ids: Sequence[int]
    ) -> Choices:
        """What the model would have chosen at each of `token_ids`, which follow the prefix."""
        ...

    def options(
        self, key: Hashable, prompt_ids: Sequence[int], prefix_ids: Sequence[int], top: int, starts: str = ""
    ) -> list[tuple[int, float]]:
        """The most probable next tokens (id, probability), best first; only those whose text begins so."""
        ...

    def close(self) -> None:
        """Cancel what runs and let go of the model."""
        ...


class _Cached(GreedyDecoder):
    """A greedy decoder whose cache can be measured, dropped at any moment, and filled in pieces."""

    @property
    def nbytes(self) -> int:
        """Bytes the cache holds."""
        parts = [getattr(layer, name, None) for layer in self._cache.layers for name in ("keys", "values")]
        return sum(part.numel() * part.element_size() for part in parts if isinstance(part, Tensor))

    @torch.inference_mode()
    def approach(self, ids: list[int]) -> bool:
        """Bring the cache a chunk nearer to the end of `ids`; False once it is near."""
        self._keep_shared(ids)
        if len(ids) - len(self._ids) <= _CHUNK:
            return False
        self._feed(ids[len(self._ids) : len(self._ids) + _CHUNK])
        return True

    def after(self, ids: list[int]) -> Tensor:
        """Logits [V] of what follows `ids`."""
        return self._after(ids, [])[0]

    @torch.inference_mode()
    def _choose(self, logits_TV: Tensor) -> list[Step]:
        log_TV = logits_TV.log_softmax(-1)
        # A probability of zero has no logarithm, and no share in the sum.
        entropies = -(log_TV.exp() * log_TV.clamp(min=-1e4)).sum(-1)
        return [
            Chosen(step.token_id, min(1.0, step.probability), step.alternatives, max(0.0, entropy))
            for step, entropy in zip(super()._choose(logits_TV), entropies.tolist(), strict=True)
        ]


class LocalDecoder:
    """A `Decoder` over a model in this process. Safe to use from many threads.

    Args:
        model: decoded as it is (adapter on).
        alternatives: how many are kept with each token.
        memory: most bytes of all sessions' caches together; the least recently used ones are dropped, and filled
            again when needed. The session at work keeps its own, however large.
    """

    remote = False

    def __init__(self, model: LanguageModel, *, alternatives: int = 10, memory: int = 2 << 30) -> None:
        self.model, self.table, self.stamp, self.stop_ids = model, TokenTable(model.codec), model.stamp, model.stop_ids
        self._top, self._memory = alternatives, memory
        self._caches: OrderedDict[Hashable, _Cached] = OrderedDict()
        self._sizes: dict[Hashable, int] = {}
        self._turns = Turns("anchorlwf-decoder")

    @property
    def cached_bytes(self) -> int:
        """Bytes of all sessions' caches now."""
        return sum(tuple(self._sizes.values()))

    @property
    def has_adapter(self) -> bool:
        """There is a base model to compare with."""
        return isinstance(self.model.net, PeftModel)

    def room(self, prompt_ids: Sequence[int], wanted: int) -> int:
        """See `Decoder`."""
        return self.model.room(list(prompt_ids), wanted)

    def stream(
        self,
        key: Hashable,
        prompt_ids: Sequence[int],
        prefix_ids: Sequence[int],
        limit: int,
        *,
        ahead: bool = False,
        draft_ids: Sequence[int] = (),
    ) -> Stream:
        """See `Decoder`."""
        work = self._streaming(key, [*prompt_ids], [*prefix_ids], self.room(prompt_ids, limit), draft_ids)
        return self._turns.submit("ahead" if ahead else "stream", work)

    def judge(
        self, key: Hashable, prompt_ids: Sequence[int], prefix_ids: Sequence[int], token_ids: Sequence[int]
    ) -> Choices:
        """See `Decoder`."""
        return next(self._turns.submit("ask", self._judging(key, [*prompt_ids], [*prefix_ids], [*token_ids])))

    def options(
        self, key: Hashable, prompt_ids: Sequence[int], prefix_ids: Sequence[int], top: int, starts: str = ""
    ) -> list[tuple[int, float]]:
        """See `Decoder`."""
        return next(self._turns.submit("ask", self._weighing(key, [*prompt_ids, *prefix_ids], top, starts)))

    def compare(self, prompt_ids: Sequence[int], limit: int) -> dict[str, tuple[list[int], list[float]]]:
        """Greedy answers of reference (`base`) and model (`tuned`), each with KL(reference || model) per token in nats.

        Raises:
            ModelError: there is no adapter, so both would be the same.
        """
        if not self.has_adapter:
            fix = "Start with --model set to the folder of an adapter."
            raise ModelError(wrong("comparison", "a model with an adapter", "a base model", fix))
        return next(self._turns.submit("ask", self._comparing([*prompt_ids], self.room(prompt_ids, limit))))

    def close(self) -> None:
        """See `Decoder`."""
        self._turns.close()

    # What follows runs on the decoder's thread, a piece per turn.

    def _cache(self, key: Hashable) -> _Cached:
        if key not in self._caches:
            self._caches[key] = _Cached(self.model, self._top)
        self._caches.move_to_end(key)
        return self._caches[key]

    def _measured(self, key: Hashable) -> None:
        self._sizes[key] = self._caches[key].nbytes
        while self.cached_bytes > self._memory and len(self._caches) > 1:
            oldest, _ = self._caches.popitem(last=False)
            self._sizes.pop(oldest, None)

    def _near(self, key: Hashable, ids: list[int]) -> Generator[None, None, None]:
        # Looked up anew after each yield: the cache may have been dropped meanwhile.
        while self._cache(key).approach(ids):
            self._measured(key)
            yield None

    def _streaming(
        self, key: Hashable, prompt: list[int], ids: list[int], limit: int, draft_ids: Sequence[int]
    ) -> Generator[Several | None]:
        draft = Draft(draft_ids if self._cache(key).rewinds else ())
        while len(ids) < limit and not (ids and ids[-1] in self.stop_ids):
            yield from self._near(key, prompt + ids)
            proposed = draft.propose(limit - len(ids) - 1)
            steps = self._cache(key).advance(prompt + ids, proposed)
            self._measured(key)
            found = [step.token_id for step in steps]
            draft.learn(len(proposed), found)
            end = next((i + 1 for i, token in enumerate(found) if token in self.stop_ids), len(found))
            ids += found[:end]
            yield Several(steps[:end])

    def _judging(self, key: Hashable, prompt: list[int], ids: list[int], tokens: list[int]) -> Generator[Any]:
        yield from self._near(key, prompt + ids)
        judged = self._cache(key).judge(prompt, ids, tokens)
        self._measured(key)
        yield judged

    def _weighing(self, key: Hashable, ids: list[int], top: int, starts: str) -> Generator[Any]:
        yield from self._near(key, ids)
        logits_V = self._cache(key).after(ids)
        self._measured(key)
        probability_V = logits_V.softmax(-1)[: len(self.table)]
        wanted = starts.lstrip().lower()
        if wanted:
            fits = [text.startswith(wanted) for text in self.table.beginnings]
            probability_V = probability_V.where(torch.tensor(fits, device=probability_V.device), -1.0)
        values, ids_found = probability_V.topk(min(top, len(probability_V)))
        pairs = zip(ids_found.tolist(), values.tolist(), strict=True)
        yield [(token, min(1.0, value)) for token, value in pairs if value >= 0]

    def _comparing(self, prompt: list[int], limit: int) -> Generator[Any]:
        answers: dict[str, list[int]] = {}
        with self.model.as_reference() as reference:
            answers["base"] = GreedyDecoder(reference).complete(prompt, [], limit).ids
        yield None
        answers["tuned"] = GreedyDecoder(self.model).complete(prompt, [], limit).ids
        yield None
        kls = token_kl(self.model, None, [KeepTurn(prompt, ids) for ids in answers.values()])
        yield {name: (ids, kl) for (name, ids), kl in zip(answers.items(), kls, strict=True)}
