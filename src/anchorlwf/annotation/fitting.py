"""Whether a prompt can be annotated at all: asked of every prompt before the first one costs any work."""

from collections.abc import Callable

from anchorlwf.annotation.target import target_turn
from anchorlwf.model import LanguageModel
from anchorlwf.record import Prompt

__all__ = ["fits"]


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
