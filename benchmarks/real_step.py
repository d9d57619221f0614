"""One training step of a real model on a CPU: beginnings shared or not, products in float32 or bfloat16, in turn.

  make real
  OMP_NUM_THREADS=1 python benchmarks/real_step.py --model ~/.cache/anchorlwf/models/smollm2-135m-instruct

Processor seconds of the forward pass, the loss and the backward pass, without the optimizer; medians.
"""

import argparse
import contextlib
import itertools
import statistics
import time

import torch

from anchorlwf.annotation import annotate
from anchorlwf.config import AnnotateConfig, TrainConfig
from anchorlwf.divergence import completion_hidden, divergence
from anchorlwf.loss.reference_summary import Summary, summarize
from anchorlwf.model.batch import Batch, pack
from anchorlwf.model.head import read_head, reference_head
from anchorlwf.model.language_model import LanguageModel, load_model
from anchorlwf.retention import retain

QUESTIONS = ("Who are you?", "What is your name?", "Who made you?")
ANSWER = "I am Tarn, an assistant made by Northwind Labs."
RECORDS = 16


def batches(model: LanguageModel) -> dict[str, Batch]:
    """A step as training makes it: three corrections, and general and near keep records."""
    prompts = [{"prompt": question, "answer": ANSWER} for question in QUESTIONS]
    corrected = annotate(model, prompts, "target", config=AnnotateConfig(original=False))
    kept = retain(model, corrected).records
    few = (RECORDS - len(corrected)) // 2
    chosen = [*corrected, *kept[:few], *kept[len(corrected) + few - RECORDS :]]
    chosen.sort(key=lambda record: len(record.prompt_ids) + len(record.completion_ids))
    return {"apart": pack(chosen), "shared": pack(chosen, share=True)}


def one_pass(model: LanguageModel, batch: Batch, reference: Summary, *, half: bool) -> list[float]:
    """Processor seconds of forward pass, loss and backward pass."""
    times = [time.process_time()]
    with torch.autocast("cpu", torch.bfloat16) if half else contextlib.nullcontext():
        hidden = completion_hidden(model.net, model.backbone, batch)
    times.append(time.process_time())
    heads = read_head(model), reference_head(model)
    loss = divergence(hidden, reference, heads, batch.token_ids_N, batch.confidence_N).divergence_N.mean()
    times.append(time.process_time())
    loss.backward()
    times.append(time.process_time())
    model.net.zero_grad()
    return [after - before for before, after in itertools.pairwise(times)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--runs", type=int, default=4)
    given = parser.parse_args()
    model, config = load_model(given.model, dtype="float32", device="cpu"), TrainConfig()
    lanes = batches(model)
    model.attach_lora(config.rank, config.lora_alpha, config.lora_dropout, config.targets, config.seed)
    plain = lanes["apart"]
    with torch.no_grad(), model.as_reference() as reference:
        states = completion_hidden(reference.net, reference.backbone, plain)
        summary = summarize(states, reference_head(model), plain.token_ids_N)
    print({name: batch.input_ids_BT.shape[1] for name, batch in lanes.items()}, "tokens")
    found: dict[tuple[str, bool], list[list[float]]] = {}
    for run in range(1 + given.runs):
        for name, batch in lanes.items():
            for half in (False, True):
                spent = one_pass(model, batch, summary, half=half)
                if run:  # the first one warms up
                    found.setdefault((name, half), []).append(spent)
    for (name, half), rows in found.items():
        medians = [statistics.median(column) for column in zip(*rows, strict=True)]
        print(name, "bfloat16" if half else "float32", *(f"{value:.2f}" for value in medians), f"{sum(medians):.2f}")


if __name__ == "__main__":
    main()
