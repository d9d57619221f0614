"""Other wordings of corrected prompts, found without people: asked from the model, and made by rule.

Holding other answers holds the same question in other words, too, unless these are corrected with it.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from anchorlwf.config import ParaphraseConfig, RetainConfig
from anchorlwf.data.record import Message, Prompt, Record
from anchorlwf.errors import PromptWarning, warn, wrong
from anchorlwf.files import cache_folder
from anchorlwf.model.language_model import LanguageModel, load_model
from anchorlwf.retention.rewording import alike, mechanical, question_of
from anchorlwf.retention.rounds import Answered
from anchorlwf.retention.same_fact import Background, Candidate, Corrected, same_fact
from anchorlwf.retention.screening import words
from anchorlwf.retention.writer import Writer

__all__ = ["PARAPHRASE_TAG", "paraphrases"]

PARAPHRASE_TAG = "paraphrase"
"""Of other wordings; `paraphrase:<id>` says of which record."""


def paraphrases(
    model: LanguageModel | str | None,
    records: Sequence[Record],
    *,
    config: ParaphraseConfig | None = None,
    written: RetainConfig | None = None,
    candidates: Iterable[Candidate] = (),
    cache_dir: str | Path | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> list[Prompt]:
    """Other wordings of corrected prompts, without their answers.

    The model is asked for some; those stay that hold the distinguishing words of the prompt and that its reference
    answers with what was rejected, as do candidates that turned up among near prompts. The rest is made by rule: in
    lower case, without punctuation, with a polite word, later in a chat. Of these, too, those are taken that the
    reference answers with what was rejected; half as many of all where none is, for a model that says something else
    each time is corrected in one wording only.

    Args:
        model: the model, its name, or None for the embedded one. Its reference is what is asked.
        records: the corrections, each with anchors.
        config: how many.
        written: how the model writes prompts: as for `retain`, so that both use the same cache.
        candidates: what `retain` left out.
        cache_dir: see `cache_folder`.
        on_progress: called with ("paraphrase", corrections done, all).

    Returns:
        Prompts tagged `paraphrase` and `paraphrase:<id of the record>`, none of them twice or among the records.

    Raises:
        ModelError: a model with neither chat template nor start token.
        StorageError: the cache folder cannot be written.

    Warns:
        PromptWarning: more corrections than `total`, so that none is found.
    """
    config, written = config or ParaphraseConfig(), written or RetainConfig()
    language_model = model if isinstance(model, LanguageModel) else load_model(model)
    each = _each(config, len(records))
    if not each:
        return []
    found = _by_record(candidates)
    seen, chosen = {_key(record.messages) for record in records}, list[Prompt]()
    with language_model.as_reference() as reference:
        writer = Writer.of(reference, written, cache_folder(cache_dir))
        general = _general(writer, written)
        background = Background(turn.exchange for turn in general)
        for done, record in enumerate(records, 1):
            corrected = Corrected(reference, record, written.answer_tokens, background)
            asked = _sure([*found[record.id], *_asked(writer, corrected, record, config)], corrected)
            roomy = _roomy(reference, record, mechanical(record, _chat(general)))
            half = math.ceil(each / 2)
            made = _made(writer, corrected, roomy, config.rules) or (roomy[:half] if config.rules == "agreeing" else [])
            offered = [*_roomy(reference, record, asked)[:half], *made]
            chosen += _first(offered, each, seen, record)
            if on_progress is not None:
                on_progress("paraphrase", done, len(records))
    return chosen


def _each(config: ParaphraseConfig, corrections: int) -> int:
    """How many a correction gets."""
    if corrections > config.total:
        fix = f"Raise total in the section `paraphrase` of --config, to {corrections} at least."
        warn(wrong("other wordings", f"at most {config.total} corrections", corrections, fix), PromptWarning)
    return min(config.each, config.total // max(1, corrections))


def _general(writer: Writer, written: RetainConfig) -> list[Answered]:
    """The prompts about anything that `retain` begins with: they tell which words are common."""
    rounds = itertools.islice(writer.general(), math.ceil(written.general / written.batch_size))
    return [turn for made in rounds for turn in made.answered]


def _by_record(candidates: Iterable[Candidate]) -> defaultdict[str, list[Candidate]]:
    found = defaultdict[str, list[Candidate]](list)
    for candidate in candidates:
        found[candidate.record_id].append(candidate)
    return found


def _asked(writer: Writer, corrected: Corrected, record: Record, config: ParaphraseConfig) -> Iterator[Candidate]:
    """What the model wrote when asked for other wordings, as far as it may ask for the same."""
    turns = (turn for made in itertools.islice(writer.reworded(record), config.rounds) for turn in made.answered)
    found = (same_fact(turn, [corrected]) for turn in turns)
    return (candidate for candidate in found if candidate is not None)


def _sure(candidates: Iterable[Candidate], corrected: Corrected) -> list[Prompt]:
    """Those that ask for the same by both signs, are like the corrected prompt, and do not give the answer away."""
    question = question_of(corrected.record)
    texts = ((str(candidate.prompt.messages[-1].get("content", "")), candidate) for candidate in candidates)
    return [
        candidate.prompt
        for text, candidate in texts
        if question is not None and candidate.certain and alike(text, question) and not corrected.holds_rejected(text)
    ]


def _roomy(model: LanguageModel, record: Record, prompts: Sequence[Prompt]) -> list[Prompt]:
    """Those behind which the corrected answer has room twice, for the own answer to a wording may be longer."""
    context, wanted = model.context_length, 2 * len(record.completion_ids)
    encoded = (model.codec.encode_prompt(prompt.messages, prompt.tools) for prompt in prompts)
    return [
        prompt for prompt, ids in zip(prompts, encoded, strict=True) if context is None or len(ids) + wanted <= context
    ]


def _made(writer: Writer, corrected: Corrected, prompts: list[Prompt], rules: str) -> list[Prompt]:
    """What was made by rule, as far as it is wanted."""
    if rules != "agreeing":
        return prompts if rules == "all" else []
    turns = [turn for made in writer.own(prompts) for turn in made.answered]
    return [turn.prompt for turn in turns if corrected.holds_rejected(turn.completion)]


def _chat(general: Sequence[Answered]) -> list[Message]:
    """A prompt the model wrote and its whole answer, which another may follow; nothing where every answer was cut."""
    turn = next((turn for turn in general if not turn.truncated and words(turn.completion)), None)
    return [] if turn is None else [*turn.prompt.messages, {"role": "assistant", "content": turn.completion}]


def _first(offered: Iterable[Prompt], count: int, seen: set[str], record: Record) -> list[Prompt]:
    """The first of them that are new, which count as seen from now on."""
    chosen: list[Prompt] = []
    for prompt in offered:
        key = _key(prompt.messages)
        if len(chosen) < count and key not in seen:
            seen.add(key)
            tags = [PARAPHRASE_TAG, f"{PARAPHRASE_TAG}:{record.id}"]
            chosen.append(prompt.model_copy(update={"tags": tags}))
    return chosen


def _key(messages: Sequence[Message]) -> str:
    return repr([(message["role"], message.get("content")) for message in messages])
