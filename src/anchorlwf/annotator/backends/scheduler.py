"""One thread, many waiting people: work done a piece at a time, in fair turns.

Streams advance one piece per turn, round and round; short questions go in between, turn and turn about. What somebody
may soon ask about is read while nobody waits, and work ahead of need comes last. Both pause for a moment after each
piece that somebody waited for: whoever has just done a step will soon do another.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator
from typing import Any, Literal, get_args

from anchorlwf.errors import ConflictError, wrong

__all__ = ["Lane", "Scheduler", "Several", "Waiting"]

_QUIET = 0.4
"""Seconds of that moment."""

Lane = Literal["ask", "stream", "read", "ahead"]


class Several(list[Any]):
    """Results that one piece of work gives at once."""


class Waiting:
    """The results of a piece of work, as they come; closing it (or dropping it) cancels the work."""

    def __init__(self, work: Generator[Any]) -> None:
        self._work, self._out = work, queue.SimpleQueue[tuple[str, Any]]()
        self._ended = False
        self.cancelled = False

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._ended or self.cancelled:
            raise StopIteration
        kind, value = self._out.get()
        if kind == "result":
            return value
        self._ended = True
        if kind == "error":
            raise value
        raise StopIteration

    def close(self) -> None:
        """No more of it is wanted."""
        self.cancelled = True

    def step(self) -> bool:
        """Do one piece (on the working thread); is there more?"""
        if self.cancelled:
            self._work.close()
            self.put("end", None)
            return False
        try:
            result = next(self._work)
        except StopIteration:
            self.put("end", None)
            return False
        except Exception as error:  # noqa: BLE001 - whatever it was, the one who waits hears of it; the thread lives on
            self.put("error", error)
            return False
        if result is not None:
            for value in result if isinstance(result, Several) else [result]:
                self.put("result", value)
        return True

    def put(self, kind: str, value: Any) -> None:
        """Tell the one who waits."""
        self._out.put((kind, value))


class Scheduler:
    """The working thread and its lanes. Safe to use from many threads."""

    def __init__(self, name: str) -> None:
        self._lanes: dict[Lane, deque[Waiting]] = {lane: deque() for lane in get_args(Lane)}
        self._wake, self._closed, self._asked = threading.Condition(), False, False
        self._quiet_until = 0.0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, lane: Lane, work: Generator[Any]) -> Waiting:
        """Have work done: a generator whose pieces yield None while on the way, or a result, or `Several`.

        Raises:
            ConflictError: closed already.
        """
        job = Waiting(work)
        with self._wake:
            if self._closed:
                raise _closing()
            if lane == "stream":
                # It goes first once: somebody has just pressed a key and looks at the screen.
                self._lanes[lane].appendleft(job)
            else:
                self._lanes[lane].append(job)
            self._wake.notify()
        return job

    def close(self) -> None:
        """End the thread; whoever waits gets a `ConflictError`."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while (taken := self._take()) is not None:
            lane, job = taken
            more = job.step()
            with self._wake:
                if lane in ("ask", "stream"):
                    self._quiet_until = time.monotonic() + _QUIET
                if more:
                    self._lanes[lane].append(job)
        for jobs in self._lanes.values():
            for job in jobs:
                job.put("error", _closing())

    def _take(self) -> tuple[Lane, Waiting] | None:
        with self._wake:
            while not self._closed:
                first: tuple[Lane, ...] = ("stream", "ask") if self._asked else ("ask", "stream")
                lane = next((name for name in (*first, *self._lanes) if self._lanes[name]), None)
                awaited = lane in first
                pause = self._quiet_until - time.monotonic()
                if lane is None or (not awaited and pause > 0):
                    self._wake.wait(None if lane is None else pause)
                    continue
                self._asked = lane == "ask"
                return lane, self._lanes[lane].popleft()
            return None


def _closing() -> ConflictError:
    return ConflictError(wrong("decoder", "one at work", "one that is shutting down", "Start the server again."))
