"""The process that renders chat templates for `chat_template`: JSON lines in and out, until its input ends.

What stops a template here is the system: an alarm that ends the process, and a limit of its address space.
"""

import contextlib
import json
import os
import random
import signal
import sys
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

from transformers.utils import chat_template_utils as chats

__all__ = ["main"]

_LONGEST = 16 << 20
"""Characters of a rendered chat."""


class _Pinned(datetime):
    """The clock of `strftime_now`."""

    given = "1970-01-01"

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> "_Pinned":
        """Midnight of the day that was given."""
        assert tz is None, "transformers asks for local time"
        return cls.fromisoformat(cls.given)


def _limit_memory(megabytes: int) -> None:
    # Where the system has no such limit, that of time remains.
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        maximum = pages * os.sysconf("SC_PAGE_SIZE") + (megabytes << 20)
        resource.setrlimit(resource.RLIMIT_AS, (maximum, maximum))


def _alarm(seconds: float) -> None:
    # No handler: what does not return to Python is ended as well.
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _text(request: dict[str, Any]) -> str:
    if request["do"] == "literals":
        return str(chats._get_template_literal_text(request["template"]))  # noqa: SLF001 - it has no public name
    _Pinned.given = request["date"]
    random.seed(0)  # jinja2 has a filter `random`
    rendered, _ = chats.render_jinja_template(
        conversations=[request["messages"]],
        tools=request["tools"],
        chat_template=request["template"],
        add_generation_prompt=request["opened"],
        **request["variables"],
    )
    return str(rendered[0])


def _reply(request: dict[str, Any]) -> dict[str, str]:
    _alarm(request["seconds"])
    try:
        text = _text(request)
    except MemoryError:
        return {"overstepped": "more memory"}
    except Exception as error:  # noqa: BLE001 - jinja2 raises many kinds; all mean that these messages do not fit
        return {"refused": str(error) or type(error).__name__}
    finally:
        _alarm(0)
    return {"text": text} if len(text) <= _LONGEST else {"overstepped": f"{len(text)} characters"}


def main() -> None:
    """Answer until the input ends."""
    chats.datetime = _Pinned
    # Whatever a library prints must not come between the replies.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _limit_memory(int(sys.argv[1]))
    replies.write(b"ready\n")
    replies.flush()
    for line in sys.stdin.buffer:
        replies.write(json.dumps(_reply(json.loads(line))).encode() + b"\n")
        replies.flush()


if __name__ == "__main__":
    main()
