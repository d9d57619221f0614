"""The local model as many people's decoder: fair turns, one cache per session, a bound on their memory.

Shape suffixes: K options, V vocabulary.
"""

import contextlib
import time
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
from peft import PeftModel

from anchorlwf.annotator.backends.caches import Caches
from anchorlwf.annotator.backends.scheduler import Scheduler, Several
from anchorlwf.data.record import ModelStamp
from anchorlwf.decoding.greedy import Choices, GreedyDecoder, Pace, Step, greedy_passes, prefill
from anchorlwf.divergence import token_kl
from anchorlwf.errors import ConflictError, ModelError, wrong
from anchorlwf.model.batch import KeepTurn
from anchorlwf.model.language_model import LanguageModel
from anchorlwf.model.vocabulary import TokenTable

__all__ = ["Decoder", "LocalDecoder", "Stream"]

_TURN = 0.1
"""Seconds of a forward pass over prompt tokens, about: a long prompt holds nobody else up for longer than this."""
_PART = 16, 512
"""Tokens of such a pass, at least and at most."""
_READ = 64
"""Tokens of a standing answer per forward pass, at most: there are logits for each."""
_ASIDE = 256 << 20
"""Bytes for the caches of a model that is only compared with."""


class Stream(Protocol):
    """Tokens as they come."""

    def __iter__(self) -> Iterator[Step]:
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

    @property
    def vocabulary(self) -> int:
        """Token ids that the model takes are below this; a tokenizer may have more."""
        ...

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
        expected_ids: Sequence[int] = (),
    ) -> Stream:
        """Greedy tokens behind the prefix, to the end of turn or `limit` completion tokens.

        `ahead`: nobody waits for it yet. `expected_ids`: what may follow; it changes nothing but the time.
        """
        ...

    def read(
        self, key: Hashable, prompt_ids: Sequence[int], ids: Sequence[int], *, known: bool = False, ahead: bool = False
    ) -> Stream:
        """Go through an answer that stands, so that whatever is asked about it next is answered at once.

        Gives what the model would choose at each of `ids`; `known`: that is known already, and nothing need be given.
        """
        ...

    def rest(self, key: Hashable) -> None:
        """Nobody works with this session for now."""
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


