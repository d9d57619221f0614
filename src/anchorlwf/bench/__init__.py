"""Measuring functions: plain figures, medians of interleaved runs. What was measured stands in `docs/performance.md`."""
