"""Prompts, records, store and model put together: what a page and a terminal work on."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from anchorlwf.annotator.backends.connect import connect_remote
from anchorlwf.annotator.backends.local import Decoder, LocalDecoder
from anchorlwf.annotator.backends.remote import check_url
from anchorlwf.annotator.prefetch import Ahead
from anchorlwf.annotator.project import Exchange
from anchorlwf.annotator.sessions.desk import Desk
from anchorlwf.annotator.sessions.ledger import Ledger
from anchorlwf.annotator.store.store import Store
from anchorlwf.annotator.training_jobs import TrainingJobs
from anchorlwf.config import AnnotateConfig
from anchorlwf.data.jsonl import load_prompts
from anchorlwf.errors import ConfigError, ModelWarning, warn, wrong
from anchorlwf.files import ensure_writable
from anchorlwf.model.generation import warn_of_generation
from anchorlwf.model.language_model import load_model

__all__ = ["MEMORY", "Work", "open_exchange"]

MEMORY = 2.0
"""GiB for the caches of all sessions, unless told otherwise."""


@dataclass(frozen=True)
class Work:
    """What is to be annotated, where it is kept, and who decodes."""

    prompts: Path
    """JSONL; its name is the project's."""
    out: Path
    """Finished records are appended here; the store has everything."""
    model: str | None
    """Local folder or hub name; None: the embedded model."""
    config: AnnotateConfig
    store: str | None = None
    """File or URL; None: beside the records, such as records.store.db."""
    per_item: int = 1
    """How many people each item wants."""
    remote: str | None = None
    """URL of a server that decodes; the model then gives its tokenizer alone."""
    memory: float | None = None
    """GiB that the caches of all sessions may hold; None: `MEMORY`."""
    skip_bad: bool = False
    """Go on without prompts that are no good, and warn of each."""
    trust_remote_code: bool = False
    device: str | None = None
    dtype: str | None = None
    """Of a model in this process, as for `load_model`."""

    @property
    def url(self) -> str:
        """Of the store."""
        return self.store or str(self.out.with_suffix(".store.db"))

    @property
    def beside(self) -> Path:
        """The file of this work that lies on this machine: the store, or the records of a store elsewhere."""
        return self.out if "://" in self.url else Path(self.url)

    @contextlib.contextmanager
    def open(self) -> Iterator[Exchange]:
        """The project over its store, with `out` brought up to date; closed on leaving, whatever happens.

        Raises:
            ConfigError, ModelError, ServerError, StorageError: what is needed is not there.
            RecordError, PromptError: prompts that cannot be, each named by its line.
            StampError: the store holds work on another tokenizer or chat template.
        """
        # Mistakes there are told before anything is made or sent.
        if self.remote is not None:
            check_url(self.remote)
        memory = self._memory_bytes()
        ensure_writable(self.out)
        with contextlib.ExitStack() as stack:
            store = Store(self.url)
            stack.callback(store.close)
            decoder = self._decoder(memory)
            stack.callback(decoder.close)
            yield stack.enter_context(
                open_exchange(
                    self.prompts, self.out, store, decoder, self.config, per_item=self.per_item, skip_bad=self.skip_bad
                )
            )

    def jobs(self, exchange: Exchange) -> TrainingJobs:
        """The trainings of the project, which is open."""
        loading = {"device": self.device, "dtype": self.dtype}
        return TrainingJobs(exchange.desk, self.out, self.model, **loading, trust_remote_code=self.trust_remote_code)

    def _memory_bytes(self) -> int:
        if self.memory is None:
            return int(MEMORY * 2**30)
        if self.remote is not None or not 0 < self.memory < math.inf:
            got = self.memory if self.remote is None else "--remote"
            fix = "A remote server has caches of its own."
            raise ConfigError(wrong("--memory", "GiB above 0, for a model in this process", got, fix))
        return int(self.memory * 2**30)

    def _decoder(self, memory: int) -> Decoder:
        alternatives = self.config.alternatives
        if self.remote is not None:
            return connect_remote(
                self.remote,
                self.model or "embedded",
                alternatives=alternatives,
                trust_remote_code=self.trust_remote_code,
            )
        model = load_model(self.model, dtype=self.dtype, device=self.device, trust_remote_code=self.trust_remote_code)
        warn_of_generation(model.causal.generation_config)
        return LocalDecoder(model, alternatives=alternatives, memory=memory)


@contextlib.contextmanager
def open_exchange(
    prompts: Path,
    out: Path,
    store: Store,
    decoder: Decoder,
    config: AnnotateConfig,
    *,
    per_item: int = 1,
    decode_ahead: bool = True,
    skip_bad: bool = False,
) -> Iterator[Exchange]:
    """The project of a prompt file over a store, with `out` brought up to date; closed on leaving.

    Raises:
        RecordError, PromptError: prompts that cannot be, each named by its line. `skip_bad` warns of them instead.
        StampError: the store holds work on another tokenizer or chat template.

    Warns:
        ModelWarning: the store was begun with a model of another name; the weights are not compared.
    """
    project = store.project(prompts.stem, decoder.stamp)
    first = store.stamp(project)
    if first.name != decoder.stamp.name:
        fix = "Answers decoded or begun with that one are shown as they are. For another model, another --store."
        said = wrong(f"model {decoder.stamp.name}", f"that of the store, {first.name}", "another name", fix)
        warn(said, ModelWarning)
    decoder.table.codec.pin(first)
    decoder.stamp = decoder.stamp.model_copy(update={"date": first.date})
    ledger = Ledger(decoder.stamp, decoder.table.codec, out, begun_as=first.name, shared=per_item > 1)
    ledger.former.learn(first.name)
    with contextlib.ExitStack() as stack:
        desk = Desk(store, decoder, project, config, ledger)
        stack.callback(desk.close)
        ahead = Ahead(store, project, decoder, config, desk.prepared) if decode_ahead else None
        if ahead is not None:
            stack.callback(ahead.close)
            desk.on_begun = ahead.more
        exchange = Exchange(prompts.stem, desk, per_item=per_item, ahead=ahead)
        exchange.add(load_prompts(prompts, skip_bad=skip_bad, check=exchange.fits), ledger.known())
        exchange.publish()
        yield exchange
