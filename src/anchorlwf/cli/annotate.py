"""Turn prompts into records: correct a model's answers token by token.

With --annotator target every prompt holds its right answer and one forward pass finds the anchors; with terminal a
person corrects; with --web one or several people correct on a page, whose address is printed. Finished prompts are
skipped, so the same command goes on after an interruption.

Examples:
  anchorlwf annotate prompts.jsonl --out records.jsonl
  anchorlwf annotate prompts.jsonl --out records.jsonl --annotator terminal --name ada
  anchorlwf annotate prompts.jsonl --out records.jsonl --web --name ada
  anchorlwf annotate prompts.jsonl --out records.jsonl --web --annotators team.yaml --store postgresql:///team
  anchorlwf annotate prompts.jsonl --out records.jsonl --web --remote http://127.0.0.1:8000/v1 --model ./served
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from anchorlwf.cli.shared import (
    AsJson,
    Model,
    SkipBad,
    Tokens,
    TrustCode,
    count_progress,
    err,
    out,
    print_json,
    quiet_libraries,
)
from anchorlwf.errors import ConfigError, wrong

_PAGE_ONLY = ("port", "host", "allow_host", "annotators", "memory")
_STORED = ("store", "per_item", "remote")


def annotate(
    context: typer.Context,
    prompts: Annotated[Path, typer.Argument(help="JSONL: `prompt` or `messages`, and `answer` for target.")],
    to: Annotated[Path, typer.Option("--out", "-o", help="Records are appended here.")],
    model: Model = None,
    annotator: Annotated[Literal["target", "terminal"], typer.Option(help="Who judges.")] = "target",
    name: Annotated[str, typer.Option(help="Your name, for the anchors' source.")] = "anonymous",
    confidence: Annotated[float, typer.Option(help="c_t of new anchors, above 0, at most 1.")] = 1.0,
    max_new_tokens: Tokens = 512,
    web: Annotated[bool, typer.Option("--web", help="Serve the annotator's page (needs anchorlwf[web]).")] = False,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Of the page (8642, or a free one).")] = None,
    host: Annotated[str, typer.Option(help="Address the page is served on.")] = "127.0.0.1",
    allow_host: Annotated[list[str] | None, typer.Option(help="Name browsers may use for it; repeatable.")] = None,
    store: Annotated[str | None, typer.Option(help="SQLite file or PostgreSQL URL (beside --out).")] = None,
    annotators: Annotated[Path | None, typer.Option(help="YAML of `name: token`, where several people work.")] = None,
    per_item: Annotated[int, typer.Option(min=1, help="How many people do each prompt on the page.")] = 1,
    remote: Annotated[str | None, typer.Option(help="Decode on an OpenAI-compatible server, http://.../v1.")] = None,
    memory: Annotated[float | None, typer.Option(help="GiB for the caches of all sessions (2).")] = None,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
    trust_remote_code: TrustCode = False,
) -> None:
    from anchorlwf.annotation import TerminalAnnotator, annotate
    from anchorlwf.config import AnnotateConfig
    from anchorlwf.model import load_model
    from anchorlwf.web.start import PageOptions, serve_page

    _check_given(_given(context), web=web, terminal=annotator == "terminal")
    quiet_libraries()
    config = AnnotateConfig.of(max_new_tokens=max_new_tokens, confidence=confidence)
    if web:
        options = PageOptions(**{key: value for key, value in locals().items() if key in PageOptions.__annotations__})
        serve_page(prompts, to, model, config, options, announce=_announce, trust_remote_code=trust_remote_code)
        return
    person = TerminalAnnotator(f"human:{name}", err, confidence=confidence)
    loaded = load_model(model, trust_remote_code=trust_remote_code)
    if annotator == "target":
        with count_progress("annotate") as progress:
            records = annotate(loaded, prompts, out=to, config=config, skip_bad=skip_bad, on_record=progress)
    else:  # no bar: it would wipe out what is being typed
        records = annotate(loaded, prompts, person, out=to, config=config, skip_bad=skip_bad)
    _print(records, to, as_json)


def _given(context: typer.Context) -> set[str]:
    """The options that were typed, whatever their value."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name != "DEFAULT"}


def _check_given(given: set[str], *, web: bool, terminal: bool) -> None:
    """Raise `ConfigError` for an option that this way of annotating would leave unused."""
    unused = [] if web else [*_PAGE_ONLY, *(() if terminal else _STORED)]
    for name in unused:
        if name in given:
            needed = "--web" if name in _PAGE_ONLY else "--web or --annotator terminal"
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(wrong(option, needed, "none", f"Add {needed} to use {option}, or leave it out."))


def _announce(line: str) -> None:
    print(line, flush=True)  # whoever started it may read it from a pipe


def _print(records: list[Any], to: Path, as_json: bool) -> None:
    anchors, tokens = sum(len(r.anchors) for r in records), sum(len(r.completion_ids) for r in records)
    right = sum(r.status == "complete" and not r.anchors for r in records)
    drafts = sum(r.status == "draft" for r in records)
    if as_json:
        print_json({"records": len(records), "anchors": anchors, "completion_tokens": tokens, "already_right": right,
                    "drafts": drafts, "out": str(to)})
        return
    out.print(f"{len(records)} records, {anchors} anchors among {tokens} completion tokens, in {to}")
    if right:
        out.print(f"{right} answers were right already: nothing to correct, kept as keep records")
    if drafts:
        out.print("1 draft: the same command takes it up again")
