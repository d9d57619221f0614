"""The model's own answers, computed once and kept in the cache folder: they tell which facts it knows."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from anchorlwf.decoding.greedy import decode_batch
from anchorlwf.files import cache_folder, write_atomic
from anchorlwf.model.language_model import LanguageModel

__all__ = ["Said", "ask"]

_BATCH = 64


@dataclass(frozen=True)
class Said:
    """A greedy answer."""

    text: str
    tokens: int
    """The end-of-turn token included."""
    truncated: bool


def ask(
    model: LanguageModel,
    questions: Sequence[str],
    limit: int,
    *,
    cache_dir: str | Path | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Said]:
    """The reference's greedy answers by question, computed where they are not in the cache yet.

    Args:
        model: whose reference is asked.
        questions: single user's turns.
        limit: maximum number of tokens of an answer.
        cache_dir: see `cache_folder`.
        on_progress: called with ("ask", answers there, all) after each batch.

    Raises:
        PromptError: a question that fills the context.
        StorageError: the cache cannot be written.
    """
    stamp = model.stamp
    parts = [model.reference_sha(), stamp.tokenizer_sha, stamp.template_sha, str(model.causal.dtype), limit]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
    path = cache_folder(cache_dir) / "real" / f"answers-{key}.json"
    known = _known(path)
    missing = [question for question in dict.fromkeys(questions) if question not in known]
    for start in range(0, len(missing), _BATCH):
        chosen = missing[start : start + _BATCH]
        known.update(_answers(model, chosen, limit))
        rows = {question: [said.text, said.tokens, said.truncated] for question, said in known.items()}
        write_atomic(path, json.dumps(rows, ensure_ascii=False, indent=1) + "\n")
        if on_progress is not None:
            on_progress("ask", len(questions) - len(missing) + start + len(chosen), len(questions))
    return {question: known[question] for question in questions}


def _known(path: Path) -> dict[str, Said]:
    if not path.is_file():
        return {}
    return {question: Said(*said) for question, said in json.loads(path.read_text(encoding="utf-8")).items()}


def _answers(model: LanguageModel, questions: Sequence[str], limit: int) -> Mapping[str, Said]:
    encoded = [model.codec.encode_prompt([{"role": "user", "content": question}]) for question in questions]
    said = {}
    with model.as_reference() as reference:
        for batch in decode_batch(reference, encoded, limit, batch_size=_BATCH):
            for index, answer in batch:
                text = model.codec.decode(answer.ids)
                said[questions[index]] = Said(text, len(answer.ids), answer.truncated)
    return said
