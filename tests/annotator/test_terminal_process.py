"""`anchorlwf annotate --annotator terminal` as a process, on a pseudo-terminal and behind a pipe."""

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from terminal_sitting import ASKED, shown, work_of

from anchorlwf.annotation import Session, verify_records
from anchorlwf.annotation.tree import Tree
from anchorlwf.cli import main
from anchorlwf.config import AnnotateConfig
from anchorlwf.data.jsonl import load_records, save_lines
from anchorlwf.data.record import Prompt, Record
from anchorlwf.model.language_model import LanguageModel
from anchorlwf.model.vocabulary import TokenTable

PROMPT = "token or command (? for help): "


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("terminal")
    save_lines(path / "p.jsonl", [{"prompt": question} for question in ASKED])
    return path


class Screen:
    """`anchorlwf annotate --annotator terminal` on a pseudo-terminal: what is typed, and what appears."""

    def __init__(self, folder: Path) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 4000, 0, 0))
        command = [
            Path(sys.executable).with_name("anchorlwf"),
            "annotate",
            folder / "p.jsonl",
            "--out",
            folder / "r.jsonl",
            "--annotator",
            "terminal",
            "--name",
            "ada",
        ]
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "4000", "PYTHONIOENCODING": "utf-8:strict"},
            # Ctrl-C reaches the process by way of its controlling terminal.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - takes no lock
        )
        os.close(theirs)
        self.raw, self._seen = b"", 0

    @property
    def text(self) -> str:
        """All that appeared, without colours."""
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.raw.decode(errors="replace"))

    def expect(self, text: str) -> str:
        """Wait until `text` appears behind what was waited for before; what appeared up to there."""
        deadline = time.monotonic() + 60
        while (found := self.text.find(text, self._seen)) < 0:
            assert time.monotonic() < deadline, f"{text!r} did not appear behind {self.text[self._seen :]!r}"
            assert self._read(), f"{text!r} did not appear before the end: {self.text[self._seen :]!r}"
        part, self._seen = self.text[self._seen : found], found + len(text)
        return part

    def _read(self) -> bool:
        if not select.select([self._ours], [], [], 1)[0]:
            return True
        try:
            data = os.read(self._ours, 65_536)
        except OSError:  # how Linux tells that the other side is closed
            return False
        self.raw += data
        return bool(data)

    def type(self, line: str | bytes) -> str:
        """Type a line; what appears until the next question."""
        os.write(self._ours, (line.encode() if isinstance(line, str) else line) + b"\n")
        return self.expect(PROMPT)

    def end(self, keys: bytes) -> int:
        """Type keys that end the process; its exit code."""
        now = time.monotonic()
        deadline, again = now + 60, now + 15
        os.write(self._ours, keys)
        while self._read():
            assert time.monotonic() < deadline, f"it goes on: {self.text[self._seen :]!r}"
            # Python notices an interrupt that comes just as it begins to wait for a line only at the next key: a person
            # presses again.
            if time.monotonic() > again:
                os.write(self._ours, keys)
                again += 15
        return self.process.wait(60)

    def kill(self) -> None:
        """As a power cut would."""
        self.process.kill()
        self.process.wait(10)


@contextmanager
def started(folder: Path) -> Iterator[Screen]:
    screen = Screen(folder)
    try:
        screen.expect(PROMPT)
        yield screen
    finally:
        screen.process.kill()
        screen.process.wait()
        os.close(screen._ours)


class Twin(Session):
    """The same corrections, made here: what the person at the terminal should see and keep."""

    def __init__(self, model: LanguageModel, question: str) -> None:
        super().__init__(model, Prompt(messages=[{"role": "user", "content": question}]), AnnotateConfig())
        self._table = TokenTable(model.codec)
        self.own = list(self.state.completion_ids)

    def put(self, position: int, *token_ids: int, confidence: float = 1) -> str:
        self.correct(position, list(token_ids), confidence=confidence, source="human:ada")
        return self.shown

    @property
    def shown(self) -> str:
        stars = tuple(anchor.position for anchor in self.state.anchors)
        return shown(self._table, list(self.state.completion_ids), stars)

    @property
    def anchors(self) -> list[tuple]:
        return [(a.position, a.token_id, a.confidence, a.source) for a in self.state.anchors]


