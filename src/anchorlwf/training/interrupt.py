"""Ctrl-C and SIGTERM end training between two steps, where there is something whole to keep."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

__all__ = ["Interrupt"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt(TrainerCallback):
    """Ends training with a checkpoint after the step in which a signal came. A second signal acts at once.

    Only where the signals would otherwise have their usual effect, and in the main thread: elsewhere they are the
    program's own business.

    Args:
        accelerator: processes end at the same step: where one was told to, all do.

    Attributes:
        ended_by: the signal that ended training; None: training ended by itself, or has not ended.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._received: int | None = None
        self._former: dict[int, Any] = {}
        self.ended_by: signal.Signals | None = None

    @contextlib.contextmanager
    def held_back(self) -> Iterator[None]:
        """Hold signals back while the context lasts. One that has ended no training by then has its usual effect."""
        if threading.current_thread() is threading.main_thread():
            usual = {number: signal.getsignal(number) for number in _SIGNALS}
            self._former = {
                n: does for n, does in usual.items() if does in (signal.default_int_handler, signal.SIG_DFL)
            }
        for number in self._former:
            signal.signal(number, self._note)
        try:
            yield
        finally:
            self._let_go()
        if self._received is not None and self.ended_by is None:
            signal.raise_signal(self._received)

    def _let_go(self) -> None:
        for number, does in self._former.items():
            signal.signal(number, does)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        self._let_go()
        if number == signal.SIGINT and self._accelerator.is_main_process:
            # Not by way of sys.stderr, in the middle of whose writing this may be.
            os.write(2, b"\nInterrupted: finishing this step. Again to end at once, without keeping it.\n")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A checkpoint brings along how often it was to be saved; what is asked for now counts."""
        state.save_steps = args.save_steps

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Decide with all processes whether this was the last step, and whether it is to be kept as a checkpoint."""
        if control.should_training_stop:
            # The result follows at once; and from a checkpoint of the last step Trainer would take one more.
            control.should_save = False
            return
        told = [self._received == number for number in _SIGNALS]
        if self._accelerator.num_processes > 1:
            counts = torch.tensor(told, dtype=torch.int32, device=args.device)
            told = self._accelerator.reduce(counts, "sum").tolist()
        for number, count in zip(_SIGNALS, told, strict=True):
            if count:
                self.ended_by = number
                control.should_save = control.should_training_stop = True
