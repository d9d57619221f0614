"""Stage three: what was learned, what was kept (paper section 4)."""

from anchorlwf.evaluation.gate import Check, GateReport, certify, check_certificate, compared_data
from anchorlwf.evaluation.lm_eval import MetricChange, TaskChange, run_tasks
from anchorlwf.evaluation.measure import (
    Drift,
    Known,
    ProbeResult,
    Progress,
    answers,
    compare,
    drift,
    prompts_of,
    recall_probes,
    reference_answers,
)
from anchorlwf.evaluation.results import LEARNED_KINDS, DataStamp, Group, Origin, Results, fractions, results_of
from anchorlwf.evaluation.stage import evaluate, reaching
from anchorlwf.evaluation.stats import bootstrap_interval, paired_interval
from anchorlwf.evaluation.weights import model_hashes, named_hashes

__all__ = [
    "LEARNED_KINDS",
    "Check",
    "DataStamp",
    "Drift",
    "GateReport",
    "Group",
    "Known",
    "MetricChange",
    "Origin",
    "ProbeResult",
    "Progress",
    "Results",
    "TaskChange",
    "answers",
    "bootstrap_interval",
    "certify",
    "check_certificate",
    "compare",
    "compared_data",
    "drift",
    "evaluate",
    "fractions",
    "model_hashes",
    "named_hashes",
    "paired_interval",
    "prompts_of",
    "reaching",
    "recall_probes",
    "reference_answers",
    "results_of",
    "run_tasks",
]
