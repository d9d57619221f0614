"""Text that people and models wrote, for a terminal: nothing in it prints nothing, turns text around, or commands."""

import unicodedata

__all__ = ["harmless", "marked", "readable"]

_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""They turn the text around them."""


def marked(char: str) -> str:
    """A character that prints as it is; any other one as a sign for it."""
    if char.isprintable():
        return char
    point = ord(char)
    return chr(0x2400 + point) if point < 0x20 else f"‹U+{point:04X}›"


def harmless(text: str) -> str:
    """Text as it was written, but for control characters and those that turn text around, which are marked."""
    return "".join(
        marked(char) if char in _TURNING or (unicodedata.category(char) == "Cc" and char not in "\n\t") else char
        for char in text
    )


def readable(text: str) -> str:
    """Running text whose line breaks stay; what prints nothing is marked."""
    return "".join(char if char == "\n" else "    " if char == "\t" else marked(char) for char in text)
