"""How long annotating known answers takes, in batches and step by step, and how much memory a long file needs."""

import json
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anchorlwf.annotation import Session, TargetAnnotator, annotate, annotate_stream, drive
from anchorlwf.bench.memory import peak_mib
from anchorlwf.bench.race import quiet
from anchorlwf.config import AnnotateConfig
from anchorlwf.data.record import Prompt, Record
from anchorlwf.decoding.greedy import GreedyDecoder
from anchorlwf.model.language_model import LanguageModel
from anchorlwf.world import biography, build_world

__all__ = ["annotate_many", "measure_annotation", "step_by_step", "wrong_biographies"]


def wrong_biographies(count: int, *, wrong: int = 5, seed: int = 0) -> list[Prompt]:
    """Questions about people of the embedded world (it has 100); of each answer's values so many are others."""
    world, rng = build_world(), random.Random(seed)
    prompts = []
    for person in rng.sample(world.people, count):
        text = biography(world, person)
        stated = [fact for fact in world.about(person) if fact.value in text]
        for fact in rng.sample(stated, wrong):
            others = [value for value in world.pools[fact.attribute] if value != fact.value]
            text = text.replace(fact.value, rng.choice(others), 1)
        question = f"Tell me about {person}."
        prompts.append(Prompt(messages=[{"role": "user", "content": question}], answer=text))
    return prompts


def step_by_step(model: LanguageModel, prompts: Sequence[Prompt], config: AnnotateConfig) -> list[Record]:
    """Records of the prompts, each corrected as a person does: at the first wrong token, then again."""
    decoder, records = GreedyDecoder(model), []
    for prompt in prompts:
        assert prompt.answer is not None
        session = Session(model, prompt, config, decoder=decoder)
        records.append(drive(session, TargetAnnotator(model, prompt.answer)))
    return records


def measure_annotation(
    model: LanguageModel, prompts: Sequence[Prompt], *, repeats: int = 3, max_new_tokens: int = 128
) -> dict[str, Any]:
    """Seconds per record of one forward pass per batch and of the step-by-step recursion, in turn.

    Args:
        model: the model to correct.
        prompts: with answers, such as `wrong_biographies`.
        repeats: of each way; medians are given.
        max_new_tokens: limit of the answers.

    Returns:
        Seconds per record: `batched` (no decoding), `with_original` (the model's own answer decoded in batches too) and
        `recursion`; how many times faster than the recursion the first two are; tokens and anchors per record; and
        whether all found the same anchors.
    """
    plain = AnnotateConfig(max_new_tokens=max_new_tokens, original=False)
    ways = {
        "batched": lambda: annotate(model, prompts, config=plain),
        "with_original": lambda: annotate(model, prompts, config=plain.updated(original=True)),
        "recursion": lambda: step_by_step(model, prompts, plain),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    annotated: dict[str, list[Record]] = {}
    for _ in range(repeats):
        for name, way in ways.items():
            begin = time.perf_counter()
            annotated[name] = way()
            seconds[name].append((time.perf_counter() - begin) / len(prompts))
    per_record = {name: statistics.median(times) for name, times in seconds.items()}
    anchors = {
        name: [[(a.position, a.token_id) for a in record.anchors] for record in records]
        for name, records in annotated.items()
    }
    return {
        "records": len(prompts),
        "repeats": repeats,
        "seconds_per_record": per_record,
        "times_faster": {name: per_record["recursion"] / per_record[name] for name in ("batched", "with_original")},
        "tokens_per_record": statistics.mean(len(record.completion_ids) for record in annotated["batched"]),
        "anchors_per_record": statistics.mean(len(record.anchors) for record in annotated["batched"]),
        "identical": anchors["batched"] == anchors["with_original"] == anchors["recursion"],
    }


def annotate_many(count: int, folder: str | Path) -> dict[str, Any]:
    """Annotate a file of `count` short synthetic prompts with the embedded model, nothing decoded.

    Returns:
        Seconds, and the peak of this process's memory in MiB.
    """
    quiet()
    source, out = Path(folder) / f"prompts-{count}.jsonl", Path(folder) / f"records-{count}.jsonl"
    with open(source, "w", encoding="utf-8") as stream:
        for number in range(count):
            row = {"prompt": f"What is number {number}?", "answer": f"Number {number} is {number * 7919 % 1000}."}
            stream.write(json.dumps(row) + "\n")
    begin = time.perf_counter()
    done = sum(1 for _ in annotate_stream(None, source, out=out, config=AnnotateConfig(original=False)))
    assert done == count, "every line is another prompt"
    return {"records": count, "seconds": time.perf_counter() - begin, "peak_mib": peak_mib()}
