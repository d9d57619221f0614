"""Time and memory of one optimizer step: ours, TRL's SFT, and two plain loops over full logits.

All train the same adapter of the same random Qwen3 on the same tokens with AdamW. Ours and TRL's are the real trainers
at work, data loading, clipping and metrics included; the plain loops are the least one could write.

Shape suffixes: B records, T tokens, N completion tokens, V vocabulary.
"""

import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NoReturn

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from transformers import Qwen3Config, Qwen3ForCausalLM, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from anchorlwf.bench.objectives import top4_loss
from anchorlwf.bench.race import DeviceHere, Lap, OnRun, quiet, race
from anchorlwf.config import Config, Count, Fraction, TrainConfig
from anchorlwf.data.record import Anchor, Prompt, Record, new_id
from anchorlwf.model.batch import Batch, collate
from anchorlwf.model.language_model import LanguageModel, load_model
from anchorlwf.training import train

__all__ = ["STEPS", "Lane", "StepSetup", "compare_steps", "random_model", "random_records"]

_ENDLESS = 1_000_000


class StepSetup(Config):
    """The problem: LoRA on a random Qwen3 with tied embeddings; float32 on the CPU unless told otherwise."""

    section: ClassVar[str] = "step"

    records: Count = 4
    tokens: Annotated[int, Field(ge=2)] = 256
    """Per record, prompt and completion."""
    prompt_tokens: Count = 16
    """Of them, the prompt's."""
    anchors: Fraction = 0.05
    """Share of the completion tokens that are anchors of confidence 1; at least one token is."""
    layers: Count = 12
    width: Annotated[int, Field(ge=128, multiple_of=128)] = 512
    head_width: Annotated[int, Field(ge=64, multiple_of=64)] = 64
    vocabulary: Annotated[int, Field(ge=1024)] = 151_936
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: DeviceHere = "cpu"
    threads: Count = 2
    seed: int = 0

    @field_validator("prompt_tokens")
    @classmethod
    def _leaves_a_completion(cls, value: int, others: ValidationInfo) -> int:
        if value >= others.data.get("tokens", value + 1):
            raise ValueError(f"expected fewer than tokens ({others.data['tokens']})")
        return value


def compare_steps(
    setup: StepSetup, *, runs: int = 5, names: Sequence[str] | None = None, on_run: OnRun | None = None
) -> dict[str, dict[str, Any]]:
    """One optimizer step of each competitor, in turn; what `race` returns, with the weights as `held_bytes`.

    Raises:
        ConfigError: fewer than one run, or TRL missing where it is asked for.
    """
    chosen = tuple(names or STEPS)
    return race(_compete, setup, chosen, runs=runs, threads=setup.threads, device=setup.device, on_run=on_run)


def _compete(setup: StepSetup, name: str, lap: Lap) -> None:
    quiet()
    model = random_model(setup)
    held = sum(weight.numel() * weight.element_size() for weight in model.causal.parameters())
    STEPS[name](Lane(setup, model, random_records(setup, model), lambda: lap(held)))


@dataclass(frozen=True)
class Lane:
    """What a competitor gets."""

    setup: StepSetup
    model: LanguageModel
    records: list[Record]
    lap: Callable[[], None]
    """To be called after each step."""

    @property
    def on_gpu(self) -> bool:
        """Whether the model is."""
        return self.model.device.type == "cuda"


