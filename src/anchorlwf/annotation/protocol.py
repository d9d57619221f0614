"""One answer under correction: the state machine every annotator drives (paper section 3.1).

Positions before a correction never change again; everything behind it is dropped and decoded greedily anew.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from anchorlwf.annotation.target import target_turn
from anchorlwf.config import AnnotateConfig
from anchorlwf.data.record import Anchor, Prompt, Record
from anchorlwf.decoding.greedy import Choices, GreedyDecoder, Step
from anchorlwf.errors import AnchorLwfError, NothingToDoError, PromptError, RecordError, wrong
from anchorlwf.model.codec import Codec
from anchorlwf.model.language_model import LanguageModel
from anchorlwf.model.vocabulary import TokenTable

__all__ = [
    "Accept",
    "Annotator",
    "Correct",
    "Quit",
    "Reject",
    "Room",
    "Session",
    "State",
    "Undo",
    "Verdict",
    "View",
    "anchors_of",
    "check_record",
    "drive",
    "fits",
]


@dataclass(frozen=True)
class View:
    """What the annotator sees: prompt, the answer so far, and what the model would rather have said."""

    prompt: Prompt
    codec: Codec
    completion_ids: list[int]
    anchors: list[Anchor]
    truncated: bool
    steps: Callable[[], list[Step]]
    """The model's choice and its alternatives at every position, computed when first asked for."""


@dataclass(frozen=True)
class Accept:
    """The answer is right."""


@dataclass(frozen=True)
class Reject:
    """The prompt or answer is not worth correcting; the record is kept as rejected."""


@dataclass(frozen=True)
class Undo:
    """Take the last correction back."""


@dataclass(frozen=True)
class Quit:
    """Stop here; the present answer is kept as a draft, to be resumed."""


@dataclass(frozen=True)
class Correct:
    """The token at `position` is the first wrong one; `token_ids` should stand there."""

    position: int
    token_ids: list[int]
    confidence: float = 1.0


Verdict = Accept | Reject | Undo | Quit | Correct


