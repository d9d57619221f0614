"""The same correction in other wordings of its prompt: what was wrong in one answer is made right in the others."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from anchorlwf.annotation.target import target_records, target_turn
from anchorlwf.config import AnnotateConfig
from anchorlwf.data.record import Prompt, Record
from anchorlwf.data.words import contains_words, replace_words
from anchorlwf.decoding.greedy import Decoded, decode_batch
from anchorlwf.model.language_model import LanguageModel

__all__ = ["Change", "same_correction"]

_LONGER = 2
"""An own answer that is not complete after this many times the tokens of the longest corrected one is not taken."""

_PIECES = re.compile(r"\w+|\s+|[^\w\s]+")


class Change(NamedTuple):
    """The words of an answer that were wrong, and those that stand in their place."""

    rejected: str
    right: str

    @classmethod
    def between(cls, original: str, corrected: str) -> "Change":
        """What is left of two answers without the words that both begin and end with.

        Nothing is rejected where the corrected answer still holds the same words elsewhere.
        """
        old, new = _PIECES.findall(original), _PIECES.findall(corrected)
        shorter = min(len(old), len(new))
        start = next((i for i in range(shorter) if old[i] != new[i]), shorter)
        end = next((i for i in range(shorter - start) if old[-1 - i] != new[-1 - i]), shorter - start)
        rejected, right = ("".join(pieces[start : len(pieces) - end]).strip() for pieces in (old, new))
        return cls("" if rejected and contains_words(rejected, corrected) else rejected, right)

    def made_in(self, answer: str) -> str | None:
        """The answer with the right words wherever the rejected ones stood; None: they do not stand in it."""
        if not self.rejected or not self.right or not contains_words(self.rejected, answer):
            return None
        return replace_words(self.rejected, self.right, answer)


def same_correction(
    model: LanguageModel, corrected: Sequence[tuple[Record, Prompt]], config: AnnotateConfig | None = None
) -> list[Record]:
    """Annotate other wordings of corrected prompts by the protocol, with what was corrected there.

    The target is the model's own answer to the wording, with the right words where it holds the rejected ones; the
    corrected answer itself where it does not, or reaches the token limit. A prompt that has its `answer` keeps it.

    Args:
        model: the model to correct, not trained yet.
        corrected: complete records with anchors, each with another wording of its prompt.
        config: token limit and confidence. None: the defaults, but at most twice as many tokens as the longest
            corrected answer has, so that an answer that goes on and on is not taken up.

    Returns:
        A record for each wording whose answer is wrong so far, with the prompt's tags, in order.

    Raises:
        PromptError, RecordError: a wording that does not fit the model, or has a wrong answer.
    """
    longest = max((len(record.completion_ids) for record, _ in corrected), default=1)
    config = config or AnnotateConfig(max_new_tokens=_LONGER * longest)
    encoded = [model.codec.encode_prompt(prompt.messages, prompt.tools) for _, prompt in corrected]
    originals: dict[int, Decoded] = {}
    for batch in decode_batch(model, encoded, config.max_new_tokens):
        originals.update(batch)
    decode, targets, before = model.codec.decode, [], []
    for index, (record, prompt) in enumerate(corrected):
        answer = prompt.answer
        if answer is None:
            change = Change.between(decode(record.original_ids), record.completion)
            own = originals[index]
            said = None if own.truncated else change.made_in(decode(own.ids))
            if said is None and record.truncated:
                continue  # it would teach to end in the middle of a sentence
            answer = record.completion if said is None else said
        wanted = prompt.model_copy(update={"answer": answer})
        targets.append((wanted, target_turn(model, wanted)))
        before.append(originals[index])
    records = target_records(model, targets, config, before)
    return [record for record in records if record.anchors]
