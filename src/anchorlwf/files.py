"""Files that are never half-written: atomic replacement, durable append, one writer at a time."""

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatch
from io import FileIO
from pathlib import Path

from anchorlwf.errors import ConflictError, StorageError, warn, wrong

__all__ = [
    "CACHE_VARIABLE",
    "append_held",
    "append_line",
    "append_lines",
    "cache_folder",
    "clear_leftovers",
    "ensure_writable",
    "file_sha",
    "held_file",
    "lock_to_hand_on",
    "process_lock",
    "staged_folder",
    "storage_errors",
    "write_atomic",
]

# File systems without locks: Lustre as it is often mounted, some that are reached over a network.
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}

# What safetensors and tokenizers say of a full disk, and torch, which does not say why.
_BROKEN_OFF = re.compile(r"No space left on device|File too large|Disk quota exceeded|inline_container|PytorchStream")
_TEMPORARY = re.compile(r"\.(?P<target>.+)\.[a-z0-9_]{8}")
"""How `tempfile` names what we write beside a target until it is whole."""
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextlib.contextmanager
def storage_errors(path: str | Path) -> Iterator[None]:
    """Whatever a library raises where `path` cannot be written, as a `StorageError`."""
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        known = _BROKEN_OFF.search(str(error))
        if not known and not isinstance(error, OSError):
            raise
        got = getattr(error, "strerror", None) or (known[0] if known else error)
        fix = "Free some space or choose another place; nothing was changed."
        raise StorageError(wrong(f"cannot write {path}", "a writable place", got, fix)) from error


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _real_file(path: str | Path) -> Path:
    """Where a file to be replaced lies, behind any link. Raises `OSError` for a device, pipe or socket.

    A rename would put a file in the place of /dev/null, and of a link that leads elsewhere.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file() and not target.is_dir():
        raise OSError(errno.EINVAL, "a device, pipe or socket, where a file should be")
    return target


def write_atomic(path: str | Path, content: str | bytes) -> None:
    """Replace the file's content in one step (temporary file, fsync, rename); folders are made. Text becomes UTF-8.

    A link stays, and the file it leads to is replaced.

    Raises:
        StorageError: the place cannot be written, or is no file; the old content is still there.
    """
    with storage_errors(path):
        target = _real_file(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content.encode() if isinstance(content, str) else content)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(name, 0o644)
            os.replace(name, target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)


def _lock(handle: int, path: Path, *, wait: bool) -> None:
    """Take the lock of an open file. Raises `BlockingIOError` where another has it and nobody wants to wait."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        told = f"{path}: this file system has no locks; make sure yourself that no other process writes there."
        warn(told)


