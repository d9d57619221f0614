"""A LoRA adapter: which layers it goes on, and whether it trains there."""
