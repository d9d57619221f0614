"""What must stay: prompts the model writes itself, and prompts of the user's own, all answered by the reference."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple

from anchorlwf.config import RetainConfig
from anchorlwf.data.jsonl import load_records
from anchorlwf.data.record import Prompt, Record
from anchorlwf.decoding.greedy import Decoded
from anchorlwf.decoding.keep_records import HELD_OUT_TAG, keep_record
from anchorlwf.files import cache_folder
from anchorlwf.model.language_model import EMBEDDED, LanguageModel, load_model
from anchorlwf.retention.rounds import Answered, Round
from anchorlwf.retention.same_fact import Background, Candidate, Corrected, same_fact
from anchorlwf.retention.sources import own_prompts
from anchorlwf.retention.writer import Writer

__all__ = ["AUTO", "HELD_OUT_TAG", "NONE", "Retained", "Retention", "remembered_answers", "retain", "usual_retention"]

AUTO: Final = "auto"
"""What the model writes itself is kept."""
NONE: Final = "none"
"""Nothing is kept besides the records."""

_TRIES = 8
"""Maximum number of prompts sampled for each that is wanted: some models write little that is new."""

Progress = Callable[[str, int, int], None]
Retention = Literal["none", "auto"]


def usual_retention(model_name: str) -> Retention:
    """What is kept where nothing is said: the embedded model writes too little to be kept by it."""
    return NONE if model_name == EMBEDDED else AUTO


@dataclass(frozen=True)
class Retained:
    """Keep records: what to train on so that it stays, and what to measure drift on."""

    records: list[Record]
    """To be trained on; tagged `retain:general`, `retain:near` or `retain:own`."""
    held_out: list[Record]
    """General and near ones that are never to be trained on; tagged `held-out`, too."""
    candidates: list[Candidate]
    """Prompts left out because they seem to ask for a corrected fact in other words."""
    left_out: dict[str, int]
    """How many sampled prompts were not taken, by reason; `same fact` are the candidates."""

    def count(self, kind: str) -> int:
        """How many there are of a kind (`general`, `near`, `own`), held out or not."""
        return sum(f"retain:{kind}" in record.tags for record in [*self.records, *self.held_out])


class _Sieve(NamedTuple):
    """Tells the prompts that ask for a corrected fact from those whose answers must stay."""

    model: LanguageModel
    corrected: Sequence[Record]
    limit: int

    def sift(
        self, answered: Sequence[Answered], general: Sequence[Answered]
    ) -> tuple[list[tuple[int, Answered]], list[Candidate]]:
        """The prompts that stay, each with its number, and the others. Both lists tell which words are common."""
        near = () if answered is general else answered
        background = Background((turn.exchange for turn in general), (turn.exchange for turn in near))
        corrections = [Corrected(self.model, record, self.limit, background) for record in self.corrected]
        stay, candidates = [], []
        for number, turn in enumerate(answered):
            candidate = same_fact(turn, corrections)
            if candidate is None:
                stay.append((number, turn))
            else:
                candidates.append(candidate)
        return stay, candidates


class _Gathered(NamedTuple):
    """Prompts of one kind."""

    stay: list[tuple[int, Answered]]
    """With their numbers among all that were written, which later calls and other corrections do not change."""
    candidates: list[Candidate]
    written: list[Answered]
    left_out: Counter[str]


def retain(
    model: LanguageModel | str | None,
    records: str | Path | Sequence[Record] | None = None,
    *,
    config: RetainConfig | None = None,
    prompts: Iterable[str | Path] = (),
    cache_dir: str | Path | None = None,
    on_progress: Progress | None = None,
) -> Retained:
    """Keep records without data: the model writes prompts, and its reference answers them greedily.

    General prompts are user's turns it samples on its own; near ones begin like the prompt of a corrected record, whose
    neighbours they protect. Those that ask for a corrected fact are left out. Everything depends on the seed, and is
    kept in the cache folder: the same model starts at once the next time, and an interrupted run goes on.

    Args:
        model: the model, its name, or None for the embedded one. Its reference is what is asked.
        records: a JSONL file, or records; those with anchors are the corrections. None: no near prompts.
        config: how many, how long, which share is held out.
        prompts: `.jsonl` or `.txt` files, or data sets, of the user's own (see `own_prompts`); as many of each data
            set as general prompts are wanted. None of them is held out.
        cache_dir: see `cache_folder`.
        on_progress: called with a kind (`general`, `near`, `own`), how many are there, and how many are wanted.

    Returns:
        The keep records. There may be fewer than wanted where a model writes little that is new.

    Raises:
        RecordError, StampError: records that are broken, or of another tokenizer or template.
        ConfigError, RecordError, PromptError: prompts that cannot be read, or do not fit the model.
        ModelError: a model with neither chat template nor start token.
        StorageError: the cache folder cannot be written.
    """
    config, report = config or RetainConfig(), on_progress or (lambda *_: None)
    language_model = model if isinstance(model, LanguageModel) else load_model(model)
    corrected = _corrected(language_model, records)
    given = own_prompts(prompts, limit=config.general, check=language_model.check_prompt)
    with language_model.as_reference() as reference:
        writer = Writer.of(reference, config, cache_folder(cache_dir))
        sieve = _Sieve(reference, corrected, config.answer_tokens)
        general = _gather("general", writer.general(), config.general, sieve, None, config, report)
        wanted = config.near if corrected else 0
        near = _gather("near", writer.near(corrected), wanted, sieve, general.written, config, report)
        own: list[Answered] = []
        for made in writer.own(given):
            own += made.answered
            report("own", len(own), len(given))
    return _assembled(language_model, corrected, general, near, own, config)


def remembered_answers(
    model: LanguageModel, prompts: Sequence[Prompt], limit: int, *, cache_dir: str | Path | None = None
) -> dict[tuple[int, ...], list[int]]:
    """What a model's reference answers greedily, kept in the cache folder: the second time nothing is decoded.

    Args:
        model: whose reference is asked.
        prompts: what it is asked.
        limit: maximum number of tokens of an answer.
        cache_dir: see `cache_folder`.

    Returns:
        Token ids of the answer by token ids of the prompt.

    Raises:
        StorageError: the cache folder cannot be written.
    """
    with model.as_reference() as reference:
        writer = Writer.of(reference, RetainConfig(answer_tokens=limit), cache_folder(cache_dir))
        turns = [turn for made in writer.own(prompts) for turn in made.answered]
    return {tuple(turn.prompt_ids): turn.completion_ids for turn in turns}


def _corrected(model: LanguageModel, records: str | Path | Sequence[Record] | None) -> list[Record]:
    """The corrections among the records, all of them this model's."""
    listed = load_records(records) if isinstance(records, str | Path) else list(records or ())
    chosen, stamp = [r for r in listed if r.anchors and r.status == "complete"], model.stamp
    for record in chosen:
        model.check_stamp(record, stamp)
    return chosen


