"""Measure what other wordings, found without people, do for wordings that nobody trained on.

Each correction is annotated in one wording. Every cell trains it with another choice of further wordings, and asks the
wordings that no cell has seen, the facts the model knew, everyday prompts, and whether the new text turns up in answers
to them. Cells that are in the output file already are not run again; it runs on a GPU where there is one.

    python recipes/real/paraphrases.py --model ~/.cache/anchorlwf/models/smollm2-135m-instruct --out paraphrases.json
    python recipes/real/paraphrases.py --tasks world --retain none --seeds 5 --out paraphrases.json
"""

import argparse
import copy
import itertools
import json
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from anchorlwf.annotation import annotate
from anchorlwf.config import AnnotateConfig, EvaluateConfig, ParaphraseConfig, TrainConfig
from anchorlwf.data.probe import Probe, score
from anchorlwf.data.record import Prompt, Record
from anchorlwf.data.words import contains_words
from anchorlwf.decoding.greedy import decode_batch
from anchorlwf.divergence import token_kl
from anchorlwf.evaluation.measure import answers
from anchorlwf.files import CACHE_VARIABLE, write_atomic
from anchorlwf.model.batch import KeepTurn
from anchorlwf.model.language_model import LanguageModel, load_model
from anchorlwf.training import train
from anchorlwf.workflow.paraphrased import paraphrase_records
from anchorlwf.workflow.retained import keep_records_for
from anchorlwf.world import build_world, draw_errata, probes_for
from anchorlwf.world.real.real_world import RealWorld
from anchorlwf.world.real.wordings import PERSONAS, TRAINED

CELLS = {
    "none": ParaphraseConfig(each=0),
    "model": ParaphraseConfig(rules="none"),
    "rules": ParaphraseConfig(rounds=0),
    "all-rules": ParaphraseConfig(rounds=0, rules="all"),
    "all-rules4": ParaphraseConfig(rounds=0, rules="all", each=4),
    "auto": ParaphraseConfig(),
    "auto4": ParaphraseConfig(each=4),
    "all": ParaphraseConfig(rules="all"),
}
UNRELATED = ("near", "retain", "skill")


@dataclass(frozen=True)
class Task:
    """One wording of each correction, and all that is asked afterwards."""

    prompts: list[Prompt]
    probes: list[Probe]
    new: list[str]
    """What the corrections say, of which nothing may turn up elsewhere."""


def real_task(world: RealWorld, name: str, arguments: argparse.Namespace, seed: int) -> Task:
    """`identity`, `capitals` or `symbols`, with everyday prompts beside it."""
    if name == "identity":
        task, new = world.identity(), list(PERSONAS[world.split])
        prompts = task.prompts[: arguments.wordings]
    else:
        task = world.corrections(name.removesuffix("s"), arguments.facts, seed)
        prompts = [prompt for number, prompt in enumerate(task.prompts) if number % TRAINED < arguments.wordings]
        facts = {probe.group: str(probe.expected) for probe in task.probes if probe.kind == "recall"}
        new = [] if name == "symbols" else list(facts.values())
    asked = {str(prompt.messages[-1]["content"]) for prompt in prompts}
    learned = [
        probe.model_copy(update={"kind": "recall" if probe.messages[-1]["content"] in asked else "paraphrase"})
        for probe in task.probes
        if probe.kind in ("recall", "paraphrase")
    ]
    kept = [probe for probe in task.probes if probe.kind in ("near", "retain")][:: arguments.every]
    return Task(prompts, [*learned, *kept, *world.everyday()[:: arguments.every]], new)


def embedded_task(seed: int) -> Task:
    """Four facts and one of the assistant's own, of the embedded world."""
    world = build_world()
    errata = draw_errata(world, 4, 1, seed)
    probes = probes_for(world, errata, 1)
    kept = [probe for probe in probes if probe.kind in UNRELATED][::4]
    learned = [probe for probe in probes if probe.kind in ("recall", "paraphrase")]
    return Task([erratum.prompts(1)[0] for erratum in errata], [*learned, *kept], [e.value for e in errata])


def measured(model: LanguageModel, base: LanguageModel, task: Task, before: Sequence[str]) -> dict[str, Any]:
    """Fractions, drift, and how many unrelated answers say something of the corrections that they did not say."""
    config = EvaluateConfig(max_new_tokens=64)
    after = answers(model, task.probes, config)
    rows = list(zip(task.probes, before, after, strict=True))
    found: dict[str, Any] = {}
    for kind in ("recall", "paraphrase", *UNRELATED):
        rights = [
            score(probe, new)
            for probe, old, new in rows
            if probe.kind == kind and (kind in ("recall", "paraphrase") or score(probe, old))
        ]
        found[kind], found[f"{kind}_asked"] = (sum(rights) / len(rights) if rights else None), len(rights)
    everyday = [score(probe, new) for probe, _, new in rows if "everyday" in probe.tags]
    found["everyday_same"] = sum(everyday) / len(everyday) if everyday else None
    unrelated = [(probe, old, new) for probe, old, new in rows if probe.kind in UNRELATED]
    leaks = [
        {"question": probe.messages[-1]["content"], "before": old, "after": new}
        for probe, old, new in unrelated
        if any(contains_words(text, new) and not contains_words(text, old) for text in task.new)
    ]
    found |= {"leaks": len(leaks), "unrelated": len(unrelated), "leaked": leaks[:5]}
    found["changed"] = sum(old != new for _, old, new in unrelated) / len(unrelated)
    found["missed"] = [
        {"question": probe.messages[-1]["content"], "after": new}
        for probe, _, new in rows
        if probe.kind == "paraphrase" and not score(probe, new)
    ][:20]
    turns = continuations(base, [probe for probe, _, _ in unrelated if probe.kind == "retain"][:64])
    tokens = [value for turn in token_kl(model, base, turns) for value in turn]
    return {**found, "kl": sum(tokens) / len(tokens)}


