"""Whether a prompt or a record can be taken at all: asked of every one before the first one costs any work."""

from collections.abc import Callable, Sequence

from anchorlwf.annotation.target import target_turn
from anchorlwf.data.record import Prompt, Record
from anchorlwf.errors import PromptError, wrong
from anchorlwf.model.language_model import LanguageModel
from anchorlwf.model.vocabulary import TokenTable

__all__ = ["Room", "check_record", "fits"]

Room = Callable[[Sequence[int], int], int]
"""`Decoder.room`: how many of so many completion tokens fit behind a prompt. Raises `PromptError`."""


def fits(model: LanguageModel, *, target: bool = False) -> Callable[[Prompt], list[str]]:
    """A check for `load_prompts`, which warns of the remarks it returns (`Codec.remarks`).

    Args:
        model: whose context is the limit.
        target: the prompt's answer must be there, and fit as well.

    Returns:
        A function that raises `PromptError` (too long) or `RecordError` (no answer where one is needed).
    """

    def check(prompt: Prompt) -> list[str]:
        if target:
            target_turn(model, prompt)
        return model.check_prompt(prompt)

    return check


def check_record(record: Record, table: TokenTable, room: Room) -> None:
    """What is asked of a prompt, asked of a record that comes from outside.

    Raises:
        StampError: a token id that the vocabulary does not have.
        PromptError: messages that the chat template refuses, or more tokens than the context has.
        ValidationError: messages that no prompt may have, such as those without roles.
    """
    prompt = Prompt(messages=record.messages, tools=record.tools)
    record.require_vocabulary(len(table))
    wanted = len(record.completion_ids)
    for prompt_ids in (record.prompt_ids, table.codec.encode_prompt(prompt.messages, prompt.tools)):
        fitting = room(prompt_ids, wanted)
        if fitting < wanted:
            expected, got = f"at most {len(prompt_ids) + fitting} tokens (context)", f"{len(prompt_ids)} + {wanted}"
            raise PromptError(wrong("prompt + completion", expected, got, "Shorten them."))
