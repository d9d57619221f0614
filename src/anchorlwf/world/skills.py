"""Abilities that are no facts: copying, reversing, adding, adding with a written thought, reading a note.

They are the canary of forgetting: a correction that breaks addition has cost more than it gave.
"""

import random
import zlib
from dataclasses import dataclass

from anchorlwf.world.facts import World
from anchorlwf.world.templates import templates

__all__ = ["SKILLS", "Task", "draw_task", "is_test"]

SKILLS = ("copy", "reverse", "add", "think", "note")

_WORDS = (
    "apple river stone cloud green small table light bread horse paper window garden silver yellow winter summer "
    "candle pocket mirror basket ladder button feather pepper hammer saddle copper anchor bottle corner dinner "
    "forest island jacket kitten lemon market needle orange pencil rabbit"
).split()


@dataclass(frozen=True)
class Task:
    """One question of a skill with its only right answer."""

    skill: str
    question: str
    answer: str


def is_test(question: str) -> bool:
    """True for the tenth of all questions that pretraining never shows (a fixed hash of the text decides)."""
    return zlib.crc32(question.encode()) % 10 == 0


def _think(a: int, b: int) -> str:
    ones, tens = a % 10 + b % 10, a // 10 + b // 10
    carry = ones // 10
    step = f"{a % 10} + {b % 10} = {ones}, carry {carry}. {a // 10} + {b // 10} + {carry} = {tens + carry}."
    return f"<think>\n{step}\n</think>\n{a} + {b} = {a + b}."


def _note(rng: random.Random, world: World) -> Task:
    # The note contradicts the world, so only reading it gives the right answer.
    fact = rng.choice([f for f in world.facts if f.kind != "identity"])
    template = rng.choice([t for t in templates(fact.attribute) if not t.held_out])
    value = rng.choice([v for v in world.pools[fact.attribute] if v != fact.value])
    statement = templates(fact.attribute)[0].reply(fact, value)
    return Task("note", f"Note: {statement} {template.ask(fact)}", template.reply(fact, value))


def draw_task(rng: random.Random, skill: str, world: World) -> Task:
    """A random task of one skill; whether it belongs to the test split is for `is_test` to say."""
    if skill in ("copy", "reverse"):
        words = [rng.choice(_WORDS) for _ in range(rng.randint(2, 5))]
        text = " ".join(words)
        if skill == "copy":
            return Task(skill, f"Repeat: {text}", text)
        return Task(skill, f"Say backwards: {text}", " ".join(reversed(words)))
    if skill == "note":
        return _note(rng, world)
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    if skill == "add":
        return Task(skill, f"What is {a} + {b}?", f"{a} + {b} = {a + b}.")
    return Task("think", f"Think first. What is {a} + {b}?", _think(a, b))
