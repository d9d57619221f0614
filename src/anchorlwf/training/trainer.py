"""The trainer: `transformers.Trainer` with our loss, our counts and our steps. `recipes/loop.py` is its flat twin.

Shape suffixes: N completion tokens of a micro-batch, D hidden width.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_callback import PrinterCallback

from anchorlwf.divergence import divergence
from anchorlwf.files import staged_folder, storage_errors
from anchorlwf.loss.reduce import Counts, reduce_loss
from anchorlwf.model.attention import within_records
from anchorlwf.model.batch import Batch
from anchorlwf.model.head import read_head
from anchorlwf.training.best_state import BestState
from anchorlwf.training.checkpoint import Checkpoints
from anchorlwf.training.step_context import StepContext, StepSums, nonfinite_turns
from anchorlwf.training.step_sampler import StepSampler
from anchorlwf.training.stop_rule import DriftControl

__all__ = ["AnchorTrainer"]


class AnchorTrainer(Trainer):
    """Cross-entropy at anchors, KL to the reference at keep tokens (paper section 3.2).

    Args:
        context: of the run.
        drift_control: steers beta.
        best: the best weights so far; they go into checkpoints.
        checkpoints: where those go.
    """

    def __init__(
        self, context: StepContext, drift_control: DriftControl, best: BestState, checkpoints: Checkpoints
    ) -> None:
        self.context, self.drift_control, self.best, self.checkpoints = context, drift_control, best, checkpoints
        super().__init__(
            model=context.model.net,
            args=context.arguments,
            train_dataset=cast(Any, context.data.records),
            data_collator=lambda rows: context.collate(rows).tensors(),
        )
        self.remove_callback(PrinterCallback)
        # The shares returned by compute_loss are divided by global counts already.
        self.loss_is_scaled_for_ga = True
        self._sums = self._zeros()

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Every step's corrections and keep records; the sampler knows this process's share, so nothing divides it."""
        context, args = self.context, self.args
        sampler = StepSampler(
            context.plan,
            context.data.corrections,
            context.data.keeps,
            context.data.lengths,
            steps=args.max_steps,
            seed=context.config.seed,
            rank=args.process_index,
            processes=args.world_size,
            grouped=not context.packed,
        )
        pinned = args.dataloader_pin_memory
        return DataLoader(
            cast(Any, self.train_dataset), batch_sampler=sampler, collate_fn=self.data_collator, pin_memory=pinned
        )

    def training_step(self, *inputs: Any, **options: Any) -> Tensor:
        """As Trainer does. With gradient checkpointing the backward pass runs layers again, on packed records."""
        with within_records(self.context.model.backbone) if self.context.packed else contextlib.nullcontext():
            return super().training_step(*inputs, **options)

    def _zeros(self) -> Tensor:
        return torch.zeros(len(StepSums._fields), dtype=torch.float64, device=self.args.device)

    def take_sums(self) -> StepSums:
        """The step's sums over all processes; starts the next step's.

        Raises:
            ModelError: the loss is NaN or infinite. All processes raise it, before the optimizer has changed anything.
        """
        sums, self._sums = self.accelerator.reduce(self._sums, "sum"), self._zeros()
        self.context.check_finite(bool(sums[0].isfinite()), f"loss of step {self.state.global_step + 1}")
        return StepSums(*sums)

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], Tensor]:
        """The window's micro-batches, and the tokens of each kind over all processes (`Counts`): int64 [3]."""
        samples = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        counts = torch.zeros(3, dtype=torch.int64)
        for batch in (Batch(**sample) for sample in samples):
            retained = int(batch.retained_N.sum())
            counts += torch.tensor([batch.anchors, batch.keeps - retained, retained])
        return samples, self.accelerator.reduce(counts.to(device), "sum")

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """This micro-batch's share of the window's loss."""
        assert isinstance(num_items_in_batch, Tensor), "the counts of get_batch_samples"
        context, config, batch = self.context, self.context.config, Batch(**inputs)
        hidden_ND, reference = context.states(model, batch)
        anchor_N, heads = batch.confidence_N > 0, (read_head(context.model), context.ref_head)
        divergence_N, behind_N = divergence(
            hidden_ND,
            reference,
            heads,
            batch.token_ids_N,
            batch.confidence_N,
            direction=config.direction,
            impl=config.impl,
        )
        held_A, log_p_A = context.anchors(batch, hidden_ND, reference)
        pull_N = torch.ones_like(divergence_N)
        if config.hinge:
            pull_N[anchor_N] = (~held_A).to(pull_N.dtype)
        loss = reduce_loss(
            divergence_N,
            anchor_N,
            Counts(*num_items_in_batch.tolist()),
            config.reduction,
            alpha=config.alpha,
            beta=self.drift_control.beta,
            pull_N=pull_N,
            retained_N=batch.retained_N,
        )
        if not bool(loss.isfinite()):
            context.nonfinite += nonfinite_turns(batch, divergence_N)
        keep_N = divergence_N.detach()[~anchor_N].double()
        corrected, missed = batch.per_record(anchor_N.int()) > 0, batch.per_record((behind_N != 0).int())
        records, reproduced = corrected.sum(), (corrected & (missed == 0)).sum()
        # A head may exclude a token altogether.
        anchors = (anchor_N.sum(), held_A.sum(), log_p_A.double().clamp(min=-1e4).sum())
        sums = (loss.detach(), *anchors, records, reproduced, (~anchor_N).sum(), keep_N.sum())
        self._sums += torch.stack([value.double() for value in sums])
        # DistributedDataParallel averages gradients over processes; the counts are global, so the sum is wanted.
        processes = self.accelerator.num_processes if isinstance(model, DistributedDataParallel) else 1
        return loss * processes

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
                self.best.save(stage / place.name)
                self.checkpoints.seal(stage / place.name, stage)
        if main:
            self.checkpoints.drop_old()
        self.accelerator.wait_for_everyone()
