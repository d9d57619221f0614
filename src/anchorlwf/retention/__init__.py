"""The retention stage: what must stay as it is, written by the model itself."""

from anchorlwf.retention.paraphrases import PARAPHRASE_TAG, paraphrases
from anchorlwf.retention.same_fact import Candidate
from anchorlwf.retention.stage import HELD_OUT_TAG, Retained, remembered_answers, retain

__all__ = ["HELD_OUT_TAG", "PARAPHRASE_TAG", "Candidate", "Retained", "paraphrases", "remembered_answers", "retain"]
