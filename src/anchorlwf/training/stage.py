"""The training stage: records in, a run folder with an adapter out."""

import contextlib
import json
import logging
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
from transformers.integrations import TensorBoardCallback

from anchorlwf.config import TrainConfig
from anchorlwf.data.jsonl import Source
from anchorlwf.data.model_card import FACTS, card_text, write_card
from anchorlwf.errors import AnchorLwfWarning, ConfigError, ModelError, wrong
from anchorlwf.extras import require_reporters
from anchorlwf.files import staged_folder
from anchorlwf.model.adapter import note_adapter
from anchorlwf.model.generation import warn_of_generation
from anchorlwf.model.head import probe_head
from anchorlwf.model.language_model import LanguageModel, load_model
from anchorlwf.run import RunFolder, environment, held_folder
from anchorlwf.training.best_state import BestState
from anchorlwf.training.card import card_facts
from anchorlwf.training.checkpoint import Checkpoints, RunKey
from anchorlwf.training.dataset import Records, TrainingSet, by_number, read_training_set
from anchorlwf.training.interrupt import Interrupt
from anchorlwf.training.reference_cache import GIB, ReferenceCache, build_reference_cache, reference_bytes
from anchorlwf.training.step_context import StepContext, autocast
from anchorlwf.training.step_sampler import StepPlan
from anchorlwf.training.stop_report import StopReport
from anchorlwf.training.stop_rule import DriftControl, StopRule
from anchorlwf.training.trainer import AnchorTrainer

__all__ = ["TrainResult", "run_folder", "train"]

