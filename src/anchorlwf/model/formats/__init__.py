"""Checkpoints whose weights are not floating-point numbers in safetensors."""
