"""Greedy decoding, and what the model would have chosen at tokens that stand already."""
