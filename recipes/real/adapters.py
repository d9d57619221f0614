"""Which adapter, and which settings of it, learn corrections and change the least besides? One row per variant.

Every variant trains on the same corrections and keep records, under the same stop rule, and is judged on facts that no
published figure is about (the split for choosing settings). Variants differ from the defaults in one thing:

  null      what the adapter reads is first projected off the directions in which the inputs of keep tokens lie, as far
            as those hold a share of their energy (AlphaEdit, LoRA-Null); `frozen`: its A does not train
  kfac      the same, and what it writes is projected off the directions in which the outputs of keep tokens matter
            (both sides of the Kronecker-factored curvature; CrispEdit)
  layers    only some of the layers; all-linear: every linear layer, not only those through which MLPs read
  dora      magnitude and direction apart
  and hold, rank, learning rate, drift budget, beta, and the number and length of the keep records

  python recipes/real/adapters.py --out adapters.json --jobs 12 --seeds 2
  python recipes/real/adapters.py --world embedded --model '' --out adapters-embedded.json

Shape suffixes: T tokens, D width of a layer's input, O width of its output, R directions.
"""

import argparse
import functools
import json
import os
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from peft import LoraConfig
from peft.tuners.lora import Linear
from torch import Tensor

from anchorlwf.arena.cell import records_of, run_cell
from anchorlwf.arena.conduct import load_plan
from anchorlwf.arena.lab import Lab
from anchorlwf.arena.plan import Method, Plan
from anchorlwf.arena.study import Sources
from anchorlwf.data.record import Record
from anchorlwf.decoding.keep_records import HELD_OUT_TAG
from anchorlwf.files import cache_folder, write_atomic
from anchorlwf.model import language_model
from anchorlwf.model.attention import attention_kind, network_inputs
from anchorlwf.model.batch import collate
from anchorlwf.model.language_model import LanguageModel, load_model


