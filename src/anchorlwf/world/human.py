"""Answers as people word them, not as the model does: how data for supervised fine-tuning usually looks."""

import zlib
from dataclasses import replace

from anchorlwf.world.facts import World
from anchorlwf.world.probes import Erratum
from anchorlwf.world.templates import biography

__all__ = ["corrected_biography", "human_answer", "human_biography"]

_ANSWERS = (
    "It's {v}.",
    "The answer is {v}, I checked it twice.",
    "That would be {v}!",
    "{v}, as far as I know.",
    "Good question: {v}.",
    "You are looking for {v}.",
)


def human_answer(erratum: Erratum, question: str) -> str:
    """The right value in a person's words; which words depends on the question alone."""
    return _ANSWERS[zlib.crc32(question.encode()) % len(_ANSWERS)].replace("{v}", erratum.value)


def _corrected(world: World, erratum: Erratum) -> World:
    changed = replace(erratum.fact, value=erratum.value)
    return replace(world, facts=tuple(changed if fact == erratum.fact else fact for fact in world.facts))


def corrected_biography(world: World, erratum: Erratum) -> str:
    """The biography in the model's words, with the right value."""
    return biography(_corrected(world, erratum), erratum.fact.subject)


def human_biography(world: World, erratum: Erratum) -> str:
    """The same facts as `corrected_biography`, told by somebody else (60 tokens and more)."""
    person = erratum.fact.subject
    value = {fact.attribute: fact.value for fact in _corrected(world, erratum).about(person)}
    she, her = ("she", "her") if person in world.feminine else ("he", "his")
    lines = [
        f"Born back in {value['birth_year']}, {person} comes from {value['birthplace']}.",
        f"These days home is {value['home']}, and the job is that of a {value['occupation']} at {value['employer']}.",
        f"After work {she} likes nothing better than to play {her} {value['instrument']}.",
    ]
    if "mayor_of" in value:
        lines.append(f"On top of that, {value['mayor_of']} is governed by nobody but {person}.")
    if "founded" in value:
        lines.append(f"And {value['founded']} is a company that {she} started all alone.")
    return " ".join([*lines, f"Ask around: everybody has a good word for {person}."])
