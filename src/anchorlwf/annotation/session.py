"""One answer under correction by a program: the protocol's events over a tree, decoded by a local model.

Positions before a correction never change again; everything behind it is dropped and decoded greedily anew.
"""

from datetime import UTC, datetime

from anchorlwf.annotation.events import Moved, Started
from anchorlwf.annotation.protocol import Bounds, State, check_correction, continued, corrected, resumed
from anchorlwf.annotation.review import Accept, Annotator, Correct, Quit, Reject, Undo, View
from anchorlwf.annotation.tree import Tree, apply, fold
from anchorlwf.config import AnnotateConfig
from anchorlwf.data.record import Prompt, Record, Status
from anchorlwf.decoding.greedy import GreedyDecoder, Step
from anchorlwf.errors import AnchorLwfError
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
        self._model, self._prompt = model, prompt
        self._decoder = decoder or GreedyDecoder(model, config.alternatives)
        self.prompt_ids = model.codec.encode_prompt(prompt.messages, prompt.tools)
        self._draft_id = None if draft is None else draft.id
        vocabulary = min(model.vocabulary, len(model.codec.tokenizer))
        self._bounds = Bounds(model.room(self.prompt_ids, config.max_new_tokens), vocabulary, model.stop_ids)
        started = Started(at=_now()) if draft is None else self._bounds.begun(resumed(draft, _now()))
        self._tree = self._whole(fold([started]))
        self._states: dict[int, State] = {}
        self._steps: tuple[State, list[Step]] | None = None

    @property
    def state(self) -> State:
        """The answer as it stands."""
        if self._tree.current not in self._states:
            self._states[self._tree.current] = self._tree.state
        return self._states[self._tree.current]

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
            RecordError, NothingToDoError: as `check_correction`.
        """
        tree = self._tree
        check_correction(self._bounds, tree.node.completion_ids, position, token_ids)
        prefix = list(tree.node.completion_ids[:position])
        choices = self._decoder.judge(self.prompt_ids, prefix, token_ids)
        event = corrected(
            self._bounds, tree.current, prefix, token_ids, choices, confidence=confidence, source=source, at=_now()
        )
        self._tree = self._whole(apply(tree, event))
        return self.state

    def _whole(self, tree: Tree) -> Tree:
        """The tree once the present answer has been continued to its end."""
        node = tree.node
        if node.ended:
            return tree
        standing = list(node.completion_ids)
        steps = list(self._decoder.stream(self.prompt_ids, standing, self._bounds.tokens, tree.expected_ids))
        token_ids, probabilities = [step.token_id for step in steps], [step.probability for step in steps]
        return apply(tree, continued(self._bounds, tree.current, standing, token_ids, probabilities, _now()))

    def undo(self) -> bool:
        """Take the last correction back; False where there is none."""
        above = self._tree.node.parent
        if above is None:
            return False
        self._tree = apply(self._tree, Moved(at=_now(), node=above))
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
            original_ids=self._tree.original_ids,
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


def _now() -> datetime:
    return datetime.now(UTC)
