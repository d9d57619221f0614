"""Prompts, annotators and comparisons that tests of annotation share."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from anchorlwf.annotation import Session, Verdict, View, verify_records
from anchorlwf.config import AnnotateConfig
from anchorlwf.data.record import Prompt, Record
from anchorlwf.errors import AnchorLwfError
from anchorlwf.model.language_model import LanguageModel

LIMIT = 16
CONFIG = AnnotateConfig(max_new_tokens=LIMIT, alternatives=4)


def ask(text: str, answer: str | None = None) -> Prompt:
    return Prompt(messages=[{"role": "user", "content": text}], answer=answer)


QUESTION = ask("Where was she born?")


def same(one: Record, other: Record) -> bool:
    """Equal in all that annotation decides; times, decoded originals and probabilities' last bits aside."""
    skipped = {"anchors", "original_ids"}
    anchors, others = (
        [(a.position, a.token_id, a.rejected_id, a.confidence, a.source) for a in record.anchors]
        for record in (one, other)
    )
    return anchors == others and one.model_dump(exclude=skipped) == other.model_dump(exclude=skipped)


def holds(model: LanguageModel, record: Record) -> bool:
    (finding,) = verify_records(model, [record])
    return finding.holds and not finding.idle


def ordinary(model: LanguageModel) -> list[int]:
    """Every id but the special ones."""
    tokenizer = model.codec.tokenizer
    return sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))


def correct(session: Session, position: int, *token_ids: int) -> list[int]:
    session.correct(position, list(token_ids), confidence=1.0, source="human:ada")
    return [anchor.position for anchor in session.state.anchors]


def others(model: LanguageModel, session: Session, prefix: list[int], count: int) -> list[int]:
    """Tokens the model would not choose behind `prefix`, by a forward pass of this test's own."""
    inputs = torch.tensor([[*session.prompt_ids, *prefix]])
    with torch.inference_mode():
        logits = model.net(input_ids=inputs, use_cache=False).logits[0, -1]
    ranked = [token for token in logits.argsort(descending=True).tolist() if token in set(ordinary(model))]
    return ranked[3 : 3 + count]


def next_choice(model: LanguageModel, session: Session, prefix: list[int]) -> int:
    inputs = torch.tensor([[*session.prompt_ids, *prefix]])
    with torch.inference_mode():
        return int(model.net(input_ids=inputs, use_cache=False).logits[0, -1].argmax())


class Scripted:
    """Answers with the given verdicts, one per review; an exception among them is raised."""

    source = "human:ada"

    def __init__(self, *verdicts: Verdict | BaseException) -> None:
        self.verdicts, self.views = list(verdicts), list[View]()
        self.complaints: list[str] = []

    def review(self, view: View) -> Verdict:
        self.views.append(view)
        verdict = self.verdicts.pop(0)
        if isinstance(verdict, BaseException):
            raise verdict
        return verdict

    def complain(self, error: AnchorLwfError) -> None:
        self.complaints.append(str(error))


QUESTIONS = ["Where was she born?", "Which river?", "hello", "How are you?", "Who?"]


@contextmanager
def counting_passes(model: LanguageModel) -> Iterator[list[int]]:
    passes: list[int] = []
    handle = model.net.register_forward_pre_hook(lambda *_: passes.append(1))
    try:
        yield passes
    finally:
        handle.remove()
