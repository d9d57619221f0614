"""The caches of all sessions, within a bound on their memory; a new session begins with what another one has read."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

from anchorlwf.decoding.greedy import GreedyDecoder

__all__ = ["Caches"]


class Caches:
    """A decoder for each key, with its cache. All of it on one thread.

    The first to go are those that nobody works with any more, then those filled ahead of need (the last filled first,
    which will be needed last), then those of sessions (the least recently used first).

    Args:
        make: gives an empty decoder.
        memory: maximum number of bytes of all caches together. The one at work keeps its own, however large.
    """

    def __init__(self, make: Callable[[], GreedyDecoder], memory: int) -> None:
        self._make, self._memory = make, memory
        self._held: OrderedDict[Hashable, GreedyDecoder] = OrderedDict()
        """The first to go come first."""
        self._ahead: set[Hashable] = set()
        self._sizes: dict[Hashable, int] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all of them, as they were last measured."""
        return sum(tuple(self._sizes.values()))

    def at(self, key: Hashable, ids: Sequence[int], *, ahead: bool = False) -> GreedyDecoder:
        """The decoder of a key, which is about to read `ids`; a new one begins with what others hold of them.

        `ahead`: nobody waits for it yet.
        """
        if key not in self._held:
            self._held[key] = self._begun(ids)
            if ahead:
                self._ahead.add(key)
                self._held.move_to_end(key, last=False)
        elif not ahead:
            self._ahead.discard(key)
        if not ahead:
            self._held.move_to_end(key)
        return self._held[key]

    def _begun(self, ids: Sequence[int]) -> GreedyDecoder:
        nearest = max(self._held, key=lambda key: self._held[key].shared(ids), default=None)
        if nearest is None:
            return self._make()
        if nearest in self._ahead and self._held[nearest].is_within(ids):
            # It was filled for this one, and nobody else needs it.
            return self._drop(nearest)
        return self._held[nearest].fork(ids) or self._make()

    def measure(self, key: Hashable) -> None:
        """The decoder of a key has grown: while somebody works with it, others make room."""
        self._sizes[key] = self._held[key].nbytes
        if key not in self._ahead:
            self._make_room(besides=key)

    def rest(self, key: Hashable) -> None:
        """Nobody works with it for now: of one filled ahead, it is time to see whether there is room."""
        if key in self._held and key not in self._ahead:
            self._held.move_to_end(key, last=False)
        self._make_room(besides=None)

    def _make_room(self, besides: Hashable | None) -> None:
        while self.nbytes > self._memory:
            first = next((key for key in self._held if key != besides), None)
            if first is None:
                return
            self._drop(first)

    def _drop(self, key: Hashable) -> GreedyDecoder:
        self._sizes.pop(key, None)
        self._ahead.discard(key)
        return self._held.pop(key)
