"""Options of every stage: frozen, checked, and readable from and to YAML."""

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from anchorlwf.errors import ConfigError, wrong
from anchorlwf.files import write_atomic

__all__ = [
    "YAML_ERRORS",
    "AnnotateConfig",
    "BaselineConfig",
    "Config",
    "EvaluateConfig",
    "GateConfig",
    "ParaphraseConfig",
    "RetainConfig",
    "TrainConfig",
    "loading_options",
]

YAML_ERRORS = (OSError, ValueError, RecursionError, yaml.YAMLError)
"""What reading YAML from a file may raise. ValueError: bytes that are no text, the 99th of a month."""
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What every generator takes."""
Listed = BeforeValidator(lambda value: value.split(",") if isinstance(value, str) else value)
"""For tuples: on a command line they are `1,2`."""
Names = BeforeValidator(
    lambda value: [name for part in value.split(",") if (name := part.strip())] if isinstance(value, str) else value
)
Reporters = Annotated[
    tuple[Literal["tensorboard", "trackio", "wandb"], ...],
    Listed,
    # Of validators before, the last one comes first.
    BeforeValidator(lambda value: () if value in ("none", ["none"], ("none",)) else value),
]


_LOADING = ("model", "device", "dtype")
"""What a file may say beside the options of stages, for every command that loads a model."""


def _read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises `ConfigError`."""
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except YAML_ERRORS as error:
        raise ConfigError(f"{path}: expected a YAML file, got {error}. Check the path and the syntax.") from error
    if data is not None and not isinstance(data, dict):
        raise ConfigError(f"{path}: expected `option: value` lines, got {type(data).__name__}. Mend the file.")
    return {str(name): value for name, value in (data or {}).items()}


def loading_options(path: str | Path) -> dict[str, str]:
    """The `model`, `device` and `dtype` that a YAML file names at its top level.

    Raises:
        ConfigError: the file is missing, no mapping, or one of them is no text.
    """
    found = {name: value for name, value in _read_yaml(path).items() if name in _LOADING and value is not None}
    for name, value in found.items():
        if not isinstance(value, str):
            raise ConfigError(wrong(f"{path}, {name}", "text", repr(value), "Mend the file."))
    return found


def _names(value: object) -> object:
    """`gate_proj,up_proj` as a list; words for a choice and patterns as they are."""
    plain = isinstance(value, str) and re.fullmatch(r"[\w.]+(,[\w.]+)*", value)
    return value.split(",") if isinstance(value, str) and plain and value not in ("auto", "mlp") else value


Targets = Annotated[str | list[str], BeforeValidator(_names)]
"""Words for a choice, a pattern or names of layers; names on a command line are `gate_proj,up_proj`."""


class Config(BaseModel):
    """What every configuration shares: frozen, checked, from and to YAML."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
    section: ClassVar[str]
    """Where these options stand in a file that holds those of several stages (`recipes/gpu`)."""

    @classmethod
    def of(cls, **options: Any) -> Self:
        """Check options given by a person; options that are None take their default.

        Raises:
            ConfigError: names each wrong option, what was expected and what was got.
        """
        given = {key: value for key, value in options.items() if value is not None}
        try:
            return cls(**given)
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, item['loc']))}: {item['msg'].replace('Input should be', 'expected')}, "
                f"got {item['input']!r}"
                for item in error.errors()
            )
            raise ConfigError(f"{cls.__name__}: {problems}. Known options: {', '.join(cls.model_fields)}.") from error

    def updated(self, **options: Any) -> Self:
        """The same configuration with some options replaced; None leaves one as it is. Raises `ConfigError`."""
        return type(self).of(**{**self.model_dump(), **{k: v for k, v in options.items() if v is not None}})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a YAML file: the options themselves, or those of several stages, of which this one's section is read.

        A file of sections may lack this stage's; the defaults then hold. What it says of the model is left to
        `loading_options`.

        Raises:
            ConfigError: the file is missing, no mapping, or holds a wrong option.
        """
        options = _read_yaml(path)
        section = options.get(cls.section)
        if isinstance(section, dict) and cls.section not in cls.model_fields:
            options = section
        elif any(isinstance(options.get(stage), dict) for stage in _SECTIONS - set(cls.model_fields)):
            options = {}
        else:
            left = set(_LOADING) - set(cls.model_fields)
            options = {name: value for name, value in options.items() if name not in left}
        return cls.of(**{str(name): value for name, value in options.items()})

    @classmethod
    def load_section(cls, path: str | Path) -> Self:
        """Read the section of this stage alone from a YAML file; a file without one leaves the defaults.

        Raises:
            ConfigError: the file is missing, or the section is no mapping or holds a wrong option.
        """
        section = _read_yaml(path).get(cls.section)
        if not isinstance(section, dict | None):
            raise ConfigError(wrong(f"{path}, {cls.section}", "`option: value` lines", repr(section), "Mend the file."))
        return cls.of(**{str(name): value for name, value in (section or {}).items()})

    def save(self, path: str | Path) -> None:
        """Write a YAML file that `load` reads back to an equal configuration."""
        write_atomic(path, yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))


