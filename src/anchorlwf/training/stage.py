"""The training stage: records in, a run folder with an adapter out."""

import contextlib
import json
import logging
import math
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from peft import PeftModel
from transformers import TrainingArguments, set_seed

from anchorlwf.config import TrainConfig
from anchorlwf.data.jsonl import Source
from anchorlwf.errors import AnchorLwfWarning, ConfigError, ModelError, wrong
from anchorlwf.files import staged_folder
from anchorlwf.model.adapter import note_adapter
from anchorlwf.model.generation import warn_of_generation
from anchorlwf.model.head import probe_head
from anchorlwf.model.language_model import LanguageModel, load_model
from anchorlwf.run import RunFolder, environment, held_folder
from anchorlwf.training.card import card
from anchorlwf.training.checkpoint import Checkpoints, RunKey
from anchorlwf.training.dataset import Intake, Records, by_number, take_in
from anchorlwf.training.interrupt import Interrupt
from anchorlwf.training.reference_cache import GIB, Contents, ReferenceCache, build_reference_cache, reference_bytes
from anchorlwf.training.stop_rule import Certificate, StopRule
from anchorlwf.training.trainer import AnchorTrainer

__all__ = ["TrainResult", "run_folder", "train"]

_LEAST_STEPS, _PASSES = 200, 60
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """What training did."""

    weights: str
    """Folder of the adapter (or, for full fine-tuning, of the model)."""
    steps: int
    """Optimizer steps taken."""
    seconds: float
    """With the reference's states, where they were computed beforehand; without loading."""
    converged: bool
    """The certificate passes: every anchor holds, every answer is reproduced, the drift is within its budget."""
    missing: list[str]
    """Which of these three conditions are not met, in words; empty where training converged."""
    certificate: Certificate
    records: int
    anchors: int
    completion_tokens: int


def _processes() -> PartialState:
    """Which of how many processes this is; without a GPU it must be told so, or each takes itself for the only one."""
    return PartialState(cpu=not torch.cuda.is_available())


@contextlib.contextmanager
def run_folder(out: str | Path) -> Iterator[RunFolder]:
    """Hold the run folder while the context lasts; of several processes the main one does so for all.

    For whoever writes to the folder before `train` does, or wants to be refused before anything is loaded.

    Raises:
        ConflictError: another process holds it; it is named.
        StorageError: it cannot be written.
    """
    if _processes().is_main_process:
        with held_folder(out) as folder:
            yield folder
    else:
        yield RunFolder(out)


def train(
    model: LanguageModel | str | None,
    records: Source | Records,
    *,
    out: str | Path,
    config: TrainConfig | None = None,
    resume: bool = False,
    on_step: Callable[[dict[str, Any]], None] | None = None,
    on_reference: Callable[[int, int], None] | None = None,
) -> TrainResult:
    """Train a model on records with the paper's loss until every anchor holds.

    Ctrl-C and SIGTERM end it after the current step, with a checkpoint; Ctrl-C also keeps the weights.

    Args:
        model: the annotated model, its name, or None for the embedded one. It is changed in place: afterwards it is
            the tuned model.
        records: a JSONL file, or anything else that `load_records` takes. Only complete records are used. A file (a
            `RecordFile`, a torch `ConcatDataset` with one) is read from disk as needed: do not change it during
            training, except by appending lines.
        out: the run folder. Receives config.yaml, environment.json, metrics.jsonl, train.json, adapter/ (model/
            for full fine-tuning), checkpoints/ and, where it pays, reference/ (may be deleted afterwards).
        config: the objective and its limits.
        resume: continue from the newest complete checkpoint in the run folder. Otherwise checkpoints of an earlier run
            are removed.
        on_step: called with every row of metrics.jsonl.
        on_reference: called with (batches done, total) while the reference's states are computed.

    Raises:
        RecordError: something is not a record; there is no complete record, or no anchor among them; or the file was
            changed during training.
        StampError: a record belongs to another tokenizer or chat template.
        PromptError: a record is longer than the context.
        ModelError: the head cannot be applied outside the model, or LoRA would go on a tied head; or the loss became
            NaN or infinite, and the records are named. No weights are saved then, and those saved before remain.
        ConfigError: there is nothing to resume, or it belongs to another run; the reverse direction has an anchor with
            confidence 1; or the folder of the reference cache contains something else.
        ConflictError: another process trains into this folder.
        StorageError: the run folder cannot be written.
    """
    config = config or TrainConfig()
    listed = by_number(records)
    with run_folder(out) as folder:
        language_model = model if isinstance(model, LanguageModel) else load_model(model)
        warn_of_generation(language_model.causal.generation_config)
        intake = take_in(language_model, listed, config)
        _prepare(language_model, config)
        reference = language_model.reference_sha()
        checkpoints = _checkpoints(folder, intake, reference, config, language_model)
        start = _start(checkpoints, folder, config, resume)
        _attach(language_model, config)
        trainer = _trainer(language_model, intake, config, folder, checkpoints, on_step)
        began = time.perf_counter()
        trainer.cache = _reference_cache(trainer, intake.contents, folder, reference, on_reference)
        return _run(trainer, folder, intake, start, began)


