"""Sizes of the tiny models that conftest.py makes."""

CONTEXT = 96
"""Positions of the tiny models."""
WINDOW = 8
"""Sliding window of the tiny Gemma 2, shorter than any templated prompt."""
