"""Training on what a project has accepted: a process of its own, one at a time, that outlives page and server."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from anchorlwf.annotator.backends.local import LocalDecoder
from anchorlwf.annotator.sessions.desk import Desk
from anchorlwf.annotator.store.queue import export_records
from anchorlwf.data.jsonl import row_of, save_records
from anchorlwf.data.record import Record
from anchorlwf.errors import ConflictError, MissingError, ModelError, NothingToDoError, RecordError, wrong
from anchorlwf.files import lock_to_hand_on, write_atomic
from anchorlwf.retention import Retention, usual_retention

__all__ = ["Overview", "Run", "RunNotes", "RunState", "TrainingJobs"]

RunState = Literal["running", "stopping", "converged", "not_converged", "stopped", "failed", "lost"]

_COMMAND = (sys.executable, "-m", "anchorlwf", "train")
_NOTES, _LOG, _RECORDS, _RESULT = "job.json", "train.log", "records.jsonl", "train.json"
_PROGRESS = re.compile(r".* \d+/\d+(, up to .* left)?")
"""A line of progress where the output is not a terminal."""
_TAIL = 16384
"""Bytes at the end of a log that are looked at."""
_GRACE = 10.0
"""Seconds for the step at hand when the server ends."""
_KINDER = 10
"""How much less of the processor's time training gets than those who annotate (`nice`)."""
_CANNOT = "Training needs the base model in this process: start the annotator "