class LocalDecoder:
    """A `Decoder` over a model in this process. Safe to use from many threads.

    Args:
        model: decoded as it is (adapter on).
        alternatives: how many are kept with each token.
        memory: maximum number of bytes of all sessions' caches together; see `Caches`. What was dropped is filled again
            when needed.
        scheduler: whose turns it takes; None: its own.
    """

    remote = False

    def __init__(
        self, model: LanguageModel, *, alternatives: int = 10, memory: int = 2 << 30, scheduler: Scheduler | None = None
    ) -> None:
        self.model, self.table, self.stamp, self.stop_ids = model, TokenTable(model.codec), model.stamp, model.stop_ids
        self._pace = Pace(_TURN, *_PART)
        self._caches = Caches(lambda: GreedyDecoder(model, alternatives, entropy=True, pace=self._pace), memory)
        self._scheduler = scheduler or Scheduler("anchorlwf-decoder")

    def with_adapter(self, folder: str | Path) -> "LocalDecoder":
        """A decoder of the same weights with an adapter on them, which takes its turns with this one.

        Raises:
            ModelError: as `LanguageModel.with_adapter`.
        """
        tuned = self.model.with_adapter(folder)
        return LocalDecoder(tuned, alternatives=1, memory=_ASIDE, scheduler=self._scheduler)

    @property
    def cached_bytes(self) -> int:
        """Bytes of all sessions' caches now."""
        return self._caches.nbytes

    @property
    def has_adapter(self) -> bool:
        """There is a base model to compare with."""
        return isinstance(self.model.net, PeftModel)

    @property
    def vocabulary(self) -> int:
        """See `Decoder`."""
        return min(self.model.vocabulary, len(self.table))

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
        expected_ids: Sequence[int] = (),
    ) -> Stream:
        """See `Decoder`."""
        room = self.room(prompt_ids, limit)
        work = self._streaming(key, [*prompt_ids], [*prefix_ids], room, expected_ids, ahead=ahead)
        return self._scheduler.submit("ahead" if ahead else "stream", work)

    def read(
        self, key: Hashable, prompt_ids: Sequence[int], ids: Sequence[int], *, known: bool = False, ahead: bool = False
    ) -> Stream:
        """See `Decoder`."""
        work = self._reading(key, [*prompt_ids], [*ids], known=known, ahead=ahead)
        return self._scheduler.submit("ahead" if ahead else "read", work)

    def rest(self, key: Hashable) -> None:
        """See `Decoder`."""
        with contextlib.suppress(ConflictError):  # shutting down, when there is nothing to make room for
            self._scheduler.submit("ask", self._resting(key))

    def judge(
        self, key: Hashable, prompt_ids: Sequence[int], prefix_ids: Sequence[int], token_ids: Sequence[int]
    ) -> Choices:
        """See `Decoder`."""
        return next(self._scheduler.submit("ask", self._judging(key, [*prompt_ids], [*prefix_ids], [*token_ids])))

    def options(
        self, key: Hashable, prompt_ids: Sequence[int], prefix_ids: Sequence[int], top: int, starts: str = ""
    ) -> list[tuple[int, float]]:
        """See `Decoder`."""
        return next(self._scheduler.submit("ask", self._weighing(key, [*prompt_ids, *prefix_ids], top, starts)))

    def compare(self, prompt_ids: Sequence[int], limit: int) -> dict[str, tuple[list[int], list[float]]]:
        """Greedy answers of reference (`base`) and model (`tuned`), each with KL(reference || model) per token in nats.

        Raises:
            ModelError: there is no adapter, so both would be the same.
        """
        if not self.has_adapter:
            fix = "Start with --model set to the folder of an adapter."
            raise ModelError(wrong("comparison", "a model with an adapter", "a base model", fix))
        return next(self._scheduler.submit("ask", self._comparing([*prompt_ids], self.room(prompt_ids, limit))))

    def close(self) -> None:
        """See `Decoder`."""
        self._scheduler.close()

    # What follows runs on the decoder's thread, a piece per turn.

    def _near(self, key: Hashable, ids: list[int], *, ahead: bool = False) -> Generator[None, None, None]:
        # Looked up anew after each yield: the cache may have been dropped meanwhile.
        for _ in prefill(lambda: self._caches.at(key, ids, ahead=ahead), ids):
            self._caches.measure(key)
            yield None

    def _streaming(
        self, key: Hashable, prompt: list[int], ids: list[int], limit: int, expected_ids: Sequence[int], *, ahead: bool
    ) -> Generator[Several]:
        # Looked up anew for each pass: the cache may have been dropped meanwhile.
        known = [*prompt, *ids]
        for steps in greedy_passes(lambda: self._caches.at(key, known, ahead=ahead), prompt, ids, limit, expected_ids):
            self._caches.measure(key)
            known.extend(step.token_id for step in steps)
            yield Several(steps)
        if ahead:
            self._caches.rest(key)

    def _reading(
        self, key: Hashable, prompt: list[int], ids: list[int], *, known: bool, ahead: bool
    ) -> Generator[Several | None]:
        whole = [*prompt, *ids]
        held = self._caches.at(key, whole, ahead=ahead).shared(whole)
        at = max(len(prompt), held) if known else len(prompt)
        if not known or held < len(whole) - 1:
            yield from self._near(key, whole[:at], ahead=ahead)
            while at < len(whole):
                part = whole[at : at + min(self._pace.tokens, _READ)]
                began = time.perf_counter()
                steps = self._caches.at(key, whole, ahead=ahead).read(whole[:at], part)
                if len(part) == self._pace.tokens:
                    self._pace.took(len(part), time.perf_counter() - began)
                self._caches.measure(key)
                at += len(part)
                yield Several([] if known else steps)
        if ahead:
            self._caches.rest(key)

    def _resting(self, key: Hashable) -> Generator[None]:
        self._caches.rest(key)
        yield from ()

    def _judging(self, key: Hashable, prompt: list[int], ids: list[int], tokens: list[int]) -> Generator[Any]:
        yield from self._near(key, prompt + ids)
        judged = self._caches.at(key, [*prompt, *ids, *tokens]).judge(prompt, ids, tokens)
        self._caches.measure(key)
        yield judged

    def _weighing(self, key: Hashable, ids: list[int], top: int, starts: str) -> Generator[Any]:
        yield from self._near(key, ids)
        own = self._caches.at(key, ids)
        # What stands behind the place asked about is not forgotten for it.
        aside = own.fork(ids[:-1]) if own.shared(ids) >= len(ids) - 1 else None
        decoder = own if aside is None else aside
        logits_V = decoder.logits(ids, [])[0]
        self._caches.measure(key)
        probability_V = logits_V.softmax(-1)[: len(self.table)]
        wanted = starts.lstrip().lower()
        if wanted:
            fits = [text.startswith(wanted) for text in self.table.beginnings[: len(probability_V)]]
            probability_V = probability_V.where(torch.tensor(fits, device=probability_V.device), -1.0)
        values_K, ids_K = probability_V.topk(min(top, len(probability_V)))
        pairs = zip(ids_K.tolist(), values_K.tolist(), strict=True)
        yield [(token, min(1.0, value)) for token, value in pairs if value >= 0]

    def _comparing(self, prompt: list[int], limit: int) -> Generator[Any]:
        answers: dict[str, list[int]] = {}
        with self.model.as_reference() as reference:
            decoder = GreedyDecoder(reference)
        answers["base"] = yield from _answering(decoder, prompt, limit, self.model.as_reference)
        answers["tuned"] = yield from _answering(GreedyDecoder(self.model), prompt, limit, contextlib.nullcontext)
        kls = token_kl(self.model, None, [KeepTurn(prompt, ids) for ids in answers.values()])
        yield {name: (ids, kl) for (name, ids), kl in zip(answers.items(), kls, strict=True)}


def _answering(
    decoder: GreedyDecoder, prompt: list[int], limit: int, within: Callable[[], AbstractContextManager[Any]]
) -> Generator[None, None, list[int]]:
    """The answer, a pass at a time and each of them `within`: between two passes others are served."""
    passes, ids = greedy_passes(lambda: decoder, prompt, [], limit), list[int]()
    while True:
        with within():
            steps = next(passes, None)
        if steps is None:
            return ids
        ids += [step.token_id for step in steps]
        yield None
