"""What the reference reads of many turns, without the turns: digests and lengths, some tens of bytes each."""

import hashlib
import json
from array import array
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from anchorlwf.model.batch import Turn

__all__ = ["Contents", "Turns", "length_sorted"]

_BATCH_TOKENS = 8192
"""Most tokens, padding included, of a batch of several records: a file stays below 128 MiB at D = 4,096 in float32."""


class Turns(Protocol):
    """Turns by number: a list, or what reads each of them when it is asked for."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Turn: ...


class Contents:
    """Different contents of turns (prompt and completion ids), in the order of their digests.

    Neither the order of the turns nor how often one occurs matters; nor do anchors and ids.

    Args:
        turns: read once, one after another.

    Attributes:
        places: int64, of each content where in `turns` it stands first.
        lengths: int64, of each the tokens of prompt and completion.
        completion_lengths: int64, of each the tokens of the completion.
    """

    def __init__(self, turns: Iterable[Turn]) -> None:
        digests, prompts, completions = bytearray(), array("I"), array("I")
        for turn in turns:
            digests += _digest(turn)
            prompts.append(len(turn.prompt_ids))
            completions.append(len(turn.completion_ids))
        # numpy leaves out zeros at the end of what it hands out as bytes; comparing is right all the same.
        self._digests, self.places = np.unique(np.frombuffer(digests, "S32"), return_index=True)
        self.completion_lengths = np.array(completions, np.int64)[self.places]
        self.lengths = self.completion_lengths + np.array(prompts, np.int64)[self.places]

    def __len__(self) -> int:
        return len(self._digests)

    def name(self, number: int) -> str:
        """The digest of a content, as 64 hexadecimal digits."""
        return self._digests[number : number + 1].tobytes().hex()

    def find(self, turns: Sequence[Turn]) -> NDArray[np.int64]:
        """The number of each turn's content. Raises `KeyError` for one that is not there."""
        wanted = np.frombuffer(b"".join(map(_digest, turns)), "S32")
        numbers = np.searchsorted(self._digests, wanted)
        if (self._digests.take(numbers, mode="clip") != wanted).any():
            raise KeyError("a turn with another content")
        return numbers

    @property
    def sha(self) -> str:
        """SHA-256 over all names, a line each."""
        whole = hashlib.sha256()
        for number in range(len(self)):
            whole.update(b"\n" * (number > 0) + self.name(number).encode())
        return whole.hexdigest()


def length_sorted(contents: Contents, most: int = _BATCH_TOKENS) -> list[NDArray[np.int64]]:
    """Batches of contents by number, shortest first: the same whatever order the turns came in.

    Args:
        contents: of any number of turns.
        most: tokens of a batch, padding included; a longer turn makes a batch of its own.
    """
    order = np.argsort(contents.lengths, kind="stable")
    ends, begin = list[int](), 0
    for index, length in enumerate(contents.lengths[order].tolist()):
        # Sorted, so this one is as long as the batch is wide.
        if index > begin and (index - begin + 1) * length > most:
            ends.append(index)
            begin = index
    return [batch for batch in np.split(order, ends) if len(batch)]


def _digest(turn: Turn) -> bytes:
    """SHA-256 of what the reference reads: prompt and completion ids, and where one ends."""
    return hashlib.sha256(json.dumps([turn.prompt_ids, turn.completion_ids]).encode()).digest()
