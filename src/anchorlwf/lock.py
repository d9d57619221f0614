"""A lock between processes, which names its holder and which no kill leaves behind."""

import contextlib
import errno
import fcntl
import os
import socket
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from anchorlwf.errors import AnchorLwfWarning, ConflictError, wrong
from anchorlwf.files import storage_errors

__all__ = ["process_lock"]

_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK}
"""What file systems without locks answer, such as some of clusters."""


@contextlib.contextmanager
def process_lock(path: str | Path, what: str) -> Iterator[None]:
    """Hold the lock file `path` while the context lasts. The system lets go of it when the process ends, however.

    Args:
        path: of a file that need not exist; removed at the end.
        what: is held, for the message.

    Raises:
        ConflictError: another process (or another caller in this one) holds it; it is named.
        StorageError: the file cannot be written.
    """
    place = Path(path)
    handle = _open_locked(place, what)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            # Removed while it is held: whoever opened it before finds another file in its place, or none.
            place.unlink()
        os.close(handle)


def _open_locked(place: Path, what: str) -> int:
    """The open and locked lock file, which says who we are."""
    with storage_errors(place):
        while True:
            handle = os.open(place, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                _lock(handle, place)
                if _stands_at(handle, place):
                    now = datetime.now(UTC).isoformat(timespec="seconds")
                    os.truncate(handle, 0)
                    os.write(handle, f"process {os.getpid()} on {socket.gethostname()}, since {now}".encode())
                    return handle
            except BlockingIOError:
                holder = os.pread(handle, 500, 0).decode(errors="replace") or "another process"
                os.close(handle)
                fix = "Wait until it has ended, stop it, or choose another place."
                raise ConflictError(wrong(what, "no other process in it", holder, fix)) from None
            except BaseException:
                os.close(handle)
                raise
            # Its holder removed the file between our opening and our locking it.
            os.close(handle)


def _lock(handle: int, place: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        told = f"{place}: this file system has no locks; make sure yourself that no other process writes there."
        warnings.warn(told, AnchorLwfWarning, stacklevel=2)


def _stands_at(handle: int, place: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), place.stat())
    except FileNotFoundError:
        return False
