"""An adapter merged into its base: one model, written only if it answers as base and adapter do together.

Shape suffixes: T tokens, V vocabulary.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, VIDEO_PROCESSOR_NAME

from anchorlwf.data.jsonl import load_records
from anchorlwf.data.model_card import FACTS, CardFacts, card_text
from anchorlwf.data.record import Record
from anchorlwf.decoding.greedy import GreedyDecoder, decode_batch
from anchorlwf.decoding.teacher_forcing import choices_of
from anchorlwf.errors import ConfigError, ModelError, wrong
from anchorlwf.files import staged_folder
from anchorlwf.model.adapter import adapter_settings
from anchorlwf.model.batch import KeepTurn
from anchorlwf.model.language_model import LanguageModel, adapter_of, canonical_name, checkpoint_of, load_model
from anchorlwf.model.loading import Checkpoint, read_json
from anchorlwf.workflow.fix import CANARIES

__all__ = ["REPORT", "MergeReport", "merge"]

REPORT = "merge.json"
"""File of a merged model with its report."""
_RECORDS, _ANSWER = 256, 32
"""Maximum number of records that are checked, and of tokens of the answers to everyday prompts."""
_EXACT = 1e-2
"""Largest difference of a log-probability in float32; rounding alone makes about 1e-4."""
_ROUNDED = 0.01
"""Largest mean KL(base and adapter || merged) in half precision, nats per token."""


@dataclass(frozen=True)
class MergeReport:
    """What was merged, and how the result compares with base and adapter."""

    out: str
    base: str
    adapter: str
    dtype: str
    """Of the merged weights, in which both were compared."""
    tokens: int
    """That were compared: those of the records, and of answers to everyday prompts."""
    largest_difference: float
    """Of a log-probability, at any token of the vocabulary."""
    mean_kl: float
    """KL(base and adapter || merged), nats per token."""
    choices_changed: int
    """Tokens at which the greedy choice is another, ties not counted."""
    records: int
    """Corrected ones that were checked."""
    known: int
    """Of these, those that base and adapter reproduce in this dtype."""
    reproduced: int
    """Of those, by the merged model."""

    @property
    def holds(self) -> bool:
        """The merged model may be used in place of base and adapter."""
        close = self.largest_difference <= _EXACT if self.dtype == "float32" else self.mean_kl <= _ROUNDED
        return close and self.reproduced == self.known


def merge(
    run: str | Path,
    out: str | Path,
    *,
    model: str | None = None,
    records: str | Path | None = None,
    dtype: str | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> MergeReport:
    """Merge the adapter of a run into its base, and check what came out.

    The merged model is read back from disk and compared with base and adapter: on the records' completions, and on
    answers to everyday prompts. This takes the memory of two models.

    Args:
        run: a run folder, or the folder of an adapter.
        out: folder of the merged model. It must be empty or absent, or hold an earlier merge, which is replaced.
        model: the base; None: the one that the adapter names.
        records: the corrections. None: those that the run was trained on, where they still lie; else the logits alone
            are compared.
        dtype: of the merged weights; None: that of the base's files.
        device: as for `load_model`.
        trust_remote_code: run code that comes with the base.

    Raises:
        ModelError: there is no adapter, it does not fit, or the merged model does not answer as base and adapter do;
            nothing is written then.
        ConfigError: `out` holds something else.
        RecordError, StampError: records that cannot be read, or that belong to another model.
        StorageError: `out` cannot be written.
    """
    adapter = _adapter_of(Path(run))
    base = canonical_name(model or adapter_of(str(adapter))[0])
    _check_out(Path(out))
    chosen = _corrections(Path(run), records)
    checkpoint = checkpoint_of(base, trust_remote_code=trust_remote_code)
    settings = checkpoint.settings("config.json") or {}
    kind = dtype or str(settings.get("dtype") or settings.get("torch_dtype") or "float32").removeprefix("torch.")
    options: dict[str, Any] = {"dtype": kind, "device": device, "trust_remote_code": trust_remote_code}
    with staged_folder(out) as stage:
        _write(load_model(base, adapter=adapter, **options), stage, _facts(adapter), kind)
        _copy_processors(checkpoint, stage)
        before, after = load_model(base, adapter=adapter, **options), load_model(str(stage), **options)
        report = _compared(before, after, chosen, MergeReport(str(out), base, str(adapter), kind, 0, 0, 0, 0, 0, 0, 0))
        if not report.holds:
            fix = "Merge with another --dtype, float32 being exact, or serve base and adapter as two."
            raise ModelError(wrong(f"merged model {out}", "the answers of base and adapter", _told(report), fix))
        (stage / REPORT).write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    return report


def _told(report: MergeReport) -> str:
    return (
        f"{report.reproduced} of {report.known} corrected answers, a largest difference of a log-probability of "
        f"{report.largest_difference:.2g} and a mean KL of {report.mean_kl:.2g} nats in {report.dtype}"
    )


def _adapter_of(run: Path) -> Path:
    adapter = run / "adapter" if (run / "adapter").is_dir() else run
    if not (adapter / "adapter_config.json").is_file() and (run / "model").is_dir():
        fix = f"{run / 'model'} is a model already, trained with --method full."
        raise ModelError(wrong(f"run {run}", "an adapter to merge", "none", fix))
    adapter_settings(adapter)
    return adapter


def _check_out(out: Path) -> None:
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / REPORT).is_file()):
        got, fix = "a file" if out.is_file() else "other files", "Name another, which need not be there."
        raise ConfigError(wrong(f"--out {out}", "a folder that is empty, or that merge wrote", got, fix))


def _corrections(run: Path, given: str | Path | None) -> list[Record]:
    """The corrected records, where they are to be had."""
    places: list[Path] = [run / "records.jsonl"]
    noted = run / "environment.json"
    if given is None and noted.is_file() and (path := read_json(noted).get("records")):
        places.append(Path(path))
    found = Path(given) if given is not None else next((path for path in places if path.is_file()), None)
    listed = [] if found is None else load_records(found)
    return [record for record in listed if record.anchors and record.status == "complete"][:_RECORDS]


def _facts(adapter: Path) -> CardFacts | None:
    path = adapter.parent / FACTS
    return CardFacts.model_validate_json(path.read_bytes()) if path.is_file() else None


def _write(tuned: LanguageModel, stage: Path, facts: CardFacts | None, dtype: str) -> None:
    merged = tuned.net.merge_and_unload(safe_merge=True)
    merged.save_pretrained(stage)
    tuned.codec.tokenizer.save_pretrained(stage)
    if facts is not None:
        text = card_text(facts.model_copy(update={"kind": "model", "dtype": dtype}), merged=True)
        (stage / "README.md").write_text(text, encoding="utf-8")


def _copy_processors(checkpoint: Checkpoint, stage: Path) -> None:
    """What turns pictures, films and sound into what the model reads: training leaves it as it is."""
    for name in (IMAGE_PROCESSOR_NAME, VIDEO_PROCESSOR_NAME, PROCESSOR_NAME):
        if (path := checkpoint.file(name)) is not None:
            shutil.copyfile(path, stage / name)


def _turns(before: LanguageModel, records: Sequence[Record]) -> Iterator[tuple[KeepTurn, bool]]:
    """What is compared, and whether it is a record's."""
    stamp = before.stamp
    for record in records:
        before.check_stamp(record, stamp)
        yield KeepTurn(record.prompt_ids, record.completion_ids), True
    prompts = [before.codec.encode_prompt([{"role": "user", "content": text}]) for text in CANARIES]
    for batch in decode_batch(before, prompts, _ANSWER):
        yield from ((KeepTurn(prompts[index], answer.ids), False) for index, answer in batch if answer.ids)


