"""The trainer: `transformers.Trainer` with our loss, our counts and our steps. `recipes/loop.py` is its flat twin.

Shape suffixes: N completion tokens of a micro-batch, D hidden width.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

import torch
from accelerate.utils import broadcast_object_list
from peft.helpers import disable_input_dtype_casting
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import TrainOutput

from anchorlwf.files import staged_folder, storage_errors
from anchorlwf.loss.reduce import Counts, reduce_loss
from anchorlwf.model.attention import within_records
from anchorlwf.model.batch import Batch
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
        self._reader: ThreadPoolExecutor | None = None
        self._ahead: tuple[Iterator[dict[str, Tensor]], Future[list[dict[str, Tensor]]]] | None = None
        super().__init__(
            model=context.model.net,
            args=context.arguments,
            train_dataset=cast(Any, context.data.records),
            data_collator=lambda rows: context.collate(rows).tensors(),
        )
        self.remove_callback(PrinterCallback)
        # The shares returned by compute_loss are divided by global counts already.
        self.loss_is_scaled_for_ga = True
        self._begin_step()

    @property
    def reads_ahead(self) -> bool:
        """Whether the next step's micro-batches are made during this one: where another device computes it."""
        return self.args.device.type == "cuda"

    def train(self, *inputs: Any, **options: Any) -> TrainOutput:
        """As Trainer does. On a GPU the next step's records are read and pinned while this one is computed."""
        # Autocast makes the adapter's inputs what it wants; PEFT would widen them before, for nothing.
        casts = disable_input_dtype_casting(self.context.model.net, active=self.context.half)
        with casts, ThreadPoolExecutor(1) as reader:
            self._reader = reader if self.reads_ahead else None
            return super().train(*inputs, **options)

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

    def _begin_step(self) -> None:
        self._sums = torch.zeros(len(StepSums._fields), dtype=torch.float64, device=self.args.device)
        self._window = list[tuple[Tensor, Batch, Tensor]]()

    def take_sums(self) -> StepSums:
        """The step's sums over all processes; starts the next step's.

        Raises:
            ModelError: the loss is NaN or infinite. All processes raise it, before the optimizer has changed anything.
        """
        if self.accelerator.num_processes > 1:
            values = self.accelerator.reduce(self._sums, "sum").tolist()
        else:
            # Only until the last forward pass is done: the backward pass goes on meanwhile.
            self._arrived()
            values = self._copied.tolist()
        sums = StepSums(*values)
        finite = math.isfinite(sums.loss)
        for loss, batch, divergence_N in [] if finite else self._window:
            if not bool(loss.isfinite()):
                self.context.nonfinite += nonfinite_turns(batch, divergence_N)
        self._begin_step()
        self.context.check_finite(finite, f"loss of step {self.state.global_step + 1}")
        return sums

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], Tensor]:
        """The window's micro-batches, and the tokens of each kind over all processes (`Counts`): int64 [3]."""
        if self._ahead is not None and self._ahead[0] is epoch_iterator:
            samples = self._ahead[1].result()
        else:
            samples = _drawn(epoch_iterator, num_batches)
        if self._reader is not None:
            self._ahead = epoch_iterator, self._reader.submit(_drawn, epoch_iterator, num_batches)
        counts = torch.zeros(3, dtype=torch.int64)
        for batch in (Batch(**sample) for sample in samples):
            retained = int(batch.retained_N.sum())
            counts += torch.tensor([batch.anchors, batch.keeps - retained, retained])
        if self.accelerator.num_processes > 1:
            counts = self.accelerator.reduce(counts.to(device), "sum").cpu()
        return samples, counts

    def _prepare_inputs(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """To the device, but for what `Batch` leaves on the CPU, and without waiting."""
        return Batch(**inputs).to(self.args.device).tensors()

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """This micro-batch's share of the window's loss. Nothing here waits for a GPU."""
        assert isinstance(num_items_in_batch, Tensor), "the counts of get_batch_samples"
        context, config, batch = self.context, self.context.config, Batch(**inputs)
        with context.step_precision():
            states = context.states(model, batch)
        scored = context.divergence(states, batch, batch.confidence_N, config.direction)
        divergence_N, anchor_N, held_N = scored.divergence_N, batch.confidence_N > 0, context.held(batch, scored)
        loss = reduce_loss(
            divergence_N,
            anchor_N,
            Counts(*num_items_in_batch.tolist()),
            config.reduction,
            alpha=config.alpha,
            beta=self.drift_control.beta,
            pull_N=(~held_N).to(divergence_N.dtype) if config.hinge else None,
            retained_N=batch.retained_N,
        )
        self._window.append((loss.detach(), batch._replace(reference_NX=None), divergence_N.detach()))
        keep_kl = divergence_N.detach().double().where(~anchor_N, 0.0).sum()
        corrected, missed = batch.per_record(anchor_N.int()) > 0, batch.per_record((scored.behind_N != 0).int())
        records, reproduced = corrected.sum(), (corrected & (missed == 0)).sum()
        # A head may exclude a token altogether.
        anchor_log_p = scored.log_p_N.double().clamp(min=-1e4).where(anchor_N, 0.0).sum()
        anchors = anchor_N.sum(), held_N.sum(), anchor_log_p
        sums = (loss.detach(), *anchors, records, reproduced, (~anchor_N).sum(), keep_kl)
        self._sums += torch.stack([value.double() for value in sums])
        self._copied, self._arrived = _sent(self._sums)
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


def _drawn(batches: Iterator[dict[str, Tensor]], count: int) -> list[dict[str, Tensor]]:
    return [batch for _, batch in zip(range(count), batches, strict=False)]


def _sent(values: Tensor) -> tuple[Tensor, Callable[[], None]]:
    """A copy on the CPU that is on its way, and what waits until it is there."""
    copy = values.to("cpu", non_blocking=True)
    if not values.is_cuda:
        return copy.clone(), lambda: None
    event = torch.cuda.Event()
    event.record()
    return copy, event.synchronize
