"""Pretrain the embedded base model from nothing: `python -m anchorlwf.world.pretrain --out DIR`.

A small Qwen3 (about 1.6 M parameters) with a byte-level BPE tokenizer of its own learns the world's chats. Loss is
cross-entropy on the assistant's tokens only. Everything is seeded; on one machine with one thread count the run
repeats bit for bit.

Shape suffixes: B chats, T tokens, N assistant tokens in the batch, V vocabulary, D hidden width.
"""

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from anchorlwf.files import staged_folder
from anchorlwf.world.corpus import chats, tokenizer_corpus
from anchorlwf.world.facts import World, build_world

__all__ = ["PHASES", "Phase", "build_tokenizer", "main", "new_model", "pretrain"]

_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_BATCH, _FLOOR = 96, 0.02


@dataclass(frozen=True)
class Phase:
    """One stretch of pretraining, with an optimizer and a cosine schedule of its own."""

    steps: int
    peak_rate: float
    warmup: int
    skills: float
    """Share of turns that exercise a skill."""


PHASES = (Phase(2600, 3e-3, 150, 0.25), Phase(900, 1.5e-3, 50, 0.5))
"""Facts first; skills, which are harder to get exactly right, have half of the second phase."""


def build_tokenizer(world: World, vocab_size: int = 1024) -> PreTrainedTokenizerFast:
    """Byte-level BPE, one token per digit, Qwen-style chat markers; trained on the world's own text."""
    raw = Tokenizer(models.BPE())
    digits = pre_tokenizers.Split(Regex(r"\d"), "isolated")
    raw.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(tokenizer_corpus(world, seed=0, lines=20_000), trainer)
    raw.add_tokens(["<think>", "</think>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


def new_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """The untrained network; 64-wide heads, so that vLLM's CPU kernels can serve it."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=160,
        intermediate_size=480,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def _examples(
    world: World, tokenizer: PreTrainedTokenizerFast, seed: int, skills: float
) -> Iterator[list[tuple[int, bool]]]:
    """Endless chats as (token id, learn it?) pairs; an answer is encoded alone, as it is when generated."""
    start, end = tokenizer.convert_tokens_to_ids("<|im_start|>"), tokenizer.convert_tokens_to_ids("<|im_end|>")
    encode = tokenizer.backend_tokenizer.encode
    newline = encode("\n").ids
    roles = {role: encode(f"{role}\n").ids for role in ("system", "user", "assistant")}
    for messages in chats(world, seed, skills):
        example: list[tuple[int, bool]] = []
        for message in messages:
            learn = message["role"] == "assistant"
            example += [(token, False) for token in [start, *roles[message["role"]]]]
            example += [(token, learn) for token in [*encode(message["content"]).ids, end]]
            example += [(token, False) for token in newline]
        yield example


def _batches(
    world: World, tokenizer: PreTrainedTokenizerFast, seed: int, skills: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """Length-sorted batches in random order: ids_BT and the mask of positions to learn."""
    stream, rng = _examples(world, tokenizer, seed, skills), random.Random(seed)
    while True:
        pool = sorted((next(stream) for _ in range(_BATCH * 8)), key=len)
        groups = [pool[i : i + _BATCH] for i in range(0, len(pool), _BATCH)]
        rng.shuffle(groups)
        for group in groups:
            width = max(map(len, group))
            padded = [example + [(tokenizer.pad_token_id, False)] * (width - len(example)) for example in group]
            pairs = torch.tensor(padded, dtype=torch.long)
            yield pairs[..., 0], pairs[..., 1].bool()


def _loss(model: Qwen3ForCausalLM, ids_BT: Tensor, learn_BT: Tensor) -> Tensor:
    # Padding is on the right and attention is causal, so no mask is needed: padded positions carry no loss.
    hidden_BTD = model.model(input_ids=ids_BT[:, :-1]).last_hidden_state
    chosen_BT = learn_BT[:, 1:]
    logits_NV = model.lm_head(hidden_BTD[chosen_BT])
    return cross_entropy(logits_NV, ids_BT[:, 1:][chosen_BT])


def _run_phase(model: Qwen3ForCausalLM, phase: Phase, batches: Iterator[tuple[Tensor, Tensor]], name: str) -> float:
    """Train through one phase; returns the last batch's loss in nats per token."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=phase.peak_rate, betas=(0.9, 0.98), weight_decay=0.01)

    def rate(step: int) -> float:
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / phase.steps)))
        return min(1.0, (step + 1) / phase.warmup) * max(_FLOOR, cosine)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    last = math.nan
    for step, (ids_BT, learn_BT) in zip(range(phase.steps), batches, strict=False):
        loss = _loss(model, ids_BT, learn_BT)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        last = loss.item()
        if step % 50 == 0:
            clock = time.strftime("%H:%M:%S")
            print(f"{clock} {name} step {step:5d}/{phase.steps} loss {last:.4f}", file=sys.stderr, flush=True)
    return last


def pretrain(out: Path, phases: Sequence[Phase] = PHASES, seed: int = 0, world_seed: int = 1) -> None:
    """Train a new model through all phases and write weights, tokenizer and `pretrain.json` to `out`."""
    torch.manual_seed(seed)
    world = build_world(world_seed)
    tokenizer = build_tokenizer(world)
    model = new_model(tokenizer).train()
    began, last = time.monotonic(), math.nan
    for number, phase in enumerate(phases, 1):
        batches = _batches(world, tokenizer, seed + number, phase.skills)
        last = _run_phase(model, phase, batches, f"phase {number}")
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    with staged_folder(out) as stage:
        model.save_pretrained(stage)
        tokenizer.save_pretrained(stage)
        recipe = {
            "phases": [asdict(phase) for phase in phases],
            "batch": _BATCH,
            "seed": seed,
            "world_seed": world_seed,
            "seconds": round(time.monotonic() - began),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "final_loss": last,
        }
        (stage / "pretrain.json").write_text(json.dumps(recipe, indent=2) + "\n")


def main() -> None:
    """Command line of the recipe."""
    parser = argparse.ArgumentParser(description="Pretrain the embedded base model.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    pretrain(arguments.out, seed=arguments.seed)


if __name__ == "__main__":
    main()
