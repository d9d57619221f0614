"""What every step of a run works with, built before the trainer and the stop rule, and handed to both.

Shape suffixes: N completion tokens of a micro-batch, D hidden width.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from accelerate.utils import gather_object, reduce
from torch import Tensor, nn
from transformers import TrainingArguments

from anchorlwf.config import TrainConfig
from anchorlwf.data.record import Record
from anchorlwf.decoding.keep_records import KEEP_TAG
from anchorlwf.divergence import completion_hidden, divergence
from anchorlwf.errors import ModelError, wrong
from anchorlwf.loss.inputs import Direction, Head, Scored
from anchorlwf.loss.reference_summary import Summary, can_summarize
from anchorlwf.loss.scores import token_scores
from anchorlwf.model.batch import Batch, KeepTurn
from anchorlwf.model.head import read_head, reference_head
from anchorlwf.model.language_model import LanguageModel
from anchorlwf.training.dataset import TrainingSet
from anchorlwf.training.packing import batch_of, may_pack
from anchorlwf.training.reference_cache import GIB, ReferenceCache
from anchorlwf.training.step_sampler import StepPlan
from anchorlwf.training.stop_report import HeldOutDrift, StopReport, holding

__all__ = ["StepContext", "StepSums", "autocast", "nonfinite_error", "nonfinite_turns"]

_NAMED = 5
"""Records that a message names at the most."""
_WIDE = 512
"""Width from which a network's steps are quicker in bfloat16, where the CPU multiplies that."""


def nonfinite_turns(batch: Batch, value_N: Tensor) -> list[KeepTurn]:
    """Prompt and completion of the records with a value that is NaN or infinite; of all where only their sum is."""
    broken = batch.per_record((~value_N.isfinite()).int())
    return batch.turns((broken if broken.any() else torch.ones_like(broken)).nonzero()[:, 0].tolist())


def nonfinite_error(
    what: str, turns: Sequence[KeepTurn], records: Iterable[Record], learning_rate: float
) -> ModelError:
    """The error that ends training.

    Args:
        what: that is not finite.
        turns: where, as `nonfinite_turns` found them.
        records: that are trained on; those with these contents are named.
        learning_rate: named too, being the usual reason.
    """
    contents = {(tuple(turn.prompt_ids), tuple(turn.completion_ids)) for turn in turns}
    ids = [one.id for one in records if (tuple(one.prompt_ids), tuple(one.completion_ids)) in contents]
    more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    got = f"NaN or infinity at the records {', '.join(ids[:_NAMED])}{more}"
    fix = (
        f"Lower learning_rate (it is {learning_rate:g}), load the model in a wider dtype, or leave these records out. "
        "No weights were saved; what was saved before is as it was."
    )
    return ModelError(wrong(what, "finite numbers", got, fix))


def autocast(arguments: TrainingArguments) -> AbstractContextManager[object]:
    """The precision that everything runs in, as Trainer has it."""
    return torch.autocast(arguments.device.type, torch.bfloat16, enabled=bool(arguments.bf16))


def _steps_in_half(model: LanguageModel, config: TrainConfig) -> bool:
    """Whether steps on a CPU are computed in bfloat16: where it multiplies that, and products are what takes time."""
    if model.device.type != "cpu" or model.causal.dtype != torch.float32 or config.mixed_precision == "no":
        return False
    known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    able = bool(known.get("avx512_bf16") or known.get("amx_bf16"))
    wide = model.causal.get_input_embeddings().weight.shape[1] >= _WIDE
    return config.mixed_precision == "bf16" or (able and wide)


class StepSums(NamedTuple):
    """Sums over one optimizer step, all micro-batches and processes."""

    loss: float
    anchors: float
    held: float
    anchor_log_p: float
    """Of the anchors' log-probabilities, nats."""
    records: float
    """Corrected ones."""
    reproduced: float
    keeps: float
    """Keep tokens of all records."""
    keep_kl: float
    """Nats."""