_FEWEST_STEPS, _PASSES = 200, 60
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """What training did."""

    weights: str
    """Folder of the adapter (or, for full fine-tuning, of the model)."""
    targets: str
    """What trained, in words, such as `MLP inputs: gate_proj, up_proj (30 layers)`."""
    steps: int
    """Optimizer steps taken."""
    seconds: float
    """With the reference's states, where they were computed beforehand; without loading."""
    converged: bool
    """The report passes: every anchor holds, every answer is reproduced, the drift is within its budget."""
    missing: list[str]
    """Which of these three conditions are not met, in words; empty where training converged."""
    plateau: bool
    """Training ended because nothing improved any more; the weights are the best it has seen."""
    report: StopReport
    """On the weights that were saved."""
    records: int
    """That were trained on."""
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
    on_begin: Callable[[], None] = lambda: None,
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
        on_begin: called once nothing is refused any more, by the main process: from then on the folder is this run's.
        on_step: called with every row of metrics.jsonl.
        on_reference: called with (batches done, total) while the reference's states are computed.

    Raises:
        RecordError: something is not a record; there is no complete record, or no anchor among them; or the file was
            changed during training.
        StampError: a record belongs to another tokenizer or chat template.
        PromptError: a record is longer than the context.
        ModelError: the head cannot be applied outside the model, or LoRA would go on a tied head; or the loss became
            NaN or infinite, and the records are named. No weights are saved then, and those saved before remain.
        ConfigError: there is nothing to resume, or it belongs to another run; an anchor of confidence 1 is learned in
            reverse; the reference's folder holds something else; a wrong device; a package of `report_to` is missing.
        ConflictError, StorageError: another process trains into the run folder, or it cannot be written.
    """
    config = config or TrainConfig()
    listed = by_number(records)
    with run_folder(out) as folder:
        language_model = model if isinstance(model, LanguageModel) else load_model(model)
        warn_of_generation(language_model.causal.generation_config)
        data = read_training_set(language_model, listed, config)
        _prepare(language_model, config)
        reference = language_model.reference_sha()
        key = RunKey.of(data.sha, reference, config, _processes().num_processes, language_model.device.type)
        checkpoints = Checkpoints(folder.path / "checkpoints", key)
        start = _start(checkpoints, resume)
        context = _context(language_model, config, data, checkpoints)
        began = time.perf_counter()
        context.cache = _reference_cache(context, folder, reference, on_reference)
        _take_over(folder, checkpoints, start, listed, config, on_begin)
        trainer, rule = _assembled(context, checkpoints, lambda row: _report(folder, row, on_step))
        return _run(trainer, rule, folder, start, began)


def _assembled(
    context: StepContext, checkpoints: Checkpoints, on_row: Callable[[dict[str, Any]], None]
) -> tuple[AnchorTrainer, StopRule]:
    """The trainer and the rule that ends it."""
    control = DriftControl(context.config)
    best = BestState(context.model.net, keeps=context.config.stop and context.config.method == "lora")
    trainer = AnchorTrainer(context, control, best, checkpoints)

    def on_every_row(row: dict[str, Any]) -> None:
        on_row(row)
        if context.config.report_to:
            trainer.log(_figures(row))

    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(checkpoints.folder.parent / "tensorboard")
    rule = StopRule(context, control, best, trainer.take_sums, on_every_row)
    trainer.add_callback(rule)
    return trainer, rule


def _figures(row: dict[str, Any]) -> dict[str, float]:
    """What is worth a curve in a row of metrics.jsonl, as flat numbers; shares in place of counts."""
    return {
        "loss": row["loss"],
        "anchor_probability": row["anchor_probability"],
        "anchors_held": row["held"] / max(1, row["anchors"]),
        "answers_reproduced": row["reproduced"] / max(1, row["records"]),
        "keep_kl": row["keep_kl"],
        "beta": row["beta"],
        "learning_rate": row["learning_rate"],
        **{f"held_out_drift/{kind}": drift["mean"] for kind, drift in row.get("held_out", {}).items()},
    }


def _run(trainer: AnchorTrainer, rule: StopRule, folder: RunFolder, start: Path | None, began: float) -> TrainResult:
    """Train, then report and save, or end as a signal wants it."""
    interrupt = Interrupt(trainer.accelerator)
    trainer.add_callback(interrupt)
    with interrupt.held_back():
        trainer.train(resume_from_checkpoint=None if start is None else str(start))
        seconds = time.perf_counter() - began
        trainer.context.model.net.eval()
        if interrupt.ended_by is not None:
            _end(trainer, folder, interrupt.ended_by)
        return _finish(trainer, rule, folder, seconds)


def _file_of(records: Records) -> str | None:
    """Where the corrections lie, for whoever looks at the run later; None: in memory."""
    parts = getattr(records, "datasets", [records])  # the second part of a `ConcatDataset` are keep records
    path = getattr(parts[0], "path", None)
    return None if path is None else str(Path(path).resolve())


def _start(checkpoints: Checkpoints, resume: bool) -> Path | None:
    """The checkpoint to go on from, the same in all processes; None: from the beginning."""
    start = checkpoints.newest() if resume and _processes().is_main_process else None
    [start] = broadcast_object_list([start])
    return start


def _take_over(
    folder: RunFolder,
    checkpoints: Checkpoints,
    start: Path | None,
    records: Records,
    config: TrainConfig,
    on_begin: Callable[[], None],
) -> None:
    """Make the folder that of a run which goes on from `start`; what is refused before leaves an earlier run there."""
    if not _processes().is_main_process:
        return
    if start is not None:
        folder.forget_rows_after(checkpoints.step_of(start))
    else:
        checkpoints.clear()
        folder.write_json("environment.json", {**environment(), "records": _file_of(records)})
        (folder.path / "metrics.jsonl").unlink(missing_ok=True)
    config.save(folder.path / "config.yaml")
    on_begin()


def _finish(trainer: AnchorTrainer, rule: StopRule, folder: RunFolder, seconds: float) -> TrainResult:
    """Report on the weights, the best ones where the last are not good enough, save them, and write down both."""
    context, step = trainer.context, trainer.state.global_step
    # Before anything is saved: it raises where the weights are damaged.
    report = rule.passed or _best_report(trainer, step)
    result = TrainResult(
        weights=str(_save(trainer, folder)),
        targets=str(context.model.targets or "all weights"),
        steps=step,
        seconds=seconds,
        converged=report.passes(context.config.drift_budget),
        missing=report.missing(context.config.drift_budget),
        plateau=rule.plateau,
        report=report,
        records=context.data.trained,
        anchors=report.anchors,
        completion_tokens=context.data.completion_tokens,
    )
    if trainer.is_world_process_zero():
        folder.write_json("train.json", asdict(result))
        write_card(folder.path)
    # No process returns before the weights are on disk.
    trainer.accelerator.wait_for_everyone()
    return result


def _best_report(trainer: AnchorTrainer, step: int) -> StopReport:
    """The report of the better ones of the last weights and the best ones before, which are put in their place."""
    context, best = trainer.context, trainer.best
    last = context.report(step)
    if last.passes(context.config.drift_budget) or not best.exchange():
        return last
    earlier = context.report(step)
    if earlier.rank <= last.rank:
        return earlier
    best.exchange()
    return last


def _end(trainer: AnchorTrainer, folder: RunFolder, ended_by: signal.Signals) -> NoReturn:
    """End a run that a signal has ended after a step: say what is kept and how to go on."""
    step = trainer.state.global_step
    told = f"{ended_by.name} ended training after step {step}; kept: {trainer.checkpoints.place(step)}"
    # The step before may have ruined the weights; those that were saved earlier are then worth more.
    sound = all(bool(weight.isfinite().all()) for weight in trainer.model.parameters() if weight.requires_grad)
    if ended_by == signal.SIGINT and sound:
        told += f", {_save(trainer, folder)} (without a stop report)"
    if trainer.is_world_process_zero():
        how = (
            "To go on: anchorlwf train with the same records, model and options, and --resume (in Python resume=True)."
        )
        warnings.warn(f"{told}. {how}", AnchorLwfWarning, stacklevel=3)
    trainer.accelerator.wait_for_everyone()
    if ended_by == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + ended_by)


def _prepare(model: LanguageModel, config: TrainConfig) -> None:
    """Keep what stays, and make sure the head is what we think it is."""
    require_reporters(config.report_to)
    set_seed(config.seed)
    if isinstance(model.net, PeftModel):
        fix = "Merge it first, or load the base model alone."
        raise ModelError(wrong("model", "a base model", "one with an adapter", fix))
    probe_head(model)
    model.stop_dropout()
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


def _context(model: LanguageModel, config: TrainConfig, data: TrainingSet, checkpoints: Checkpoints) -> StepContext:
    """The model with what trains attached, and what its steps are made of."""
    _attach(model, config)
    plan = _plan(data, config)
    return StepContext.build(
        model, config, data, plan, _arguments(checkpoints, config, model, plan, len(data.corrections))
    )


def _plan(data: TrainingSet, config: TrainConfig) -> StepPlan:
    kinds, processes = (len(data.corrections), len(data.keeps)), _processes().num_processes
    # No more micro-batches than there are records, where that can be had: one that stands in two counts twice.
    accumulation = min(config.accumulation, max(1, sum(kinds) // processes))
    return StepPlan.of(*kinds, batch_size=config.batch_size, micro_batches=accumulation * processes)


def _arguments(
    checkpoints: Checkpoints, config: TrainConfig, model: LanguageModel, plan: StepPlan, corrections: int
) -> TrainingArguments:
    steps = max(_FEWEST_STEPS, _PASSES * plan.steps_per_pass(corrections))
    on_gpu = model.device.type == "cuda"
    arguments = TrainingArguments(
        output_dir=str(checkpoints.folder),
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=plan.micro_batches // _processes().num_processes,
        learning_rate=config.learning_rate,
        max_steps=config.max_steps or steps,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        seed=config.seed,
        data_seed=config.seed,
        remove_unused_columns=False,
        report_to=list(config.report_to),
        run_name=checkpoints.folder.resolve().parent.name,
        project="anchorlwf",
        disable_tqdm=True,
        logging_strategy="no",
        # It would wait for every micro-batch; `take_sums` looks at the loss.
        logging_nan_inf_filter=False,
        save_strategy="steps" if config.save_steps else "no",
        save_steps=config.save_steps or 500,
        use_cpu=model.device.type == "cpu",
        # Weights in float32 were asked for: casting what goes through them would make drift of rounding.
        bf16=on_gpu and torch.cuda.is_bf16_supported() and model.causal.dtype != torch.float32,
        dataloader_pin_memory=on_gpu,
        ddp_find_unused_parameters=False,
    )
    if arguments.n_gpu > 1:
        fix = "Start with torchrun --nproc-per-node, or show one GPU (CUDA_VISIBLE_DEVICES=0)."
        raise ConfigError(wrong("devices", "one GPU per process", f"{arguments.n_gpu} in one", fix))
    # Of several processes, each is given a device of its own, to which the trainer moves the model.
    ours, theirs = ((device.type, device.index or 0) for device in (model.device, arguments.device))
    if arguments.world_size == 1 and ours != theirs:
        fix = "To train on another GPU, let only that one be seen (CUDA_VISIBLE_DEVICES=1)."
        raise ConfigError(wrong("device", f"{arguments.device}, where training runs", f"{model.device}", fix))
    return arguments


def _reference_cache(
    context: StepContext, folder: RunFolder, weights: str, on_batch: Callable[[int, int], None] | None
) -> ReferenceCache | None:
    """The reference's states on disk, where they pay and fit; built by one process for all."""
    model, data = context.model, context.data
    limit = int(context.config.reference_cache_size * GIB)
    needed = reference_bytes(model, data.contents, summarized=context.summarized)
    if context.arguments.max_steps <= context.plan.steps_per_pass(len(data.corrections)):
        reason = "one pass over the records would not use it twice"
    elif needed > limit:
        reason = f"it would take {needed / GIB:.2f} GiB of {limit / GIB:.2f} (reference_cache_size)"
    else:
        process = _processes()
        # The first of all, then the first of each other machine, then the rest, who need not check every file again.
        with process.main_process_first(), process.local_main_process_first(), autocast(context.arguments):
            return build_reference_cache(
                model,
                data.records,
                data.contents,
                folder.path / "reference",
                limit=limit,
                packed=context.packed,
                summarized=context.summarized,
                weights=weights,
                checksums=process.is_local_main_process,
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
    model = trainer.context.model
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
            facts = card_facts(trainer.context)
            (stage / "README.md").write_text(card_text(facts), encoding="utf-8")
            # It tells of the weights that are now replaced.
            (folder.path / "train.json").unlink(missing_ok=True)
        folder.write_json(FACTS, facts.model_dump(mode="json"))
    return place