class Annotator(Protocol):
    """Anything that can judge an answer."""

    source: str
    """Goes into `Anchor.source`, such as `human:ada` or `target`."""

    def review(self, view: View) -> Verdict:
        """Point at the first wrong token and give the right ones, or accept."""
        ...

    def complain(self, error: AnchorLwfError) -> None:
        """Hear that the last correction was not taken; a program that cannot do better raises the error."""
        ...


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
        RecordError: a token id that the vocabulary does not have.
        PromptError: messages that the chat template refuses, or more tokens than the context has.
        ValidationError: messages that no prompt may have, such as those without roles.
    """
    prompt = Prompt(messages=record.messages, tools=record.tools)
    replaced = [anchor.rejected_id for anchor in record.anchors if anchor.rejected_id is not None]
    table.check([*record.prompt_ids, *record.original_ids, *record.completion_ids, *replaced])
    wanted = len(record.completion_ids)
    for prompt_ids in (record.prompt_ids, table.codec.encode_prompt(prompt.messages, prompt.tools)):
        fitting = room(prompt_ids, wanted)
        if fitting < wanted:
            expected, got = f"at most {len(prompt_ids) + fitting} tokens (context)", f"{len(prompt_ids)} + {wanted}"
            raise PromptError(wrong("prompt + completion", expected, got, "Shorten them."))


@dataclass(frozen=True)
class State:
    """An answer and its anchors at one moment."""

    completion_ids: tuple[int, ...]
    anchors: tuple[Anchor, ...] = ()
    ties: tuple[int, ...] = ()
    truncated: bool = False


def anchors_of(
    choices: Choices, token_ids: list[int], start: int, confidence: float, source: str
) -> tuple[list[Anchor], list[int]]:
    """Anchors and ties among `token_ids`, which stand from position `start` on: the rule of the protocol.

    A token is an anchor if the model, given the corrected prefix, would not pick it greedily; within the tolerance of
    a tie it is noted as such instead. `choices` has one entry per token of `token_ids`.
    """
    anchors, ties = [], []
    for offset, token in enumerate(token_ids):
        position = start + offset
        if choices.tied[offset]:
            ties.append(position)
        elif choices.best_ids[offset] != token:
            anchors.append(
                Anchor(
                    position=position,
                    token_id=token,
                    rejected_id=choices.best_ids[offset],
                    confidence=confidence,
                    ref_probability=choices.probabilities[offset],
                    source=source,
                )
            )
    return anchors, ties


class Session:
    """Propose, correct, undo, accept: over one prompt, with the model's own greedy continuations.

    Args:
        model: the model under correction.
        prompt: what is asked.
        config: token limit and number of alternatives.
        decoder: shared between sessions so that its cache survives; None: an own one.
        draft: an unfinished record to go on from.
    """

    def __init__(
        self,
        model: LanguageModel,
        prompt: Prompt,
        config: AnnotateConfig,
        *,
        decoder: GreedyDecoder | None = None,
        draft: Record | None = None,
    ) -> None:
        self._model, self._prompt, self._config = model, prompt, config
        self._decoder = decoder or GreedyDecoder(model, config.alternatives)
        self.prompt_ids = model.codec.encode_prompt(prompt.messages, prompt.tools)
        if draft is None:
            answer = self._decoder.complete(self.prompt_ids, [], config.max_new_tokens)
            self._original_ids = answer.ids
            self._history = [State(tuple(answer.ids), truncated=answer.truncated)]
        else:
            self._original_ids = draft.original_ids
            resumed = State(tuple(draft.completion_ids), tuple(draft.anchors), tuple(draft.ties), draft.truncated)
            self._history = [resumed]
        self._steps: tuple[State, list[Step]] | None = None

    @property
    def state(self) -> State:
        """The answer as it stands."""
        return self._history[-1]

    def steps(self) -> list[Step]:
        """The model's choice and alternatives at every position of the present answer."""
        if self._steps is None or self._steps[0] is not self.state:
            self._steps = (self.state, self._decoder.alternatives(self.prompt_ids, list(self.state.completion_ids)))
        return self._steps[1]

    def view(self) -> View:
        """What an annotator sees now."""
        state = self.state
        return View(
            self._prompt,
            self._model.codec,
            list(state.completion_ids),
            list(state.anchors),
            state.truncated,
            self.steps,
        )

    def correct(self, position: int, token_ids: list[int], *, confidence: float, source: str) -> State:
        """Put `token_ids` at `position`, drop what followed, continue greedily.

        Of several tokens only those become anchors that the model would not pick itself.

        Raises:
            RecordError: position or tokens outside the answer, its limit or the vocabulary.
            NothingToDoError: exactly these tokens stand there already.
        """
        state = self.state
        self._check(position, token_ids)
        prefix = list(state.completion_ids[:position])
        standing = list(state.completion_ids[position : position + len(token_ids)])
        if standing == token_ids:
            fix = "Choose another token, or accept the answer."
            raise NothingToDoError(wrong("correction", "tokens that differ from the answer", "the same", fix))
        choices = self._decoder.judge(self.prompt_ids, prefix, token_ids)
        anchors, ties = anchors_of(choices, token_ids, position, confidence, source)
        # Most of what stood behind the correction usually returns.
        answer = self._decoder.complete(
            self.prompt_ids, [*prefix, *token_ids], self._config.max_new_tokens, state.completion_ids[position + 1 :]
        )
        self._history.append(
            State(
                tuple(answer.ids),
                (*(anchor for anchor in state.anchors if anchor.position < position), *anchors),
                (*(tie for tie in state.ties if tie < position), *ties),
                answer.truncated,
            )
        )
        return self.state

    def _check(self, position: int, token_ids: list[int]) -> None:
        length = len(self.state.completion_ids)
        if not 0 <= position < length:
            raise RecordError(wrong("position", f"0 to {length - 1}", position, "Point at a token of the answer."))
        if not token_ids:
            raise RecordError(wrong("correction", "at least one token", "none", "Give the text that should stand."))
        size = self._model.vocabulary
        outside = [token for token in token_ids if not 0 <= token < size]
        if outside:
            expected = f"token ids from 0 to {size - 1}"
            raise RecordError(wrong("correction", expected, outside[0], "Take ids of this model's tokenizer."))
        limit = self._model.room(self.prompt_ids, self._config.max_new_tokens)
        if position + len(token_ids) > limit:
            got = position + len(token_ids)
            raise RecordError(wrong("answer", f"at most {limit} tokens", got, "Raise --max-new-tokens or shorten it."))
        inner = set(token_ids[:-1]) & self._model.stop_ids
        if inner:
            raise RecordError(wrong("correction", "the end-of-turn token last", "tokens after it", "Drop those."))

    def undo(self) -> bool:
        """Take the last correction back; False where there is none."""
        if len(self._history) == 1:
            return False
        self._history.pop()
        return True

    def record(self, status: str) -> Record:
        """The record of the present state."""
        state, stamp = self.state, self._model.stamp
        return Record.model_validate(
            {
                "id": self._prompt.record_id(stamp),
                "model": stamp,
                "messages": self._prompt.messages,
                "tools": self._prompt.tools,
                "prompt_ids": self.prompt_ids,
                "original_ids": self._original_ids,
                "completion_ids": list(state.completion_ids),
                "completion": self._model.codec.decode(list(state.completion_ids)),
                "anchors": list(state.anchors),
                "ties": list(state.ties),
                "truncated": state.truncated,
                "status": status,
                "tags": self._prompt.tags,
            }
        )


def drive(session: Session, annotator: Annotator) -> Record:
    """The one recursion behind every annotator: review, correct, continue, until the answer stands.

    Returns:
        A complete or rejected record, or a draft where the annotator quit.
    """
    while True:
        match annotator.review(session.view()):
            case Accept():
                return session.record("complete")
            case Reject():
                return session.record("rejected")
            case Quit():
                return session.record("draft")
            case Undo():
                session.undo()
            case Correct(position, token_ids, confidence):
                try:
                    session.correct(position, token_ids, confidence=confidence, source=annotator.source)
                except AnchorLwfError as error:
                    annotator.complain(error)
