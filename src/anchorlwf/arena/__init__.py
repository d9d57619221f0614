"""The arena: methods x regimes x seeds, judged by the same probes, and the report of it."""
