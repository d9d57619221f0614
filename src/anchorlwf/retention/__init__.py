"""The retention stage: what must stay as it is, written by the model itself."""

from anchorlwf.retention.same_fact import Candidate
from anchorlwf.retention.stage import HELD_OUT_TAG, Retained, retain

__all__ = ["HELD_OUT_TAG", "Candidate", "Retained", "retain"]
