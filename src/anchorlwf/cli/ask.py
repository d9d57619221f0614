"""Ask a model, and see what it says and where it is in doubt.

Takes questions themselves, files of them (JSONL, CSV, or plain text with a question per line), and `-` for standard
input. Answers appear as they are decoded. Tokens to which the model gives less than 50 % are marked, and listed below
the answer with what it would have said instead.

--out writes a prompts file with the model's own answers. Correct the wrong ones there, word by word, and give it to
`anchorlwf annotate`: it finds the anchors, and keeps the other answers as they are.

Examples:
  anchorlwf ask "Who are you?"
  anchorlwf ask questions.txt --model ./my-model --out prompts.jsonl
  anchorlwf ask "Who are you?" --adapter runs/first/adapter --json
  cat questions.txt | anchorlwf ask - --out prompts.jsonl
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from anchorlwf.cli.shared import (
    Adapter,
    AsJson,
    Config,
    Device,
    Dtype,
    Model,
    SkipBad,
    Tokens,
    TrustCode,
    err,
    options_from,
    out,
    print_json,
    quiet_libraries,
    shown,
)

_LISTED = 5
"""Uncertain tokens named below an answer."""
_MARK = "yellow underline"


def ask(
    sources: Annotated[list[str], typer.Argument(help="Questions, files of questions, or - for standard input.")],
    to: Annotated[Path | None, typer.Option("--out", "-o", help="Prompts file to write.")] = None,
    model: Model = None,
    adapter: Adapter = None,
    config: Config = None,
    device: Device = None,
    dtype: Dtype = None,
    max_new_tokens: Tokens = None,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
    trust_remote_code: TrustCode = False,
) -> None:
    from anchorlwf.config import AnnotateConfig
    from anchorlwf.model.language_model import load_model
    from anchorlwf.workflow.ask import ask, questions

    quiet_libraries()
    settings = options_from(AnnotateConfig, config, max_new_tokens=max_new_tokens)
    _check_out(to, sources)
    loaded = load_model(model, adapter=adapter, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    prompts = questions(sources, loaded, skip_bad=skip_bad)
    hooks: dict[str, Any] = {} if as_json else {"on_prompt": _show_prompt, "on_text": _show_text}
    answers = _collect(ask(loaded, prompts, config=settings, **hooks), to, silent=as_json)
    if as_json:
        print_json([_as_json(answer) for answer in answers])


def _collect(asked: Iterator[Any], to: Path | None, *, silent: bool) -> list[Any]:
    answers = []
    try:
        for answer in asked:
            answers.append(answer)
            if not silent:
                _show_doubts(answer)
    finally:  # what was answered before an interruption is kept
        _save(answers, to)
    return answers


def _check_out(to: Path | None, sources: list[str]) -> None:
    from anchorlwf.errors import ConfigError, wrong
    from anchorlwf.files import ensure_writable

    if to is not None:
        if any(to.resolve() == Path(source).resolve() for source in sources):
            raise ConfigError(wrong("--out", "another file than the questions", str(to), "Name another."))
        ensure_writable(to)


def _show_prompt(prompt: Any) -> None:
    out.print(f"> {shown(str(prompt.messages[-1].get('content', '')))}")


def _show_text(text: str, uncertain: bool) -> None:
    out.print(shown(text), style=_MARK if uncertain else None, end="", soft_wrap=True)


def _show_doubts(answer: Any) -> None:
    out.print(" [cut at the maximum number of tokens]" if answer.truncated else "")
    doubts = answer.doubts
    if doubts:
        told = [_doubt(token) for token in doubts[:_LISTED]]
        more = [f"and {len(doubts) - _LISTED} more"] if len(doubts) > _LISTED else []
        out.print(f"  uncertain: {', '.join([*told, *more])}", style="dim", soft_wrap=True)
    wanted = answer.prompt.answer
    if wanted is not None and wanted.strip() != answer.text.strip():
        out.print(f"  wanted: {shown(wanted)}")
    out.print()


def _doubt(token: Any) -> str:
    instead = f" (or {token.instead!r} {token.instead_probability:.0%})" if token.instead is not None else ""
    return f"{token.text!r} {token.probability:.0%}{instead}"


def _as_json(answer: Any) -> dict[str, Any]:
    from dataclasses import asdict

    tokens = [{**asdict(token), "uncertain": token.uncertain} for token in answer.tokens]
    wanted = {} if answer.prompt.answer is None else {"wanted": answer.prompt.answer}
    return {**answer.row(), **wanted, "answer": answer.text, "truncated": answer.truncated, "tokens": tokens}


def _save(answers: list[Any], to: Path | None) -> None:
    from anchorlwf.data.jsonl import save_lines

    if to is None or not answers:
        return
    save_lines(to, [answer.row() for answer in answers])
    cut = sum(answer.truncated and answer.prompt.answer is None for answer in answers)
    how = f"correct the wrong answers there, then anchorlwf annotate {to}"
    err.print(f"{len(answers)} prompts in {to}: {how}", soft_wrap=True)
    if cut:
        err.print(f"{cut} of them without an answer, which was cut; --max-new-tokens lets it go on")
