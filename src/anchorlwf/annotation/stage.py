"""The annotation stage: from prompts to a growing file of records."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from anchorlwf.annotation.annotators import Annotator
from anchorlwf.annotation.fitting import fits
from anchorlwf.annotation.session import Session, drive
from anchorlwf.annotation.target import target_record
from anchorlwf.config import AnnotateConfig
from anchorlwf.decode import Decoded, GreedyDecoder, decode_batch
from anchorlwf.files import ensure_writable
from anchorlwf.jsonl import append_record, earlier_records, load_prompts
from anchorlwf.model import LanguageModel, load_model
from anchorlwf.record import Prompt, Record

__all__ = ["PromptLike", "annotate", "as_prompts", "retention_records"]

PromptLike = Prompt | str | dict[str, Any]


def as_prompts(
    prompts: str | Path | Iterable[PromptLike], *, skip_bad: bool = False,
    check: Callable[[Prompt], object] | None = None,
) -> list[Prompt]:
    """Prompts from a JSONL file, or from texts, dicts and `Prompt`s. Options and errors: `load_prompts`."""
    if isinstance(prompts, str | Path):
        return load_prompts(prompts, skip_bad=skip_bad, check=check)
    rows = [
        {"prompt": row} if isinstance(row, str) else row.model_dump() if isinstance(row, Prompt) else row
        for row in prompts
    ]
    return load_prompts(rows, skip_bad=skip_bad, check=check) if rows else []


def _originals(model: LanguageModel, prompts: list[Prompt], config: AnnotateConfig) -> list[Decoded | None]:
    found: list[Decoded | None] = [None] * len(prompts)
    if config.original:
        ids = [model.codec.encode_prompt(prompt.messages, prompt.tools) for prompt in prompts]
        for batch in decode_batch(model, ids, config.max_new_tokens):
            for index, answer in batch:
                found[index] = answer
    return found


def _by_target(model: LanguageModel, prompts: list[Prompt], config: AnnotateConfig) -> Iterator[Record]:
    # A slice at a time, so that memory does not grow with the file and an interruption costs little.
    for start in range(0, len(prompts), 64):
        part = prompts[start : start + 64]
        for prompt, original in zip(part, _originals(model, part, config), strict=True):
            yield target_record(model, prompt, config, original)


def _by_annotator(
    model: LanguageModel, prompts: list[Prompt], config: AnnotateConfig, annotator: Annotator,
    drafts: dict[str, Record],
) -> Iterator[Record]:
    decoder = GreedyDecoder(model, config.alternatives)
    for prompt in prompts:
        key = prompt.record_id(model.name, model.codec.encode_prompt(prompt.messages, prompt.tools))
        session = Session(model, prompt, config, decoder=decoder, draft=drafts.get(key))
        record = drive(session, annotator)
        yield record
        if record.status == "draft":
            return


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
        annotator: "target" (every prompt holds its right `answer`; one forward pass each), or an `Annotator`.
        out: append each record durably as it is finished; prompts already finished there are skipped, and a draft
            is taken up where it was left.
        config: token limit, alternatives, confidence.
        skip_bad: go on without the prompts that are no good (broken, without a target, too long) and warn of each
            (`BadLineWarning`) instead of raising.
        on_record: called with each new record, its number and how many there will be.

    Returns:
        The new records, in order. A record without anchors says that the model was right already. A record whose
        status is draft means that the annotator quit there.

    Raises:
        RecordError, PromptError: prompts without target, or too long; each is named by its line. All are looked at
            before any work begins.
        StorageError: `out` cannot be written; what it held is still there.
    """
    config = config or AnnotateConfig()
    language_model = model if isinstance(model, LanguageModel) else load_model(model)
    waiting = as_prompts(prompts, skip_bad=skip_bad, check=fits(language_model, target=annotator == "target"))
    earlier: dict[str, Record] = {}
    if out is not None:
        ensure_writable(out)
        earlier = earlier_records(out)
    codec = language_model.codec
    # By id, so that a prompt that stands twice in the file is asked once.
    keyed = {prompt.record_id(language_model.name, codec.encode_prompt(prompt.messages, prompt.tools)): prompt
             for prompt in waiting}
    waiting = [prompt for key, prompt in keyed.items() if key not in earlier or earlier[key].status == "draft"]
    if annotator == "target":
        stream = _by_target(language_model, waiting, config)
    else:
        stream = _by_annotator(language_model, waiting, config, annotator, earlier)
    records = []
    for record in stream:
        if out is not None:
            append_record(out, record)
        records.append(record)
        if on_record is not None:
            on_record(record, len(records), len(waiting))
    return records


def retention_records(
    model: LanguageModel, prompts: str | Path | Iterable[PromptLike], config: AnnotateConfig | None = None, *,
    skip_bad: bool = False,
) -> list[Record]:
    """Keep records: the model's own greedy answers to unrelated prompts, without any anchor.

    They tell training what must stay as it is where no correction speaks of it. `skip_bad` and errors: as `annotate`.
    """
    config = (config or AnnotateConfig()).model_copy(update={"original": True})
    kept = []
    listed = as_prompts(prompts, skip_bad=skip_bad, check=fits(model))
    for prompt, answer in zip(listed, _originals(model, listed, config), strict=True):
        assert answer is not None
        kept.append(Record(
            id=prompt.record_id(model.name, ids := model.codec.encode_prompt(prompt.messages, prompt.tools)),
            model=model.stamp, messages=prompt.messages, tools=prompt.tools, prompt_ids=ids,
            original_ids=answer.ids, completion_ids=answer.ids, completion=model.codec.decode(answer.ids),
            truncated=answer.truncated, tags=[*prompt.tags, "retain"],
        ))
    return kept
