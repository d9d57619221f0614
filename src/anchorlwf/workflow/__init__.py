"""Whole jobs over several stages: correct one answer, run the demo, talk to base and tuned model side by side."""

from anchorlwf.workflow.chat import SideBySide
from anchorlwf.workflow.demo import DemoReport, demo
from anchorlwf.workflow.fix import FixReport, fix

__all__ = ["DemoReport", "FixReport", "SideBySide", "demo", "fix"]
