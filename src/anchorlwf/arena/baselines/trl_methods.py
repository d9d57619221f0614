"""Baselines as TRL implements them: GRPO, DPO and self-distillation (SDFT).

All train the adapter our method trains, with AdamW at a constant rate; what each optimizes stands in its docstring.
The reference of all three is the model with its adapter off, also when the adapter was warmed up before.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from peft import PeftModel
from transformers import PreTrainedTokenizerBase, Trainer

from anchorlwf.arena.baselines.trl_run import BaselinePrompt, BaselineResult, OnStep, run
from anchorlwf.config import BaselineConfig
from anchorlwf.data.probe import Probe, score
from anchorlwf.decoding.greedy import decode_batch
from anchorlwf.errors import ConfigError, PromptError, RecordError, wrong
from anchorlwf.model.language_model import LanguageModel
from anchorlwf.training.trl_library import require_trl

__all__ = ["BaselinePrompt", "BaselineResult", "train_dpo", "train_grpo", "train_sdft"]


def train_grpo(
    model: LanguageModel, prompts: Sequence[BaselinePrompt], config: BaselineConfig, *, on_step: OnStep | None = None
) -> BaselineResult:
    """Group relative policy optimization: sample, reward what names the right value, push towards it.

    One update per batch of samples, so nothing is clipped. A completion's advantage is its reward less the mean of its
    group, over the group's standard deviation; the loss is averaged over all tokens of the batch (TRL's `dapo`), plus
    `kl_coef` times the k3 estimate of KL(model || reference). A group whose rewards are all equal has advantage 0: a
    model that never says the right value learns nothing.

    Args:
        model: changed in place; the adapter it may have is trained on.
        prompts: `messages` and `expected`. What does not fill a batch waits for the next epoch's shuffle.
        config: see `BaselineConfig`.
        on_step: called with {step, loss, reward, kl} after each step; `kl` (nats per token) only where it is weighted.

    Raises:
        ConfigError: TRL is not installed.
        RecordError: no prompts.
        PromptError: a prompt that fills the context.
    """
    require_trl()
    _check_any(prompts)
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    codec, probes, sampling = model.codec, [_probe(prompt) for prompt in prompts], _sampling(model, prompts, config)

    def reward(completion_ids: list[list[int]], index: list[int], **_: Any) -> list[float]:
        return [float(score(probes[i], codec.decode(ids))) for ids, i in zip(completion_ids, index, strict=True)]

    def build(net: PeftModel, tokenizer: PreTrainedTokenizerBase, options: dict[str, Any]) -> Trainer:
        arguments = GRPOConfig(
            **options, **sampling, beta=config.kl_coef, loss_type="dapo", scale_rewards="group", num_iterations=1
        )
        rows = [{"prompt": _prompt(model, prompt), "index": i} for i, prompt in enumerate(prompts)]
        return GRPOTrainer(net, reward, arguments, Dataset.from_list(rows), processing_class=tokenizer)

    return run(model, build, config, {"reward": "reward", "kl": "kl"}, on_step)


def train_dpo(
    model: LanguageModel, prompts: Sequence[BaselinePrompt], config: BaselineConfig, *, on_step: OnStep | None = None
) -> BaselineResult:
    """Direct preference optimization: the corrected answer preferred to the model's own.

    The loss of a pair is -log sigmoid(dpo_beta * margin), the margin being by how much the log-ratio to the reference
    of the chosen answer exceeds that of the rejected one (sums over tokens, nats).

    Args:
        model: changed in place; the adapter it may have is trained on.
        prompts: `messages`, `chosen` and `rejected`, which must differ.
        config: see `BaselineConfig`.
        on_step: called with {step, loss, margin, accuracy} after each step; `margin` is dpo_beta times the margin.

    Raises:
        ConfigError: TRL is not installed.
        RecordError: no prompts, no answer, or the same answer twice.
        PromptError: prompt and answer together do not fit the context.
    """
    require_trl()
    _check_any(prompts)
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    class PairTrainer(DPOTrainer):
        """Trains on the token ids that our own method would see; TRL would put a line break behind each turn."""

        def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
            return dataset

    pairs = [_pair(model, prompt) for prompt in prompts]

    def build(net: PeftModel, tokenizer: PreTrainedTokenizerBase, options: dict[str, Any]) -> Trainer:
        arguments = DPOConfig(
            **options,
            per_device_train_batch_size=min(config.batch_size, len(pairs)),
            beta=config.dpo_beta,
            loss_type=["sigmoid"],
            max_length=None,
        )
        return PairTrainer(net, args=arguments, train_dataset=Dataset.from_list(pairs), processing_class=tokenizer)

    return run(model, build, config, {"margin": "rewards/margins", "accuracy": "rewards/accuracies"}, on_step)


def train_sdft(
    model: LanguageModel, prompts: Sequence[BaselinePrompt], config: BaselineConfig, *, on_step: OnStep | None = None
) -> BaselineResult:
    """Self-distillation fine-tuning: the reference, shown a demonstration, teaches the model, which is not.

    The model samples answers; at each of their tokens KL(teacher || model) over the whole vocabulary is minimized,
    averaged over an answer's tokens, then over answers. In this direction the gradient is p - p_teacher; in the other
    one, and in TRL's default half-way, it carries a factor p and hardly learns a token that the model rules out. What
    the teacher does not read from a demonstration, the model cannot learn.

    Args:
        model: changed in place; the adapter it may have is trained on.
        prompts: `messages` (a user's turn last), `expected` and `demonstration`.
        config: see `BaselineConfig`.
        on_step: called with {step, loss} after each step.

    Raises:
        ConfigError: TRL is not installed; or the teacher, demonstration before its eyes, answers no prompt right, so
            that there is nothing to distil.
        RecordError: no prompts or no demonstration.
        PromptError: a prompt that fills the context.
    """
    require_trl()
    _check_any(prompts)
    from datasets import Dataset
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer

    shown = [_shown(prompt, config) for prompt in prompts]
    sampling = _sampling(model, shown, config)
    _check_teacher(model, shown, config)

    def build(net: PeftModel, tokenizer: PreTrainedTokenizerBase, options: dict[str, Any]) -> Trainer:
        arguments = SDFTConfig(
            **options,
            **sampling,
            max_prompt_length=None,
            teacher_model_kind="base",
            teacher_prompt_template=config.teacher_prompt,
            distillation_mode="full_logits",
            distillation_alpha=0.0,
            num_iterations=1,
        )
        rows = [{"prompt": _prompt(model, prompt), "privileged_context": prompt.demonstration} for prompt in prompts]
        return SDFTTrainer(net, arguments, Dataset.from_list(rows), processing_class=tokenizer)

    return run(model, build, config, {}, on_step)


def _check_any(prompts: Sequence[BaselinePrompt]) -> None:
    if not prompts:
        raise RecordError(wrong("prompts", "at least one", "none", "Give the questions that were corrected."))


def _probe(prompt: BaselinePrompt) -> Probe:
    """The value checker of the evaluation, so that reward and measure are one."""
    return Probe(id="reward", kind="recall", messages=prompt.messages, expected=prompt.expected, scorer=prompt.scorer)


def _prompt(model: LanguageModel, prompt: BaselinePrompt) -> Any:
    """What TRL tokenizes to the ids of `Codec.encode_prompt`: the chat, or plain text for a model without template."""
    return prompt.messages if model.codec.tokenizer.chat_template else prompt.messages[0]["content"]


def _sampling(model: LanguageModel, prompts: Sequence[BaselinePrompt], config: BaselineConfig) -> dict[str, Any]:
    """TRL's options for groups of sampled completions: all of a step are sampled together.

    They train in as many parts as a prompt has samples, for at once they can take more memory than a machine has.
    """
    room = min(model.room(model.codec.encode_prompt(prompt.messages), config.max_new_tokens) for prompt in prompts)
    return {
        "per_device_train_batch_size": min(config.batch_size, len(prompts)),
        "gradient_accumulation_steps": config.num_generations,
        "num_generations": config.num_generations,
        "max_completion_length": room,
        "temperature": config.temperature,
        "top_p": 1.0,
        "top_k": 0,
    }


def _pair(model: LanguageModel, prompt: BaselinePrompt) -> dict[str, list[int]]:
    prompt_ids = model.codec.encode_prompt(prompt.messages)
    chosen, rejected = (_answer(model, name, getattr(prompt, name)) for name in ("chosen", "rejected"))
    if chosen == rejected:
        raise RecordError(wrong("chosen and rejected", "two answers", repr(prompt.chosen), "Leave the prompt out."))
    longest = max(len(chosen), len(rejected))
    if model.room(prompt_ids, longest) < longest:
        got = f"{len(prompt_ids)} + {longest}"
        raise PromptError(wrong("prompt + answer", f"at most {model.context_length} tokens", got, "Shorten them."))
    return {"prompt_ids": prompt_ids, "chosen_ids": chosen, "rejected_ids": rejected}


def _answer(model: LanguageModel, what: str, text: str | None) -> list[int]:
    """Ids of a given answer, the end-of-turn token included."""
    if not text:
        raise RecordError(wrong(what, "some text", repr(text), "Give it with the prompt."))
    ids = model.codec.encode(text)
    return ids if ids[-1] in model.stop_ids else [*ids, model.codec.end_id(model.stop_ids)]


def _shown(prompt: BaselinePrompt, config: BaselineConfig) -> BaselinePrompt:
    """The prompt as the teacher sees it: the demonstration in the last user's turn, as TRL puts it there."""
    *before, last = prompt.messages
    if not prompt.demonstration or last.get("role") != "user":
        got = f"{prompt.demonstration!r} and a last turn of {last.get('role')!r}"
        raise RecordError(wrong("prompt", "a demonstration, and a user's turn last", got, "Give both."))
    content = config.teacher_prompt.format(prompt=last["content"], privileged_context=prompt.demonstration)
    return replace(prompt, messages=[*before, {"role": "user", "content": content}])


def _check_teacher(model: LanguageModel, shown: Sequence[BaselinePrompt], config: BaselineConfig) -> None:
    asked = [model.codec.encode_prompt(prompt.messages) for prompt in shown]
    with model.as_reference() as teacher:
        answers = [pair for batch in decode_batch(teacher, asked, config.max_new_tokens) for pair in batch]
    right = any(score(_probe(shown[index]), model.codec.decode(answer.ids)) for index, answer in answers)
    if not right:
        fix = "The model does not read demonstrations: try another teacher_prompt, or leave SDFT out."
        raise ConfigError(wrong("SDFT", "a teacher that, shown the right answer, gives one", f"0 of {len(shown)}", fix))
