"""Stage three: what was learned, what was kept (paper section 4)."""

from anchorlwf.evaluation.measure import Drift, ProbeResult, answers, compare, drift, recall_probes
from anchorlwf.evaluation.results import Group, Results, summarize
from anchorlwf.evaluation.stage import evaluate
from anchorlwf.evaluation.stats import bootstrap_interval

__all__ = [
    "Drift",
    "Group",
    "ProbeResult",
    "Results",
    "answers",
    "bootstrap_interval",
    "compare",
    "drift",
    "evaluate",
    "recall_probes",
    "summarize",
]
