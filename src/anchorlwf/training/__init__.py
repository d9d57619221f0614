"""Stage two: records in, a tuned model out (paper sections 3.2 and 3.3)."""

from anchorlwf.training.stage import TrainResult, run_folder, train
from anchorlwf.training.stop_report import HeldOutDrift, StopReport, holding

__all__ = ["HeldOutDrift", "StopReport", "TrainResult", "holding", "run_folder", "train"]
