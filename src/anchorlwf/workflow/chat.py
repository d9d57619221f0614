"""Talk to the base and the tuned model side by side, each with its own history."""

import warnings
from typing import Any

from anchorlwf.decoding.greedy import Decoded, decode_batch
from anchorlwf.errors import PromptWarning
from anchorlwf.model.language_model import LanguageModel

__all__ = ["SideBySide"]


class SideBySide:
    """Two conversations over one set of weights: the reference (adapter off) and the tuned model.

    Args:
        model: a model with an adapter; without one both sides are the same and only `tuned` is asked.
        limit: maximum number of new tokens per answer.
    """

    def __init__(self, model: LanguageModel, limit: int = 512) -> None:
        self._model, self._limit = model, limit
        self.two_sided = hasattr(model.net, "disable_adapter")
        self._histories: dict[str, list[dict[str, Any]]] = {"base": [], "tuned": []}

    def ask(self, text: str) -> dict[str, str]:
        """The answers of both sides, by name (`base`, `tuned`), to the next user message. Raises `PromptError`."""
        answers = {}
        if self.two_sided:
            with self._model.as_reference() as reference:
                answers["base"] = self._answer("base", reference, text)
        answers["tuned"] = self._answer("tuned", self._model, text)
        return answers

    def _answer(self, side: str, model: LanguageModel, text: str) -> str:
        messages = [*self._histories[side], {"role": "user", "content": text}]
        ids = model.codec.encode_prompt(messages)
        for remark in model.codec.remarks(messages):
            warnings.warn(remark, PromptWarning, stacklevel=3)
        [[(_, answer)]] = decode_batch(model, [ids], self._limit)
        assert isinstance(answer, Decoded)
        reply = model.codec.decode(answer.ids)
        self._histories[side] = [*messages, {"role": "assistant", "content": reply}]
        return reply