def random_model(setup: StepSetup) -> LanguageModel:
    """A random Qwen3 with the embedded model's tokenizer, whose ids are the first of its vocabulary."""
    config = Qwen3Config(
        vocab_size=setup.vocabulary,
        hidden_size=setup.width,
        intermediate_size=3 * setup.width,
        num_hidden_layers=setup.layers,
        num_attention_heads=max(2, setup.width // setup.head_width),
        num_key_value_heads=max(1, setup.width // setup.head_width // 2),
        head_dim=setup.head_width,
        max_position_embeddings=max(512, setup.tokens),
        tie_word_embeddings=True,
    )
    devices = [setup.device] if setup.device != "cpu" else []
    with torch.random.fork_rng(devices=devices), torch.device(setup.device):
        torch.manual_seed(setup.seed)
        net = Qwen3ForCausalLM(config).to(getattr(torch, setup.dtype)).eval()
    return LanguageModel(net, load_model(dtype="float32", device="cpu").codec, "random")


def random_records(setup: StepSetup, model: LanguageModel) -> list[Record]:
    """Records of random token ids, all of one length."""
    rng, stamp, records = random.Random(setup.seed), model.stamp, []
    for number in range(setup.records):
        ids = [rng.randrange(setup.vocabulary) for _ in range(setup.tokens)]
        prompt_ids, completion_ids = ids[: setup.prompt_tokens], ids[setup.prompt_tokens :]
        count = max(1, round(setup.anchors * len(completion_ids)))
        positions = sorted(rng.sample(range(len(completion_ids)), count))
        records.append(
            Record.build(
                Prompt(messages=[{"role": "user", "content": str(number)}]),
                stamp,
                prompt_ids=prompt_ids,
                completion_ids=completion_ids,
                decode=model.codec.decode,
                record_id=new_id("bench", number),
                anchors=[Anchor(position=position, token_id=completion_ids[position]) for position in positions],
            )
        )
    return records


def _ours(cached: bool = True, checkpointing: bool = False) -> "Step":
    """`anchorlwf.train`; with the reference's states on disk, as from the second epoch on, or computed beside."""

    def step(lane: Lane) -> None:
        config = TrainConfig(
            batch_size=lane.setup.records,
            max_steps=_ENDLESS,
            stop=False,
            seed=lane.setup.seed,
            gradient_checkpointing=checkpointing,
            reference_cache_size=TrainConfig.model_fields["reference_cache_size"].default if cached else 0,
        )
        with tempfile.TemporaryDirectory() as folder:
            train(lane.model, lane.records, out=folder, config=config, on_step=lambda _row: lane.lap())

    return step


class _AfterStep(TrainerCallback):
    def __init__(self, lap: Callable[[], None]) -> None:
        self._lap = lap

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._lap()


def _trl(lane: Lane) -> None:
    """TRL's SFTTrainer on the same completions (its head is fused and chunked; it has no reference)."""
    from anchorlwf.training.trl_library import require_trl

    require_trl()
    from datasets import Dataset, disable_progress_bars
    from trl import SFTConfig, SFTTrainer

    rows = [
        {
            "input_ids": [*record.prompt_ids, *record.completion_ids],
            "completion_mask": [0] * len(record.prompt_ids) + [1] * len(record.completion_ids),
        }
        for record in lane.records
    ]
    _attach(lane.model)
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        options = SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=lane.setup.records,
            max_steps=_ENDLESS,
            learning_rate=3e-4,
            lr_scheduler_type="constant",
            use_cpu=not lane.on_gpu,
            bf16=lane.on_gpu,
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            save_strategy="no",
            completion_only_loss=True,
            max_length=None,
            seed=lane.setup.seed,
            gradient_checkpointing=False,
            dataloader_pin_memory=lane.on_gpu,
        )
        trainer = SFTTrainer(
            lane.model.net,
            options,
            train_dataset=Dataset.from_list(rows),
            processing_class=lane.model.codec.tokenizer,
            callbacks=[_AfterStep(lane.lap)],
        )
        trainer.train()


def _full_logits(loss: Callable[[LanguageModel, Batch], Tensor]) -> "Step":
    """The plain loop around a loss over the logits of every position, prompts included, as most code does it."""

    def step(lane: Lane) -> NoReturn:
        model = lane.model
        _attach(model)
        model.net.train()
        weights = [weight for weight in model.net.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=3e-4, weight_decay=0.0)
        batch = collate(lane.records, model.codec.pad_id).to(model.device)
        while True:
            with torch.autocast(model.device.type, torch.bfloat16, enabled=lane.on_gpu):
                value = loss(model, batch)
            value.backward()
            clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            lane.lap()

    return step


def _attach(model: LanguageModel) -> None:
    default = TrainConfig()
    model.attach_lora(default.rank, default.lora_alpha, default.lora_dropout, default.targets, default.seed)


def _logits(model: LanguageModel, batch: Batch) -> Tensor:
    """At every position: [B, T, V]."""
    inputs = {"input_ids": batch.input_ids_BT, "attention_mask": batch.attention_mask_BT}
    logits_BTV: Tensor = model.net(**inputs, use_cache=False).logits
    return logits_BTV


def _cross_entropy(model: LanguageModel, batch: Batch) -> Tensor:
    labels_BT = torch.full_like(batch.input_ids_BT, -100)
    labels_BT[batch.row_N, batch.column_N] = batch.token_ids_N
    return cross_entropy(_logits(model, batch).flatten(0, 1), labels_BT.flatten())


def _top4(model: LanguageModel, batch: Batch) -> Tensor:
    """lawftrack's: the reference's logits are held, and the anchors' probabilities are measured beside the loss."""
    with model.reference():
        ref_logits_NV = batch.select(_logits(model, batch))
    logits_NV = batch.select(_logits(model, batch))
    loss = top4_loss(logits_NV, ref_logits_NV, batch.token_ids_N, batch.confidence_N).mean()
    anchor_N = batch.confidence_N > 0
    logits_NV.softmax(-1)[anchor_N, batch.token_ids_N[anchor_N]].sum().item()
    return loss


Step = Callable[[Lane], None]
STEPS: dict[str, Step] = {
    "ours": _ours(),
    "ours_uncached": _ours(cached=False),
    "ours_checkpointing": _ours(checkpointing=True),
    "trl_sft": _trl,
    "full_ce": _full_logits(_cross_entropy),
    "full_top4": _full_logits(_top4),
}
"""By name: what steps for ever."""
