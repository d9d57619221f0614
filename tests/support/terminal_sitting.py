"""A person at the terminal annotator."""

import io
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from anchorlwf.annotation.tree import fold
from anchorlwf.annotator.open import Work
from anchorlwf.annotator.project import Exchange
from anchorlwf.annotator.terminal.render import Painter
from anchorlwf.annotator.terminal.terminal import Terminal
from anchorlwf.config import AnnotateConfig
from anchorlwf.data.jsonl import save_lines
from anchorlwf.model.vocabulary import TokenTable


def screen_of(width: int = 100_000) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, width=width), file


CONFIG = AnnotateConfig(max_new_tokens=24, alternatives=5)


QUESTIONS = ["Where was she born?", "hello", "How are you?"]


def work_of(folder: Path, model: Path | None, questions: list[str] = QUESTIONS, **options) -> Work:
    save_lines(folder / "p.jsonl", [{"prompt": question} for question in questions])
    return Work(folder / "p.jsonl", folder / "r.jsonl", None if model is None else str(model), CONFIG, **options)


def sit(exchange: Exchange, *lines: str | Callable[[], object], name: str = "ada") -> tuple[list, str]:
    """A person types these lines (what can be called is called when its turn comes): new records, and the screen."""
    console, screen = screen_of()
    rest = list(lines)

    def read(_console: Console, prompt: str) -> str:
        while rest and not isinstance(rest[0], str):
            rest.pop(0)()
        console.print(prompt + rest[0] if rest else prompt, markup=False)
        if not rest:
            raise EOFError
        return rest.pop(0)

    return Terminal(exchange.desk, name, console, read).run(), screen.getvalue()


ASKED = ["Who are you?", "Who made you?", "Where were you made?", "When were you made?"]


def answer_of(exchange: Exchange, name: str = "ada") -> list[int]:
    """The ids that stand in the store for what this person has on the screen."""
    store, project = exchange.desk.store, exchange.desk.project
    return list(fold(store.events(store.next(project, name).id)).node.completion_ids)


def shown(table: TokenTable, ids: list[int], stars: tuple[int, ...] = ()) -> str:
    console, screen = screen_of()
    painter = Painter(console, table)
    for index, token in enumerate(ids):
        painter.token(index, token, None, anchor=index in stars)
    return screen.getvalue()