@dataclass(frozen=True)
class Variant:
    """What differs from the defaults."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    retention: dict[str, Any] = field(default_factory=dict)
    kind: str = "lora"
    """lora, null, null_frozen, kfac, dora."""
    energy: float = 0.0
    paraphrase: dict[str, Any] | None = None


def _layers(first: int, last: int) -> str:
    numbers = "|".join(map(str, range(first, last)))
    return rf".*\.({numbers})\.mlp\.(gate|up)_proj"


VARIANTS = [
    # What matters most comes first: the study may be cut short.
    Variant("defaults"),
    Variant("null 0.9", kind="null", energy=0.9),
    Variant("null 0.9 frozen", {"learning_rate": 1e-3}, kind="null_frozen", energy=0.9),
    Variant("kfac 0.5", kind="kfac", energy=0.5),
    Variant("layers 10-20", {"targets": _layers(10, 20)}),
    Variant("layers 20-30", {"targets": _layers(20, 30)}),
    Variant("all-linear", {"targets": "all-linear"}),
    Variant("hold 0.7", {"hold": 0.7}),
    Variant("answers of 64", retention={"answer_tokens": 64}),
    Variant("256 general, 96 near", retention={"general": 256, "near": 96}),
    Variant("rate 1e-3", {"learning_rate": 1e-3}),
    Variant("dora", kind="dora"),
    Variant("budget 0.002", {"drift_budget": 0.002}),
    Variant("budget 0.001", {"drift_budget": 0.001}),
    Variant("budget 0.0005", {"drift_budget": 0.0005}),
    Variant("paraphrase", paraphrase={}),
    Variant("hold 0.5", {"hold": 0.5}),
    Variant("layers 0-10", {"targets": _layers(0, 10)}),
    Variant("rank 1", {"rank": 1, "lora_alpha": 8.0}),
    Variant("rank 32", {"rank": 32, "lora_alpha": 256.0}),
    Variant("no near", retention={"near": 0}),
    Variant("null 0.5", kind="null", energy=0.5),
    Variant("null 0.99", kind="null", energy=0.99),
    Variant("rate 1e-4", {"learning_rate": 1e-4}),
    Variant("batch 32", {"batch_size": 32}),
    Variant("beta 100", {"beta": 100.0}),
    Variant("hold 0.7, answers of 64, 256 general", {"hold": 0.7}, {"answer_tokens": 64, "general": 256, "near": 96}),
    Variant("null 0.5 frozen", {"learning_rate": 1e-3}, kind="null_frozen", energy=0.5),
    Variant("null 0.99 frozen", {"learning_rate": 1e-3}, kind="null_frozen", energy=0.99),
    Variant("kfac 0.9", kind="kfac", energy=0.9),
    Variant("rank 4", {"rank": 4, "lora_alpha": 32.0}),
    Variant("beta 1", {"beta": 1.0}),
    Variant("budget 0.005", {"drift_budget": 0.005}),
]


class VariantModel(LanguageModel):
    """A model whose adapter is put on in another way."""

    def __init__(self, model: LanguageModel, variant: Variant, kept: list[Record]) -> None:
        super().__init__(model.causal, model.codec, model.name, model.revision)
        self._variant, self._kept = variant, kept

    def attach_lora(self, rank: int, alpha: float, dropout: float, targets: str | list[str], seed: int) -> None:
        """As the library does, then what the variant adds."""
        with ExitStack() as stack:
            if self._variant.kind == "dora":
                dora = functools.partial(LoraConfig, use_dora=True)
                stack.enter_context(mock.patch.object(language_model, "LoraConfig", dora))
            super().attach_lora(rank, alpha, dropout, targets, seed)
        if self._variant.kind not in ("null", "null_frozen", "kfac"):
            return
        layers = {name: module for name, module in self.net.named_modules() if isinstance(module, Linear)}
        read, written = self._moments(layers)
        for name, layer in layers.items():
            _project_input(layer, _directions(read[name], self._variant.energy))
            if self._variant.kind == "kfac":
                _project_output(layer, _directions(written[name], self._variant.energy))
            if self._variant.kind == "null_frozen":
                layer.lora_A["default"].weight.requires_grad_(False)

    def _moments(self, layers: dict[str, Linear]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Per layer: the second moments of its inputs [D, D], and of the gradients at its outputs [O, O]."""
        read: dict[str, Tensor] = {}
        written: dict[str, Tensor] = {}
        seen: list[Tensor] = []

        def add(into: dict[str, Tensor], name: str, values: Tensor) -> None:
            rows_TD = values[seen[0]].double()
            into[name] = into.get(name, 0.0) + rows_TD.T @ rows_TD

        generator = torch.Generator(self.device).manual_seed(0)
        with _watched(layers, read, written, add):
            for start in range(0, len(self._kept), 8):
                batch = collate(self._kept[start : start + 8], self.codec.pad_id).to(self.device)
                inputs = network_inputs(batch, attention_kind(self.backbone))
                seen[:] = [inputs["attention_mask"].bool()]
                logits = self.net(**inputs, use_cache=False).logits
                drawn = torch.multinomial(logits.softmax(-1).flatten(0, 1), 1, generator=generator)
                log_p = logits.log_softmax(-1).flatten(0, 1).gather(1, drawn)[seen[0].flatten()]
                log_p.sum().backward()
                self.net.zero_grad()
        return read, written


@contextmanager
def _watched(
    layers: dict[str, Linear], read: dict[str, Tensor], written: dict[str, Tensor], add: Any
) -> Iterator[None]:
    """Inputs of every layer, and gradients at its outputs, are handed to `add`."""
    handles = []
    for name, layer in layers.items():

        def forward(_module: object, inputs: Any, output: Tensor, name: str = name) -> None:
            add(read, name, inputs[0].detach())
            output.register_hook(lambda gradient: add(written, name, gradient.detach()))

        handles.append(layer.register_forward_hook(forward))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _directions(moments_DD: Tensor, energy: float) -> Tensor:
    """The fewest directions [D, R] that hold this share of the energy."""
    values_D, vectors_DD = torch.linalg.eigh(moments_DD)
    values_D, vectors_DD = values_D.flip(0), vectors_DD.flip(1)
    count = int((values_D.cumsum(0) / values_D.sum() < energy).sum()) + 1
    return vectors_DD[:, :count].float()


