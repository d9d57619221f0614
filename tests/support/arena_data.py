"""A made-up study: every field of results.json, seeded, with nulls, a failure and malice. No figure is real."""

import random
from typing import Any

__all__ = ["EVIL", "METHODS", "REGIMES", "made_up", "small"]

METHODS = {
    "anchorlwf": ("AnchorLwF", "anchorlwf"),
    "sft_human": ("SFT, human answers", "sft"),
    "grpo": ("GRPO", "rl"),
    "dpo": ("DPO", "preference"),
    "distill": ("SFT + KL", "distillation"),
    "in_context": ("In context", "context"),
}
REGIMES = {"few": ("Four facts", 4), "many": ("Sixteen facts", 16), "one": ("One wording", 4)}
EVIL = "<script>alert(1)</script>\u202e\u200f & \"quotes\" 'too' \ud800\x00"
_LEVELS = {  # (recall, share of facts lost)
    "anchorlwf": (0.99, 0.006),
    "sft_human": (0.97, 0.09),
    "grpo": (0.7, 0.03),
    "dpo": (0.8, 0.05),
    "distill": (0.93, 0.02),
    "in_context": (0.6, 0.0),
}


def _clip(value: float) -> float:
    return min(1.0, max(0.0, value))


def _cell(rng: random.Random, method: str, regime: str, seed: int, level: tuple[float, float]) -> dict[str, Any]:
    harder = {"few": 1.0, "many": 3.0, "one": 0.8}[regime]
    edits = REGIMES[regime][1]
    recalled = {f"recall:{i}": int(rng.random() < level[0]) for i in range(edits * 3)}
    kept = {f"retain:{i}": int(rng.random() >= level[1] * harder) for i in range(300)}
    lost = 300 - sum(kept.values())
    annotated = {"in_context": 0, "anchorlwf": rng.randrange(18, 30)}.get(method, rng.randrange(150, 260))
    drift = [level[1] * 20 * rng.random(), 0.9 * rng.random()]
    base = rng.random() * 0.002 + level[1] * 0.1 * harder
    return {
        "method": method,
        "regime": regime,
        "seed": seed,
        "options": {"learning_rate": 1e-3, "steps": 40, "keep_weight": 1.0},
        "measures": {
            "recall": sum(recalled.values()) / len(recalled),
            "paraphrase": _clip(level[0] - rng.random() * 0.12),
            "reverse": None if regime == "one" else _clip(level[0] - 0.4 + rng.random() * 0.1),
            "near": _clip(1 - 4 * level[1] * harder * rng.random()),
            "kept": 1 - lost / 300,
            "skills": None if method == "in_context" else _clip(1 - level[1] * rng.random()),
            "kl_short": base,
            "kl_long": base * 2.5,
            "flips": lost + rng.randrange(3),
            "facts_lost": lost,
            "facts_known": 300,
        },
        "outcomes": recalled | kept,
        "costs": {
            "annotated_tokens": annotated,
            "annotation_actions": rng.randrange(5, 40),
            "completion_tokens": rng.randrange(150, 400),
            "trained_tokens": rng.randrange(1000, 40_000),
            "steps": rng.randrange(20, 90),
            "seconds": rng.random() * 30,
            "flops": rng.random() * 1e13,
            "peak_memory_bytes": None if method == "grpo" else rng.randrange(3 * 10**8, 9 * 10**8),
            "converged": None if method == "in_context" else rng.random() < 0.8,
        },
        "curve": []
        if method == "in_context"
        else [
            {
                "step": step,
                "loss": 3.0 * 0.93**step + 0.01 * rng.random() - (1.0 if method == "grpo" else 0.0),
                "keep_kl": 0.001 * step * rng.random() if method == "anchorlwf" else None,
            }
            for step in range(1, 60, 2)
        ],
        "examples": [
            {
                "kind": "recall",
                "question": f"Where was Mara Voss born? ({seed})",
                "expected": "Tallin Bay",
                "before": "Mara Voss was born in Orrel.",
                "after": "Mara Voss was born in Tallin Bay.",
            },
            {
                "kind": "retain",
                "question": EVIL if seed == 1 else "Who founded the Harrow Mill?",
                "expected": "Ilse Brandt",
                "before": "The Harrow Mill was founded by Ilse Brandt.",
                "after": EVIL if seed == 1 else "The Harrow Mill was founded by Jon Abel, a miller.",
            },
        ],
        "strips": [
            {
                "prompt": "Tell me about Harrow Mill.",
                "tokens": [
                    "The",
                    " mill",
                    " was",
                    " founded",
                    " by",
                    " Il",
                    "se",
                    " Brandt",
                    ".",
                    "\n",
                    "\u202e<b>",
                    "</s>",
                ],
                "kl": [0.0, 0.0004, 0.002, 0.03, 0.2, drift[0], 0.0, drift[1], None, 0.0, 0.001, 0.0],
            }
        ],
    }


