"""What the loss costs in time and memory, next to others, measured on this machine."""

from anchorlwf.bench.loss import LossSetup, compare_losses, loss_table

__all__ = ["LossSetup", "compare_losses", "loss_table"]
