"""Processes forked from one that has imported everything, which takes ten seconds of a core and more.

There is one such process for each that runs tests, and what it has imported is decided before its first fork. So every
test that forks does so from here, and no other place says what is imported.
"""

import multiprocessing
import socket
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

__all__ = ["forks", "free_port"]


def forks() -> ForkServerContext:
    """Where to get processes and pipes from; its process has been started."""
    context = multiprocessing.get_context("forkserver")
    # Instead of `__main__`, which here is pytest or a worker of xdist.
    context.set_forkserver_preload(["warm_process"])
    with pytest.MonkeyPatch.context() as surroundings:
        # It does not search where this process does, and goes on without a module that it has not found.
        surroundings.setenv("PYTHONPATH", str(Path(__file__).parent))
        # Threads do not come along with a fork. So torch must not make any there; `set_num_threads` would.
        surroundings.setenv("OMP_NUM_THREADS", "1")
        forkserver.ensure_running()
    return context


def free_port() -> int:
    """A port that nobody listens on, for a server among the processes."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
