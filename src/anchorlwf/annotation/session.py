"""One answer under correction: the state machine every annotator drives (paper section 3.1).

Positions before a correction never change again; everything behind it is dropped and decoded greedily anew.
"""

from anchorlwf.annotation.protocol import Accept, Annotator, Correct, Quit, Reject, State, Undo, View, anchors_of
from anchorlwf.config import AnnotateConfig
from anchorlwf.data.record import Prompt, Record, Status
from anchorlwf.decoding.greedy import GreedyDecoder, Step
from anchorlwf.errors import AnchorLwfError, NothingToDoError, RecordError, wrong
from anchorlwf.model.language_model import LanguageModel

__all__ = ["Session", "drive"]


class Session:
    """Propose, correct, undo, accept: over one prompt, with the model's own greedy continuations.

    Args:
        model: the model under correction.
        prompt: what is asked.
        config: token limit and number of alternatives.
        decoder: shared between sessions so that its cache survives; None: an own one.
        draft: an unfinished record to go on from; it keeps its id.
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
        self._draft_id = None if draft is None else draft.id
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

    def record(self, status: Status) -> Record:
        """The record of the present state."""
        state = self.state
        return Record.build(
            self._prompt,
            self._model.stamp,
            prompt_ids=self.prompt_ids,
            completion_ids=state.completion_ids,
            decode=self._model.codec.decode,
            record_id=self._draft_id,
            original_ids=self._original_ids,
            anchors=state.anchors,
            ties=state.ties,
            truncated=state.truncated,
            status=status,
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
