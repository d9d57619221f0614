"""Keep records: a model's own greedy answers, without any anchor. They say what must stay as it is."""

from collections.abc import Iterator, Sequence

from anchorlwf.data.record import ModelStamp, Prompt, Record
from anchorlwf.decoding.greedy import Decoded, decode_batch
from anchorlwf.model.language_model import LanguageModel

__all__ = ["HELD_OUT_TAG", "KEEP_TAG", "keep_record", "keep_records"]

KEEP_TAG = "retain"
HELD_OUT_TAG = "held-out"
"""Of keep records that are never trained on: drift is measured on them."""


def keep_record(
    model: LanguageModel, stamp: ModelStamp, prompt: Prompt, prompt_ids: list[int], answer: Decoded
) -> Record:
    """The record of one answer of the model's own; one that the token limit cut short is kept as far as it goes."""
    return Record.build(
        prompt,
        stamp,
        prompt_ids=prompt_ids,
        completion_ids=answer.ids,
        decode=model.codec.decode,
        original_ids=answer.ids,
        truncated=answer.truncated,
        tags=[KEEP_TAG],
    )


def keep_records(model: LanguageModel, prompts: Sequence[Prompt], limit: int) -> list[Record]:
    """Answer every prompt greedily, with `limit` tokens or fewer.

    Raises:
        PromptError: a prompt fills the context.
    """
    encoded = [model.codec.encode_prompt(prompt.messages, prompt.tools) for prompt in prompts]
    answers = dict(_answers(model, encoded, limit))
    stamp = model.stamp
    return [
        keep_record(model, stamp, prompt, ids, answers[index])
        for index, (prompt, ids) in enumerate(zip(prompts, encoded, strict=True))
    ]


def _answers(model: LanguageModel, encoded: list[list[int]], limit: int) -> Iterator[tuple[int, Decoded]]:
    for batch in decode_batch(model, encoded, limit):
        yield from batch
