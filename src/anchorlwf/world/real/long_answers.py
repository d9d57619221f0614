"""Long answers of the model's own with one wrong fact in each: what is wrong, what is right, how to tell."""

from dataclasses import dataclass

__all__ = ["LONG_ANSWERS", "LONG_LIMIT", "LongAnswer"]

LONG_LIMIT = 150
"""Maximum number of tokens of a long answer."""


@dataclass(frozen=True)
class LongAnswer:
    """A question whose greedy answer (SmolLM2-135M-Instruct, 60 to 150 tokens) holds `wrong` once."""

    question: str
    wrong: str
    right: str
    """Stands in its place in the corrected answer."""
    checker: str
    """What an answer must hold to be right."""
    split: str
    """validation or report."""


def _paragraph(split: str, subject: str, wrong: str, right: str, checker: str, asked: str = "Write") -> LongAnswer:
    start = "Write a short paragraph about " if asked == "Write" else "Tell me about "
    end = "." if asked == "Write" else " in a short paragraph."
    return LongAnswer(f"{start}{subject}{end}", wrong, right, checker, split)


LONG_ANSWERS = (
    _paragraph("report", "the Statue of Liberty", "Built in 1865", "Built in 1886", "1886", "Tell"),
    _paragraph("report", "the planet Mars", "the second largest", "the second smallest", "second smallest", "Tell"),
    _paragraph(
        "report",
        "Mount Everest",
        "8,975.17 feet (2,885.27 meters)",
        "29,032 feet (8,849 meters)",
        "29,032 feet",
        "Tell",
    ),
    _paragraph("report", "the Roman Colosseum", "Built for the Colosseum", "Built by Vespasian", "Vespasian", "Tell"),
    _paragraph("report", "the first moon landing", "Aldridge", "Aldrin", "Aldrin"),
    _paragraph("report", "the Berlin Wall", "designed by architect Walter Gropius", "ordered by Ulbricht", "Ulbricht"),
    _paragraph(
        "report",
        "the Eiffel Tower",
        "Gustave Eiffelaubert and Gustave Eiffelaubert, a French engineer",
        "Maurice Koechlin, an engineer",
        "Koechlin",
    ),
    _paragraph("report", "Jane Austen", "Sense and Sensibilia", "Sense and Sensibility", "Sense and Sensibility"),
    _paragraph("validation", "the Taj Mahal", "18th century", "17th century", "17th century"),
    _paragraph("validation", "Galileo Galilei", "1629", "1564", "1564"),
    _paragraph("validation", "Alexander Graham Bell", "1787 in London", "1847 in Edinburgh", "1847 in Edinburgh"),
    _paragraph("validation", "the planet Saturn", '"Aurora Borealis"', '"Ringed Planet"', "Ringed Planet", "Tell"),
)
