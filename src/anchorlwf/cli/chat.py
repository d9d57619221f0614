"""Talk to the base and the tuned model side by side.

What is typed is one conversation, and each side remembers it. Each --prompt is a question of its own.

Examples:
  anchorlwf chat --adapter runs/demo/adapter
  anchorlwf chat --adapter runs/demo/adapter -p "Who are you?" -p "Who made you?"
  anchorlwf chat --adapter runs/demo/adapter --prompt "Who are you?" --json
"""

from typing import Annotated, Any

import typer

from anchorlwf.cli.shared import (
    Adapter,
    AsJson,
    Config,
    Device,
    Dtype,
    Model,
    Tokens,
    TrustCode,
    err,
    options_from,
    out,
    print_json,
    quiet_libraries,
    shown,
)
from anchorlwf.errors import PromptError, wrong


def chat(
    model: Model = None,
    adapter: Adapter = None,
    config: Config = None,
    device: Device = None,
    dtype: Dtype = None,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="Ask this and exit; repeatable, each by itself.")
    ] = None,
    max_new_tokens: Tokens = None,
    as_json: AsJson = False,
    trust_remote_code: TrustCode = False,
) -> None:
    from anchorlwf.config import AnnotateConfig
    from anchorlwf.model.language_model import load_model
    from anchorlwf.workflow import SideBySide

    quiet_libraries()
    limit = options_from(AnnotateConfig, config, max_new_tokens=max_new_tokens).max_new_tokens
    loaded = load_model(model, adapter=adapter, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    talk, turns = SideBySide(loaded, limit), []
    for text in prompt or _typed():
        if prompt:
            talk = SideBySide(loaded, limit)
        turns.append({"prompt": text, **talk.ask(text)})
        if not as_json:
            _show(turns[-1], asked=bool(prompt))
    if as_json:
        print_json(turns)


def _typed() -> Any:
    err.print("An empty line or Ctrl-D ends the chat.", style="dim")
    while True:
        err.print("> ", end="")  # not by input(), which would put it among the results
        try:
            text = input()
        except EOFError:
            return
        except UnicodeDecodeError as error:
            raise PromptError(wrong("prompt", "UTF-8 text", error.reason, "Type it as UTF-8.")) from error
        if not text.strip():
            return
        yield text


def _show(turn: dict[str, str], *, asked: bool) -> None:
    from rich.columns import Columns
    from rich.panel import Panel
    from rich.text import Text

    if asked:  # what was typed stands on the screen already
        out.print(f"> {shown(turn['prompt'])}")
    sides = [name for name in ("base", "tuned") if name in turn]
    width = max(20, (out.width - 2) // len(sides))
    out.print(Columns([Panel(Text(shown(turn[name])), title=name, width=width) for name in sides]))