def _run(trainer: AnchorTrainer, folder: RunFolder, intake: Intake, start: str | None, began: float) -> TrainResult:
    """Train, then save and certify, or end as a signal wants it."""
    interrupt = Interrupt(trainer.accelerator)
    trainer.add_callback(interrupt)
    with interrupt.held_back():
        trainer.train(resume_from_checkpoint=start)
        seconds = time.perf_counter() - began
        trainer.language_model.net.eval()
        if interrupt.ended_by is not None:
            _end(trainer, folder, interrupt.ended_by)
        return _finish(trainer, folder, intake, seconds)


def _checkpoints(
    folder: RunFolder, intake: Intake, reference: str, config: TrainConfig, model: LanguageModel
) -> Checkpoints:
    key = RunKey.of(intake.sha, reference, config, _processes().num_processes, model.device.type)
    return Checkpoints(folder.path / "checkpoints", key)


def _start(checkpoints: Checkpoints, folder: RunFolder, config: TrainConfig, resume: bool) -> str | None:
    """The checkpoint to go on from, the same in all processes; and the folder as a run that starts there finds it."""
    start = None
    if _processes().is_main_process:
        if resume:
            newest = checkpoints.newest()
            folder.forget_rows_after(checkpoints.step_of(newest))
            start = str(newest)
        else:
            checkpoints.clear()
            folder.write_json("environment.json", environment())
            (folder.path / "metrics.jsonl").unlink(missing_ok=True)
        config.save(folder.path / "config.yaml")
    [start] = broadcast_object_list([start])
    return start


def _finish(trainer: AnchorTrainer, folder: RunFolder, intake: Intake, seconds: float) -> TrainResult:
    """Save the weights, certify them, and write down both."""
    certificate = trainer.certify()  # before anything is saved: it raises where the weights are damaged
    result = _result(trainer, intake, seconds, _save(trainer, folder), certificate)
    if trainer.is_world_process_zero():
        folder.write_json("train.json", asdict(result))
    # No process returns before the weights are on disk.
    trainer.accelerator.wait_for_everyone()
    return result


def _end(trainer: AnchorTrainer, folder: RunFolder, ended_by: signal.Signals) -> NoReturn:
    """End a run that a signal has ended after a step: say what is kept and how to go on."""
    step = trainer.state.global_step
    told = f"{ended_by.name} ended training after step {step}; kept: {trainer.checkpoints.place(step)}"
    if ended_by == signal.SIGINT:
        told += f", {_save(trainer, folder)} (not certified)"
    if trainer.is_world_process_zero():
        how = (
            "To go on: anchorlwf train with the same records, model and options, and --resume (in Python resume=True)."
        )
        warnings.warn(f"{told}. {how}", AnchorLwfWarning, stacklevel=3)
    trainer.accelerator.wait_for_everyone()
    if ended_by == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + ended_by)


def _result(
    trainer: AnchorTrainer, intake: Intake, seconds: float, weights: Path, certificate: Certificate
) -> TrainResult:
    """What was done."""
    return TrainResult(
        weights=str(weights),
        steps=trainer.state.global_step,
        seconds=seconds,
        converged=certificate.passes(trainer.config.drift_budget),
        missing=certificate.missing(trainer.config.drift_budget),
        certificate=certificate,
        records=len(intake.records),
        anchors=certificate.anchors,
        completion_tokens=intake.completion_tokens,
    )


def _prepare(model: LanguageModel, config: TrainConfig) -> None:
    """Keep what stays, and make sure the head is what we think it is."""
    set_seed(config.seed)
    if isinstance(model.net, PeftModel):
        fix = "Merge it first, or load the base model alone."
        raise ModelError(wrong("model", "a base model", "one with an adapter", fix))
    probe_head(model)
    if config.method == "full":
        model.keep_reference_copy()


def _attach(model: LanguageModel, config: TrainConfig) -> None:
    """Attach what trains, or let all of the model train."""
    if config.method == "lora":
        model.attach_lora(config.rank, config.lora_alpha, config.lora_dropout, config.targets, config.seed)
    else:
        model.net.requires_grad_(True)
    if config.gradient_checkpointing:
        # The adapter's inputs come out of frozen layers, which a checkpoint would cut off from the gradient.
        model.net.enable_input_require_grads()
        model.causal.gradient_checkpointing_enable({"use_reentrant": False})


