"""The trainer: `transformers.Trainer` with our loss, our counts and our stop rule. `recipes/loop.py` is its flat twin.

Shape suffixes: N completion tokens of a micro-batch, D hidden width.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset, Sampler
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_pt_utils import DistributedLengthGroupedSampler

from anchorlwf.config import TrainConfig
from anchorlwf.data.record import Record
from anchorlwf.divergence import completion_hidden, divergence
from anchorlwf.files import staged_folder, storage_errors
from anchorlwf.loss.reduce import Counts, reduce_loss
from anchorlwf.loss.reference_summary import Summary, can_summarize
from anchorlwf.loss.scores import token_scores
from anchorlwf.model.attention import within_records
from anchorlwf.model.batch import Batch, KeepTurn, collate, pack
from anchorlwf.model.head import read_head, reference_head
from anchorlwf.model.language_model import LanguageModel
from anchorlwf.training.checkpoint import Checkpoints
from anchorlwf.training.dataset import Records
from anchorlwf.training.nonfinite import nonfinite_error, nonfinite_turns
from anchorlwf.training.packing import may_pack
from anchorlwf.training.reference_cache import ReferenceCache
from anchorlwf.training.stop_rule import Certificate, DriftBudget, holding, mean

__all__ = ["AnchorTrainer"]


class AnchorTrainer(Trainer):
    """Cross-entropy at anchors, KL to the reference at keep tokens (paper section 3.2).

    Args:
        language_model: with its adapter attached, or its reference copy kept.
        records: complete records.
        lengths: `fed_length` of each.
        config: the objective.
        arguments: transformers' own, made by `training.stage`.
        checkpoints: where they go.

    Attributes:
        cache: the reference's states; None: the reference runs beside the model.
        summarized: the cache holds their summary, for the head and the objective allow it.
        packed: micro-batches are records end to end, not padded.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        records: Records,
        lengths: Sequence[int],
        config: TrainConfig,
        arguments: TrainingArguments,
        checkpoints: Checkpoints,
    ) -> None:
        self.language_model, self.records, self.config = language_model, records, config
        self.checkpoints = checkpoints
        self._lengths = lengths
        self.budget = DriftBudget(config)
        self._ref_head = reference_head(language_model)
        self.cache: ReferenceCache | None = None
        super().__init__(
            model=language_model.net,
            args=arguments,
            train_dataset=cast(Any, self.records),
            data_collator=lambda rows: self._collated(rows).tensors(),
        )
        self.remove_callback(PrinterCallback)
        # The shares returned by compute_loss are divided by global counts already.
        self.loss_is_scaled_for_ga = True
        self.sums = self._zeros()
        self._nonfinite: list[KeepTurn] = []
        with self.accelerator.autocast():
            self.packed = may_pack(language_model, max(self._lengths))
        # On a GPU, kernels compare the two models' logits; nobody has measured this there.
        self.summarized = (
            config.impl == "auto"
            and config.direction == "forward"
            and self.args.device.type != "cuda"
            and can_summarize(read_head(language_model), self._ref_head)
        )

    def _collated(self, records: Sequence[Record]) -> Batch:
        batch = pack(records) if self.packed else collate(records, self.language_model.codec.pad_id)
        return batch if self.cache is None else batch._replace(reference_NX=self.cache.states(records))

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Sampler[int] | None:
        """Padded batches are made of records of like length; seeded, and another order each epoch."""
        size = self.args.train_batch_size
        if self.packed or len(self._lengths) <= size:
            return super()._get_train_sampler(train_dataset)
        # accelerate gives each process its share, so here there is one replica.
        return DistributedLengthGroupedSampler(
            size, num_replicas=1, rank=0, seed=self.config.seed, lengths=list(self._lengths)
        )

    def training_step(self, *inputs: Any, **options: Any) -> Tensor:
        """As Trainer does. With gradient checkpointing the backward pass runs layers again, on packed records."""
        with within_records(self.language_model.backbone) if self.packed else contextlib.nullcontext():
            return super().training_step(*inputs, **options)

    def _zeros(self) -> Tensor:
        """Sums over one optimizer step: loss, anchors, held, keep tokens, keep divergence, records, reproduced."""
        return torch.zeros(7, dtype=torch.float64, device=self.args.device)

    def take_sums(self) -> Tensor:
        """The step's sums over all ranks, float64 [7]; starts the next step's.

        Raises:
            ModelError: the loss is NaN or infinite. All ranks raise it, before the optimizer has changed anything.
        """
        sums, self.sums = self.accelerator.reduce(self.sums, "sum"), self._zeros()
        self._check_finite(bool(sums[0].isfinite()), f"loss of step {self.state.global_step + 1}")
        return sums

    def _check_finite(self, finite: bool, what: str) -> None:
        """Raise `ModelError`, which names the records of all ranks, unless `finite`, of which all ranks know."""
        if not finite:
            turns = gather_object(self._nonfinite)
            raise nonfinite_error(
                what, turns, map(self.records.__getitem__, range(len(self.records))), self.config.learning_rate
            )

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], Tensor]:
        """The window's micro-batches, and its anchors and keep tokens over all ranks: int64 [2]."""
        samples = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        batches = [Batch(**sample) for sample in samples]
        counts = torch.tensor([sum(b.anchors for b in batches), sum(b.keeps for b in batches)], device=device)
        return samples, self.accelerator.reduce(counts, "sum")

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """This micro-batch's share of the window's loss."""
        assert isinstance(num_items_in_batch, Tensor), "the counts of get_batch_samples"
        batch = Batch(**inputs)
        hidden_ND, reference = self._states(model, batch)
        head, anchor_N = read_head(self.language_model), batch.confidence_N > 0
        divergence_N, behind_N = divergence(
            hidden_ND,
            reference,
            (head, self._ref_head),
            batch.token_ids_N,
            batch.confidence_N,
            direction=self.config.direction,
            impl=self.config.impl,
        )
        held_N = torch.zeros_like(anchor_N)
        held_N[anchor_N] = self._held(batch, hidden_ND, reference, anchor_N)
        pull_N = (~held_N).to(divergence_N.dtype) if self.config.hinge else None
        counts = Counts(*num_items_in_batch.tolist())
        loss = reduce_loss(
            divergence_N,
            anchor_N,
            counts,
            self.config.reduction,
            alpha=self.config.alpha,
            beta=self.budget.beta,
            pull_N=pull_N,
        )
        if not bool(loss.isfinite()):
            self._nonfinite += nonfinite_turns(batch, divergence_N)
        keep_N, missed = divergence_N.detach()[~anchor_N].double(), batch.per_record((behind_N != 0).int())
        records, reproduced = missed.new_tensor(len(missed)), (missed == 0).sum()
        self.sums += torch.stack(
            [loss.detach(), anchor_N.sum(), held_N.sum(), (~anchor_N).sum(), keep_N.sum(), records, reproduced]
        )
        # DistributedDataParallel averages gradients over ranks; the counts are global, so the sum is wanted.
        ranks = self.accelerator.num_processes if isinstance(model, DistributedDataParallel) else 1
        return loss * ranks

    def _states(self, model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor | Summary]:
        """At the predicting positions: the model's final hidden states [N, D], and the reference's or their summary."""
        hidden_ND = completion_hidden(model, self.language_model.backbone, batch)
        if batch.reference_NX is not None:
            return hidden_ND, Summary.of(batch.reference_NX) if self.summarized else batch.reference_NX
        with self.language_model.as_reference() as reference:
            return hidden_ND, completion_hidden(reference.net, reference.backbone, batch)

    def _held(self, batch: Batch, hidden_ND: Tensor, reference: Tensor | Summary, chosen_N: Tensor) -> Tensor:
        """`holding` at the chosen positions."""
        token_ids, confidence = batch.token_ids_N[chosen_N], batch.confidence_N[chosen_N]
        best, log_p = token_scores(read_head(self.language_model), hidden_ND[chosen_N], token_ids)
        # The reference's probability matters only where the target leaves it a share.
        ref_p = torch.zeros_like(log_p)
        if isinstance(reference, Summary):
            ref_p = reference.log_p_N[chosen_N].exp()
        elif bool((confidence < 1).any()):
            ref_p = token_scores(self._ref_head, reference[chosen_N], token_ids)[1].exp()
        return holding(best, log_p, token_ids, confidence, ref_p, self.config.hold)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """As Trainer does, but whole or not at all, whatever breaks off; and with what `Checkpoints` asks for."""
        place, main = self.checkpoints.place(self.state.global_step), self.is_world_process_zero()
        with storage_errors(place), staged_folder(place) if main else contextlib.nullcontext() as stage:
            # All processes write into the folder of the main one.
            [shared] = broadcast_object_list([stage])
            usual, self.args.output_dir = self.args.output_dir, str(shared)
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self.args.output_dir = usual
            self.accelerator.wait_for_everyone()
            if stage is not None:
                self.checkpoints.seal(stage / place.name, stage)
        if main:
            self.checkpoints.drop_old()
        self.accelerator.wait_for_everyone()

    @torch.no_grad()
    def certify(self) -> Certificate:
        """Measure all training records at the present weights, each rank its share.

        Raises:
            ModelError: what the model says of them is NaN or infinite.
        """
        net = self.language_model.net
        was_training = net.training
        net.eval()
        sums = torch.zeros(7, dtype=torch.float64, device=self.args.device)
        mine = range(self.accelerator.process_index, len(self.records), self.accelerator.num_processes)
        size = self.args.per_device_train_batch_size
        for start in range(0, len(mine), size):
            part = [self.records[index] for index in mine[start : start + size]]
            sums += self._measure(self._collated(part).to(self.args.device))
        net.train(was_training)
        anchors, held, records, reproduced, keeps, kl, nonfinite = self.accelerator.reduce(sums, "sum")
        self._check_finite(not nonfinite, f"tuned model after step {self.state.global_step}")
        return Certificate(int(anchors), int(held), int(records), int(reproduced), int(keeps), mean(kl, keeps))

    def _measure(self, batch: Batch) -> Tensor:
        hidden_ND, reference = self._states(self.language_model.net, batch)
        head, anchor_N = read_head(self.language_model), batch.confidence_N > 0
        best_N, log_p_N = token_scores(head, hidden_ND, batch.token_ids_N)
        # Always KL(reference || model), whatever direction trains.
        keep_all_N = torch.zeros_like(batch.confidence_N)
        kl_N, _ = divergence(
            hidden_ND, reference, (head, self._ref_head), batch.token_ids_N, keep_all_N, impl=self.config.impl
        )
        # A log-probability may be -inf: the head excludes that token.
        nonfinite_N = log_p_N.isnan() | ~kl_N.isfinite()
        if bool(nonfinite_N.any()):
            self._nonfinite += nonfinite_turns(batch, kl_N.where(~nonfinite_N, torch.nan))
        missed = batch.per_record((best_N != batch.token_ids_N).int())
        held = self._held(batch, hidden_ND, reference, anchor_N)
        keep_N = kl_N[~anchor_N].double()
        return torch.stack(
            [
                anchor_N.sum(),
                held.sum(),
                torch.tensor(len(missed), device=held.device),
                (missed == 0).sum(),
                torch.tensor(len(keep_N), device=held.device),
                keep_N.sum(),
                nonfinite_N.sum(),
            ]
        ).double()
