"""Stage three: what was learned, what was kept (paper section 4)."""

from anchorlwf.evaluation.harness import MetricChange, TaskChange, harness
from anchorlwf.evaluation.measure import Drift, ProbeResult, answers, compare, drift, recall_probes
from anchorlwf.evaluation.results import Group, Results, summarize
from anchorlwf.evaluation.stage import evaluate
from anchorlwf.evaluation.stats import bootstrap_interval, paired_interval

__all__ = [
    "Drift",
    "Group",
    "MetricChange",
    "ProbeResult",
    "Results",
    "TaskChange",
    "answers",
    "bootstrap_interval",
    "compare",
    "drift",
    "evaluate",
    "harness",
    "paired_interval",
    "recall_probes",
    "summarize",
]
