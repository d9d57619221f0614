"""The run folder: one process writes to it, whoever was killed left nothing in the way, and no row stands twice."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from anchorlwf.errors import AnchorLwfWarning, ConflictError, StorageError
from anchorlwf.files import process_lock
from anchorlwf.run import RunFolder, held_folder

_HOLD = "from anchorlwf.run import held_folder\nwith held_folder({path!r}): print('held', flush=True); input()"


def holder(path: Path) -> "subprocess.Popen[str]":
    """Another process that holds the folder until it is told a line, or killed."""
    code = _HOLD.format(path=str(path))
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_and_told_by_which(tmp_path):
    with holder(tmp_path / "run") as process:
        expected = rf"run folder .*run: expected no other process in it, got process {process.pid} on \S+, since 20"
        with pytest.raises(ConflictError, match=expected), held_folder(tmp_path / "run"):
            pytest.fail("two hold it")
        assert (tmp_path / "run").is_dir(), "what another holds is not removed"
        process.communicate("\n")
    with held_folder(tmp_path / "run"):
        pass


def test_what_a_killed_process_held_is_free(tmp_path):
    with holder(tmp_path / "run") as process:
        process.kill()
    assert (tmp_path / "run" / ".lock").exists()
    with held_folder(tmp_path / "run") as folder:
        folder.write_json("train.json", {})
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["train.json"]


def test_who_holds_a_folder_may_ask_again_but_not_another_thread(tmp_path):
    refused = []

    def elsewhere() -> None:
        try:
            with held_folder(tmp_path / "run"):
                pass
        except ConflictError as error:
            refused.append(str(error))

    with held_folder(tmp_path / "run"):
        with held_folder(tmp_path / "other" / ".." / "run"):
            pass
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert f"process {os.getpid()} " in refused[0]


def test_a_folder_in_which_nothing_was_written_is_not_left(tmp_path):
    with pytest.raises(ZeroDivisionError), held_folder(tmp_path / "deep" / "run"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    with held_folder(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine").is_dir()


def test_a_lock_file_that_its_holder_removes_meanwhile_is_not_held(tmp_path, monkeypatch):
    place, taken = tmp_path / ".lock", []
    plain = fcntl.flock

    def flock(handle: int, how: int) -> None:
        if not taken:
            # Between our opening the file and our locking it the holder before us ends.
            place.unlink()
        taken.append(handle)
        plain(handle, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with process_lock(place, "it"):
        assert len(taken) == 2
        assert f"process {os.getpid()}" in place.read_text()
    assert not place.exists()


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch):
    def flock(_handle: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.warns(AnchorLwfWarning, match="has no locks"), held_folder(tmp_path / "run"):
        pass


def test_a_lock_that_cannot_be_asked_for_is_a_storage_error(tmp_path, monkeypatch):
    def flock(_handle: int, _how: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(StorageError, match="Input/output error"), held_folder(tmp_path / "run"):
        pass


def test_parts_that_kills_left_are_removed_and_nothing_else(tmp_path):
    kept = [".env.template", ".adapter.tar.gz_", ".config.yaml.swp", ".records.jsonl.a1b2c3d4", "adapter.k3_d9xqz"]
    parts = [".config.yaml.a1b2c3d4", ".metrics.jsonl._______9"]
    for name in [*kept, *parts]:
        (tmp_path / name).write_text("x")
    (tmp_path / ".adapter.k3_d9xqz" / "new").mkdir(parents=True)
    with held_folder(tmp_path):
        pass
    assert {path.name for path in tmp_path.iterdir()} == set(kept)


def test_rows_behind_a_step_and_torn_ones_are_forgotten(tmp_path):
    folder = RunFolder(tmp_path)
    for step in range(1, 6):
        folder.log({"step": step})
    with open(tmp_path / "metrics.jsonl", "a") as stream:
        stream.write('{"step": 2, "lo')
    folder.forget_rows_after(3)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [{"step": 1}, {"step": 2}, {"step": 3}]
    (tmp_path / "metrics.jsonl").unlink()
    folder.forget_rows_after(3)
    assert (tmp_path / "metrics.jsonl").read_text() == ""
