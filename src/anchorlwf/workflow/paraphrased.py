"""Other wordings of corrected prompts, corrected with them: found without people, or given by them."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from anchorlwf.annotation import PromptLike, as_prompts, fits, same_correction
from anchorlwf.config import ParaphraseConfig, RetainConfig
from anchorlwf.data.jsonl import save_lines
from anchorlwf.data.record import Prompt, Record
from anchorlwf.errors import ConfigError, RecordError, wrong
from anchorlwf.model.language_model import LanguageModel
from anchorlwf.retention import PARAPHRASE_TAG, Candidate, paraphrases
from anchorlwf.retention.sources import own_prompts
from anchorlwf.workflow.retained import AUTO, NONE, Retain, keep_records_for

__all__ = [
    "PARAPHRASES",
    "Beside",
    "BesideConfig",
    "Paraphrase",
    "paraphrase_records",
    "records_beside",
    "save_paraphrases",
]

PARAPHRASES = "paraphrases.jsonl"
"""In the run folder: the wordings with their answers, for people to look through and to give back."""
Paraphrase = str | Path | Iterable[PromptLike | Path] | None
"""`auto`, `none`, a `.jsonl` or `.txt` file, a wording, or several of these. None: see `records_beside`."""
_FILES = (".jsonl", ".txt")
_Progress = Callable[[str, int, int], None]


class Beside(NamedTuple):
    """What is trained beside corrections."""

    paraphrases: list[Record]
    """The same corrections in other wordings."""
    keep: list[Record]
    """What must stay; those tagged `held-out` measure the drift."""


class BesideConfig(NamedTuple):
    """What is found without people, for `auto`."""

    retain: RetainConfig = RetainConfig()
    paraphrase: ParaphraseConfig = ParaphraseConfig()

    @classmethod
    def load(cls, path: str | Path | None) -> "BesideConfig":
        """The sections `retain` and `paraphrase` of a YAML file, or the defaults. Raises `ConfigError`."""
        return cls() if path is None else cls(RetainConfig.load_section(path), ParaphraseConfig.load_section(path))


def records_beside(
    model: LanguageModel,
    corrections: Sequence[Record],
    *,
    retain: Retain = None,
    paraphrase: Paraphrase = None,
    config: BesideConfig | None = None,
    skip_bad: bool = False,
    on_progress: _Progress | None = None,
) -> Beside:
    """The keep records of corrections and their other wordings, with no prompt in both.

    Args:
        model: that is corrected, not trained yet.
        corrections: complete records with anchors.
        retain: see `keep_records_for`.
        paraphrase: see `paraphrase_records`. None: `none`. Other wordings carry a correction further, but on a real
            model beside a tight drift budget they cost more than they brought (docs/results.md), and with nothing to
            hold the rest they carry it to other questions as well.
        config: how much is written and found, with `auto`; None: the defaults.
        skip_bad: go on without the bad lines of a file to retain, and warn of each.
        on_progress: called with a kind, how many there are, and how many are wanted.

    Raises:
        RecordError, PromptError, ConfigError, ModelError, StorageError: as `keep_records_for` and
            `paraphrase_records`.
    """
    found_by = config or BesideConfig()
    kept = keep_records_for(
        model, corrections, retain, config=found_by.retain, skip_bad=skip_bad, on_progress=on_progress
    )
    wanted = NONE if paraphrase is None else paraphrase
    found = paraphrase_records(
        model, corrections, wanted, candidates=kept.candidates, config=found_by.paraphrase, on_progress=on_progress
    )
    asked = {tuple(record.prompt_ids) for record in [*corrections, *found]}
    return Beside(found, [record for record in kept.records if tuple(record.prompt_ids) not in asked])


def paraphrase_records(
    model: LanguageModel,
    corrections: Sequence[Record],
    wanted: Paraphrase,
    *,
    candidates: Sequence[Candidate] = (),
    config: ParaphraseConfig | None = None,
    on_progress: _Progress | None = None,
) -> list[Record]:
    """Records of other wordings, tagged `paraphrase`, with the answers of the corrections they belong to.

    Args:
        model: that is corrected, not trained yet.
        corrections: complete records with anchors.
        wanted: see `Paraphrase`. A wording that is given belongs to the record that its tag `paraphrase:<id>` names,
            else to the first where all have one answer; one with an `answer` needs neither.
        candidates: prompts left out by `retain`.
        config: how many are found, with `auto`.
        on_progress: called with ("paraphrase", corrections done, all).

    Raises:
        RecordError: a wording that belongs to no correction.
        ConfigError, PromptError, RecordError, ModelError, StorageError: as `same_correction`, `own_prompts` and
            `paraphrases`.
    """
    taken = {tuple(record.prompt_ids) for record in corrections}
    corrections = [record for record in corrections if PARAPHRASE_TAG not in record.tags]
    found: list[Prompt] = []
    for item in _items(wanted) if corrections else ():
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
    return same_correction(model, pairs)


def _items(wanted: Paraphrase) -> list[PromptLike | Path]:
    if wanted is None:
        return []
    return [wanted] if isinstance(wanted, str | Path) else list(wanted)


def _given(model: LanguageModel, item: PromptLike | Path) -> list[Prompt]:
    if isinstance(item, Path) or (isinstance(item, str) and item.endswith(_FILES)):
        if not Path(item).is_file():
            raise ConfigError(wrong(f"paraphrases {item}", "a .jsonl or .txt file", "none there", "Check the path."))
        return own_prompts([item], limit=0, check=model.check_prompt)
    return as_prompts([item], check=fits(model))


def _pair(prompt: Prompt, corrections: Sequence[Record]) -> tuple[Record, Prompt]:
    """The correction that a prompt belongs to, and the prompt with its tags."""
    by_tag = {f"{PARAPHRASE_TAG}:{record.id}": record for record in corrections}
    named = next((by_tag[tag] for tag in prompt.tags if tag in by_tag), None)
    if named is None and prompt.answer is not None:
        tags = list(dict.fromkeys([PARAPHRASE_TAG, *prompt.tags]))
        return corrections[0], prompt.model_copy(update={"tags": tags})  # its answer says all
    if named is None and len({record.completion for record in corrections}) == 1:
        named = corrections[0]
    if named is None:
        fix = f"Give the prompt the tag {PARAPHRASE_TAG}:<id of its record>, or its `answer`."
        asked = prompt.messages[-1].get("content")
        raise RecordError(wrong(f"paraphrase {asked!r}", "the correction it belongs to", "none", fix))
    tags = list(dict.fromkeys([PARAPHRASE_TAG, f"{PARAPHRASE_TAG}:{named.id}", *prompt.tags]))
    return named, prompt.model_copy(update={"tags": tags})


def save_paraphrases(folder: str | Path, records: Sequence[Record]) -> None:
    """Write the wordings and their answers as prompts: without the lines struck out, they may be given again."""
    path = Path(folder) / PARAPHRASES
    if not records:
        path.unlink(missing_ok=True)  # an earlier run's
        return
    save_lines(
        path,
        (
            Prompt(messages=record.messages, tools=record.tools, answer=record.completion, tags=record.tags)
            for record in records
        ),
    )
