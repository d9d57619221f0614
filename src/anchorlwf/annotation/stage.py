"""The annotation stage: from prompts to a growing file of records."""

import logging
from collections.abc import Callable, Iterable, Iterator
from itertools import compress
from pathlib import Path
from typing import Any, Literal

from anchorlwf.annotation.checks import fits
from anchorlwf.annotation.former_ids import FormerIds
from anchorlwf.annotation.review import Annotator
from anchorlwf.annotation.session import Session, drive
from anchorlwf.annotation.target import target_records, target_turn
from anchorlwf.config import AnnotateConfig
from anchorlwf.data.jsonl import Check, each_line, each_prompt, load_prompts, rows_of
from anchorlwf.data.record import ModelStamp, Prompt, Record
from anchorlwf.data.record_file import RecordJournal
from anchorlwf.decoding.greedy import Decoded, GreedyDecoder, decode_batch
from anchorlwf.decoding.keep_records import keep_records
from anchorlwf.decoding.teacher_forcing import windows
from anchorlwf.files import ensure_writable
from anchorlwf.model.codec import Codec
from anchorlwf.model.generation import warn_of_generation
from anchorlwf.model.language_model import LanguageModel, load_model

__all__ = ["PromptLike", "annotate", "annotate_stream", "as_prompts", "retention_records"]

_log = logging.getLogger(__name__)
_WINDOW = 128
"""Prompts in memory at a time: their batches are sorted by length, their records stored together."""

PromptLike = Prompt | str | dict[str, Any]


def as_prompts(
    prompts: str | Path | Iterable[PromptLike], *, skip_bad: bool = False, check: Check[Prompt] | None = None
) -> list[Prompt]:
    """Prompts from a JSONL file, or from texts, dicts and `Prompt`s. Options and errors: `load_prompts`."""
    if isinstance(prompts, str | Path):
        return load_prompts(prompts, skip_bad=skip_bad, check=check)
    rows = [{"prompt": row} if isinstance(row, str) else row for row in rows_of(prompts, Prompt)]
    return load_prompts(rows, skip_bad=skip_bad, check=check) if rows else []


def _originals(model: LanguageModel, prompts: list[list[int]], config: AnnotateConfig) -> list[Decoded | None]:
    originals: list[Decoded | None] = [None] * len(prompts)
    if config.original:
        for batch in decode_batch(model, prompts, config.max_new_tokens):
            for index, answer in batch:
                originals[index] = answer
    return originals


class _Out:
    """The file of records as it stands: other runs may append to it meanwhile, and what they finish is theirs."""

    def __init__(self, path: str | Path | None, stamp: ModelStamp, codec: Codec) -> None:
        self._journal = None if path is None else RecordJournal(path)
        self._stamp, self._codec = stamp, codec
        self._former = FormerIds(stamp, codec)
        self.finished: set[str] = set()
        self.drafts: dict[str, Record] = {}
        self.elsewhere = 0
        """Records of this run's prompts that another finished first."""

    def look(self) -> None:
        """Learn what was appended since."""
        if self._journal is not None:
            self._learn(self._journal.news())

    def _learn(self, news: Iterable[Record]) -> None:
        for record in news:
            self._codec.pin(record.model)  # the date of its prompts stays theirs
            self._former.learn(record.model.name)
            self.finished.discard(record.id)
            self.drafts.pop(record.id, None)
            if record.status == "draft":
                self.drafts[record.id] = record
            else:
                self.finished.add(record.id)

    def key(self, prompt: Prompt) -> str:
        """The id of the record that a prompt becomes; where 0.1.0 has begun or finished that record, its id."""
        key = prompt.record_id(self._stamp)
        if key in self.finished or key in self.drafts or not (self.finished or self.drafts):
            return key
        earlier = (former for former in self._former.of(prompt) if former in self.finished or former in self.drafts)
        return next(earlier, key)

    def free(self, key: str) -> bool:
        """Nobody has finished it yet; else it is counted as done elsewhere."""
        self.elsewhere += key in self.finished
        return key not in self.finished

    def store(self, records: list[Record]) -> list[Record]:
        """Append those that nobody has finished meanwhile, and give them back."""

        def choose(news: Iterable[Record]) -> list[Record]:
            self._learn(news)
            return [record for record in records if self.free(record.id)]

        if self._journal is None:
            return records
        alone, stored = not self.elsewhere, self._journal.add(choose)
        if alone and self.elsewhere:
            _log.warning("%s: another run has the same prompts; what it finishes first stays.", self._journal.path)
        return stored


def _by_target(
    model: LanguageModel, prompts: Iterator[Prompt], config: AnnotateConfig, out: _Out
) -> Iterator[list[Record]]:
    targets = ((prompt, target_turn(model, prompt)) for prompt in prompts)
    for window in windows(targets, _WINDOW):
        out.look()
        # Asked for again only where another run is at work on the same file.
        todo = [pair for pair in window if out.free(out.key(pair[0]))] if out.finished else window
        originals = _originals(model, [turn.prompt_ids for _, turn in todo], config)
        records = target_records(model, todo, config, originals)
        for index, (prompt, _) in enumerate(todo):
            if (key := out.key(prompt)) != records[index].id:
                records[index] = records[index].model_copy(update={"id": key})
        yield records


