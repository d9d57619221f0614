"""A real server process over a project made for a test: `anchorlwf annotate --web`.

It is forked: starting it would be most of what these tests take. `tests/bench/test_programs.py` starts one as people
do, with the console script.
"""

import json
import os
import random
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from forks import forks, free_port
from safetensors.torch import load_file, save_file

from anchorlwf.annotation.events import Started
from anchorlwf.annotator.sessions.ledger import Ledger
from anchorlwf.annotator.store.queue import Proposal, add_items, propose, unproposed
from anchorlwf.annotator.store.store import Store
from anchorlwf.cli import main
from anchorlwf.data.record import Prompt
from anchorlwf.model.language_model import LanguageModel, embedded_path

__all__ = ["Server", "given", "long_model", "prepare", "ramble", "register"]

_REGISTER = (
    "<think>\nThe register has a page for each town; the mayor is on the page of Gardale.\n</think>\n\n"
    "Mira Stedolle has been the mayor of Gardale since 1931. She was born in Fredville, plays the banjo, and lives by "
    "the river with many friends.\n\nWhere I looked:\n1. the town register, page of Gardale\n2. the list of mayors\n"
)


def _serve(arguments: list[str], log: Path, stdout: Connection, environment: dict[str, str]) -> None:
    """What `python -m anchorlwf ARGUMENTS` does, in a process that was forked."""
    assert "warm_process" in sys.modules, "forked from a process that has not imported what it should have"
    os.environ.clear()
    os.environ.update(environment)
    with log.open("a") as stderr:
        os.dup2(stderr.fileno(), 2)
    os.dup2(stdout.fileno(), 1)
    stdout.close()
    main(arguments)


@dataclass
class Server:
    """One server process; it may be killed and started again over the same files and port."""

    folder: Path
    prompts: list[dict[str, Any]]
    model: str | None = None
    limit: int = 256
    port: int = field(default_factory=free_port)
    store_url: str | None = None
    """None: a file in the folder."""
    more: Sequence[str] = ()
    """Further options."""
    url: str = ""
    _process: ForkServerProcess | None = None
    _stdout: Connection | None = None
    """Open as long as the process may write."""

    @property
    def store(self) -> str:
        return self.store_url or str(self.folder / "store.db")

    @property
    def out(self) -> Path:
        return self.folder / "records.jsonl"

    def write_prompts(self) -> Path:
        path = self.folder / "world.jsonl"
        path.write_text("".join(json.dumps(prompt) + "\n" for prompt in self.prompts), encoding="utf-8")
        return path

    def start(self) -> "Server":
        arguments = [
            "annotate",
            str(self.write_prompts()),
            "-o",
            str(self.out),
            "--web",
            "--port",
            str(self.port),
            "--store",
            self.store,
            "--name",
            "ada",
            "--max-new-tokens",
            str(self.limit),
            *([] if self.model is None else ["--model", self.model]),
            *self.more,
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        log = self.folder / "server.log"
        context = forks()
        self._stdout, writer = context.Pipe(duplex=False)
        self._process = context.Process(target=_serve, args=(arguments, log, writer, environment))
        self._process.start()
        writer.close()
        for line in os.fdopen(self._stdout.fileno(), encoding="utf-8", closefd=False):
            if "http://" in line:
                self.url = line[line.index("http://") :].strip()
                return self
        raise AssertionError(log.read_text())

    def kill(self) -> None:
        """As a power cut would."""
        assert self._process is not None
        self._process.kill()
        self._process.join(10)

    def end(self) -> int | None:
        """SIGTERM, as a service manager ends it: the exit code; None where it is still at work after a minute."""
        assert self._process is not None
        self._process.terminate()
        self._process.join(60)
        return self._process.exitcode

    def stop(self) -> None:
        if self._process is not None and self._process.is_alive():
            self._process.terminate()
            self._process.join(10)
            if self._process.is_alive():
                self.kill()

    def records(self) -> list[dict[str, Any]]:
        """Finished work, newest line of each id."""
        lines = [json.loads(line) for line in self.out.read_text(encoding="utf-8").splitlines()]
        return list({line["id"]: line for line in lines}.values())


def given(ids: Sequence[int], probabilities: Sequence[float | None] = (), *, truncated: bool = False) -> Proposal:
    """An answer that a session shall begin with, whatever the model would say; `truncated` at the limit of tokens."""
    return Proposal(
        Started(
            at=datetime.now(UTC),
            completion_ids=tuple(ids),
            probabilities=tuple(probabilities),
            ended=True,
            truncated=truncated,
        )
    )


def ramble(model: LanguageModel, length: int, prompts: int = 1) -> dict[int, Proposal]:
    """Answers of so many words, such as a model gives that never ends its turn: to wait for it would take minutes."""
    draw, ids = random.Random(7), model.codec.encode(_REGISTER * (length // 40))[:length]
    assert len(ids) == length
    return {at: given(ids, [draw.random() for _ in ids], truncated=True) for at in range(prompts)}


def prepare(server: Server, model: LanguageModel, answers: dict[int, Proposal]) -> None:
    """Put prompts into the store with these answers (by number of the prompt), before the server starts."""
    store, ledger = Store(server.store), Ledger(model.stamp, model.codec)
    prompts = [Prompt.model_validate(prompt) for prompt in server.prompts]
    project = store.project("world", model.stamp)
    add_items(store, project, [(ledger.key(prompt), prompt) for prompt in prompts])
    bodies = [prompt.model_dump(mode="json") for prompt in prompts]
    for item, body in unproposed(store, project, len(prompts)):
        if (number := bodies.index(body)) in answers:
            propose(store, item, answers[number])
    store.close()


def register(model: LanguageModel) -> tuple[list[dict[str, Any]], dict[int, Proposal]]:
    """Four prompts; the first one is a chat, with an answer of several parts and all tints."""
    ids, draw = [*model.codec.encode(_REGISTER), model.codec.tokenizer.eos_token_id], random.Random(5)
    sure = [0.999, 0.99, 0.97, 0.95, 0.99, 0.98, 0.995, 0.92, 0.99, 0.97, 0.99]
    odds = [draw.choice([*sure, draw.choice([0.8, 0.6, 0.4, 0.2, 0.1, 0.03])]) for _ in ids]
    chat = {
        "messages": [
            {"role": "system", "content": "You answer from the town register and say where you looked."},
            {"role": "user", "content": "Tell me about the mayor of Gardale."},
        ]
    }
    towns = ("Rilltech", "Oxer", "Fredville")
    return [chat, *({"prompt": f"Who is the mayor of {town}?"} for town in towns)], {0: given(ids, odds)}


def long_model(folder: Path) -> str:
    """The embedded model with a window of 8,192 tokens and no way to end its turn: answers as long as one likes.

    What it says beyond its training window is nonsense; how long that takes is not.
    """
    shutil.copytree(embedded_path(), folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 8192}))
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][config["eos_token_id"]] = 0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)
