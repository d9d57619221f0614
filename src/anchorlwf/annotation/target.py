"""The `target` annotator: the right answer is known, so its anchors follow from the model alone.

By the invariant of the protocol, anchors = { t : argmax p_ref(. | x, y_<t) != y_t }, and one forward pass over
prompt and answer shows them all. `TargetAnnotator` finds the same anchors step by step; tests hold the two equal.
"""

from collections.abc import Sequence

from anchorlwf.annotation.protocol import anchors_of
from anchorlwf.annotation.review import Accept, Correct, Review, View
from anchorlwf.config import AnnotateConfig
from anchorlwf.data.record import Prompt, Record
from anchorlwf.decoding.greedy import Decoded
from anchorlwf.decoding.teacher_forcing import forced_choices
from anchorlwf.errors import AnchorLwfError, PromptError, RecordError, wrong
from anchorlwf.model.batch import KeepTurn
from anchorlwf.model.language_model import LanguageModel

__all__ = ["TargetAnnotator", "target_ids", "target_record", "target_records", "target_turn"]


def target_ids(model: LanguageModel, answer: str | None) -> list[int]:
    """Token ids of a target answer, the end-of-turn token included.

    Raises:
        RecordError: there is no answer, it is empty, or it goes on behind an end-of-turn token.
    """
    ids = model.codec.encode(answer) if answer else []
    if not ids:
        fix = "Add an `answer` to the prompt, or choose another annotator."
        raise RecordError(wrong("target answer", "some text", "nothing" if answer is None else repr(answer), fix))
    if ids[-1] not in model.stop_ids:
        ids = [*ids, model.codec.end_id(model.stop_ids)]
    if not model.stop_ids.isdisjoint(ids[:-1]):
        fix = "No answer goes on behind it; leave it out of the text."
        raise RecordError(wrong("target answer", "the end-of-turn token last", repr(answer), fix))
    return ids


def target_turn(model: LanguageModel, prompt: Prompt) -> KeepTurn:
    """A prompt and its target answer as token ids.

    Raises:
        RecordError: no answer given.
        PromptError: prompt and answer together do not fit the context.
    """
    prompt_ids = model.codec.encode_prompt(prompt.messages, prompt.tools)
    ids = target_ids(model, prompt.answer)
    if model.room(prompt_ids, len(ids)) < len(ids):
        got = f"{len(prompt_ids)} + {len(ids)}"
        raise PromptError(wrong("prompt + answer", f"at most {model.context_length} tokens", got, "Shorten them."))
    return KeepTurn(prompt_ids, ids)


def target_records(
    model: LanguageModel,
    targets: Sequence[tuple[Prompt, KeepTurn]],
    config: AnnotateConfig,
    originals: Sequence[Decoded | None],
) -> list[Record]:
    """Complete records of target answers, from one forward pass per batch.

    Args:
        model: the model to correct.
        targets: prompts with their `target_turn`; all of them stand in memory.
        config: confidence of the anchors.
        originals: the model's own greedy answers, where they were decoded.
    """
    stamp, records = model.stamp, []
    by_target = forced_choices(model, [turn for _, turn in targets])
    for (prompt, turn), choices, original in zip(targets, by_target, originals, strict=True):
        anchors, ties = anchors_of(choices, turn.completion_ids, 0, config.confidence, "target")
        records.append(
            Record.build(
                prompt,
                stamp,
                prompt_ids=turn.prompt_ids,
                completion_ids=turn.completion_ids,
                decode=model.codec.decode,
                original_ids=original.ids if original else [],
                anchors=anchors,
                ties=ties,
            )
        )
    return records


def target_record(
    model: LanguageModel, prompt: Prompt, config: AnnotateConfig, original: Decoded | None = None
) -> Record:
    """`target_records` of one prompt. Raises as `target_turn`."""
    return target_records(model, [(prompt, target_turn(model, prompt))], config, [original])[0]


class TargetAnnotator:
    """The same annotator as a participant of the recursion: compares, points at the first difference."""

    source = "target"

    def __init__(self, model: LanguageModel, answer: str, confidence: float = 1.0) -> None:
        self._ids, self._confidence = target_ids(model, answer), confidence

    def review(self, view: View) -> Review:
        """Accept, or correct the first token that differs from the target."""
        for position, (stands, wanted) in enumerate(zip(view.completion_ids, self._ids, strict=False)):
            if stands != wanted:
                return Correct(position, [wanted], self._confidence)
        if len(view.completion_ids) < len(self._ids):
            got = f"{len(view.completion_ids)} tokens"
            fix = "Raise --max-new-tokens."
            raise RecordError(wrong("answer", f"room for the target's {len(self._ids)} tokens", got, fix))
        return Accept()

    def complain(self, error: AnchorLwfError) -> None:
        """A correction computed from the target cannot be mended by asking again."""
        raise error
