"""What an old answer says about a new one: tokens to try next, found by aligning the two as the new one grows.

Token ids only, no tensors: `greedy.greedy_passes` verifies what is proposed here.
"""

from bisect import bisect_left
from collections.abc import Sequence

__all__ = ["MOST", "Speculator"]

MOST = 64
"""Maximum number of tokens proposed at once. A forward pass over so few is short, however wrong they are."""
_FIRST = 8
"""Tokens proposed at first, behind one that is decoded alone; the length doubles while everything is accepted."""
_REACH = (2, 16, 128, 512)
"""How far off the old answer is searched where the last 1, 2, 3, 4 tokens stand there: the more agree, the farther."""


class Speculator:
    """Proposes tokens from an old continuation, aligned with the tokens that are decoded in its place.

    Where the two disagree, the old token counts as replaced, unless the new one stands nearby: then tokens were
    inserted or removed, and the old answer is followed from there. Two disagreements in a row and nothing is proposed
    until a token is found again, so an answer that goes its own way is decoded as if nothing had been expected.

    Args:
        old_ids: what stood behind the correction; its first token is expected next.
    """

    def __init__(self, old_ids: Sequence[int]) -> None:
        self._old = list(old_ids)
        self._positions: dict[int, list[int]] = {}
        for position, token in enumerate(self._old):
            self._positions.setdefault(token, []).append(position)
        # Whoever has just corrected waits for the first token, and a pass over several takes longer.
        self._next, self._misses, self._length = 0, 0, 0
        self._recent: list[int] = []

    def propose(self, maximum: int) -> list[int]:
        """Tokens expected next, `maximum` or fewer; none while the answers have nothing in common."""
        if self._misses > 1:
            return []
        return self._old[self._next : self._next + max(0, min(self._length, maximum))]

    def learn(self, proposed: int, token_ids: Sequence[int]) -> None:
        """Hear what was decoded.

        Args:
            proposed: how many tokens had been proposed.
            token_ids: those of them that were accepted, and the one that the model chose behind them.
        """
        for token in token_ids:
            self._follow(token)
        accepted = len(token_ids) - 1
        if self._length == 0:
            self._length = _FIRST
        elif proposed and accepted == proposed:
            self._length = min(MOST, max(self._length, 2 * proposed))
        elif proposed:
            self._length = max(1, accepted, self._length // 2)

    def _follow(self, token: int) -> None:
        self._recent = [*self._recent[1 - len(_REACH) :], token]
        position = self._next if self._old[self._next : self._next + 1] == [token] else self._find(token)
        if position is None:
            self._misses += 1
            self._next = min(self._next + 1, len(self._old))
        else:
            self._misses = 0
            self._next = position + 1

    def _find(self, token: int) -> int | None:
        """Where `token` stands in the old answer: behind most of the same tokens, then nearest."""
        positions = self._positions.get(token, [])
        first, last = (bisect_left(positions, self._next + reach) for reach in (-_REACH[-1], _REACH[-1]))
        nearest, best = None, (0, 0)
        for position in positions[first:last]:
            agree, distance = self._agreement(position), abs(position - self._next)
            if distance <= _REACH[agree - 1] and (agree, -distance) > best:
                nearest, best = position, (agree, -distance)
        return nearest

    def _agreement(self, position: int) -> int:
        """How many of the last tokens stand in the old answer up to `position`; at least the one that led here."""
        agree = 0
        for back, token in enumerate(reversed(self._recent)):
            if position < back or self._old[position - back] != token:
                break
            agree += 1
        return agree
