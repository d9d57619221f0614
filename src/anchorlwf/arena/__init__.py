"""The paper's experiments: methods x regimes x seeds, on the embedded world or on a model and data of one's own."""

from anchorlwf.arena.conduct import arena, check_results, load_plan
from anchorlwf.arena.plan import Method, Plan, Regime
from anchorlwf.arena.report.page import write_report
from anchorlwf.arena.study import Sources

__all__ = ["Method", "Plan", "Regime", "Sources", "arena", "check_results", "load_plan", "write_report"]