def _gather(
    kind: str,
    made: Iterator[Round],
    wanted: int,
    sieve: _Sieve,
    general: Sequence[Answered] | None,
    config: RetainConfig,
    report: Progress,
) -> _Gathered:
    """Rounds until as many prompts as wanted stay, or the model was asked often enough."""
    written: list[Answered] = []
    left_out: Counter[str] = Counter()
    stay: list[tuple[int, Answered]] = []
    candidates: list[Candidate] = []
    tries = math.ceil(_TRIES * wanted / config.batch_size)
    while len(stay) < wanted and tries:
        current, tries = next(made), tries - 1
        written += current.answered
        left_out.update(current.left_out)
        stay, candidates = sieve.sift(written, written if general is None else general)
        report(kind, min(len(stay), wanted), wanted)
    return _Gathered(stay[:wanted], candidates, written, left_out)


def _assembled(
    model: LanguageModel,
    corrected: Sequence[Record],
    general: _Gathered,
    near: _Gathered,
    own: Sequence[Answered],
    config: RetainConfig,
) -> Retained:
    """Each prompt once, the corrected ones not at all; a share of what the model wrote is put aside."""
    stamp, seen = model.stamp, {tuple(record.prompt_ids) for record in corrected}
    records: list[Record] = []
    held_out: list[Record] = []
    kinds = [("general", general.stay), ("near", near.stay), ("own", list(enumerate(own)))]
    for kind, numbered in kinds:
        for number, turn in numbered:
            ids = tuple(turn.prompt_ids)
            if ids in seen:
                continue
            seen.add(ids)
            aside = kind != "own" and _held_out(number, config.held_out)
            tags = [*turn.prompt.tags, f"retain:{kind}", *([HELD_OUT_TAG] if aside else [])]
            prompt = turn.prompt.model_copy(update={"tags": tags})
            answer = Decoded(turn.completion_ids, turn.truncated)
            (held_out if aside else records).append(keep_record(model, stamp, prompt, turn.prompt_ids, answer))
    candidates = [*general.candidates, *near.candidates]
    left_out = {**(general.left_out + near.left_out), "same fact": len(candidates)}
    return Retained(records, held_out, candidates, left_out)


def _held_out(number: int, share: float) -> bool:
    """Whether a prompt is put aside: always the same ones, spaced evenly, so that exactly the share of them is."""
    return math.floor((number + 1) * share) > math.floor(number * share)
