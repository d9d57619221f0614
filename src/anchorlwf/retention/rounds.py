"""Prompts a model wrote and its answers to them, round by round, in a file that an interrupted run goes on with."""

from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from anchorlwf.data.record import Prompt
from anchorlwf.files import append_line

__all__ = ["Answered", "Round", "rounds"]


class Answered(BaseModel):
    """A prompt, and the reference's own answer to it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: Prompt
    prompt_ids: list[int]
    completion_ids: list[int]
    completion: str
    """The answer decoded."""
    truncated: bool
    of: str | None = None
    """Near prompts: id of the corrected record it begins like."""

    @property
    def text(self) -> str:
        """What the last turn asks."""
        return str(self.prompt.messages[-1].get("content", ""))

    @property
    def exchange(self) -> str:
        """What the last turn asks, and the answer."""
        return f"{self.text} {self.completion}"


class Round(BaseModel):
    """One batch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    """Counted from 0."""
    answered: list[Answered]
    left_out: dict[str, int] = {}
    """How many sampled prompts were not taken, by reason."""


def rounds(path: Path, make: Callable[[int, list[Round]], Round]) -> Iterator[Round]:
    """Round after round without end: those in the file, then new ones, each appended durably as it is made.

    Args:
        path: one JSON line per round. A line that is torn or damaged is made anew.
        make: gets the round's number and all rounds before it; the same ones must give the same round.

    Raises:
        StorageError: the file cannot be written.
    """
    stored, earlier = _stored(path), list[Round]()
    while True:
        number = len(earlier)
        current = stored.get(number)
        if current is None:
            current = make(number, earlier)
            append_line(path, current.model_dump_json())
        earlier.append(current)
        yield current


def _stored(path: Path) -> dict[int, Round]:
    """The first good line of each number: two processes may have written the same round."""
    good: dict[int, Round] = {}
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            stored = Round.model_validate_json(line)
        except ValidationError:
            continue
        good.setdefault(stored.number, stored)
    return good
