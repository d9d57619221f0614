"""Talk to the base and the tuned model side by side.

Examples:
  anchorlwf chat --adapter runs/demo/adapter
  anchorlwf chat --adapter runs/demo/adapter --prompt "Who are you?" --json
"""

from typing import Annotated, Any

import typer

from anchorlwf.cli.shared import Adapter, AsJson, Model, Tokens, TrustCode, err, out, print_json, quiet_libraries


def chat(
    model: Model = None,
    adapter: Adapter = None,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="Ask this and exit; repeatable.")] = None,
    max_new_tokens: Tokens = 512,
    as_json: AsJson = False,
    trust_remote_code: TrustCode = False,
) -> None:
    from anchorlwf.model.language_model import load_model
    from anchorlwf.workflow import SideBySide

    quiet_libraries()
    loaded = load_model(model, adapter=adapter, trust_remote_code=trust_remote_code)
    talk = SideBySide(loaded, max_new_tokens)
    turns = []
    for text in prompt or _typed():
        turns.append({"prompt": text, **talk.ask(text)})
        if not as_json:
            _show(turns[-1])
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
        if not text.strip():
            return
        yield text


def _show(turn: dict[str, str]) -> None:
    from rich.columns import Columns
    from rich.panel import Panel
    from rich.text import Text

    sides = [name for name in ("base", "tuned") if name in turn]
    width = max(20, (out.width - 2) // len(sides))
    out.print(Columns([Panel(Text(turn[name]), title=name, width=width) for name in sides]))
