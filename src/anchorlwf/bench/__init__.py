"""Measuring functions: plain figures, medians of interleaved runs. See `docs/performance.md` for what they gave."""
