"""What the TRL baselines share: their prompts, their adapter, their optimizer, and a model left as TRL found it.

TRL is written for programs that train once and exit. Here the same model is evaluated afterwards, so whatever TRL
patches or realigns on it is put back, and nothing but the adapter's weights has changed.
"""

import contextlib
import copy
import logging
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import (
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback

from anchorlwf.config import BaselineConfig
from anchorlwf.data.probe import Scorer
from anchorlwf.errors import ConfigError, ModelError, wrong
from anchorlwf.model.language_model import LanguageModel

__all__ = ["BaselinePrompt", "BaselineResult", "Build", "OnStep", "run"]

OnStep = Callable[[dict[str, Any]], None]
Build = Callable[[PeftModel, PreTrainedTokenizerBase, dict[str, Any]], Trainer]
"""The adapted network, a tokenizer that may be changed, and the common options -> a TRL trainer."""

_PATCHED = ("forward", "_original_forward", "generation_config", "model_tags")
_SLOWER = "Lower learning_rate."
_REALIGNED = ("bos_token_id", "eos_token_id", "pad_token_id", "use_cache")


@dataclass(frozen=True)
class BaselinePrompt:
    """One question with all that any of them learns from; each reads only its own fields."""

    messages: list[dict[str, Any]]
    """The chat up to the assistant's turn."""
    expected: str | list[str]
    """The right value, or several. A completion that `scorer` takes for right has reward 1, any other 0 (GRPO)."""
    scorer: Scorer = "contains"
    """As a `Probe` has it."""
    chosen: str | None = None
    """The corrected answer (DPO)."""
    rejected: str | None = None
    """The model's own answer (DPO)."""
    demonstration: str | None = None
    """What the teacher is shown (SDFT)."""


@dataclass(frozen=True)
class BaselineResult:
    """What training by a baseline did."""

    steps: int
    """Optimizer steps taken."""
    seconds: float
    tokens: int
    """Token positions put through the network: prompts, completions (each generated token once), padding, and the
    passes of reference and teacher."""
    losses: list[float]
    """One per step."""
    rewards: list[float] = field(default_factory=list)
    """GRPO: mean reward of each step's completions."""


def _common_options(model: LanguageModel, config: BaselineConfig) -> dict[str, Any]:
    """The options of `transformers.TrainingArguments` in which every baseline equals our own trainer."""
    on_gpu = model.device.type == "cuda"
    return {
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "max_steps": config.steps,
        "seed": config.seed,
        "data_seed": config.seed,
        "gradient_checkpointing": False,
        "disable_dropout": True,
        "remove_unused_columns": False,
        "logging_strategy": "steps",
        "logging_steps": 1,
        # It would put an average in the place of a loss that is no number.
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not on_gpu,
        "dataloader_pin_memory": on_gpu,
        # TRL's own default is True, on a CPU too. On a GPU the type of the weights decides, as in ours.
        "bf16": on_gpu and model.causal.dtype == torch.bfloat16,
    }


def run(
    model: LanguageModel, build: Build, config: BaselineConfig, measures: dict[str, str], on_step: OnStep | None
) -> BaselineResult:
    """Train the model's adapter with a TRL trainer; a model without one gets ours first.

    Args:
        model: changed in place; afterwards `model.net` is the tuned network in eval mode.
        build: makes the trainer.
        config: shared options.
        measures: what a row reports beside step and loss -> TRL's name of it.
        on_step: called with every step's row.

    Raises:
        ConfigError: more than one GPU in one process.
        ModelError: the loss, or the probabilities to sample from, became NaN or infinite.
    """
    _prepare_adapter(model, config)
    net, rows = model.net, _Rows(measures, on_step)
    with tempfile.TemporaryDirectory() as folder, _as_found(model), _quiet(), _counting(model.backbone) as counted:
        options = {"output_dir": folder, **_common_options(model, config)}
        if TrainingArguments(output_dir=folder, use_cpu=options["use_cpu"]).n_gpu > 1:
            raise ConfigError(wrong("devices", "one GPU", "several", "Show one GPU (CUDA_VISIBLE_DEVICES=0)."))
        trainer = build(net, _tokenizer(model), options)
        # TRL copies the adapter that it finds and takes the copy as the reference. Our reference is the base, and for a
        # policy that was warmed up the two differ; without the copy TRL switches the adapter off.
        if "ref" in net.peft_config:
            net.delete_adapter("ref")
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(rows)
        began = time.perf_counter()
        with _sampling_errors():
            trainer.train()
        seconds = time.perf_counter() - began
    net.eval()
    return BaselineResult(
        steps=trainer.state.global_step,
        seconds=seconds,
        tokens=counted[0],
        losses=[row["loss"] for row in rows.rows],
        rewards=[row["reward"] for row in rows.rows if "reward" in row],
    )


def _prepare_adapter(model: LanguageModel, config: BaselineConfig) -> None:
    if not isinstance(model.net, PeftModel):
        model.attach_lora(config.rank, config.lora_alpha, 0.0, config.targets, config.seed)
    # An adapter that was loaded from a folder comes frozen; this makes the active one trainable.
    model.net.set_adapter(model.net.active_adapter)


def _tokenizer(model: LanguageModel) -> PreTrainedTokenizerBase:
    """A copy for TRL, which pads and adds stop tokens by the tokenizer's own: so they are ours."""
    tokenizer = copy.deepcopy(model.codec.tokenizer)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(model.codec.end_id(model.stop_ids))
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(model.codec.pad_id)
    return tokenizer


@contextlib.contextmanager
def _as_found(model: LanguageModel) -> Iterator[None]:
    """Put back what TRL and accelerate patch on the network and realign in its configuration."""
    modules = (model.net, model.causal)
    patched = [{name: vars(module)[name] for name in _PATCHED if name in vars(module)} for module in modules]
    settings = (model.causal.config.get_text_config(), model.causal.generation_config)
    values = [{name: getattr(setting, name) for name in _REALIGNED if hasattr(setting, name)} for setting in settings]
    try:
        yield
    finally:
        for module, attributes in zip(modules, patched, strict=True):
            for name in _PATCHED:
                vars(module).pop(name, None)
            vars(module).update(attributes)
        for setting, own in zip(settings, values, strict=True):
            for name, value in own.items():
                setattr(setting, name, value)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """TRL and transformers warn of one another's deprecated options, and of adapters that are here on purpose."""
    logger = logging.getLogger("trl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _sampling_errors() -> Iterator[None]:
    """What torch says of probabilities that are no numbers, which it meets before any loss is computed."""
    try:
        yield
    except RuntimeError as error:
        if "probability tensor contains" not in str(error):
            raise
        raise ModelError(wrong("sampling", "finite numbers as probabilities", error, _SLOWER)) from error


@contextlib.contextmanager
def _counting(backbone: nn.Module) -> Iterator[list[int]]:
    """Count token positions that pass the network below the head, in the one entry of the list."""
    counted = [0]

    def count(_: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        counted[0] += (options["input_ids"] if "input_ids" in options else arguments[0]).numel()

    hook = backbone.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield counted
    finally:
        hook.remove()


class _Rows(TrainerCallback):
    """Collects one row per step from what TRL logs."""

    def __init__(self, measures: dict[str, str], on_step: OnStep | None) -> None:
        self.rows: list[dict[str, Any]] = []
        self._measures, self._on_step = measures, on_step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is None or "loss" not in logs:  # the summary at the end
            return
        row = {"step": state.global_step, "loss": logs["loss"]}
        if not math.isfinite(row["loss"]):
            raise ModelError(wrong(f"loss of step {row['step']}", "finite numbers", row["loss"], _SLOWER))
        row.update({name: logs[theirs] for name, theirs in self._measures.items() if theirs in logs})
        self.rows.append(row)
        if self._on_step is not None:
            self._on_step(row)