class AnnotateConfig(Config):
    """How answers are decoded and corrected."""

    section: ClassVar[str] = "annotate"

    max_new_tokens: Count = 512
    """Maximum number of completion tokens; an answer that reaches it is recorded as truncated."""
    alternatives: Count = 8
    """Tokens offered at each position."""
    confidence: Annotated[float, Field(gt=0, le=1)] = 1.0
    """c_t of new anchors."""
    original: bool = True
    """Decode and store the model's uncorrected answer too (target annotator; a person always sees it)."""


class RetainConfig(Config):
    """What a model writes itself to be kept as it was, when nobody gives it prompts."""

    section: ClassVar[str] = "retain"

    general: Annotated[int, Field(ge=0)] = 64
    """Prompts about anything."""
    near: Annotated[int, Field(ge=0)] = 48
    """Prompts that begin like a corrected one, of all corrected ones together."""
    prompt_tokens: Annotated[int, Field(ge=2)] = 48
    """Maximum number of tokens of a prompt the model writes; longer ones are left out."""
    answer_tokens: Count = 32
    """Maximum number of tokens of an answer; longer ones are cut."""
    temperature: Positive = 1.0
    """Of the sampling; 1 is the model's own distribution."""
    batch_size: Count = 32
    """Prompts written together; with another size the model writes other ones."""
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Share of the general and near records that is never to be trained on, for measuring drift."""
    seed: Seed = 0
    """Of the sampling."""


class ParaphraseConfig(Config):
    """How many other wordings of corrected prompts are found without people."""

    section: ClassVar[str] = "paraphrase"

    each: Annotated[int, Field(ge=0)] = 8
    """Maximum number of wordings of one corrected prompt; at most half of them are the model's own."""
    total: Annotated[int, Field(ge=0)] = 64
    """Maximum number of wordings of all corrected prompts together, an equal number of each."""
    rounds: Annotated[int, Field(ge=0)] = 2
    """How often the model is asked for wordings of each prompt; 0: never."""
    rules: Literal["agreeing", "all", "none"] = "agreeing"
    """Wordings made by rule. agreeing: those that the reference answers with what was rejected; where none is, half
    as many of all."""


class TrainConfig(Config):
    """How a model is trained on records. Defaults are for a handful of corrections with LoRA."""

    section: ClassVar[str] = "train"

    method: Literal["lora", "full"] = "lora"
    """lora: the reference is the model with its adapter off. full: the reference is a frozen copy."""
    rank: Count = 8
    """Of LoRA."""
    lora_alpha: Positive = 64.0
    """The adapter's output is multiplied by this over the rank: by 8."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """On the adapter's input."""
    targets: Targets = "auto"
    """What gets LoRA: auto, mlp (the layers through which MLP blocks read), all-linear, a pattern or names of layers.
    auto: as mlp where there are such layers; else the inputs of experts, of attention or of a recurrent mixer. A head
    tied to the embedding is refused."""
    learning_rate: Positive = 3e-4
    """Constant, but lowered when keep records are held out and the corrections do not fit into one step. No weight
    decay, gradients clipped at norm 1."""
    max_steps: Count | None = None
    """Maximum number of optimizer steps; the stop rule usually ends training long before. None: 200, or 60 passes over
    the records where that is more."""
    batch_size: Count = 16
    """Maximum number of records per device and micro-batch; keep records take half of it."""
    accumulation: Count = 1
    """Micro-batches per optimizer step."""
    direction: Literal["forward", "reverse"] = "forward"
    """reverse is the printed formula: it needs confidence < 1 and hardly learns improbable anchors."""
    reduction: Literal["token", "balanced"] = "balanced"
    """token: the paper's mean over all tokens. balanced: anchors and keep tokens averaged apart."""
    alpha: Positive = 1.0
    """Weight of anchors."""
    beta: Annotated[float, Field(ge=0)] = 10.0
    """Weight of keep tokens at the start; steered while the drift is over its budget. 0: anchors alone train."""
    hold: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """An anchor holds once it is the greedy choice with this share of its target probability."""
    hinge: bool = True
    """A held anchor stops pulling."""
    drift_budget: Positive = 0.002
    """Maximum mean KL(reference || model), in nats per token: over held-out answers or, without any, over the keep
    tokens of the records."""
    stop: bool = True
    """Stop once every anchor holds, every answer is reproduced and the drift is within its budget."""
    reproduce: bool = True
    """Ask for reproduced answers. Not where records have keep tokens that the reference would not choose."""
    impl: Literal["auto", "dense", "chunked", "triton"] = "auto"
    """auto: the quickest there is; from a summary of the reference where one is kept (docs/method.md), else chunked, on
    a GPU with a kernel in Triton. The others compare both models' logits, every time."""
    loss_memory: Positive = 1.0
    """Maximum GiB that the loss takes on a GPU beside the model; never more than a thirty-second of the card."""
    save_steps: Annotated[int, Field(ge=0)] = 0
    """Checkpoint every so many steps, for resuming; 0: none."""
    gradient_checkpointing: bool = False
    """Compute activations again on the way back: less memory, more time."""
    mixed_precision: Literal["auto", "no", "bf16"] = "auto"
    """What the steps of float32 weights multiply in on a CPU. auto: bfloat16, where the processor has it and the
    network is wide. What is measured stays float32. On a GPU the type of the weights decides."""
    report_to: Reporters = ()
    """Where every step's figures are sent besides metrics.jsonl: tensorboard, trackio, wandb; `none` is the empty list.
    TensorBoard's files go into the run folder, the others may go to their servers."""
    reference_cache_size: Annotated[float, Field(ge=0)] = 8.0
    """Maximum GiB on disk for the reference's hidden states, kept where there is more than one pass over the records
    and they fit. Steps then need no reference forward. 0: never kept."""
    seed: Seed = 0
    """Of the adapter's weights, the order of records and dropout."""


