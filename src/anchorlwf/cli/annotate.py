"""Turn prompts into records: correct a model's answers token by token.

--annotator target reads the right answer of every prompt from the file and finds the anchors in one forward pass;
--annotator terminal lets a person correct in the terminal; --web serves a page on which one or several people correct,
and prints its address. Terminal and page share one store, so work begun in one can be continued in the other. Finished
prompts are skipped: after an interruption, run the same command again.

Examples:
  anchorlwf annotate prompts.jsonl --out records.jsonl
  anchorlwf annotate prompts.jsonl --out records.jsonl --annotator terminal --name ada
  anchorlwf annotate prompts.jsonl --out records.jsonl --web --name ada
  anchorlwf annotate prompts.jsonl --out records.jsonl --web --annotators team.yaml --store postgresql:///team
  anchorlwf annotate prompts.jsonl --out records.jsonl --web --remote http://127.0.0.1:8000/v1 --model ./served
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

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

_PAGE_ONLY = ("port", "host", "allow_host")
_STORED = ("store", "per_item", "remote", "annotators", "memory")

if TYPE_CHECKING:
    from anchorlwf.annotator.open import Work


def _checked_name(name: str) -> str:
    from anchorlwf.annotator.team import is_name

    if not is_name(name):
        raise typer.BadParameter("expected 1 to 64 printable characters")
    return name


def annotate(
    context: typer.Context,
    prompts: Annotated[
        Path, typer.Argument(help="JSONL file with `prompt` or `messages`, and `answer` for --annotator target.")
    ],
    to: Annotated[Path, typer.Option("--out", "-o", help="File to which records are appended.")],
    model: Model = None,
    annotator: Annotated[Literal["target", "terminal"], typer.Option(help="Who corrects.")] = "target",
    name: Annotated[
        str,
        typer.Option(
            callback=_checked_name, help="Your name. It owns your sessions and is the source of your anchors."
        ),
    ] = "anonymous",
    confidence: Annotated[float, typer.Option(help="Confidence c_t of new anchors, above 0 and at most 1.")] = 1.0,
    max_new_tokens: Tokens = 512,
    web: Annotated[bool, typer.Option("--web", help="Serve the annotation page (needs anchorlwf[web]).")] = False,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of the page. Default: 8642, or a free one.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address on which the page is served.")] = "127.0.0.1",
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Further host name that browsers may use for it; repeatable.")
    ] = None,
    store: Annotated[
        str | None, typer.Option(help="SQLite file or PostgreSQL URL. Default: a file beside --out.")
    ] = None,
    annotators: Annotated[
        Path | None, typer.Option(help="YAML file of `name: token` lines, for several people.")
    ] = None,
    per_item: Annotated[int, typer.Option(min=1, help="How many people annotate each prompt.")] = 1,
    remote: Annotated[str | None, typer.Option(help="Decode on this OpenAI-compatible server, http://.../v1.")] = None,
    memory: Annotated[float | None, typer.Option(help="GiB for the caches of all sessions. Default: 2.")] = None,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
    trust_remote_code: TrustCode = False,
) -> None:
    from anchorlwf.annotator.open import Work
    from anchorlwf.annotator.web.start import PageOptions, serve_page
    from anchorlwf.config import AnnotateConfig

    _check_given(_given(context), web=web, terminal=annotator == "terminal")
    quiet_libraries()
    config = AnnotateConfig.of(max_new_tokens=max_new_tokens, confidence=confidence)
    work = Work(prompts, to, model, config, store, per_item, remote, memory, skip_bad, trust_remote_code)
    if web:
        serve_page(work, PageOptions(host, port, annotators, name, allow_host or ()), announce=_announce)
        return
    # At the terminal without a bar: it would wipe out what is being typed.
    records = _at_terminal(work, name, annotators) if annotator == "terminal" else _from_targets(work)
    _print(_counted(records), to, as_json)


def _from_targets(work: "Work") -> Iterator[Any]:
    from anchorlwf.annotation import annotate_stream
    from anchorlwf.model.language_model import load_model

    loaded = load_model(work.model, trust_remote_code=work.trust_remote_code)
    with count_progress("annotate") as progress:
        yield from annotate_stream(
            loaded, work.prompts, "target", out=work.out, config=work.config, skip_bad=work.skip_bad, on_record=progress
        )


def _at_terminal(work: "Work", name: str, annotators: Path | None) -> list[Any]:
    from anchorlwf.annotator.team import load_annotators
    from anchorlwf.annotator.terminal.terminal import Terminal

    if annotators is not None and name not in (people := load_annotators(annotators)):
        raise ConfigError(wrong("--name", f"one of {', '.join(people)}", name, f"They are those of {annotators}."))
    with work.open() as exchange:
        return Terminal(exchange.desk, name, err).run()


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


def _counted(records: Iterable[Any]) -> dict[str, int]:
    counts = {"records": 0, "anchors": 0, "completion_tokens": 0, "already_right": 0, "drafts": 0}
    for record in records:
        counts["records"] += 1
        counts["anchors"] += len(record.anchors)
        counts["completion_tokens"] += len(record.completion_ids)
        counts["already_right"] += record.status == "complete" and not record.anchors
        counts["drafts"] += record.status == "draft"
    return counts


def _print(counts: dict[str, int], to: Path, as_json: bool) -> None:
    if as_json:
        print_json({**counts, "out": str(to)})
        return
    tokens = counts["completion_tokens"]
    out.print(f"{counts['records']} records, {counts['anchors']} anchors among {tokens} completion tokens, in {to}")
    if counts["already_right"]:
        out.print(f"{counts['already_right']} answers were right already: nothing to correct, kept as keep records")
    if counts["drafts"]:
        out.print("1 draft: the same command takes it up again")
