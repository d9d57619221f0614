"""Whether a correction works on each architecture that people run: tiny random models, one process each."""
