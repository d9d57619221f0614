"""The retention stage: what must stay as it is, written by the model itself."""

from anchorlwf.retention.paraphrases import PARAPHRASE_TAG, paraphrases
from anchorlwf.retention.same_fact import Candidate
from anchorlwf.retention.stage import (
    AUTO,
    HELD_OUT_TAG,
    NONE,
    Retained,
    Retention,
    remembered_answers,
    retain,
    usual_retention,
)

__all__ = [
    "AUTO",
    "HELD_OUT_TAG",
    "NONE",
    "PARAPHRASE_TAG",
    "Candidate",
    "Retained",
    "Retention",
    "paraphrases",
    "remembered_answers",
    "retain",
    "usual_retention",
]