@torch.inference_mode()
def _compared(
    before: LanguageModel, after: LanguageModel, records: Sequence[Record], report: MergeReport
) -> MergeReport:
    largest, kl, tokens, changed, known, reproduced = 0.0, 0.0, 0, 0, 0, 0
    for turn, corrected in _turns(before, records):
        ids = turn.completion_ids
        first_TV, second_TV = (
            GreedyDecoder(model).logits(turn.prompt_ids, ids[:-1]).log_softmax(-1) for model in (before, after)
        )
        # A head may exclude a token altogether, by a bias of -inf.
        both_TV = first_TV.isfinite() & second_TV.isfinite()
        gap_TV = (first_TV - second_TV).where(both_TV, 0.0)
        largest = max(largest, float(gap_TV.abs().max()))
        kl += float((first_TV.exp() * gap_TV).sum())
        tokens += len(ids)
        ours, theirs = choices_of(first_TV, ids), choices_of(second_TV, first_TV.argmax(-1).tolist())
        pairs = zip(ours.best_ids, theirs.best_ids, theirs.tied, strict=True)
        changed += sum(one != other and not tied for one, other, tied in pairs)
        if corrected and ours.best_ids == ids:
            known += 1
            again = choices_of(second_TV, ids)
            stands = zip(again.best_ids, ids, again.tied, strict=True)
            reproduced += all(one == other or tied for one, other, tied in stands)
    # Rounding may leave a sum of next to nothing below 0.
    mean_kl = max(0.0, kl / tokens)
    figures: dict[str, Any] = {"largest_difference": largest, "mean_kl": mean_kl, "choices_changed": changed}
    counts: dict[str, Any] = {"tokens": tokens, "records": len(records), "known": known, "reproduced": reproduced}
    return replace(report, **figures, **counts)