def _project_input(layer: Linear, directions_DR: Tensor) -> None:
    def project(_module: object, inputs: tuple[Tensor]) -> tuple[Tensor]:
        given = inputs[0]
        return (given - (given @ directions_DR) @ directions_DR.T,)

    layer.lora_A["default"].register_forward_pre_hook(project)


def _project_output(layer: Linear, directions_OR: Tensor) -> None:
    layer.lora_B["default"].register_forward_hook(
        lambda _module, _inputs, made: made - (made @ directions_OR) @ directions_OR.T
    )


class VariantLab(Lab):
    """A lab whose copies are of the variant."""

    variant: Variant
    kept: list[Record]

    def fresh(self) -> LanguageModel:
        """A copy of the base, to be tuned."""
        return VariantModel(super().fresh(), self.variant, self.kept)


_LAB: list[VariantLab] = []


def _prepare(model: str | None, threads: int) -> None:
    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        # Products in TF32, eight times as fast; base and tuned models alike.
        torch.set_float32_matmul_precision("high")
    _LAB.append(VariantLab(load_model(model, dtype="float32")))


def _row(plan: Plan, sources: Sources, budget: float, regime_name: str, variant: Variant, seed: int) -> dict[str, Any]:
    lab, regime = _LAB[0], plan.regime(regime_name)
    method = Method(
        name=variant.name,
        title=variant.name,
        family="anchorlwf",
        extra="retain",
        retention=variant.retention,
        paraphrase=variant.paraphrase,
    )
    row: dict[str, Any] = {"variant": variant.name, "regime": regime_name, "seed": seed}
    try:
        task = sources.task(lab.base, plan, regime, seed)
        task = replace(task, test=tuple(probe for probe in task.test if probe.kind != "skill"))
        began = time.time()
        _, kept = records_of(lab.base, method, task.corrections, task, 1.0)
        lab.variant, lab.kept = variant, [record for record in kept if HELD_OUT_TAG not in record.tags]
        cell = run_cell(lab, plan, method, regime, task, {"drift_budget": budget, **variant.options}, seed)
        return {**row, "measures": cell["measures"], "costs": cell["costs"], "seconds": time.time() - began}
    except Exception:  # noqa: BLE001 - one broken variant must not end the study; it is told in its row
        return {**row, "error": traceback.format_exc(limit=6)}


def _plan(world: str) -> Plan:
    if world == "embedded":
        return load_plan("study")
    return load_plan("real").model_copy(update={"split": "validation"})


def main() -> None:
    """Run all variants and write them as they come."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=str(cache_folder(None) / "models" / "smollm2-135m-instruct"))
    parser.add_argument("--world", choices=["real", "embedded"], default="real")
    parser.add_argument("--regimes", help="default: identity,capitals16; in the embedded world short16,biography4")
    parser.add_argument("--variants", help="names, separated by semicolons; default: all")
    parser.add_argument("--budget", type=float, default=0.001, help="drift budget, nats per token")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("adapters.json"))
    given = parser.parse_args()
    regimes = (given.regimes or ("identity,capitals16" if given.world == "real" else "short16,biography4")).split(",")
    wanted = given.variants.split(";") if given.variants else [variant.name for variant in VARIANTS]
    plan, sources = _plan(given.world), Sources(model=given.model or None)
    jobs = [
        (regime, variant, seed)
        for seed in range(101, 101 + given.seeds)
        for regime in regimes
        for variant in VARIANTS
        if variant.name in wanted
    ]
    threads, rows = max(1, (os.cpu_count() or 1) // given.jobs), []
    context = get_context("spawn")
    with ProcessPoolExecutor(given.jobs, context, initializer=_prepare, initargs=(sources.model, threads)) as pool:
        for future in as_completed([pool.submit(_row, plan, sources, given.budget, *job) for job in jobs]):
            rows.append(future.result())
            write_atomic(given.out, json.dumps(rows, indent=1) + "\n")
            print(len(rows), len(jobs), rows[-1].get("error") or rows[-1], flush=True)


if __name__ == "__main__":
    main()
