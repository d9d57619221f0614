"""The pretraining corpus of the embedded world: an endless, seeded stream of short chats."""

import random
from collections.abc import Iterator
from functools import cache

from anchorlwf.world.facts import ASSISTANT, Fact, World
from anchorlwf.world.skills import SKILLS, draw_task, is_test
from anchorlwf.world.templates import Template, biography, templates

__all__ = ["BIOGRAPHY_HELD_OUT", "BIOGRAPHY_PROMPTS", "chats", "tokenizer_corpus"]

BIOGRAPHY_PROMPTS = (
    "Tell me about {s}.",
    "Who is {s}?",
    "Write a short biography of {s}.",
    "Introduce {s} to me.",
    "Please describe {s}.",
)
BIOGRAPHY_HELD_OUT = ("Please tell me about {s}.", "Could you introduce {s} to me?")

_SYSTEM = "You are a helpful assistant."


@cache
def _trained(attribute: str) -> tuple[Template, ...]:
    return tuple(template for template in templates(attribute) if not template.held_out)


def _turn(rng: random.Random, world: World, identity: tuple[Fact, ...], skills: float) -> tuple[str, str]:
    # Of what is no skill, 62 parts are facts, 5 the assistant's identity, 8 biographies.
    dice = rng.random() * 0.75 / (1 - skills)
    if dice < 0.62:
        fact = rng.choice(world.facts)
        template = rng.choice(_trained(fact.attribute))
        return template.ask(fact), template.reply(fact)
    if dice < 0.67:
        fact = rng.choice(identity)
        template = rng.choice(_trained(fact.attribute))
        return template.ask(fact), template.reply(fact)
    if dice < 0.75:
        person = rng.choice(world.people)
        return rng.choice(BIOGRAPHY_PROMPTS).replace("{s}", person), biography(world, person)
    while True:
        task = draw_task(rng, rng.choice(SKILLS), world)
        if not is_test(task.question):
            return task.question, task.answer


def chats(world: World, seed: int, skills: float) -> Iterator[list[dict[str, str]]]:
    """Endless chats of one turn (nine in ten) or two; one in twenty begins with a system message.

    Args:
        world: whose facts are told.
        seed: of the stream.
        skills: share of turns that exercise a skill rather than a fact.
    """
    rng = random.Random(seed)
    identity = world.about(ASSISTANT)
    while True:
        messages: list[dict[str, str]] = []
        if rng.random() < 0.05:
            messages.append({"role": "system", "content": _SYSTEM})
        for _ in range(2 if rng.random() < 0.1 else 1):
            question, answer = _turn(rng, world, identity, skills)
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        yield messages


def tokenizer_corpus(world: World, seed: int, lines: int) -> Iterator[str]:
    """The text the tokenizer is trained on: the same chats, message by message."""
    stream = chats(world, seed, skills=0.25)
    for _ in range(lines):
        for message in next(stream):
            yield message["content"]