@dataclass
class StepContext:
    """The model, its data and its objective, ready for steps; `build` makes one.

    Attributes:
        plan: what a step is made of.
        packed: micro-batches are records end to end, not padded.
        summarized: the cache holds summaries of the reference, for the head and the objective allow it.
        half: the network's steps are computed in bfloat16. Where that is although weights and surroundings are
            float32, reports and the drift on held-out answers stay float32: rounding alone is a drift of about 0.001
            nats per token. A step's own sums, by which beta is steered where nothing is held out, contain it.
        cache: the reference's states; None: the reference runs beside the model.
        nonfinite: the turns of this process at which something was no finite number.
    """

    model: LanguageModel
    config: TrainConfig
    data: TrainingSet
    arguments: TrainingArguments
    ref_head: Head
    plan: StepPlan
    packed: bool
    summarized: bool
    half: bool
    cache: ReferenceCache | None = None
    nonfinite: list[KeepTurn] = field(default_factory=list)

    @classmethod
    def build(
        cls, model: LanguageModel, config: TrainConfig, data: TrainingSet, plan: StepPlan, arguments: TrainingArguments
    ) -> "StepContext":
        """What can be known before the reference is cached.

        Args:
            model: with its adapter attached, or its reference copy kept.
            config: the objective.
            data: what is trained on and what is held out.
            plan: of a step.
            arguments: transformers' own.
        """
        ref_head = reference_head(model)
        with autocast(arguments):
            packed = may_pack(model, max(data.lengths))
        # On a GPU it was hardly quicker and its values were less exact (docs/performance.md).
        summarized = (
            config.impl == "auto"
            and config.direction == "forward"
            and arguments.device.type != "cuda"
            and can_summarize(read_head(model), ref_head)
        )
        half = bool(arguments.bf16) or _steps_in_half(model, config)
        return cls(model, config, data, arguments, ref_head, plan, packed, summarized, half)

    def step_precision(self) -> AbstractContextManager[object]:
        """What the forward pass of a step runs in."""
        return torch.autocast(self.arguments.device.type, torch.bfloat16, enabled=self.half)

    def collate(self, records: Sequence[Record]) -> Batch:
        """A batch on the CPU, with what is known of the reference."""
        batch = batch_of(self.model, records, packed=self.packed)
        return batch if self.cache is None else batch._replace(reference_NX=self.cache.states(records))

    def states(self, net: nn.Module, batch: Batch) -> tuple[Tensor, Tensor | Summary]:
        """At the predicting positions: the model's final hidden states [N, D], and the reference's or their summary."""
        hidden_ND = completion_hidden(net, self.model.backbone, batch)
        if batch.reference_NX is not None:
            return hidden_ND, Summary.of(batch.reference_NX) if self.summarized else batch.reference_NX
        with self.model.as_reference() as reference:
            return hidden_ND, completion_hidden(reference.net, reference.backbone, batch)

    def divergence(
        self, states: tuple[Tensor, Tensor | Summary], batch: Batch, confidence_N: Tensor, direction: Direction
    ) -> Scored:
        """The divergence from a target of these confidences, of what `states` gave: [N]."""
        return divergence(
            *states,
            (read_head(self.model), self.ref_head),
            batch.token_ids_N,
            confidence_N,
            direction=direction,
            impl=self.config.impl,
            memory=int(self.config.loss_memory * GIB),
        )

    def held(self, batch: Batch, scored: Scored) -> Tensor:
        """Which of a batch's tokens are anchors that hold: bool [N]."""
        greedy_N = scored.behind_N == 0
        return holding(greedy_N, scored.log_p_N, batch.confidence_N, scored.ref_log_p_N, self.config.hold)

    def check_finite(self, finite: bool, what: str) -> None:
        """Raise `ModelError`, which names the records of all processes, unless `finite`, of which all of them know."""
        if not finite:
            turns, records = gather_object(self.nonfinite), self.data.records
            raise nonfinite_error(what, turns, map(records.__getitem__, range(len(records))), self.config.learning_rate)

    @torch.no_grad()
    def report(self, step: int, held_out: Mapping[str, HeldOutDrift] | None = None) -> StopReport:
        """How the present weights stand with all records, each process looking at its share.

        Args:
            step: after which this is, for the message.
            held_out: what `drift` gave for the same weights, where that is known already. Where anything is held out
                the budget speaks of that alone, so keep records that are trained on are left out.

        Raises:
            ModelError: what the model says of a record is NaN or infinite.
        """
        held_out = self.drift() if held_out is None else held_out
        sums = torch.zeros(7, dtype=torch.float64, device=self.arguments.device)
        for batch in self._batches([*self.data.corrections, *([] if held_out else self.data.keeps)]):
            sums += self._measured(batch)
        anchors, held, records, reproduced, keeps, kl, nonfinite = reduce(sums, "sum")
        self.check_finite(not nonfinite, f"tuned model after step {step}")
        counts = (int(anchors), int(held), int(records), int(reproduced), int(keeps))
        return StopReport(*counts, float(kl / max(1, int(keeps))), held_out, self.config.reproduce)

    @torch.no_grad()
    def drift(self) -> dict[str, HeldOutDrift]:
        """Drift of the present weights on held-out answers, by kind and of `all`; nothing where none are held out.

        Raises:
            ModelError: what the model says of one of them is NaN or infinite.
        """
        mine: list[tuple[str, list[float]]] = []
        records = [self.data.records[number] for number in self._share(self.data.held_out)]
        kinds = [_kind(record) for record in records]
        for batch, start in zip(self._batches(self.data.held_out), range(0, len(records), self._size), strict=True):
            kl_N = self._keep_kl(batch)[0].divergence_N
            if not bool(kl_N.isfinite().all()):
                self.nonfinite += nonfinite_turns(batch, kl_N)
            sizes = [len(record.completion_ids) for record in records[start : start + self._size]]
            mine += zip(kinds[start:], (part.tolist() for part in kl_N.split(sizes)), strict=False)
        by_kind: dict[str, list[list[float]]] = {}
        for kind, values in gather_object(mine):
            by_kind.setdefault(kind, []).append(values)
        finite = all(map(math.isfinite, itertools.chain(*itertools.chain(*by_kind.values()))))
        self.check_finite(finite, "tuned model on held-out answers")
        found = {kind: HeldOutDrift.of(values) for kind, values in sorted(by_kind.items())}
        everything = [values for several in by_kind.values() for values in several]
        return {**found, "all": HeldOutDrift.of(everything)} if everything else {}

    @property
    def _size(self) -> int:
        return self.arguments.per_device_train_batch_size

    def _share(self, numbers: Sequence[int]) -> Sequence[int]:
        """Those of the numbers that this process looks at."""
        return numbers[self.arguments.process_index :: self.arguments.world_size]

    def _batches(self, numbers: Sequence[int]) -> Iterator[Batch]:
        """This process's share of the records, as batches on the device, while dropout is off."""
        net, mine = self.model.net, self._share(numbers)
        was_training = net.training
        net.eval()
        with autocast(self.arguments):
            for start in range(0, len(mine), self._size):
                part = [self.data.records[number] for number in mine[start : start + self._size]]
                yield self.collate(part).to(self.arguments.device)
        net.train(was_training)

    def _keep_kl(self, batch: Batch) -> tuple[Scored, Tensor]:
        """KL(reference || model), whatever direction trains, and the model's states [N, D]."""
        states, keep_all_N = self.states(self.model.net, batch), torch.zeros_like(batch.confidence_N)
        return self.divergence(states, batch, keep_all_N, "forward"), states[0]

    def _measured(self, batch: Batch) -> Tensor:
        """Anchors, held, corrected records, reproduced, keep tokens, their KL, values that are no finite number."""
        scored, hidden_ND = self._keep_kl(batch)
        anchor_N, kl_N = batch.confidence_N > 0, scored.divergence_N
        # Of equal logits only one is chosen, which the loss does not tell apart.
        best_N, log_p_N = token_scores(read_head(self.model), hidden_ND, batch.token_ids_N)
        # A log-probability may be -inf: the head excludes that token.
        nonfinite_N = log_p_N.isnan() | ~kl_N.isfinite()
        if bool(nonfinite_N.any()):
            self.nonfinite += nonfinite_turns(batch, kl_N.where(~nonfinite_N, torch.nan))
        corrected, missed = batch.per_record(anchor_N.int()) > 0, batch.per_record((best_N != batch.token_ids_N).int())
        keep_N = kl_N[~anchor_N].double()
        held = (self.held(batch, scored) & (best_N == batch.token_ids_N)).sum()
        reproduced = (corrected & (missed == 0)).sum()
        counts = [anchor_N.sum(), held, corrected.sum(), reproduced, (~anchor_N).sum(), keep_N.sum(), nonfinite_N.sum()]
        return torch.stack([count.double() for count in counts])


def _kind(record: Record) -> str:
    """`near` for a tag `retain:near`; `general` where no tag says which."""
    named = (tag.partition(":")[2] for tag in record.tags if tag.startswith(f"{KEEP_TAG}:"))
    return next(named, "general")