def continuations(base: LanguageModel, probes: Sequence[Probe]) -> list[KeepTurn]:
    """The base's own answers to unrelated prompts."""
    prompts = [base.codec.encode_prompt(probe.messages) for probe in probes]
    said = {index: one.ids for batch in decode_batch(base, prompts, 64) for index, one in batch}
    return [KeepTurn(prompt, said[index]) for index, prompt in enumerate(prompts)]


def cell(
    base: LanguageModel, task: Task, before: Sequence[str], name: str, retain: str, seed: int, steps: int | None
) -> dict[str, Any]:
    """Train a copy of the base, and measure it."""
    began = time.perf_counter()
    model = LanguageModel(copy.deepcopy(base.causal), base.codec, base.name, base.revision)
    records: list[Record] = annotate(model, task.prompts, config=AnnotateConfig(max_new_tokens=128))
    corrections = [record for record in records if record.anchors]
    kept = keep_records_for(model, corrections, retain)
    found = paraphrase_records(model, corrections, "auto", candidates=kept.candidates, config=CELLS[name])
    asked = {tuple(record.prompt_ids) for record in [*records, *found]}
    chosen = [*records, *found, *(record for record in kept.records if tuple(record.prompt_ids) not in asked)]
    prepared = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="anchorlwf-paraphrases-") as folder:
        result = train(model, chosen, out=folder, config=TrainConfig(max_steps=steps, seed=seed))
    trained = time.perf_counter()
    return {
        **measured(model, base, task, before),
        "corrections": len(corrections),
        "wordings": len(found),
        "anchors": sum(len(record.anchors) for record in chosen),
        "texts": [[r.messages[-1]["content"], r.completion] for r in found][:24],
        "keep_records": len(kept.records),
        "steps": result.steps,
        "converged": result.converged,
        "missing": result.missing,
        "held_out": {kind: drift.mean for kind, drift in result.report.held_out.items()},
        "seconds": {"prepare": prepared - began, "train": trained - prepared, "ask": time.perf_counter() - trained},
    }


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder; needed for real tasks")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--tasks", default="identity,capitals", help="identity, capitals, symbols, world")
    parser.add_argument("--cells", default="none,auto,all", help=", ".join(CELLS))
    parser.add_argument("--retain", default="auto,none", help="auto, none")
    parser.add_argument("--split", default="validation", choices=["validation", "report"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--facts", type=int, default=6, help="capitals or symbols corrected")
    parser.add_argument("--wordings", type=int, default=1, choices=[1, 2, 3], help="of each correction")
    parser.add_argument("--steps", type=int, help="maximum number of steps")
    parser.add_argument("--every", type=int, default=1, help="ask every so manieth unrelated probe")
    parser.add_argument("--cache-dir", type=Path, help="of what the models have written and answered already")
    parser.add_argument("--dtype", default="float32")
    return parser.parse_args()


def main() -> None:
    """Run the cells that are not there yet, one after another, and write the file after each."""
    arguments = parsed()
    if arguments.cache_dir is not None:
        os.environ[CACHE_VARIABLE] = str(arguments.cache_dir)
    done: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {"cells": {}}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU"
    done |= {"machine": device, "torch": torch.__version__, "model": arguments.model and Path(arguments.model).name}
    bases: dict[str | None, LanguageModel] = {}
    for task_name, seed in itertools.product(arguments.tasks.split(","), range(arguments.seeds)):
        where = None if task_name == "world" else arguments.model
        base = bases.setdefault(where, bases.get(where) or load_model(where, dtype=arguments.dtype))
        if where is None:
            task = embedded_task(seed)
        else:
            world = RealWorld(base, split=arguments.split)
            task = real_task(world, task_name, arguments, seed)
        before = answers(base, task.probes, EvaluateConfig(max_new_tokens=64))
        for retain, name in itertools.product(arguments.retain.split(","), arguments.cells.split(",")):
            key = f"{task_name}{arguments.wordings}/{retain}/{name}/{seed}"
            if key in done["cells"]:
                continue
            done["cells"][key] = cell(base, task, before, name, retain, seed, arguments.steps)
            write_atomic(arguments.out, json.dumps(done, indent=1, ensure_ascii=False) + "\n")
            found = done["cells"][key]
            shown = ("recall", "paraphrase", *UNRELATED, "everyday_same", "leaks", "changed", "kl", "wordings", "steps")
            print(key, {name: found[name] for name in shown}, flush=True)


if __name__ == "__main__":
    main()
