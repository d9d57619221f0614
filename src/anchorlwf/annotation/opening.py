"""Prompts, records, store and model put together: what a page and a terminal work on."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from anchorlwf.annotation.ahead import Ahead
from anchorlwf.annotation.connect import connect_remote
from anchorlwf.annotation.decoders import Decoder, LocalDecoder
from anchorlwf.annotation.desk import Desk
from anchorlwf.annotation.exchange import Exchange
from anchorlwf.annotation.ledger import Ledger
from anchorlwf.annotation.queue import export_records
from anchorlwf.annotation.store import Store
from anchorlwf.config import AnnotateConfig
from anchorlwf.files import ensure_writable
from anchorlwf.jsonl import load_prompts
from anchorlwf.model import load_model

__all__ = ["Work"]


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
    trust_remote_code: bool = False

    @property
    def url(self) -> str:
        """Of the store."""
        return self.store or str(self.out.with_suffix(".store.db"))

    @property
    def store_file(self) -> Path | None:
        """The store's file; None for a database server."""
        return None if "://" in self.url else Path(self.url)

    @contextlib.contextmanager
    def open(self) -> Iterator[Exchange]:
        """The project over its store, with `out` brought up to date; closed on leaving, whatever happens.

        Raises:
            ConfigError, ModelError, ServerError, StorageError: what is needed is not there.
            RecordError, PromptError: a prompt that cannot be.
            StampError: the store holds work on another model.
        """
        ensure_writable(self.out)
        prompts = load_prompts(self.prompts)
        with contextlib.ExitStack() as stack:
            store = Store(self.url)
            stack.callback(store.close)
            decoder = self._decoder()
            stack.callback(decoder.close)
            ledger = Ledger(decoder.stamp, decoder.table.codec, self.out, shared=self.per_item > 1)
            project = store.project(self.prompts.stem, decoder.stamp)
            desk = Desk(store, decoder, project, self.config, ledger)
            stack.callback(desk.close)
            ahead = Ahead(store, project, decoder, self.config.max_new_tokens)
            stack.callback(ahead.close)
            exchange = Exchange(self.prompts.stem, desk, per_item=self.per_item, ahead=ahead)
            exchange.add(prompts, ledger.known())
            ledger.reconcile(export_records(store, project))
            yield exchange

    def _decoder(self) -> Decoder:
        alternatives = self.config.alternatives
        if self.remote is not None:
            return connect_remote(self.remote, self.model or "embedded", alternatives=alternatives,
                                  trust_remote_code=self.trust_remote_code)
        model = load_model(self.model, trust_remote_code=self.trust_remote_code)
        return LocalDecoder(model, alternatives=alternatives)