def _by_annotator(
    model: LanguageModel, prompts: Iterator[Prompt], config: AnnotateConfig, annotator: Annotator, out: _Out
) -> Iterator[list[Record]]:
    decoder = GreedyDecoder(model, config.alternatives)
    for prompt in prompts:
        out.look()
        key = out.key(prompt)
        if not out.free(key):
            continue
        session = Session(model, prompt, config, decoder=decoder, draft=out.drafts.get(key))
        record = drive(session, annotator)
        yield [record]
        if record.status == "draft":
            return


def _plan(prompts: Iterator[Prompt], out: _Out) -> bytearray:
    """For each prompt whether it is to be done: a byte, so that a long file costs nothing."""
    out.look()
    seen, waiting = set[str](), bytearray()
    for prompt in prompts:
        key = out.key(prompt)
        # One that stands twice in the file is asked once.
        waiting.append(key not in out.finished and key not in seen)
        seen.add(key)
    # What is asked for is not finished yet; from here on only the news count.
    out.finished = set()
    return waiting


def _passes(
    prompts: str | Path | Iterable[PromptLike], skip_bad: bool, check: Check[Prompt]
) -> tuple[Iterator[Prompt], Iterator[Prompt]]:
    """The prompts twice: the first time finds every bad line, and what is left to do, before any work begins."""
    if isinstance(prompts, str | Path):
        good = (line for line in each_line(prompts, Prompt, check) if isinstance(line, Prompt))
        return each_prompt(prompts, skip_bad=skip_bad, check=check), good
    listed = as_prompts(prompts, skip_bad=skip_bad, check=check)
    return iter(listed), iter(listed)


def annotate_stream(
    model: LanguageModel | str | None,
    prompts: str | Path | Iterable[PromptLike],
    annotator: Literal["target"] | Annotator = "target",
    *,
    out: str | Path | None = None,
    config: AnnotateConfig | None = None,
    skip_bad: bool = False,
    on_record: Callable[[Record, int, int], None] | None = None,
) -> Iterator[Record]:
    """`annotate`, record by record: a file of prompts is read as it is worked on, and no record is kept.

    Nothing happens before the first record is asked for. Arguments and errors are those of `annotate`.

    Yields:
        Each new record, in the order of the prompts, once it is stored.
    """
    config = config or AnnotateConfig()
    language_model = model if isinstance(model, LanguageModel) else load_model(model)
    warn_of_generation(language_model.causal.generation_config)
    check = fits(language_model, target=annotator == "target")
    if out is not None:
        ensure_writable(out)
    first, second = _passes(prompts, skip_bad, check)
    shared = _Out(out, language_model.stamp, language_model.codec)
    waiting = _plan(first, shared)
    todo, count = compress(second, waiting), sum(waiting)
    if annotator == "target":
        parts = _by_target(language_model, todo, config, shared)
    else:
        parts = _by_annotator(language_model, todo, config, annotator, shared)
    done = 0
    for part in parts:
        for record in shared.store(part):
            done += 1
            if on_record is not None:
                on_record(record, done, count - shared.elsewhere)
            yield record


def annotate(
    model: LanguageModel | str | None,
    prompts: str | Path | Iterable[PromptLike],
    annotator: Literal["target"] | Annotator = "target",
    *,
    out: str | Path | None = None,
    config: AnnotateConfig | None = None,
    skip_bad: bool = False,
    on_record: Callable[[Record, int, int], None] | None = None,
) -> list[Record]:
    """Turn prompts into records by the paper's protocol (section 3.1).

    Args:
        model: the model to correct, its name, or None for the embedded one.
        prompts: a JSONL file, or prompts (text, dicts or `Prompt`).
        annotator: "target" (every prompt contains its right `answer`; one forward pass per batch), or an `Annotator`.
        out: append finished records to this file durably, in the order of the prompts. Prompts that are already
            finished there are skipped, and a draft is resumed. An interrupted run with "target" loses at most 128
            prompts of work. Several runs may append to one file; whatever one of them finishes first is kept.
        config: token limit, alternatives, confidence.
        skip_bad: leave out bad prompts (broken, without an answer, too long) and warn of each (`BadLineWarning`)
            instead of raising.
        on_record: called with each new record, its number and the total number.

    Returns:
        The new records, in order. A record without anchors means that the model was right already; a record with the
        status `draft` means that the annotator stopped there. `annotate_stream` does the same without holding records.

    Raises:
        RecordError, PromptError: prompts without an answer, or too long; each is named by its line. All of them are
            checked before any work begins.
        StorageError: `out` cannot be written; its earlier content is unchanged.

    Warns:
        ModelWarning: the model's own generation config makes greedy answers differ from those annotated.
        PromptWarning: the model does not read a prompt as it was written; the line is named.
    """
    return list(
        annotate_stream(model, prompts, annotator, out=out, config=config, skip_bad=skip_bad, on_record=on_record)
    )


def retention_records(
    model: LanguageModel,
    prompts: str | Path | Iterable[PromptLike],
    config: AnnotateConfig | None = None,
    *,
    skip_bad: bool = False,
) -> list[Record]:
    """Keep records: the model's own greedy answers to unrelated prompts, without any anchor.

    They tell training what must stay as it is where no correction speaks of it. `skip_bad` and errors: as `annotate`.
    """
    limit = (config or AnnotateConfig()).max_new_tokens
    return keep_records(model, as_prompts(prompts, skip_bad=skip_bad, check=fits(model)), limit)