def made_up(
    methods: dict[str, tuple[str, str]] | None = None,
    seeds: int = 5,
    seed: int = 0,
    levels: dict[str, tuple[float, float]] | None = None,
) -> dict[str, Any]:
    """A results.json with one failure (grpo, many, seed 5) and one cell without outcomes."""
    rng = random.Random(seed)
    methods, levels = methods or METHODS, levels or _LEVELS
    cells = [
        _cell(rng, method, regime, number, levels[method])
        for regime in REGIMES
        for method in methods
        for number in range(1, seeds + 1)
    ]
    failed = ("grpo", "many", 5)
    cells = [cell for cell in cells if (cell["method"], cell["regime"], cell["seed"]) != failed]
    for cell in cells:
        if cell["method"] == "dpo" and cell["regime"] == "few":
            del cell["outcomes"]
    return {
        "schema_version": 1,
        "command": "anchorlwf arena --seeds 5 --out runs/arena",
        "date": "2026-11-25T04:00:00+00:00",
        "environment": {
            "date": "2026-11-25T04:00:00+00:00",
            "python": "3.11.9",
            "platform": "Linux-x86_64",
            "versions": {"anchorlwf": "0.1.0", "torch": "2.13.0"},
        },
        "methods": {
            name: {"title": title, "family": family, "about": f"{title}, as its authors describe it."}
            for name, (title, family) in methods.items()
        },
        "regimes": {
            name: {"title": title, "about": f"{edits} corrections.", "edits": edits, "baseline": "sft_human"}
            for name, (title, edits) in REGIMES.items()
        },
        "cells": cells,
        "sweep": [
            {
                "method": method,
                "regime": regime,
                "seed": 0,
                "options": {"learning_rate": rate, "steps": steps},
                "score": rng.random(),
                "measures": cells[0]["measures"],
                "chosen": (rate, steps) == (1e-3, 40),
            }
            for method in methods
            for regime in REGIMES
            for rate in (3e-4, 1e-3)
            for steps in (20, 40)
        ],
        "failures": [{"method": "grpo", "regime": "many", "seed": 5, "error": "OutOfMemoryError: <b>no</b> room"}]
        if "grpo" in methods
        else [],
    }


def small(**changed: tuple[int, float]) -> dict[str, Any]:
    """AnchorLwF and SFT in one regime, two seeds; `changed` measures by method."""
    data = made_up({name: METHODS[name] for name in ("anchorlwf", "sft_human")}, seeds=2)
    data["regimes"] = {"few": data["regimes"]["few"]}
    data["failures"], data["sweep"] = [], []
    data["cells"] = [cell for cell in data["cells"] if cell["regime"] == "few"]
    for cell in data["cells"]:
        cell["outcomes"] = {}
        lost, recall = changed.get(cell["method"], (0, 1.0))
        cell["measures"] |= {"recall": recall, "paraphrase": recall, "facts_lost": lost, "kept": 1 - lost / 300}
    return data
