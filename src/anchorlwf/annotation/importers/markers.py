"""Texts that carry a chat template's markers, as lawftrack stores them: where the answer is, what was asked."""

import re
from collections.abc import Iterable

from anchorlwf.data.record import Message
from anchorlwf.errors import RecordError, wrong
from anchorlwf.model.codec import Codec

__all__ = ["Markers", "messages_of"]

# ChatML, Llama 3, Gemma, Phi and Zephyr; the model's own template is asked as well.
_HEADERS = (
    r"<\|im_start\|>\s*assistant[ \t]*\r?\n?",
    r"<\|start_header_id\|>\s*assistant\s*<\|end_header_id\|>(?:\r?\n){0,2}",
    r"<start_of_turn>\s*model[ \t]*\r?\n?",
    r"<\|assistant\|>[ \t]*\r?\n?",
)
_ENDS = (r"<\|(?:im_end|endoftext|eot_id|end_of_text)\|>", "<end_of_turn>")
_BEGINS = re.compile(r"\s*(?:<\|\w+\|>|<start_of_turn>|<bos>|<s>)")
_TURN = re.compile(
    r"(?:<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>)\s*(?P<role>\w+)(?:<\|end_header_id\|>\n)?\n"
    r"(?P<content>.*?)(?:<\|im_end\|>|<\|eot_id\|>|<end_of_turn>)",
    re.DOTALL,
)


class Markers:
    """What stands around an assistant's answer.

    Args:
        codec: its template's own header is known besides the common ones.
        stop_ids: their texts end an answer.
    """

    def __init__(self, codec: Codec, stop_ids: Iterable[int]) -> None:
        self._own = codec.opening().lstrip()
        self._header = re.compile(rf".*(?:{'|'.join(_HEADERS)})", re.DOTALL)
        ends = [re.escape(text) for text in (codec.decode([token], special=True) for token in stop_ids) if text.strip()]
        self._end = re.compile("|".join([*ends, *_ENDS]))

    def answer(self, text: str) -> slice:
        """Where the answer is: behind the header of the last turn, before what ends it; the whole of a plain text.

        Only a text that begins with a marker has a header: another one may well speak of markers.
        """
        start = 0
        if self._own and text.lstrip().startswith(self._own):
            start = text.index(self._own) + len(self._own)
        elif _BEGINS.match(text) and (header := self._header.match(text)):
            start = header.end()
        end = self._end.search(text, start)
        return slice(start, end.start() if end else len(text))


def messages_of(prompt: str, codec: Codec) -> list[Message]:
    """The chat that a prompt given as one text stands for: plain text is the user's, a templated one is read back.

    Raises:
        RecordError: it has markers, and the template does not make the same ids of what was read.
    """
    if not _BEGINS.match(prompt):
        return [{"role": "user", "content": prompt}]
    roles = {"model": "assistant"}
    messages = [
        {"role": roles.get(turn["role"], turn["role"]), "content": turn["content"]} for turn in _TURN.finditer(prompt)
    ]
    if not messages or codec.encode_prompt(messages) not in (
        codec.encode(prompt),
        codec.tokenizer(prompt)["input_ids"],
    ):
        fix = "Give plain text, or messages."
        what = "plain text, or the model's own template up to the assistant's turn"
        raise RecordError(wrong("prompt", what, repr(prompt[:80]), fix))
    return messages
