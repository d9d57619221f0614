"""Answers decoded before anybody asks: opening an item is instant, and the queue can be sorted by uncertainty."""

import logging
import threading
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from anchorlwf.annotation.events import Started
from anchorlwf.annotator.backends.local import Decoder
from anchorlwf.annotator.sessions.live import Prepared, bounds_of
from anchorlwf.annotator.store.queue import Proposal, propose, unproposed
from anchorlwf.annotator.store.store import Store
from anchorlwf.config import AnnotateConfig
from anchorlwf.data.record import Prompt
from anchorlwf.decoding.greedy import Step
from anchorlwf.errors import AnchorLwfError, PromptError

__all__ = ["Ahead", "proposal_of"]

_log = logging.getLogger(__name__)


def proposal_of(
    decoder: Decoder, prompt: Prompt, limit: int, closed: threading.Event
) -> tuple[Proposal, list[Step]] | None:
    """The model's own answer with how sure it was, and token by token; None where it was `closed` first.

    Raises:
        PromptError, ServerError: there is no answer.
    """
    prompt_ids = decoder.table.codec.encode_prompt(prompt.messages, prompt.tools)
    bounds = bounds_of(decoder, prompt_ids, limit)
    stream = decoder.stream("ahead", prompt_ids, [], bounds.tokens, ahead=True)
    steps: list[Step] = []
    for step in stream:
        if closed.is_set():
            stream.close()
            return None
        steps.append(step)
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
                for item, body in todo:
                    if self._closed.is_set():
                        return
                    self._one(item, body)
            except AnchorLwfError as error:
                _log.warning("Decoding ahead pauses: %s", error)
                todo = []
            if not todo:
                self._wake.wait(30)
                self._wake.clear()

    def _one(self, item: int, body: dict[str, Any]) -> None:
        try:
            prompt = Prompt.model_validate(body)
            decoded = proposal_of(self._decoder, prompt, self._config.max_new_tokens, self._closed)
        except (PromptError, ValidationError) as error:
            # Whoever opens it is told; the rest of the queue must not wait for it.
            self._failed.add(item)
            _log.info("Item %d is not decoded ahead: %s", item, error)
            return
        if decoded is not None:
            proposal, steps = decoded
            # First, so that whoever begins at once finds them.
            self._prepared.keep(item, steps, self._config.alternatives)
            propose(self._store, item, proposal)
