"""The annotation stage: from prompts to a growing file of records."""

from collections.abc import Callable, Iterable, Iterator
from itertools import compress
from pathlib import Path
from typing import Any, Literal

from anchorlwf.annotation.annotators import Annotator
from anchorlwf.annotation.fitting import fits
from anchorlwf.annotation.session import Session, drive
from anchorlwf.annotation.target import target_records, target_turn
from anchorlwf.config import AnnotateConfig
from anchorlwf.decode import Decoded, GreedyDecoder, decode_batch
from anchorlwf.files import ensure_writable
from anchorlwf.jsonl import append_records, each_earlier, each_line, each_prompt, load_prompts
from anchorlwf.lines import rows_of
from anchorlwf.model import LanguageModel, load_model
from anchorlwf.record import Prompt, Record
from anchorlwf.replay import windows

__all__ = ["PromptLike", "annotate", "annotate_stream", "as_prompts", "retention_records"]

_WINDOW = 128
"""Prompts in memory at a time: their batches are sorted by length, their records stored together."""

PromptLike = Prompt | str | dict[str, Any]


def as_prompts(
    prompts: str | Path | Iterable[PromptLike],
    *,
    skip_bad: bool = False,
    check: Callable[[Prompt], object] | None = None,
) -> list[Prompt]:
    """Prompts from a JSONL file, or from texts, dicts and `Prompt`s. Options and errors: `load_prompts`."""
    if isinstance(prompts, str | Path):
        return load_prompts(prompts, skip_bad=skip_bad, check=check)
    rows = [{"prompt": row} if isinstance(row, str) else row for row in rows_of(prompts, Prompt)]
    return load_prompts(rows, skip_bad=skip_bad, check=check) if rows else []


def _originals(model: LanguageModel, prompts: list[list[int]], config: AnnotateConfig) -> list[Decoded | None]:
    found: list[Decoded | None] = [None] * len(prompts)
    if config.original:
        for batch in decode_batch(model, prompts, config.max_new_tokens):
            for index, answer in batch:
                found[index] = answer
    return found


def _by_target(model: LanguageModel, prompts: Iterator[Prompt], config: AnnotateConfig) -> Iterator[list[Record]]:
    targets = ((prompt, target_turn(model, prompt)) for prompt in prompts)
    for window in windows(targets, _WINDOW):
        originals = _originals(model, [turn.prompt_ids for _, turn in window], config)
        yield target_records(model, window, config, originals)


def _by_annotator(
    model: LanguageModel,
    prompts: Iterator[Prompt],
    config: AnnotateConfig,
    annotator: Annotator,
    drafts: dict[str, Record],
) -> Iterator[list[Record]]:
    decoder = GreedyDecoder(model, config.alternatives)
    for prompt in prompts:
        key = prompt.record_id(model.name, model.codec.encode_prompt(prompt.messages, prompt.tools))
        session = Session(model, prompt, config, decoder=decoder, draft=drafts.get(key))
        record = drive(session, annotator)
        yield [record]
        if record.status == "draft":
            return


def _earlier(out: str | Path | None) -> tuple[set[str], dict[str, Record]]:
    """What `out` holds: ids of finished records, and the drafts."""
    finished: set[str] = set()
    drafts: dict[str, Record] = {}
    for record in () if out is None else each_earlier(out):
        finished.discard(record.id)
        drafts.pop(record.id, None)
        if record.status == "draft":
            drafts[record.id] = record
        else:
            finished.add(record.id)
    return finished, drafts


def _plan(
    model: LanguageModel, prompts: Iterator[Prompt], out: str | Path | None
) -> tuple[bytearray, dict[str, Record]]:
    """For each prompt whether it is to be done (a byte, so that a long file costs nothing), and drafts by their id."""
    seen, drafts = _earlier(out)
    waiting = bytearray()
    for prompt in prompts:
        key = prompt.record_id(model.name, model.codec.encode_prompt(prompt.messages, prompt.tools))
        # One that stands twice in the file is asked once.
        waiting.append(key not in seen)
        seen.add(key)
    return waiting, drafts


def _passes(
    prompts: str | Path | Iterable[PromptLike], skip_bad: bool, check: Callable[[Prompt], object]
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
    check = fits(language_model, target=annotator == "target")
    if out is not None:
        ensure_writable(out)
    first, second = _passes(prompts, skip_bad, check)
    waiting, drafts = _plan(language_model, first, out)
    todo, count = compress(second, waiting), sum(waiting)
    if annotator == "target":
        parts = _by_target(language_model, todo, config)
    else:
        parts = _by_annotator(language_model, todo, config, annotator, drafts)
    done = 0
    for part in parts:
        if out is not None:
            append_records(out, part)
        for record in part:
            done += 1
            if on_record is not None:
                on_record(record, done, count)
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
        annotator: "target" (every prompt holds its right `answer`; one forward pass per batch), or an `Annotator`.
        out: append records durably as they are finished, in the order of the prompts; prompts already finished there
            are skipped, and a draft is taken up where it was left. An interrupted run over targets loses no more than
            the 128 prompts at hand.
        config: token limit, alternatives, confidence.
        skip_bad: go on without the prompts that are no good (broken, without a target, too long) and warn of each
            (`BadLineWarning`) instead of raising.
        on_record: called with each new record, its number and how many there will be.

    Returns:
        The new records, in order. A record without anchors says that the model was right already. A record whose
        status is draft means that the annotator quit there. Where they are too many to hold, see `annotate_stream`.

    Raises:
        RecordError, PromptError: prompts without target, or too long; each is named by its line. All are looked at
            before any work begins.
        StorageError: `out` cannot be written; what it held is still there.
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
    config = (config or AnnotateConfig()).model_copy(update={"original": True})
    listed, stamp, kept = as_prompts(prompts, skip_bad=skip_bad, check=fits(model)), model.stamp, []
    encoded = [model.codec.encode_prompt(prompt.messages, prompt.tools) for prompt in listed]
    for prompt, ids, answer in zip(listed, encoded, _originals(model, encoded, config), strict=True):
        assert answer is not None
        kept.append(
            Record(
                id=prompt.record_id(model.name, ids),
                model=stamp,
                messages=prompt.messages,
                tools=prompt.tools,
                prompt_ids=ids,
                original_ids=answer.ids,
                completion_ids=answer.ids,
                completion=model.codec.decode(answer.ids),
                truncated=answer.truncated,
                tags=[*prompt.tags, "retain"],
            )
        )
    return kept