class BaselineConfig(Config):
    """How a baseline of TRL (GRPO, DPO, self-distillation) is trained, on the adapter that `TrainConfig` gives ours."""

    section: ClassVar[str] = "baseline"

    rank: Count = 8
    """Of LoRA."""
    lora_alpha: Positive = 64.0
    """As for `train`."""
    targets: Targets = "auto"
    """As for `train`."""
    learning_rate: Positive = 3e-4
    """Constant; no weight decay, gradients clipped at norm 1."""
    steps: Count = 100
    """Optimizer steps, all of which are taken."""
    batch_size: Count = 16
    """Prompts (DPO: pairs) per step; fewer where there are fewer."""
    seed: Seed = 0
    """Of adapter and sampling."""
    num_generations: Annotated[int, Field(ge=2)] = 8
    """Completions sampled per prompt and step (GRPO, SDFT)."""
    temperature: Positive = 1.0
    """Of the sampling."""
    max_new_tokens: Count = 64
    """Maximum number of tokens of a sampled completion."""
    kl_coef: Annotated[float, Field(ge=0)] = 0.04
    """GRPO: weight of KL(model || reference), TRL's `beta`."""
    dpo_beta: Positive = 0.1
    """DPO: how strongly it is held to the reference."""
    teacher_prompt: str = "{privileged_context} {prompt}"
    """SDFT: how the teacher is shown the demonstration, as TRL's `teacher_prompt_template`."""

    @field_validator("teacher_prompt")
    @classmethod
    def _both_places(cls, template: str) -> str:
        """Both places named, and nothing else in braces."""
        try:
            filled = template.format(prompt="\0", privileged_context="\1")
        except (LookupError, ValueError):
            filled = ""
        if not {"\0", "\1"} <= set(filled):
            raise ValueError("expected text with {prompt} and {privileged_context}")
        return template


class EvaluateConfig(Config):
    """How a tuned model is measured."""

    section: ClassVar[str] = "evaluate"

    max_new_tokens: Count = 128
    """Maximum number of tokens of an answer; more where a corrected answer is longer."""
    batch_size: Count = 128
    """Prompts decoded together."""
    confidence_level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Of the bootstrap intervals."""
    resamples: Count = 2000
    """Of the bootstrap."""
    generation: Literal["greedy", "own"] = "greedy"
    """greedy: the plain argmax. own: answers as the model's generation config has them, penalties and sampling
    included; the KL is measured on greedy continuations all the same."""
    kl_prompts: Annotated[int, Field(ge=0)] = 64
    """Held-out prompts whose reference continuations measure the KL."""
    tasks: Annotated[list[str], Names] = []
    """Tasks of lm-evaluation-harness, run on base and tuned model."""
    tasks_path: str | None = None
    """Folder with task YAML files of your own."""
    task_limit: Count | None = None
    """Maximum number of documents per task; None: all."""
    seed: Seed = 0
    """Of the bootstrap, the prompts that measure the KL, and few-shot examples."""


class GateConfig(Config):
    """What a tuned model must reach before it may ship. What is left out is not asked for."""

    section: ClassVar[str] = "gate"

    recall: Fraction | None = None
    """Minimum share of corrected prompts answered right."""
    paraphrase: Fraction | None = None
    """Minimum share of paraphrases answered right."""
    near: Fraction | None = None
    """Minimum share kept of the near facts that the base had right."""
    kept: Fraction | None = None
    """Minimum share kept of the unrelated facts that the base had right."""
    skills: Fraction | None = None
    """Minimum share kept of the skills that the base had right."""
    flips: Annotated[int, Field(ge=0)] | None = None
    """Maximum number of answers, of all probes, that were right before and are wrong now."""
    kl: Annotated[float, Field(ge=0)] | None = None
    """Maximum mean KL(reference || model) on held-out continuations, nats per token."""
    tasks: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Maximum drop in every metric of a harness task (`name`), or in one of them (`name:metric`)."""

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        if not self.model_dump(exclude_defaults=True):
            raise ValueError("expected at least one threshold")
        return self


_SECTIONS = {
    kind.section
    for kind in (
        AnnotateConfig,
        RetainConfig,
        ParaphraseConfig,
        TrainConfig,
        BaselineConfig,
        EvaluateConfig,
        GateConfig,
    )
}
