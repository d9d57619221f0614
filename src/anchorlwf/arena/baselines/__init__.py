"""The baselines that our own trainer does not train: GRPO, DPO and self-distillation, by TRL."""
