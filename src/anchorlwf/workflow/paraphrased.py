"""Other wordings of corrected prompts, corrected with them: found without people, or given by them."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from anchorlwf.annotation import PromptLike, as_prompts, fits, same_correction
from anchorlwf.config import AnnotateConfig, ParaphraseConfig
from anchorlwf.data.jsonl import save_lines
from anchorlwf.data.record import Prompt, Record
from anchorlwf.errors import RecordError, wrong
from anchorlwf.model.language_model import LanguageModel
from anchorlwf.retention import PARAPHRASE_TAG, Candidate, paraphrases
from anchorlwf.retention.sources import own_prompts
from anchorlwf.workflow.retained import AUTO, NONE

__all__ = ["PARAPHRASES", "Paraphrase", "paraphrase_records", "save_paraphrases", "without"]

PARAPHRASES = "paraphrases.jsonl"
"""In the run folder: the wordings with their answers, for people to look through and to give back."""
Paraphrase = str | Path | Iterable[PromptLike | Path] | None
"""`auto`, `none`, a `.jsonl` or `.txt` file, a wording, or several of these. None: see `paraphrase_records`."""
_FILES = (".jsonl", ".txt")


def paraphrase_records(
    model: LanguageModel,
    corrections: Sequence[Record],
    wanted: Paraphrase,
    *,
    candidates: Sequence[Candidate] = (),
    config: ParaphraseConfig | None = None,
    annotate: AnnotateConfig | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> list[Record]:
    """Records of other wordings, tagged `paraphrase`, with the answers of the corrections they belong to.

    Args:
        model: that is corrected, not trained yet.
        corrections: complete records with anchors.
        wanted: see `Paraphrase`. None: `none`. A wording that is given belongs to the record that its tag
            `paraphrase:<id>` names, else to the first where all have one answer; one with an `answer` needs none.
        candidates: prompts left out by `retain`.
        config: how many are found, with `auto`.
        annotate: token limit and confidence.
        on_progress: called with ("paraphrases", corrections done, all).

    Raises:
        RecordError: a wording that belongs to no correction.
        ConfigError, PromptError, RecordError, ModelError, StorageError: as `annotate`, `own_prompts` and
            `paraphrases`.
    """
    taken = {tuple(record.prompt_ids) for record in corrections}
    found: list[Prompt] = []
    for item in _items(wanted):
        if item == AUTO:
            found += paraphrases(model, corrections, config=config, candidates=candidates, on_progress=on_progress)
        elif item != NONE:
            found += _given(model, item)
    pairs = []
    for prompt in found:
        ids = tuple(model.codec.encode_prompt(prompt.messages, prompt.tools))
        if ids not in taken:
            taken.add(ids)
            pairs.append(_pair(prompt, corrections))
    return same_correction(model, pairs, annotate) if pairs else []


def _items(wanted: Paraphrase) -> list[PromptLike | Path]:
    if wanted is None:
        return []
    return [wanted] if isinstance(wanted, str | Path) else list(wanted)


def _given(model: LanguageModel, item: PromptLike | Path) -> list[Prompt]:
    if isinstance(item, Path) or (isinstance(item, str) and item.endswith(_FILES)):
        return own_prompts([item], limit=0, check=model.check_prompt)
    return as_prompts([item], check=fits(model))


def _pair(prompt: Prompt, corrections: Sequence[Record]) -> tuple[Record, Prompt]:
    """The prompt with its tags, and the correction it belongs to."""
    by_tag = {f"{PARAPHRASE_TAG}:{record.id}": record for record in corrections}
    named = next((by_tag[tag] for tag in prompt.tags if tag in by_tag), None)
    if named is None and (prompt.answer is not None or len({record.completion for record in corrections}) == 1):
        named = corrections[0]
    if named is None:
        fix = f"Give the prompt the tag {PARAPHRASE_TAG}:<id of its record>, or its `answer`."
        asked = prompt.messages[-1].get("content")
        raise RecordError(wrong(f"paraphrase {asked!r}", "the correction it belongs to", "none", fix))
    tags = list(dict.fromkeys([PARAPHRASE_TAG, f"{PARAPHRASE_TAG}:{named.id}", *prompt.tags]))
    return named, prompt.model_copy(update={"tags": tags})


def save_paraphrases(folder: str | Path, records: Iterable[Record]) -> None:
    """Write the wordings and their answers as prompts: without the lines struck out, they may be given again."""
    prompts = [
        Prompt(messages=record.messages, tools=record.tools, answer=record.completion, tags=record.tags)
        for record in records
    ]
    save_lines(Path(folder) / PARAPHRASES, prompts)


def without(kept: Iterable[Record], corrected: Iterable[Record]) -> list[Record]:
    """The keep records whose prompts are not corrected."""
    asked = {tuple(record.prompt_ids) for record in corrected}
    return [record for record in kept if tuple(record.prompt_ids) not in asked]
