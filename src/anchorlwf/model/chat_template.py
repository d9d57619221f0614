"""Chat templates are programs that came with a checkpoint: they are rendered in a process of their own, within limits.

A template may loop for ever or ask for gigabytes, and nothing inside a Python process stops either reliably. One helper
process (`chat_template_worker`) therefore renders every chat. When it exceeds its limits the operating system ends it,
and the next chat starts a new one. Starting takes half a second, while the model loads; a chat takes a fraction of a
millisecond.
"""

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from typing import Any

from anchorlwf.errors import ModelError, PromptError, wrong

__all__ = ["MEGABYTES", "SECONDS", "literals", "render", "start"]

SECONDS = 10.0
"""The maximum time for one chat."""
MEGABYTES = 512
"""The maximum memory of the helper, not counting its libraries."""


class _Helper:
    """The process that renders. It is started when it is first needed, and may be used from many threads."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._ready, self._lock = False, threading.Lock()

    def start(self) -> None:
        """Start the process without waiting until it is ready."""
        with self._lock:
            self._started()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.end()
        # It must find the same libraries, whatever put them on our path.
        path = os.pathsep.join(entry for entry in sys.path if entry)
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-P", "-m", "anchorlwf.model.chat_template_worker", str(MEGABYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"},
            start_new_session=True,  # Ctrl-C is for us, not for it
        )
        return self._process

    def end(self) -> int:
        """End the process. Returns its exit code, which is negative if a signal ended it."""
        process, self._process, self._ready = self._process, None, False
        if process is None:
            return 0
        process.kill()  # nothing where it has ended by itself
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # what it did not read is lost on purpose
                    pipe.close()
        return process.wait()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply to one request. Raises `ModelError` if the process was ended while it worked on it."""
        line = json.dumps(request, default=str).encode() + b"\n"
        with self._lock:
            process = self._started()
            try:
                reply = self._exchanged(process, line)
            except BaseException:
                self.end()  # a reply that nobody took would be the next one's
                raise
            if reply:
                return dict(json.loads(reply))
            ready = self._ready
            code = process.wait()
            self.end()
        if not ready:
            fix = "Its own words stand above; python -m anchorlwf.model.chat_template_worker 512 repeats them."
            raise ModelError(wrong("chat template", "a process to render it in", f"exit code {code}", fix))
        late = code == -getattr(signal, "SIGALRM", 0)
        raise ModelError(_overstepped("more time" if late else f"a process that was ended (exit code {code})"))

    def _exchanged(self, process: subprocess.Popen[bytes], line: bytes) -> bytes:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            self._ready = self._ready or bool(process.stdout.readline())
            process.stdin.write(line)
            process.stdin.flush()
        except BrokenPipeError:
            return b""
        return process.stdout.readline()


def _overstepped(got: str) -> str:
    fix = "Correct the template (chat_template in the model's folder), or use another model."
    return wrong("chat template", f"a chat within {SECONDS:g} s and {MEGABYTES} MB", got, fix)


_helper = _Helper()


def _forget() -> None:
    # After a fork the helper still belongs to the parent, and another thread may have held its lock.
    global _helper  # noqa: PLW0603 - one helper per process is the point
    _helper = _Helper()


@atexit.register
def _end() -> None:
    _helper.end()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def start() -> None:
    """Start the helper in the background, while the caller does something slow."""
    _helper.start()


def _answer(request: dict[str, Any]) -> str:
    reply = _helper.ask({**request, "seconds": SECONDS})
    if "overstepped" in reply:
        raise ModelError(_overstepped(reply["overstepped"]))
    if "refused" in reply:
        fix = "Check roles and contents against the model's chat template."
        raise PromptError(wrong("prompt", "messages that the template takes", reply["refused"], fix))
    return str(reply["text"])


def render(
    template: str,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
    variables: dict[str, Any],
    *,
    date: str,
    opened: bool,
) -> str:
    """A chat as the template writes it; the same arguments give the same text, today and tomorrow.

    Args:
        template: Jinja, as transformers takes it.
        messages, tools: plain JSON.
        variables: what else the template may name, such as the special tokens.
        date: what `strftime_now` prints, as YYYY-MM-DD.
        opened: with the opening of the assistant's turn behind it.

    Raises:
        PromptError: the template refuses these messages.
        ModelError: the template took more time or memory than the limits allow.
    """
    chat = {"messages": messages, "tools": tools, "variables": variables, "date": date, "opened": opened}
    return _answer({"do": "render", "template": template, **chat})


def literals(template: str) -> str:
    """The literal texts of a template, joined. Raises the same errors as `render`."""
    return _answer({"do": "literals", "template": template})
