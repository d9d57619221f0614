"""What a model says: its greedy answers as they are decoded, and where it was in doubt."""

import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anchorlwf.annotation import fits
from anchorlwf.config import AnnotateConfig
from anchorlwf.data.jsonl import Reading, load_prompts
from anchorlwf.data.plain_prompts import is_plain
from anchorlwf.data.record import Prompt
from anchorlwf.decoding.greedy import GreedyDecoder, Step
from anchorlwf.model.generation import warn_of_generation
from anchorlwf.model.language_model import LanguageModel

__all__ = ["STDIN", "UNCERTAIN", "Answer", "Token", "ask", "questions"]

STDIN = "-"
UNCERTAIN = 0.5
"""A token is uncertain if the model gives its own choice less than this: something else is then likelier than it."""


@dataclass(frozen=True)
class Token:
    """One token of an answer."""

    text: str
    probability: float
    """That the model gives it, in [0, 1]."""
    instead: str | None
    """The next best; None: there is none."""
    instead_probability: float

    @property
    def uncertain(self) -> bool:
        """See `UNCERTAIN`."""
        return self.probability < UNCERTAIN


@dataclass(frozen=True)
class Answer:
    """What the model says to one prompt."""

    prompt: Prompt
    text: str
    tokens: list[Token]
    """With the end-of-turn token, unless truncated."""
    truncated: bool
    """The token limit or the context ended it."""

    @property
    def doubts(self) -> list[Token]:
        """The uncertain tokens, the least certain first."""
        return sorted((token for token in self.tokens if token.uncertain), key=lambda token: token.probability)

    def row(self) -> dict[str, Any]:
        """The line of a prompts file: the prompt, and as its `answer` the one that it came with, or the model's own.

        A truncated answer is none that should be learned, so such a line has only what it came with.
        """
        given = self.prompt.model_dump(exclude_defaults=True, exclude={"messages"})
        messages = self.prompt.messages
        plain = len(messages) == 1 and set(messages[0]) == {"role", "content"} and messages[0]["role"] == "user"
        asked = {"prompt": messages[0]["content"]} if plain else {"messages": messages}
        own = {} if self.truncated or not self.text.strip() else {"answer": self.text}
        return {**asked, **own, **given}


def questions(sources: Sequence[str], model: LanguageModel, *, skip_bad: bool = False) -> list[Prompt]:
    """The prompts that the sources hold.

    Args:
        sources: each a file that `load_prompts` takes; `-` for standard input, which holds a prompt per line or JSON
            lines; or a question itself.
        model: that will be asked; every prompt is checked against it.
        skip_bad: go on without bad lines, and warn of each.

    Raises:
        RecordError, PromptError: a source without prompts, or with a bad line.
    """
    check = fits(model)
    prompts = []
    for source in sources:
        if source == STDIN:
            prompts += _from_stdin(check, skip_bad)
        # `Path.is_file` fails on a question that is longer than a name can be.
        elif os.path.isfile(source) or is_plain(source) or Path(source).suffix == ".jsonl":  # noqa: PTH113 - see above
            prompts += load_prompts(source, skip_bad=skip_bad, check=check)
        else:
            prompts += load_prompts([{"prompt": source}], check=check)
    return prompts


def _from_stdin(check: Callable[[Prompt], list[str]], skip_bad: bool) -> list[Prompt]:
    # Bytes, for what text they are depends on the surroundings; a notebook may have none to give.
    binary = getattr(sys.stdin, "buffer", None)
    content = sys.stdin.read().encode() if binary is None else binary.read()
    plain = not content.lstrip().startswith(b"{")
    reading = Reading(io.BytesIO(content), Prompt, check, name="standard input", plain=plain)
    prompts = [prompt for _, prompt in reading.good_lines()]
    reading.report(skip_bad=skip_bad)
    return prompts


def ask(
    model: LanguageModel,
    prompts: Iterable[Prompt],
    *,
    config: AnnotateConfig | None = None,
    on_prompt: Callable[[Prompt], None] = lambda prompt: None,
    on_text: Callable[[str, bool], None] = lambda text, uncertain: None,
) -> Iterator[Answer]:
    """Ask a model, one prompt after the other.

    Args:
        model: answers greedily, as it is (adapter on).
        prompts: what is asked.
        config: the maximum number of tokens in an answer.
        on_prompt: called before each answer.
        on_text: called with every piece of an answer as it is decoded, and whether a token in it is uncertain.

    Raises:
        PromptError: a prompt that fills the context, or that the chat template refuses.

    Warns:
        ModelWarning: the model's own generation config makes its greedy answers others than these.
    """
    limit = (config or AnnotateConfig()).max_new_tokens
    warn_of_generation(model.causal.generation_config)
    decoder = GreedyDecoder(model, top_k=2)
    for prompt in prompts:
        on_prompt(prompt)
        ids = model.codec.encode_prompt(prompt.messages, prompt.tools)
        steps = list(_spoken(model, decoder.stream(ids, [], limit), on_text))
        chosen = [step.token_id for step in steps]
        truncated = not chosen or chosen[-1] not in model.stop_ids
        yield Answer(prompt, model.codec.decode(chosen), [_token(model, step) for step in steps], truncated)


def _spoken(model: LanguageModel, steps: Iterator[Step], on_text: Callable[[str, bool], None]) -> Iterator[Step]:
    """Pass the steps on, and tell their text as soon as its characters are whole."""
    ids: list[int] = []
    told, uncertain = "", False
    for step in steps:
        yield step
        ids.append(step.token_id)
        uncertain |= step.probability < UNCERTAIN
        text = model.codec.decode(ids)
        if len(text) > len(told) and not text.endswith("\ufffd"):
            on_text(text[len(told) :], uncertain)
            told, uncertain = text, False


def _token(model: LanguageModel, step: Step) -> Token:
    others = [(token, odds) for token, odds in step.alternatives if token != step.token_id]
    instead, odds = others[0] if others else (None, 0.0)
    name = None if instead is None else model.codec.decode([instead], special=True)
    return Token(model.codec.decode([step.token_id], special=True), step.probability, name, odds)
