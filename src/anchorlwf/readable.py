"""Text that people and models wrote, for a terminal: nothing in it prints nothing, turns text around, or commands."""

__all__ = ["marked", "readable"]


def marked(char: str) -> str:
    """A character that prints as it is; any other one as a sign for it."""
    if char.isprintable():
        return char
    point = ord(char)
    return chr(0x2400 + point) if point < 0x20 else f"‹U+{point:04X}›"


def readable(text: str) -> str:
    """Running text whose line breaks stay; what prints nothing is marked."""
    return "".join(char if char == "\n" else "    " if char == "\t" else marked(char) for char in text)