def anchors_of(record: Record | Tree) -> list[tuple]:
    anchors = record.anchors if isinstance(record, Record) else record.anchors()
    return [(a.position, a.token_id, a.confidence, a.source) for a in anchors]


def test_a_person_is_interrupted_and_killed_and_loses_nothing(base, folder):
    first, second, third = (Twin(base, question) for question in ASKED[:3])
    assert len(first.own) > 5

    with started(folder) as screen:
        assert first.shown in screen.text
        assert re.search(r"#1.*#2.*#8", screen.type("2"), re.DOTALL)
        # By an alternative's number, and taken back; by text, and taken back; by quoted text, which stays.
        chosen = first.steps()[2].alternatives[1][0]
        assert first.put(2, chosen) in screen.type("2 #2")
        first.undo()
        assert first.shown in screen.type("u")
        assert first.put(3, *base.codec.encode(" Tarn")) in screen.type("3 Tarn")
        first.undo()
        assert first.shown in screen.type("u")
        assert first.put(3, *base.codec.encode("Tarn")) in screen.type('3 "Tarn"')
        # Lines that mean nothing change nothing, bytes that are no text among them.
        assert "expected a token number or a command, got 'hello'" in screen.type("hello")
        assert "can't decode byte 0xff" in screen.type(b"2 \xff")
        assert "expected tokens that differ from the answer, got the same" in screen.type("2 #1")
        assert second.shown in screen.type("a")
        assert third.shown in screen.type("x")
        assert third.put(2, *base.codec.encode(" Vesna"), confidence=0.75) in screen.type("2 Vesna @0.75")
        assert screen.end(b"\x03") == 130
        assert "Interrupted." in screen.text
        assert "Traceback" not in screen.text
        # Nothing hides the cursor or wipes a line out while somebody types.
        assert not re.search(rb"\x1b\[\?25l|\x1b\[2K", screen.raw)
    records = load_records(folder / "r.jsonl")
    assert [record.status for record in records] == ["complete", "rejected"]
    for record, twin in zip(records, (first, second), strict=True):
        assert (record.completion_ids, record.original_ids) == (list(twin.state.completion_ids), twin.own)
        assert anchors_of(record) == twin.anchors

    with started(folder) as screen:
        assert third.shown in screen.text
        assert not any(question in screen.text for question in ASKED[:2])
        assert "note: sure" in screen.type("n sure")
        screen.kill()
    with work_of(folder, None, ASKED).open() as exchange:
        live = exchange.desk.next("ada")
        assert (live.tree.node.completion_ids, live.tree.note) == (third.state.completion_ids, "sure")
        assert anchors_of(live.tree) == third.anchors
        exchange.desk.decide(live, "accept")
    records = load_records(folder / "r.jsonl")
    assert [record.status for record in records] == ["complete", "rejected", "complete"]
    assert all(finding.holds for finding in verify_records(base, records))


def test_the_command_counts_what_it_finished_and_wants_a_name_of_the_team(tmp_path):
    save_lines(tmp_path / "p.jsonl", [{"prompt": question} for question in ASKED[:2]])
    (tmp_path / "team.yaml").write_text(f"ada: {'a' * 32}\n")
    command = [
        Path(sys.executable).with_name("anchorlwf"),
        "annotate",
        "p.jsonl",
        "--out",
        "r.jsonl",
        "--annotator",
        "terminal",
        "--annotators",
        "team.yaml",
    ]
    done = subprocess.run(
        [*command, "--name", "ada", "--json"],
        input="3 Tarn\na\n",
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert json.loads(done.stdout) == {
        "records": 1,
        "anchors": 1,
        "completion_tokens": len(load_records(tmp_path / "r.jsonl")[0].completion_ids),
        "already_right": 0,
        "drafts": 0,
        "out": "r.jsonl",
    }
    assert "1 of 2 done; the same command goes on." in done.stderr
    assert "\x1b" not in done.stderr
    for name in ("eve", "", "a" * 65, "a\x1b"):
        with pytest.raises(SystemExit) as ended, contextlib.chdir(tmp_path):
            main([*map(str, command[1:]), "--name", name])
        assert ended.value.code == 2
