"""Turn prompts into records: correct a model's answers token by token.

--annotator target reads the right answer of every prompt from the file and finds the anchors in one forward pass;
--annotator terminal lets a person correct in the terminal; --annotator web (or --web) serves a page on which one or
several people correct, and prints its address. Terminal and page share one store, so work begun in one can be continued
in the other. Finished prompts are skipped: after an interruption, run the same command again.

Prompts are JSONL (`prompt` or `messages`, and `answer` for --annotator target), CSV (a column `prompt` or `question`,
and `answer`), or plain text, a prompt per line. `anchorlwf ask --out` writes such a file with the model's own answers.

Examples:
  anchorlwf annotate prompts.jsonl --out records.jsonl
  anchorlwf annotate prompts.jsonl --out records.jsonl --annotator terminal --name ada
  anchorlwf annotate questions.txt --out records.jsonl --annotator web --name ada
  anchorlwf annotate prompts.jsonl --out records.jsonl --web --annotators team.yaml --store postgresql:///team
  anchorlwf annotate prompts.jsonl --out records.jsonl --web --remote http://127.0.0.1:8000/v1 --model ./served
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from anchorlwf.cli.shared import (
    AsJson,
    Config,
    Device,
    Dtype,
    Model,
    SkipBad,
    Tokens,
    TrustCode,
    count_progress,
    err,
    options_from,
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
    prompts: Annotated[Path, typer.Argument(help="JSONL, CSV or plain text file of prompts.")],
    to: Annotated[Path, typer.Option("--out", "-o", help="File to which records are appended.")],
    model: Model = None,
    options: Config = None,
    device: Device = None,
    dtype: Dtype = None,
    annotator: Annotated[
        Literal["target", "terminal", "web"] | None, typer.Option(help="Who corrects. Default: target.")
    ] = None,
    name: Annotated[
        str,
        typer.Option(
            callback=_checked_name, help="Your name. It owns your sessions and is the source of your anchors."
        ),
    ] = "anonymous",
    confidence: Annotated[
        float | None, typer.Option(help="Confidence c_t of new anchors, above 0 and at most 1. Default: 1.")
    ] = None,
    max_new_tokens: Tokens = None,
    web: Annotated[bool, typer.Option("--web", help="Short for --annotator web (needs anchorlwf[web]).")] = False,
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

    who = _who(annotator, web)
    _check_given(_given(context), who)
    quiet_libraries()
    config = options_from(AnnotateConfig, options, max_new_tokens=max_new_tokens, confidence=confidence)
    where = (store, per_item, remote, memory)
    work = Work(prompts, to, model, config, *where, skip_bad, trust_remote_code, device, dtype)
    if who == "web":
        serve_page(work, PageOptions(host, port, annotators, name, allow_host or ()), announce=_announce)
        return
    # At the terminal without a bar: it would wipe out what is being typed.
    records = _at_terminal(work, name, annotators) if who == "terminal" else _from_targets(work)
    _print(_counted(records), to, as_json)


def _from_targets(work: "Work") -> Iterator[Any]:
    from anchorlwf.annotation import annotate_stream
    from anchorlwf.model.language_model import load_model

    loaded = load_model(work.model, dtype=work.dtype, device=work.device, trust_remote_code=work.trust_remote_code)
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


def _who(annotator: str | None, web: bool) -> str:
    if web and annotator not in (None, "web"):
        fix = "Leave one of the two out."
        raise ConfigError(wrong("--web", "it alone, or --annotator web", f"--annotator {annotator}", fix))
    return "web" if web else annotator or "target"


def _given(context: typer.Context) -> set[str]:
    """The options that were typed, whatever their value."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name != "DEFAULT"}


def _check_given(given: set[str], who: str) -> None:
    """Raise `ConfigError` for an option that this way of annotating would leave unused."""
    if who == "web" and "as_json" in given:
        fix = "Leave it out: the address is all that is printed."
        raise ConfigError(wrong("--json", "--annotator target or terminal", "a page", fix))
    unused = [] if who == "web" else [*_PAGE_ONLY, *(() if who == "terminal" else _STORED)]
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
