"""Write keep records without data: the model writes prompts, and answers them as it does today.

General prompts are about anything. Near ones begin like the prompts of the corrected --records, whose neighbours they
protect; those that ask for a corrected fact are left out, and --candidates writes them down as possible paraphrases.
A quarter is tagged `held-out`, for measuring drift. What was written is kept in the cache folder: the next correction
of the same model starts at once, and an interrupted run goes on.

Examples:
  anchorlwf retain --out keep.jsonl
  anchorlwf retain --model ./my-model --records records.jsonl --out keep.jsonl --candidates candidates.jsonl
  anchorlwf retain --model ./my-model --out keep.jsonl --prompts mine.txt --prompts more.jsonl --general 128
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from anchorlwf.cli.shared import AsJson, Model, TrustCode, out, phase_progress, print_json, quiet_libraries
from anchorlwf.config import RetainConfig
from anchorlwf.data.jsonl import save_lines, save_records
from anchorlwf.data.record import Prompt
from anchorlwf.files import ensure_writable

Own = Annotated[list[str] | None, typer.Option(help="Your own: .jsonl, .txt or a data set; repeatable.")]
CacheDir = Annotated[Path | None, typer.Option(help="Instead of ANCHORLWF_CACHE or the platform's cache folder.")]


def retain(
    to: Annotated[Path, typer.Option("--out", "-o", help="Write the keep records here.")],
    model: Model = None,
    records: Annotated[Path | None, typer.Option(help="The corrections, for near prompts.")] = None,
    prompts: Own = None,
    candidates: Annotated[Path | None, typer.Option(help="Write possible paraphrases here, as prompts.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML of options; those given here win.")] = None,
    general: Annotated[int | None, typer.Option(help="Prompts about anything (64).")] = None,
    near: Annotated[int | None, typer.Option(help="Prompts near the corrected ones (48).")] = None,
    answer_tokens: Annotated[int | None, typer.Option(help="Most tokens of an answer (32).")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the sampling.")] = None,
    cache_dir: CacheDir = None,
    as_json: AsJson = False,
    trust_remote_code: TrustCode = False,
) -> None:
    from anchorlwf.model.language_model import load_model
    from anchorlwf.retention import retain

    quiet_libraries()
    for path in (to, *([candidates] if candidates else [])):
        ensure_writable(path)
    settings = RetainConfig.load(config) if config else RetainConfig()
    settings = settings.updated(general=general, near=near, answer_tokens=answer_tokens, seed=seed)
    loaded = load_model(model, trust_remote_code=trust_remote_code)
    with phase_progress() as progress:
        kept = retain(
            loaded, records, config=settings, prompts=prompts or (), cache_dir=cache_dir, on_progress=progress
        )
    save_records(to, [*kept.records, *kept.held_out])
    if candidates:
        save_lines(candidates, [_as_prompt(candidate) for candidate in kept.candidates])
    _print(kept, settings, to, as_json)


def _as_prompt(candidate: Any) -> Prompt:
    certain = ["certain"] if candidate.certain else []
    return candidate.prompt.model_copy(update={"tags": [f"paraphrase:{candidate.record_id}", *certain]})


def _print(kept: Any, settings: RetainConfig, to: Path, as_json: bool) -> None:
    counts = {kind: kept.count(kind) for kind in ("general", "near", "own")}
    if as_json:
        held_out = len(kept.held_out)
        print_json({**counts, "held_out": held_out, "left_out": kept.left_out, "out": str(to)})
        return
    listed = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    out.print(f"{listed or 'no'} keep records in {to}, {len(kept.held_out)} of them held out")
    reasons = ", ".join(f"{count} {reason}" for reason, count in kept.left_out.items() if count)
    if reasons:
        out.print(f"sampled and left out: {reasons}")
    if counts["general"] < settings.general:
        out.print(f"fewer general prompts than the {settings.general} wanted: the model writes little that is new")
