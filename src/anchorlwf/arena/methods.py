"""The methods of the study. They differ in words, marks, objective, stop rule and what else is shown, one at a time."""

from typing import Any

from anchorlwf.arena.plan import Method

__all__ = ["METHODS"]

_RATES: dict[str, list[Any]] = {"learning_rate": [1e-4, 3e-4, 1e-3]}
_SWEEP: dict[str, list[Any]] = {**_RATES, "steps": [0.25, 0.5, 1.0]}
# Answers in other words than the model's take larger steps to learn: lower rates taught nothing within the budget.
_HUMAN: dict[str, list[Any]] = {**_SWEEP, "learning_rate": [3e-4, 1e-3, 3e-3]}
_HUMAN_RATES = {"learning_rate": _HUMAN["learning_rate"]}
# A third, a half and two thirds of the way up 30 layers.
_ONE_LAYER: list[Any] = [rf".*\.{layer}\.mlp\.down_proj" for layer in (10, 15, 20)]
# No stop rule and no hinge: so many steps of the bare objective.
_FIXED: dict[str, Any] = {"stop": False, "hinge": False}
_FREE = 1e9
"""A drift budget that never binds."""

METHODS: tuple[Method, ...] = (
    Method(
        name="anchorlwf",
        title="AnchorLwF",
        family="anchorlwf",
        extra="auto",
        about="The defaults: balanced loss, hinge, drift budget, stop rule; among real facts with prompts that the "
        "model writes itself. Nothing is swept.",
    ),
    Method(
        name="anchorlwf_alone",
        title="AnchorLwF, no keep records",
        family="anchorlwf",
        about="The defaults, with the corrections alone.",
    ),
    Method(
        name="anchorlwf_general",
        seeds=3,
        title="AnchorLwF, no near prompts",
        family="anchorlwf",
        extra="auto",
        retention={"near": 0},
        about="The defaults, without the prompts that begin like a corrected one.",
    ),
    Method(
        name="anchorlwf_retain",
        title="AnchorLwF + keep records",
        family="anchorlwf",
        extra="retain",
        about="The defaults, with 48 keep records of the reference's own answers to unrelated prompts.",
    ),
    Method(
        name="anchorlwf_swept",
        title="AnchorLwF, rate swept",
        family="anchorlwf",
        sweep=_RATES,
        about="The defaults, but for the learning rate.",
    ),
    Method(
        name="anchorlwf_token",
        title="AnchorLwF, token mean",
        family="anchorlwf",
        sweep=_RATES,
        options={"reduction": "token"},
        about="The paper's mean over all tokens in place of the balanced one.",
    ),
    Method(
        name="anchorlwf_reverse",
        title="AnchorLwF, reverse KL",
        family="anchorlwf",
        sweep=_RATES,
        confidence=0.999,
        options={"direction": "reverse"},
        about="The formula as printed, at confidence 0.999.",
    ),
    Method(
        name="anchorlwf_fixed",
        title="AnchorLwF, no stop rule",
        family="anchorlwf",
        sweep=_SWEEP,
        options={**_FIXED, "beta": 1.0, "drift_budget": _FREE},
        about="The loss alone: no hinge, no budget, no stop rule; rate and steps swept.",
    ),
    Method(
        name="anchorlwf_retained_fixed",
        seeds=3,
        title="AnchorLwF, no stop rule, keep records",
        family="anchorlwf",
        extra="auto",
        options={"stop": False, "hinge": False},
        sweep={"steps": [1.0]},
        about="The defaults with keep records, trained for the whole budget of steps.",
    ),
    Method(
        name="anchors_only",
        title="anchors only",
        family="anchorlwf",
        sweep=_SWEEP,
        options={**_FIXED, "beta": 0.0, "drift_budget": _FREE},
        about="Cross-entropy at the anchors and nothing anywhere else; rate and steps swept.",
    ),
    Method(
        name="anchors_only_stop",
        title="anchors only + stop",
        family="anchorlwf",
        sweep=_RATES,
        options={"beta": 0.0, "drift_budget": _FREE},
        about="Anchors only, with hinge and stop rule.",
    ),
    Method(
        name="sft_own",
        title="SFT, own words",
        family="sft",
        marks="all",
        sweep=_SWEEP,
        options=_FIXED,
        about="Cross-entropy at every token of the corrected answer, which is in the model's own words.",
    ),
    Method(
        name="sft_own_stop",
        title="SFT, own words + stop",
        family="sft",
        marks="all",
        sweep=_RATES,
        options={"hinge": False},
        about="The same, stopped as soon as every token holds.",
    ),
    Method(
        name="sft_human",
        title="SFT, human words",
        family="sft",
        marks="all",
        words="human",
        sweep=_HUMAN,
        options=_FIXED,
        about="Cross-entropy at every token of an answer that a person has worded.",
    ),
    Method(
        name="sft_human_stop",
        title="SFT, human words + stop",
        family="sft",
        marks="all",
        words="human",
        sweep={"learning_rate": _HUMAN["learning_rate"]},
        options={"hinge": False},
        about="The same, stopped as soon as every token holds.",
    ),
    Method(
        name="sft_kl",
        title="SFT + KL, human words",
        family="sft",
        marks="all",
        words="human",
        sweep={**_HUMAN, "confidence": [0.5, 0.9]},
        options=_FIXED,
        about="Human words with KL to the reference at every token, weights (1 - c) / c swept.",
    ),
    Method(
        name="sft_replay",
        title="SFT + replay, human words",
        family="sft",
        marks="all",
        words="human",
        extra="replay",
        sweep=_HUMAN,
        options=_FIXED,
        about="Human words mixed with 48 of the reference's own answers to unrelated prompts.",
    ),
    Method(
        name="sft_own_replay",
        title="SFT, own words + replay",
        family="sft",
        marks="all",
        extra="replay",
        sweep={**_RATES, "steps": [1.0]},
        options=_FIXED,
        about="Every token of the corrected answer, and of the reference's own answers to the keep prompts that "
        "AnchorLwF has, mixed, for the whole budget of steps.",
    ),
    Method(
        name="sft_kl_retain",
        title="SFT + KL, same keep records",
        family="sft",
        marks="all",
        words="human",
        extra="retain",
        sweep=_HUMAN_RATES,
        options={"hinge": False},
        about="Human words, with KL to the reference on the keep records that AnchorLwF has; stopped as soon as every "
        "token holds and the drift is within its budget.",
    ),
    Method(
        name="stm",
        seeds=3,
        title="STM",
        family="sft",
        marks="likely",
        words="human",
        sweep=_HUMAN_RATES,
        # What the base finds unlikely stays so, and the answers are none of its own.
        options={"beta": 0.0, "drift_budget": _FREE, "hinge": False, "reproduce": False},
        about="Human words, learned only where the base finds a token likely (perplexity of 2.5 at the most), stopped "
        "as soon as these hold.",
    ),
    Method(
        name="locft",
        seeds=3,
        title="LocFT-BF",
        family="sft",
        marks="all",
        sweep={"targets": _ONE_LAYER},
        options={"hinge": False, "learning_rate": 1e-3, "rank": 64},
        about="Every token of the corrected answer, in one layer's down projection (LoRA of rank 64), stopped as soon "
        "as every token holds; the layer is swept.",
    ),
    # A GRPO step samples 8 completions per prompt and trains on them all: a twelfth of the steps is about the compute.
    Method(
        name="grpo",
        title="GRPO",
        family="rl",
        trainer="grpo",
        effort=1 / 12,
        sweep={"learning_rate": [3e-4, 1e-3], "kl_coef": [0.0, 0.04], "steps": [1.0]},
        about="TRL's GRPO; the reward is 1 for an answer that contains the right value. About equal compute.",
    ),
    Method(
        name="grpo_10x",
        title="GRPO, 10x compute",
        family="rl",
        trainer="grpo",
        effort=10 / 12,
        like="grpo",
        about="The same with ten times the steps, at the rate and KL weight chosen for GRPO.",
    ),
    Method(
        name="grpo_hint",
        title="GRPO after a hint",
        family="rl",
        trainer="grpo",
        warm=True,
        effort=1 / 12,
        sweep={"learning_rate": [3e-4, 1e-3], "kl_coef": [0.0, 0.04], "steps": [1.0]},
        about="GRPO from where a few anchor steps have given the right value a chance of about 10 %.",
    ),
    # A pair is two completions.
    Method(
        name="dpo",
        title="DPO",
        family="preference",
        trainer="dpo",
        sweep=_SWEEP,
        effort=0.5,
        about="TRL's DPO, the corrected answer over the original one.",
    ),
    Method(
        name="sdft",
        title="SDFT",
        family="distillation",
        trainer="sdft",
        sweep=_SWEEP,
        effort=0.25,
        options={"num_generations": 2},
        about="TRL's self-distillation from the model that is shown the corrected answer.",
    ),
    Method(
        name="in_context",
        title="fact in the prompt",
        family="context",
        trainer="context",
        about="No training: a perfect retriever puts the right fact into the prompt. A ceiling, not a rival.",
    ),
)
