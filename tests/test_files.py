"""Files that are never half-written, shown on real failures: a size limit, forbidden places, a killed process."""

import contextlib
import hashlib
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from other_user import nobody

from anchorlwf import files
from anchorlwf.errors import StorageError
from anchorlwf.files import (
    append_line,
    append_lines,
    clear_leftovers,
    ensure_writable,
    file_sha,
    staged_folder,
    write_atomic,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
LINE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"))

# Python ignores SIGXFSZ, so a write past the limit fails with EFBIG after a part of it has been written: the same
# course of events as on a full disk.
_LIMITED = """
import resource, sys
from anchorlwf import errors, files
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    {action}
except errors.StorageError as error:
    print(error)
else:
    sys.exit("the limit did not bite")
"""


def on_a_full_disk(action: str, limit: int) -> str:
    """Run one statement in a process that can write no file longer than `limit` bytes; the error it reported."""
    code = _LIMITED.format(limit=limit, action=action)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@given(old=TEXT, new=TEXT)
def test_write_atomic_replaces_the_whole_content(tmp_path_factory, old, new):
    path = tmp_path_factory.mktemp("w") / "deep" / "er" / "file.txt"
    for text in (old, new):
        write_atomic(path, text)
        assert path.read_bytes() == text.encode()
    assert list(path.parent.iterdir()) == [path]


@given(content=st.binary())
def test_write_atomic_keeps_bytes_as_they_are(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("b") / "file.png"
    write_atomic(path, content)
    assert path.read_bytes() == content


def test_text_that_no_file_can_hold_leaves_the_old_content(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "half a character: \ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_write_atomic_leaves_a_file_that_others_can_read(tmp_path):
    write_atomic(tmp_path / "file", "x")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


def test_a_full_disk_leaves_the_old_content(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    told = on_a_full_disk(f"files.write_atomic({str(path)!r}, 'new' * 10_000)", limit=4096)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    assert str(path) in told
    assert "nothing was changed" in told


# A buffered file keeps a short line back until it is closed, a long one not: both must be taken back.
@pytest.mark.parametrize("size", [80, 100_000])
@pytest.mark.parametrize("before", ["", "first line\n", "first line\ntorn"])
def test_a_full_disk_takes_an_appended_line_back(tmp_path, before, size):
    path = tmp_path / "file"
    path.write_text(before)
    told = on_a_full_disk(f"files.append_line({str(path)!r}, 'x' * {size})", limit=60)
    assert path.read_text() == before
    assert str(path) in told


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a full device, others have none")
def test_a_device_that_is_full_is_reported():
    with pytest.raises(StorageError, match=r"/dev/full: expected a writable place, got No space left on device"):
        append_line("/dev/full", "line")


@given(lines=st.lists(LINE, max_size=5))
def test_appended_lines_stand_one_below_the_other(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("a") / "deep" / "file"
    for line in lines:
        append_line(path, line)
    assert (path.read_bytes() if lines else b"") == b"".join(line.encode() + b"\n" for line in lines)


@pytest.mark.parametrize(("before", "after"), [("", "x\n"), ("a\n", "a\nx\n"), ('{"to', '{"to\nx\n'), ("\n", "\nx\n")])
def test_a_torn_last_line_is_closed_first(tmp_path, before, after):
    path = tmp_path / "file"
    path.write_text(before)
    append_line(path, "x")
    assert path.read_text() == after


def test_of_lines_appended_together_those_stay_that_were_written_whole(tmp_path):
    path = tmp_path / "file"
    path.write_text("torn")
    append_lines(path, ["a", "b"])
    append_lines(path, [])
    assert path.read_text() == "torn\na\nb\n"
    on_a_full_disk(f"files.append_lines({str(path)!r}, ['x' * 20] * 5)", limit=60)
    assert path.read_text() == "torn\na\nb\n" + ("x" * 20 + "\n") * 2
    path.write_text("torn")
    on_a_full_disk(f"files.append_lines({str(path)!r}, ['x' * 20] * 5)", limit=12)
    assert path.read_text() == "torn"


def test_two_lines_at_once_are_a_mistake_of_ours(tmp_path):
    with pytest.raises(AssertionError, match="one line at a time"):
        append_line(tmp_path / "file", "a\nb")


def test_a_killed_process_loses_no_line_it_reported(tmp_path):
    path = tmp_path / "file"
    code = (
        "import itertools; from anchorlwf.files import append_line\n"
        f"for i in itertools.count(): append_line({str(path)!r}, 'line %d ' % i + 'x' * 5000); print(i, flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        reported = [int(next(process.stdout)) for _ in range(20)]
        process.send_signal(signal.SIGKILL)
    lines = path.read_text().splitlines()
    assert [f"line {i} " + "x" * 5000 for i in reported] == lines[:20]


def stage_nothing(path: Path) -> None:
    with staged_folder(path):
        pass


WRITERS: dict[str, Callable[[Path], None]] = {
    "write_atomic": lambda path: write_atomic(path, "text"),
    "append_line": lambda path: append_line(path, "text"),
    "ensure_writable": ensure_writable,
    "staged_folder": stage_nothing,
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_place_below_a_file_is_refused(tmp_path, writer):
    # Not even root can do this.
    (tmp_path / "file").write_text("old")
    with pytest.raises(StorageError, match=r"cannot write .*below: expected a writable place, got"):
        WRITERS[writer](tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize("writer", WRITERS)
def test_a_folder_of_somebody_else_is_refused(tmp_path, writer):
    home = tmp_path / "home"
    home.mkdir(mode=0o555)
    # Pytest's folders are closed to others above tmp_path; a relative path needs no right to them.
    with contextlib.chdir(home), nobody(), pytest.raises(StorageError, match="Permission denied"):
        WRITERS[writer](Path("file"))
    assert not list(home.iterdir())


def test_a_file_of_somebody_else_is_refused_before_the_work(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o777)
    (home / "file").write_text("old")
    (home / "file").chmod(0o444)
    with contextlib.chdir(home), nobody(), pytest.raises(StorageError, match="Permission denied"):
        ensure_writable(Path("file"))
    assert [path.name for path in home.iterdir()] == ["file"]


@pytest.mark.parametrize("writer", ["write_atomic", "append_line", "ensure_writable"])
def test_a_folder_is_no_file(tmp_path, writer):
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="Is a directory"):
        WRITERS[writer](tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_ensure_writable_makes_the_folders_and_no_file(tmp_path):
    ensure_writable(tmp_path / "a" / "b" / "file")
    assert (tmp_path / "a" / "b").is_dir()
    assert not list((tmp_path / "a" / "b").iterdir())


def fill(stage: Path, text: str) -> None:
    (stage / "sub").mkdir()
    (stage / "sub" / "part").write_text(text)


def test_a_staged_folder_appears_whole_and_replaces_the_old_one(tmp_path):
    target = tmp_path / "deep" / "run"
    with staged_folder(target) as stage:
        fill(stage, "one")
        assert not target.exists()
    with staged_folder(target) as stage:
        (stage / "other").write_text("two")
        assert (target / "sub" / "part").read_text() == "one"
    assert [path.name for path in target.iterdir()] == ["other"]
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("existed", [True, False])
def test_a_staged_folder_that_fails_changes_nothing(tmp_path, existed):
    target = tmp_path / "run"
    if existed:
        with staged_folder(target) as stage:
            fill(stage, "old")
    with pytest.raises(RuntimeError, match="half way"), staged_folder(target) as stage:
        fill(stage, "new")
        raise RuntimeError("half way")
    assert target.exists() == existed
    assert not existed or (target / "sub" / "part").read_text() == "old"
    assert list(tmp_path.iterdir()) == [target] * existed


def test_a_full_disk_leaves_the_old_folder(tmp_path):
    target = tmp_path / "run"
    with staged_folder(target) as stage:
        fill(stage, "old")
    action = f"with files.staged_folder({str(target)!r}) as stage: (stage / 'big').write_text('x' * 10_000)"
    told = on_a_full_disk(action, limit=4096)
    assert (target / "sub" / "part").read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
    assert str(target) in told


_REPLACE_FOR_EVER = """
import itertools
from anchorlwf.files import staged_folder
for i in itertools.count():
    with staged_folder({path!r}) as stage:
        for name in "ab": (stage / name).write_text(str(i) * 1000)
    print(flush=True)
"""


def test_at_every_moment_the_old_folder_or_the_new_one_stands_there(tmp_path):
    target, code = tmp_path / "run", _REPLACE_FOR_EVER.format(path=str(tmp_path / "run"))
    for kill in range(5):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            next(process.stdout)
            end = time.monotonic() + 0.2 + 0.013 * kill
            while time.monotonic() < end:
                assert target.is_dir()
            process.send_signal(signal.SIGKILL)
        assert (target / "a").read_text() == (target / "b").read_text()
        clear_leftovers(tmp_path, "run")
        assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("killed_at", [1, 2])
def test_where_names_cannot_be_exchanged_a_kill_between_the_renames_is_made_good(tmp_path, killed_at):
    target = tmp_path / "run"
    with staged_folder(target) as stage:
        fill(stage, "old")
    code = (
        "import os, signal; from pathlib import Path; from anchorlwf import files\n"
        "files._exchange = lambda one, other: False\n"
        "plain, renames = os.replace, []\n"
        "def replace(*names):\n"
        "    renames.append(names)\n"
        f"    os.kill(os.getpid(), signal.SIGKILL) if len(renames) == {killed_at} else plain(*names)\n"
        "os.replace = replace\n"
        f"with files.staged_folder({str(target)!r}) as stage:\n"
        "    (stage / 'sub').mkdir(); (stage / 'sub' / 'part').write_text('new')"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == -signal.SIGKILL
    assert target.exists() == (killed_at == 1)
    clear_leftovers(tmp_path, "run")
    assert (target / "sub" / "part").read_text() == ("old" if killed_at == 1 else "new")
    assert list(tmp_path.iterdir()) == [target]


def test_where_names_cannot_be_exchanged_folders_are_replaced_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    for text in ("one", "two"):
        with staged_folder(tmp_path / "run") as stage:
            fill(stage, text)
        assert (tmp_path / "run" / "sub" / "part").read_text() == text
    assert list(tmp_path.iterdir()) == [tmp_path / "run"]


def test_what_a_killed_write_leaves_is_cleared_and_nothing_else(tmp_path):
    code = (
        "import os, signal; from anchorlwf import files\n"
        "os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"files.write_atomic({str(tmp_path / 'file.json')!r}, 'new')"
    )
    subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    [part] = tmp_path.iterdir()
    (tmp_path / ".other.json.abcdefgh").write_text("of somebody else")
    clear_leftovers(tmp_path, "file.*")
    assert not part.exists()
    assert [path.name for path in tmp_path.iterdir()] == [".other.json.abcdefgh"]


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 300_000)
    assert file_sha(tmp_path / "file") == hashlib.sha256(b"x" * 300_000).hexdigest()


# --- what is no file, and what leads to one ---


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "file")
    for content in ("new", "newer"):  # there is nothing there yet, then something
        ensure_writable(tmp_path / "link")
        write_atomic(tmp_path / "link", content)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "real" / "file").read_text() == content
    assert [path.name for path in (tmp_path / "real").iterdir()] == ["file"]


def test_a_device_or_pipe_is_never_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for path in (tmp_path / "pipe", tmp_path / "link", Path("/dev/null")):
        for attempt in (ensure_writable, lambda place: write_atomic(place, "x")):
            with pytest.raises(StorageError, match="got a device, pipe or socket, where a file should be"):
                attempt(path)
    assert (tmp_path / "pipe").is_fifo()
    assert Path("/dev/null").is_char_device()