class RunNotes(BaseModel):
    """What is known of a training when it begins, and by whom and how it ended. Stored in the run folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    by: str
    retain: Retention
    began: datetime
    corrections: int
    """Accepted answers with anchors."""
    kept: int
    """Accepted answers without."""
    process: int
    """Its number; to be trusted only while the lock is held."""
    ended: datetime | None = None
    stopped_by: str | None = None
    """Who asked for the end. The empty text: the server, when it ended."""
    exit_code: int | None = None
    """None where the server ended first."""


@dataclass(frozen=True)
class Run:
    """A training as a page shows it."""

    number: int
    notes: RunNotes
    state: RunState
    folder: Path
    said: str
    """Out of its log: how far it is while it is at work, and then how it ended."""
    row: dict[str, Any] | None
    """The last row of metrics.jsonl."""
    result: dict[str, Any] | None
    """train.json."""

    @property
    def active(self) -> bool:
        """Its process is at work."""
        return self.state in ("running", "stopping")

    @property
    def adapter(self) -> Path | None:
        """The folder of its weights, where it has saved any."""
        folder = self.folder / "adapter"
        return folder if not self.active and (folder / "adapter_config.json").is_file() else None


@dataclass(frozen=True)
class Overview:
    """What could be trained on, and what was."""

    cannot: str | None
    """Why nothing can be trained here."""
    retain: Retention
    """What is trained to stay besides, unless somebody says otherwise."""
    corrections: int
    kept: int
    runs: list[Run]
    """The newest first."""


class TrainingJobs:
    """The trainings of one project. Safe to use from many threads; several servers over one `out` see the same.

    Args:
        desk: the project, whose accepted records are trained on.
        out: its file of records. The run folders lie beside it: `records.runs/1`, `records.runs/2`.
        model: as the annotator was started with; None: the embedded model.
        device, dtype, trust_remote_code: likewise.
    """

    def __init__(
        self,
        desk: Desk,
        out: Path,
        model: str | None,
        *,
        device: str | None = None,
        dtype: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self._desk, self._folder = desk, out.with_suffix(".runs")
        given = {"--model": model, "--device": device, "--dtype": dtype}
        self._options = [word for option, value in given.items() if value is not None for word in (option, value)]
        self._options += ["--trust-remote-code"] if trust_remote_code else []
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: threading.Thread | None = None
        self._lock, self._loading = threading.RLock(), threading.Lock()
        self._tuned: tuple[int, LocalDecoder] | None = None

    @property
    def cannot(self) -> str | None:
        """Why nothing can be trained here; None: it can."""
        decoder = self._desk.decoder
        if not isinstance(decoder, LocalDecoder):
            return f"{_CANNOT}without --remote."
        return f"{_CANNOT}with the base model, without an adapter." if decoder.has_adapter else None

    @property
    def retain(self) -> Retention:
        """What is trained to stay besides the accepted records, where nothing is said: as for `anchorlwf train`."""
        return usual_retention(self._desk.decoder.stamp.name)

    def overview(self) -> Overview:
        """What could be trained on, and what was."""
        accepted = self._accepted()
        corrections = sum(bool(record.anchors) for record in accepted)
        runs = [self.run(number) for number in sorted(self._numbers(), reverse=True)]
        return Overview(self.cannot, self.retain, corrections, len(accepted) - corrections, runs)

    def _accepted(self) -> list[Record]:
        return [r for r in export_records(self._desk.store, self._desk.project) if r.status == "complete"]

    def _numbers(self) -> list[int]:
        names = [path.parent.name for path in self._folder.glob(f"*/{_NOTES}")]
        return [int(name) for name in names if name.isascii() and name.isdigit()]

    # --- Looking ---

    def run(self, number: int) -> Run:
        """One training as it stands now. Raises `MissingError` where there is none of that number."""
        folder = self._folder / str(number)
        try:
            notes = RunNotes.model_validate_json((folder / _NOTES).read_bytes())
        except (OSError, ValidationError) as error:
            fix = "Look at the list of trainings."
            raise MissingError(wrong("training", "the number of one of this project", number, fix)) from error
        # Asked before the result is looked for: it is there by the time the process ends.
        at_work = number == max(self._numbers()) and self._at_work()
        result = _json(folder / _RESULT)
        said = _said(_last_lines(folder / _LOG), at_work=at_work)
        rows = map(row_of, map(str.encode, reversed(_last_lines(folder / "metrics.jsonl"))))
        row = next((row for row in rows if isinstance(row, dict)), None)
        return Run(number, notes, _state(notes, result, at_work=at_work), folder, said, row, result)

    def latest(self) -> Run | None:
        """The newest training."""
        return self.run(max(numbers)) if (numbers := self._numbers()) else None

    @property
    def _is_watched(self) -> bool:
        """This server's own training is at work, or its end has not been noted yet."""
        return self._watcher is not None and self._watcher.is_alive()

    def _at_work(self) -> bool:
        with self._lock:
            if self._is_watched:
                return True
            # Another server's, or one that was started before this server: its lock tells.
            handle = lock_to_hand_on(self._folder / ".lock")
            if handle is None:
                return True
            os.close(handle)
            return False

    # --- Doing ---

    def start(self, by: str, retain: Retention | None = None) -> Run:
        """Train on what is accepted now.

        Args:
            by: who wants it.
            retain: what is trained to stay besides, as `anchorlwf train --retain` has it. None: see `retain`.

        Raises:
            ModelError: there is nothing here to train.
            RecordError: nothing with an anchor is accepted yet.
            ConflictError: one is at work already.
            StorageError: the run folder cannot be written.
        """
        if (cannot := self.cannot) is not None:
            raise ModelError(cannot)
        accepted = self._accepted()
        corrections = sum(bool(record.anchors) for record in accepted)
        if not corrections:
            got = f"{len(accepted)} accepted answers without a correction"
            raise RecordError(wrong("training", "an accepted correction", got, "Correct an answer and accept it."))
        with self._lock:
            self._folder.mkdir(parents=True, exist_ok=True)
            handle = None if self._is_watched else lock_to_hand_on(self._folder / ".lock")
            if handle is None:
                latest = self.latest()
                who = "another process" if latest is None else latest.notes.by
                raise ConflictError(wrong("training", "none at work", f"one of {who}", "Wait for its end, or stop it."))
            try:
                return self._started(handle, accepted, by=by, retain=retain or self.retain, corrections=corrections)
            finally:
                os.close(handle)

    def _started(self, handle: int, accepted: list[Record], *, by: str, retain: Retention, corrections: int) -> Run:
        number = max(self._numbers(), default=0) + 1
        folder = self._folder / str(number)
        save_records(folder / _RECORDS, accepted)
        command = [*_COMMAND, str(folder / _RECORDS), "--out", str(folder)]
        with (folder / _LOG).open("ab") as log:
            self._process = process = subprocess.Popen(  # noqa: S603 - our own command; the paths are the server's
                [*command, "--retain", retain, "--json", *self._options],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                pass_fds=(handle,),
                # Ctrl-C at the server's terminal is the server's business.
                start_new_session=True,
            )
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, process.pid, _KINDER)
        kept = len(accepted) - corrections
        notes = RunNotes(by=by, retain=retain, began=_now(), corrections=corrections, kept=kept, process=process.pid)
        self._note(folder, notes)
        self._watcher = threading.Thread(
            target=self._watch, args=(process, folder), name=f"anchorlwf-training-{number}", daemon=True
        )
        self._watcher.start()
        return self.run(number)

    def _watch(self, process: "subprocess.Popen[bytes]", folder: Path) -> None:
        exit_code = process.wait()
        with self._lock:
            notes = RunNotes.model_validate_json((folder / _NOTES).read_bytes())
            self._note(folder, notes.model_copy(update={"ended": _now(), "exit_code": exit_code}))

    def _note(self, folder: Path, notes: RunNotes) -> None:
        write_atomic(folder / _NOTES, notes.model_dump_json(indent=2) + "\n")

    def stop(self, by: str) -> Run:
        """End the training at work after its present step, which keeps the weights; asked again, at once.

        Raises:
            NothingToDoError: none is at work.
        """
        with self._lock:
            run = self.latest()
            if run is None or not run.active:
                raise NothingToDoError(wrong("training", "one at work", "none", "Nothing to stop."))
            self._signal(run, signal.SIGKILL if run.state == "stopping" else signal.SIGINT)
            self._note(run.folder, run.notes.model_copy(update={"stopped_by": by}))
            return self.run(run.number)

    def _signal(self, run: Run, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            # Its helpers are to live until the weights are saved.
            send = os.killpg if number == signal.SIGKILL else os.kill
            send(run.notes.process, number)

    def close(self) -> None:
        """End the training that this server has begun, if it is still at work: with a checkpoint, where there is time.

        One of another server goes on.
        """
        with self._lock:
            run = self.latest() if self._process is not None and self._process.poll() is None else None
            if run is not None:
                if run.notes.stopped_by is None:
                    self._note(run.folder, run.notes.model_copy(update={"stopped_by": ""}))
                self._signal(run, signal.SIGTERM)
        if run is not None and self._watcher is not None:
            self._watcher.join(_GRACE)
            if self._watcher.is_alive():
                self._signal(run, signal.SIGKILL)
                self._watcher.join(_GRACE)

    def tuned(self, number: int) -> LocalDecoder:
        """A decoder of the model that a training made, beside the annotator's own.

        Raises:
            MissingError: no such training.
            ConflictError: it has saved no weights, or not yet.
            ModelError: they do not fit the model.
        """
        with self._loading:
            if self._tuned is not None and self._tuned[0] == number:
                return self._tuned[1]
            decoder, adapter = self._desk.decoder, self.run(number).adapter
            if adapter is None or not isinstance(decoder, LocalDecoder):
                fix = "Wait for its end, or train again."
                raise ConflictError(wrong(f"training {number}", "saved weights", "none", fix))
            self._tuned = number, decoder.with_adapter(adapter)
            return self._tuned[1]


def _state(notes: RunNotes, result: dict[str, Any] | None, *, at_work: bool) -> RunState:
    if at_work:
        return "running" if notes.stopped_by is None else "stopping"
    if result is not None:
        return "converged" if result.get("converged") else "not_converged"
    if notes.stopped_by is not None:
        return "stopped"
    return "lost" if notes.exit_code is None else "failed"


def _said(lines: list[str], *, at_work: bool) -> str:
    if at_work:
        return lines[-1] if lines else ""
    return " ".join([line for line in lines if not _PROGRESS.fullmatch(line)][-2:])


def _last_lines(path: Path) -> list[str]:
    """The last lines of a file that another process may be writing, whole and not empty."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - _TAIL))
            lines = stream.read().decode(errors="replace").split("\n")[:-1]
    except OSError:
        return []
    return [line.strip() for line in lines if line.strip()]


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _now() -> datetime:
    return datetime.now(UTC)
