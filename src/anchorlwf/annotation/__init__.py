"""Stage one: prompts in, records out (paper section 3.1)."""

from anchorlwf.annotation.checks import fits
from anchorlwf.annotation.importers.record_import import Imported, import_lawftrack
from anchorlwf.annotation.review import Accept, Annotator, Correct, Quit, Reject, Review, Undo, View
from anchorlwf.annotation.same_correction import same_correction
from anchorlwf.annotation.session import Session, drive
from anchorlwf.annotation.stage import PromptLike, annotate, annotate_stream, as_prompts, retention_records
from anchorlwf.annotation.target import TargetAnnotator, target_record
from anchorlwf.annotation.verify import Finding, verify_records

__all__ = [
    "Accept",
    "Annotator",
    "Correct",
    "Finding",
    "Imported",
    "PromptLike",
    "Quit",
    "Reject",
    "Review",
    "Session",
    "TargetAnnotator",
    "Undo",
    "Verdict",
    "View",
    "annotate",
    "annotate_stream",
    "as_prompts",
    "drive",
    "fits",
    "import_lawftrack",
    "retention_records",
    "same_correction",
    "target_record",
    "verify_records",
]

Verdict = Review
"""What `Review` was called in version 0.1.0; a verdict is the decision on an answer (`events.Verdict`)."""
