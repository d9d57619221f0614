"""Answers decoded before anybody asks: opening an item is instant, and the queue can be sorted by uncertainty."""

import logging
import threading
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from anchorlwf.annotation.events import Started
from anchorlwf.annotator.backends.local import Decoder, Stream
from anchorlwf.annotator.sessions.live import Prepared, bounds_of
from anchorlwf.annotator.store.queue import Proposal, propose, unproposed, upcoming
from anchorlwf.annotator.store.store import Store
from anchorlwf.config import AnnotateConfig
from anchorlwf.data.record import Prompt
from anchorlwf.decoding.greedy import Step
from anchorlwf.errors import AnchorLwfError, PromptError, ServerError, StorageError

__all__ = ["Ahead", "proposal_of"]

_log = logging.getLogger(__name__)


_NEXT = 2
"""Items at the head of the queue that are kept so ready that a correction need not wait for their prompt to be read."""


def _key(item: int) -> tuple[str, int]:
    """Names the cache that a session on the item begins with."""
    return "ahead", item


def proposal_of(
    decoder: Decoder, item: int, prompt: Prompt, limit: int, closed: threading.Event
) -> tuple[Proposal, list[Step]] | None:
    """The model's own answer with how sure it was, and token by token; None where it was `closed` first.

    Raises:
        PromptError, ServerError: there is no answer.
    """
    prompt_ids = decoder.table.codec.encode_prompt(prompt.messages, prompt.tools)
    bounds = bounds_of(decoder, prompt_ids, limit)
    steps = _taken(decoder.stream(_key(item), prompt_ids, [], bounds.tokens, ahead=True), closed)
    if steps is None:
        return None
    ids = [step.token_id for step in steps]
    ended, truncated = bounds.ending(ids)
    probabilities = [step.probability for step in steps]
    entropies = [step.entropy for step in steps if step.entropy is not None]
    started = Started(
        at=datetime.now(UTC),
        completion_ids=tuple(ids),
        probabilities=tuple(probabilities),
        ended=ended,
        truncated=truncated,
    )
    mean = sum(entropies) / len(entropies) if entropies else None
    return Proposal(started, mean, min(probabilities, default=None)), steps


def _taken(stream: Stream, closed: threading.Event) -> list[Step] | None:
    """All that comes; None where it was `closed` first."""
    steps: list[Step] = []
    for step in stream:
        if closed.is_set():
            stream.close()
            return None
        steps.append(step)
    return steps


class Ahead:
    """A thread that works through the queue while nobody else needs the model.

    Args:
        store, project: whose items.
        decoder: gives the answers.
        config: maximum number of completion tokens, and alternatives per token.
        prepared: keeps the alternatives.
    """

    def __init__(
        self, store: Store, project: int, decoder: Decoder, config: AnnotateConfig, prepared: Prepared
    ) -> None:
        self._store, self._project, self._decoder = store, project, decoder
        self._config, self._prepared = config, prepared
        self._wake, self._closed = threading.Event(), threading.Event()
        self._failed: set[int] = set()
        self._ready: set[int] = set()
        """The items at the head of the queue when it was last looked at."""
        self._thread = threading.Thread(target=self._run, name="anchorlwf-ahead", daemon=True)
        self._thread.start()

    def more(self) -> None:
        """Items were added."""
        self._wake.set()

    def close(self) -> None:
        """End the thread after the token at hand."""
        self._closed.set()
        self._wake.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                waiting = unproposed(self._store, self._project, 8 + len(self._failed))
                todo = [(item, body) for item, body in waiting if item not in self._failed]
                self._make_ready()
                for item, body in todo:
                    if self._closed.is_set():
                        return
                    self._one(item, body)
                    self._make_ready()
            except AnchorLwfError as error:
                _log.warning("Decoding ahead pauses: %s", error)
                todo = []
            if not todo:
                self._wake.wait(30)
                self._wake.clear()

    def _one(self, item: int, body: dict[str, Any]) -> None:
        try:
            prompt = Prompt.model_validate(body)
            decoded = proposal_of(self._decoder, item, prompt, self._config.max_new_tokens, self._closed)
        except (ServerError, StorageError):
            raise
        except Exception as error:  # noqa: BLE001 - out of memory, a template that fails: the queue must not wait for it
            # Whoever opens it is told.
            self._failed.add(item)
            _log.info("Item %d is not decoded ahead: %s", item, error)
            return
        if decoded is not None:
            proposal, steps = decoded
            # First, so that whoever begins at once finds them.
            self._prepared.keep(item, steps, self._config.alternatives)
            propose(self._store, item, proposal)

    def _make_ready(self) -> None:
        """Have the items read that are new at the head of the queue, where their caches or alternatives are gone."""
        first = upcoming(self._store, self._project, _NEXT)
        for item, body, proposal in first:
            if item not in self._ready and item not in self._failed and not self._closed.is_set():
                self._read(item, body, proposal)
        self._ready = {item for item, _, _ in first}

    def _read(self, item: int, body: dict[str, Any], proposal: dict[str, Any]) -> None:
        try:
            prompt, started = Prompt.model_validate(body), Started.model_validate(proposal)
            prompt_ids = self._decoder.table.codec.encode_prompt(prompt.messages, prompt.tools)
            bounds_of(self._decoder, prompt_ids, self._config.max_new_tokens)
        except (PromptError, ValidationError):
            self._failed.add(item)
            return
        ids, known = started.completion_ids, self._prepared.holds(item)
        steps = _taken(self._decoder.read(_key(item), prompt_ids, ids, known=known, ahead=True), self._closed)
        if steps and not known:
            self._prepared.keep(item, steps, self._config.alternatives)