def _steps(config: TrainConfig, records: int) -> int:
    per_step = config.batch_size * config.accumulation * _processes().num_processes
    return config.max_steps or max(_LEAST_STEPS, _PASSES * math.ceil(records / per_step))


def _arguments(checkpoints: Checkpoints, config: TrainConfig, model: LanguageModel, records: int) -> TrainingArguments:
    on_gpu = model.device.type == "cuda"
    arguments = TrainingArguments(
        output_dir=str(checkpoints.folder),
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulation,
        learning_rate=config.learning_rate,
        max_steps=_steps(config, records),
        lr_scheduler_type="constant",
        weight_decay=0.0,
        seed=config.seed,
        data_seed=config.seed,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
        save_strategy="steps" if config.save_steps else "no",
        save_steps=config.save_steps or 500,
        use_cpu=not on_gpu,
        bf16=on_gpu and torch.cuda.is_bf16_supported(),
        dataloader_pin_memory=on_gpu,
        ddp_find_unused_parameters=False,
    )
    if arguments.n_gpu > 1:
        fix = "Start with torchrun --nproc-per-node, or show one GPU (CUDA_VISIBLE_DEVICES=0)."
        raise ConfigError(wrong("devices", "one GPU per process", f"{arguments.n_gpu} in one", fix))
    return arguments


def _trainer(
    model: LanguageModel,
    intake: Intake,
    config: TrainConfig,
    folder: RunFolder,
    checkpoints: Checkpoints,
    on_step: Callable[[dict[str, Any]], None] | None,
) -> AnchorTrainer:
    arguments = _arguments(checkpoints, config, model, len(intake.records))
    trainer = AnchorTrainer(model, intake.records, intake.lengths, config, arguments, checkpoints)
    rule = StopRule(lambda row: _report(folder, row, on_step))
    rule.trainer = trainer
    trainer.add_callback(rule)
    return trainer


def _reference_cache(
    trainer: AnchorTrainer,
    contents: Contents,
    folder: RunFolder,
    weights: str,
    on_batch: Callable[[int, int], None] | None,
) -> ReferenceCache | None:
    """The reference's states on disk, where they pay and fit; built by one process for all."""
    model, records, args = trainer.language_model, trainer.records, trainer.args
    limit = int(trainer.config.reference_cache_size * GIB)
    needed = reference_bytes(model, contents, summarized=trainer.summarized)
    place = folder.path / "reference"
    per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    if args.max_steps <= math.ceil(len(records) / per_step):
        reason = "one pass over the records would not use it twice"
    elif needed > limit:
        reason = f"it would take {needed / GIB:.2f} GiB of {limit / GIB:.2f} (reference_cache_size)"
    else:
        one = trainer.accelerator
        # The first of all, then the first of each other machine, then the rest, who need not check every file again.
        with one.main_process_first(), one.local_main_process_first(), one.autocast():
            return build_reference_cache(
                model,
                records,
                contents,
                place,
                limit=limit,
                packed=trainer.packed,
                summarized=trainer.summarized,
                weights=weights,
                checksums=one.is_local_main_process,
                on_batch=on_batch,
            )
    _log.info("no reference cache: %s", reason)
    return None


def _report(folder: RunFolder, row: dict[str, Any], on_step: Callable[[dict[str, Any]], None] | None) -> None:
    folder.log(row)
    if on_step is not None:
        on_step(row)


def _save(trainer: AnchorTrainer, folder: RunFolder) -> Path:
    """Save the adapter or the model, in safetensors, in one step."""
    model = trainer.language_model
    adapter = isinstance(model.net, PeftModel)
    place = folder.path / ("adapter" if adapter else "model")
    if trainer.is_world_process_zero():
        with staged_folder(place) as stage:
            if adapter:
                # Not the base's head or embedding beside an adapter on it, which loading would write over the base's.
                model.net.save_pretrained(stage, save_embedding_layers=False)
            else:
                model.net.save_pretrained(stage)
            model.codec.tokenizer.save_pretrained(stage)
            if adapter:
                # PEFT notes where the base lay on this machine; its name is what loads anywhere.
                noted = stage / "adapter_config.json"
                settings = {**json.loads(noted.read_text()), "base_model_name_or_path": model.name}
                noted.write_text(json.dumps(settings, indent=2) + "\n")
                note_adapter(stage, model.causal, model.stamp)
            (stage / "README.md").write_text(card(model, place.name), encoding="utf-8")
            # It tells of the weights that are now replaced.
            (folder.path / "train.json").unlink(missing_ok=True)
    return place
