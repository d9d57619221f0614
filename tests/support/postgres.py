"""A real PostgreSQL server for the tests, from Debian's package: a cluster of its own in a temporary folder."""

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["postgres_server"]


def _binaries() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    where = shutil.which("initdb")
    return Path(where).parent if where else None


@contextmanager
def postgres_server() -> Iterator[Callable[[], str]]:
    """A function that makes an empty database and returns its URL.

    Without PostgreSQL the tests are skipped, except in CI, where `apt-get install postgresql` belongs to the set-up.
    """
    binaries = _binaries()
    if binaries is None:
        message = "PostgreSQL is not installed: apt-get install postgresql"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    folder = Path(tempfile.mkdtemp(prefix="anchorlwf-pg-", dir="/tmp"))
    # The server refuses to run as root.
    user: list[str] = []
    if os.getuid() == 0:
        owner = pwd.getpwnam("postgres")
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        user = ["runuser", "-u", "postgres", "--"]

    def run(*command: object) -> None:
        subprocess.run(
            [*user, *map(str, command)],
            check=True,
            cwd="/",
            timeout=120,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )

    data = folder / "data"
    try:
        run(binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
        run(binaries / "pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", f"-k {folder} -h ''", "start")
        try:

            def database() -> str:
                name = f"t{uuid.uuid4().hex}"
                run(binaries / "createdb", "-h", folder, "-U", "postgres", name)
                return f"postgresql://postgres@/{name}?host={folder}"

            yield database
        finally:
            run(binaries / "pg_ctl", "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