def _stands_at(handle: int, path: Path) -> bool:
    """Nobody put another file in its place, or took it away, while we waited for the lock."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def held_file(path: str | Path) -> Iterator[FileIO]:
    """The file at `path` (made if need be), open for reading and appending, while every other writer of ours waits.

    The lock is on the file itself: whoever may write the file may take it, no second file is left behind, and a process
    that dies lets go of it. Threads wait for one another as processes do; do not hold a file twice.

    Raises:
        StorageError: the place cannot be written.
    """
    target = Path(path)
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        while True:
            # Unbuffered: a buffer keeps what could not be written and writes it on closing, behind the line taken back.
            with open(target, "ab+", buffering=0) as stream:
                _lock(stream.fileno(), target, wait=True)
                if _stands_at(stream.fileno(), target):
                    yield stream
                    return


def append_line(path: str | Path, line: str) -> None:
    """Append one line and fsync it. See `append_lines`."""
    append_lines(path, [line])


def append_lines(path: str | Path, lines: Sequence[str]) -> None:
    """Append lines and fsync them once. A line that cannot be written whole is taken back; those before it stay.

    A torn last line (the process died while writing) is closed first, so that it spoils no other line. Processes and
    threads that append to one file take turns.

    Raises:
        StorageError: not all lines could be stored; the file ends with the last whole one, or is as it was.
    """
    with held_file(path) as stream:
        append_held(stream, lines)


def append_held(stream: FileIO, lines: Sequence[str]) -> None:
    """`append_lines` to a file that is held already. Raises `OSError`, which `held_file` makes a `StorageError`."""
    assert not any("\n" in line for line in lines), "one line at a time"
    size = stream.seek(0, os.SEEK_END)
    torn = False
    if size:
        stream.seek(size - 1)
        torn = stream.read(1) != b"\n"
    content = (b"\n" if torn else b"") + b"".join(line.encode() + b"\n" for line in lines)
    written = 0
    try:
        while written < len(content):
            written += stream.write(memoryview(content)[written:])
        os.fsync(stream.fileno())
    except BaseException:
        # A broken fsync leaves nothing certain, a broken write the whole lines before it.
        end = content.rfind(b"\n", 0, written) + 1 if written < len(content) else 0
        with contextlib.suppress(OSError):
            # The line break that closes a torn line ends none of ours.
            os.ftruncate(stream.fileno(), size + (end if end > torn else 0))
            os.fsync(stream.fileno())
        raise


def ensure_writable(path: str | Path) -> None:
    """Raise `StorageError` now if `path` could not be written later, before any long work begins."""
    with storage_errors(path):
        target = _real_file(path)
        folder = target.parent
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        if target.is_dir():
            raise IsADirectoryError(21, "Is a directory")
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(13, "Permission denied")


@contextlib.contextmanager
def staged_folder(path: str | Path) -> Iterator[Path]:
    """A folder that appears at `path` whole or not at all: filled aside, then put in the old one's place.

    Where the system can exchange two names (Linux, most file systems), the old folder or the new one stands there at
    every moment. Elsewhere a process that is killed between the two renames leaves neither; `clear_leftovers` puts the
    new one in place.
    """
    target = Path(path)
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as name:
            stage, old = Path(name) / "new", Path(name) / "old"
            stage.mkdir()
            yield stage
            _sync_tree(stage)
            if not target.exists():
                os.replace(stage, target)
            elif not _exchange(stage, target):
                os.replace(target, old)
                os.replace(stage, target)
            _sync_folder(target.parent)


def _sync_tree(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            _sync_folder(path)
        elif path.is_file():
            with open(path, "rb+") as stream:
                os.fsync(stream.fileno())


def _exchange(first: Path, second: Path) -> bool:
    """Let two names change places in one step; False where system or file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    return libc.renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0


def clear_leftovers(folder: str | Path, *targets: str) -> None:
    """Remove what killed processes left behind while they wrote files or folders of these names (or patterns).

    Only where no other process writes them now. A folder that was whole and about to take the old one's place takes it.
    """
    with storage_errors(folder):
        for path in Path(folder).glob(".*"):
            named = _TEMPORARY.fullmatch(path.name)
            if named is None or not any(fnmatch(named["target"], target) for target in targets):
                continue
            if path.is_symlink() or not path.is_dir():
                path.unlink()
                continue
            target = path.with_name(named["target"])
            # The old one is moved aside only after the new one is whole and on disk.
            if (path / "old").exists() and not target.exists():
                os.replace(path / "new", target)
            shutil.rmtree(path)


def file_sha(path: str | Path) -> str:
    """SHA-256 of a file's bytes, as `sha256sum` gives it."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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
    lock_file = Path(path)
    handle = _open_locked(lock_file, what)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            # Removed while it is held: whoever opened it before finds another file in its place, or none.
            lock_file.unlink()
        os.close(handle)


def _open_locked(path: Path, what: str) -> int:
    """The open and locked lock file, which says who we are."""
    with storage_errors(path):
        while True:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                _lock(handle, path, wait=False)
                if _stands_at(handle, path):
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


def lock_to_hand_on(path: str | Path) -> int | None:
    """Take the lock file `path` for a process about to be started; None: somebody has it.

    Returns:
        A descriptor: pass it to the process (`pass_fds`) and close it here. The lock is held until the last process
        that has the descriptor ends, however.

    Raises:
        StorageError: the file cannot be written.
    """
    lock_file = Path(path)
    with storage_errors(lock_file):
        handle = os.open(lock_file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(handle, lock_file, wait=False)
        except BlockingIOError:
            os.close(handle)
            return None
        except BaseException:
            os.close(handle)
            raise
        return handle


CACHE_VARIABLE = "ANCHORLWF_CACHE"
"""The environment variable that moves the cache."""


def cache_folder(given: str | Path | None = None) -> Path:
    """The cache folder, which need not exist yet.

    Args:
        given: by a person, for this one call. None: the folder that `ANCHORLWF_CACHE` names; without that, the one the
            platform sets aside for it (`~/.cache/anchorlwf` on Linux).
    """
    if named := given or os.environ.get(CACHE_VARIABLE):
        return Path(named).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("anchorlwf")
