"""Write keep records without any data: the model writes prompts and answers them as it does today.

General prompts are about anything. Near prompts begin like those of the corrected --records, whose neighbours they
protect; prompts that ask for a corrected fact are left out, and --candidates saves them as possible paraphrases. A
quarter is tagged `held-out`, for measuring drift. Everything written is kept in the cache folder, so the next
correction of the same model starts at once and an interrupted run continues.

Examples:
  anchorlwf retain --out keep.jsonl
  anchorlwf retain --model ./my-model --records records.jsonl --out keep.jsonl --candidates candidates.jsonl
  anchorlwf retain --model ./my-model --out keep.jsonl --prompts mine.txt --prompts more.jsonl --general 128
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anchorlwf.cli.shared import (
    AsJson,
    Config,
    Device,
    Dtype,
    Model,
    TrustCode,
    options_from,
    out,
    phase_progress,
    print_json,
    quiet_libraries,
)

if TYPE_CHECKING:
    from anchorlwf.config import RetainConfig
    from anchorlwf.data.record import Prompt

Own = Annotated[list[str] | None, typer.Option(help="Your own prompts: .jsonl, .txt or a data set; repeatable.")]
CacheDir = Annotated[Path | None, typer.Option(help="Default: ANCHORLWF_CACHE, or the platform's cache folder.")]


def retain(
    to: Annotated[Path, typer.Option("--out", "-o", help="File to which the keep records are written.")],
    model: Model = None,
    records: Annotated[Path | None, typer.Option(help="The corrections, for near prompts.")] = None,
    prompts: Own = None,
    candidates: Annotated[
        Path | None, typer.Option(help="File to which possible paraphrases are written, as prompts.")
    ] = None,
    config: Config = None,
    device: Device = None,
    dtype: Dtype = None,
    general: Annotated[int | None, typer.Option(help="Number of prompts about anything. Default: 64.")] = None,
    near: Annotated[int | None, typer.Option(help="Number of prompts near the corrected ones. Default: 48.")] = None,
    answer_tokens: Annotated[
        int | None, typer.Option(help="Maximum number of tokens in an answer. Default: 32.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling. Default: 0.")] = None,
    cache_dir: CacheDir = None,
    as_json: AsJson = False,
    trust_remote_code: TrustCode = False,
) -> None:
    from anchorlwf.config import RetainConfig
    from anchorlwf.files import ensure_writable
    from anchorlwf.model.language_model import load_model
    from anchorlwf.retention import retain

    quiet_libraries()
    for path in (to, *([candidates] if candidates else [])):
        ensure_writable(path)
    counts = {"general": general, "near": near, "answer_tokens": answer_tokens}
    settings = options_from(RetainConfig, config, seed=seed, **counts)
    loaded = load_model(model, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    with phase_progress() as progress:
        kept = retain(
            loaded, records, config=settings, prompts=prompts or (), cache_dir=cache_dir, on_progress=progress
        )
    _save(kept, to, candidates)
    _print(kept, settings, to, as_json)


def _save(kept: Any, to: Path, candidates: Path | None) -> None:
    from anchorlwf.data.jsonl import save_lines, save_records

    save_records(to, [*kept.records, *kept.held_out])
    if candidates:
        save_lines(candidates, [_as_prompt(candidate) for candidate in kept.candidates])


def _as_prompt(candidate: Any) -> "Prompt":
    certain = ["certain"] if candidate.certain else []
    prompt: Prompt = candidate.prompt
    return prompt.model_copy(update={"tags": [f"paraphrase:{candidate.record_id}", *certain]})


def _print(kept: Any, settings: "RetainConfig", to: Path, as_json: bool) -> None:
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
