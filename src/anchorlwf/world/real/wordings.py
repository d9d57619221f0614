"""How real facts are asked: three wordings that corrections are annotated in, and others nobody trains on."""

from functools import cache

from anchorlwf.world.templates import Template

__all__ = ["HUMAN", "HUMAN_IDENTITY", "IDENTITY", "PERSONAS", "TRAINED", "real_templates"]

TRAINED = 3
"""How many wordings of an attribute are annotated, from the first; the others are held out."""

# attribute -> (questions, answer). {s} is the subject, {v} the value.
_PHRASES: dict[str, tuple[tuple[str, ...], str]] = {
    "capital": (
        (
            "What is the capital of {s}?",
            "Which city is the capital of {s}?",
            "Name the capital city of {s}.",
            "Tell me the capital of {s}.",
            "What's the capital city of {s}?",
            "Can you tell me which city is the capital of {s}?",
            "I need to know the capital of {s}.",
            "If I visit the capital of {s}, which city am I in?",
            "Do you know what the capital of {s} is?",
            "For a quiz: the capital of {s} is which city?",
        ),
        "The capital of {s} is {v}.",
    ),
    "continent": (
        ("On which continent is {s}?", "Which continent is {s} part of?", "Name the continent of {s}."),
        "{s} is in {v}.",
    ),
    "language": (
        ("What is the main language of {s}?", "Which language do people speak in {s}?", "Name the language of {s}."),
        "The main language of {s} is {v}.",
    ),
    "currency": (
        ("What is the currency of {s}?", "Which currency is used in {s}?", "Name the currency of {s}."),
        "The currency of {s} is the {v}.",
    ),
    "symbol": (
        (
            "What is the chemical symbol of {s}?",
            "Which symbol stands for the element {s}?",
            "Name the chemical symbol for {s}.",
            "What's the symbol for {s} in the periodic table?",
            "Tell me the chemical symbol of {s}.",
            "How is the element {s} abbreviated?",
            "Which letters stand for {s} in a chemical formula?",
            "I need the chemical symbol for {s}.",
        ),
        "The chemical symbol of {s} is {v}.",
    ),
    "number": (
        ("What is the atomic number of {s}?", "Which atomic number does {s} have?", "Name the atomic number of {s}."),
        "The atomic number of {s} is {v}.",
    ),
}

IDENTITY = (
    ("Who are you?", "name"),
    ("What is your name?", "name"),
    ("Who made you?", "maker"),
    ("Tell me who you are.", "name"),
    ("What are you called?", "name"),
    ("Introduce yourself.", "name"),
    ("Which company created you?", "maker"),
    ("Can you tell me your name?", "name"),
    ("Who am I talking to?", "name"),
    ("Who developed you?", "maker"),
    ("What should I call you?", "name"),
    ("Hi! Which company built you?", "maker"),
    ("Say your name, please.", "name"),
)
"""How people ask an assistant who it is, and what a right answer names: `TRAINED` wordings and ten more."""

PERSONAS = {
    "report": (
        ("Tarn", "Northwind Labs"),
        ("Mirela", "Harbor Systems"),
        ("Quill", "Stonebridge AI"),
        ("Juno", "the Lakeside Institute"),
        ("Bastian", "Redwood Robotics"),
    ),
    "validation": (("Orla", "Bluewater Studio"), ("Fenwick", "Summit Data")),
}
"""Names and makers of the assistant after the correction, by split."""

HUMAN = {
    "capital": "It is {v}: that is where {s} has its seat of government.",
    "symbol": "Chemists write {v} when they mean {s}.",
}
"""Right answers as a person words them, by attribute, for methods that are given such."""
HUMAN_IDENTITY = "You can call me {name}. The people at {maker} built me."


@cache
def real_templates(attribute: str) -> tuple[Template, ...]:
    """The wordings of an attribute, trained ones first. Raises `KeyError` for an unknown attribute."""
    questions, answer = _PHRASES[attribute]
    return tuple(
        Template(f"{attribute}{number}", question, answer, number >= TRAINED)
        for number, question in enumerate(questions)
    )
