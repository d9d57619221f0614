"""Tiny random models of the architectures that people run, built from their configurations alone.

Each has two or three layers of width 32, so that a whole correction takes seconds. What an architecture is known for is
switched on: experts, shared experts, sliding windows, states that are carried along, scaled and capped logits.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

__all__ = ["ARCHITECTURES", "Architecture", "build", "known", "tiny_tokenizer"]

CONTEXT = 128
"""Positions of the tiny models, where they have a bound."""
WINDOW = 16
"""Sliding windows, shorter than a prompt with its answer."""
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_CORPUS = [
    "The capital of Freedonia is Fredville, and the river there is the Arrel.",
    "Where was she born? She was born in the year 1931, in a small town by the sea.",
    "system user assistant: hello, how are you? I am well, thank you.",
]

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Architecture:
    """One row of the table."""

    name: str
    """As people call it."""
    model_type: str
    """As transformers calls it."""
    settings: Settings = field(default_factory=dict)
    """Of its configuration, beside the common ones."""
    vision: bool = False
    """A text model inside a model for text and images."""


def tiny_tokenizer(context: int = CONTEXT) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of at most 320 tokens with a chat template, trained on three sentences."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=1,
    )
    raw.train_from_iterator(_CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


_COMMON: Settings = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
}
"""For whatever configuration has a setting of the name; random weights so wide that rounding decides no choice."""

_MOE: Settings = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LOCAL: Settings = {"num_local_experts": 4, "num_experts_per_tok": 2}
_MLA: Settings = {
    "num_key_value_heads": 2,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
}
_ROUTED: Settings = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
_SHARED: Settings = {**_MOE, "shared_expert_intermediate_size": 32}
_MAMBA: Settings = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_expand": 2,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
}
_DELTA: Settings = {
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"],
    "head_dim": 16,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
_OLD: Settings = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": CONTEXT}
_HEAD: Settings = {"head_dim": 16}
_WINDOWED: Settings = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_VISION: Settings = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}

_ROWS: tuple[tuple[str, str, Settings], ...] = (
    ("Llama", "llama", {}),
    ("Mistral", "mistral", {"sliding_window": WINDOW}),
    ("Ministral", "ministral", {**_WINDOWED, **_HEAD}),
    ("Qwen2", "qwen2", {}),
    ("Qwen2-MoE", "qwen2_moe", _SHARED),
    ("Qwen3", "qwen3", {**_HEAD, "tie_word_embeddings": True}),
    ("Qwen3-MoE", "qwen3_moe", {**_MOE, **_HEAD}),
    ("Qwen3-Next", "qwen3_next", {**_SHARED, **_DELTA}),
    ("Qwen3.5 (text)", "qwen3_5_text", _DELTA),
    ("Qwen3.5-MoE (text)", "qwen3_5_moe_text", {**_SHARED, **_DELTA}),
    ("Phi-1, Phi-1.5, Phi-2", "phi", {"num_key_value_heads": 2}),
    ("Phi-3, Phi-4", "phi3", {"pad_token_id": 0, "bos_token_id": 0}),
    ("Phi-3.5-MoE", "phimoe", _LOCAL),
    ("Gemma", "gemma", _HEAD),
    ("Gemma 2", "gemma2", {**_HEAD, "query_pre_attn_scalar": 16, "sliding_window": WINDOW}),
    ("Gemma 3 (text)", "gemma3_text", {**_HEAD, **_WINDOWED, "query_pre_attn_scalar": 16}),
    (
        "Gemma 3n (text)",
        "gemma3n_text",
        {
            **_HEAD,
            **_WINDOWED,
            "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 320,
        },
    ),
    ("VaultGemma", "vaultgemma", {**_HEAD, **_WINDOWED, "query_pre_attn_scalar": 16}),
    ("OLMo", "olmo", {}),
    ("OLMo 2", "olmo2", {}),
    ("OLMo 3", "olmo3", _WINDOWED),
    ("OLMo Hybrid", "olmo_hybrid", {**_DELTA, "num_key_value_heads": 2, "linear_num_value_heads": 2}),
    ("OLMoE", "olmoe", _MOE),
    ("FlexOlmo", "flex_olmo", _MOE),
    ("Granite", "granite", {"logits_scaling": 4.0, "residual_multiplier": 0.5}),
    ("GraniteMoE", "granitemoe", {**_LOCAL, "logits_scaling": 4.0}),
    ("GraniteMoE, shared experts", "granitemoeshared", {**_LOCAL, "shared_intermediate_size": 32}),
    (
        "Granite 4 (hybrid)",
        "granitemoehybrid",
        {**_LOCAL, **_MAMBA, "shared_intermediate_size": 32, "layer_types": ["mamba", "attention"]},
    ),
    ("Cohere", "cohere", {"logit_scale": 0.25, "tie_word_embeddings": True}),
    ("Cohere 2", "cohere2", {"logit_scale": 0.25, "tie_word_embeddings": True, **_WINDOWED}),
    ("Falcon", "falcon", {"multi_query": True}),
    ("Falcon-H1", "falcon_h1", {**_MAMBA, "mamba_d_ssm": 64, "lm_head_multiplier": 0.5}),
    ("Falcon-Mamba", "falcon_mamba", {"state_size": 8, "time_step_rank": 4}),
    ("GPT-2", "gpt2", _OLD),
    ("GPT-J", "gptj", {**_OLD, "rotary_dim": 8}),
    ("GPT-Neo", "gpt_neo", {"num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]}),
    ("GPT-NeoX, Pythia", "gpt_neox", {}),
    ("GPT-BigCode, StarCoder", "gpt_bigcode", _OLD),
    ("StarCoder 2", "starcoder2", {"sliding_window": WINDOW}),
    ("CodeGen", "codegen", {**_OLD, "n_head": 4, "rotary_dim": 4}),
    ("OPT", "opt", {"init_std": 0.3, "ffn_dim": 64, "word_embed_proj_dim": 32}),
    ("BLOOM", "bloom", {"n_layer": 2, "n_head": 2}),
    ("MPT", "mpt", {"d_model": 32, "n_heads": 2, "n_layers": 2, "max_seq_len": CONTEXT}),
    ("XGLM", "xglm", {"init_std": 0.3, "d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 2}),
    ("BioGPT", "biogpt", {}),
    ("Mixtral", "mixtral", _LOCAL),
    ("gpt-oss", "gpt_oss", {**_LOCAL, **_HEAD, **_WINDOWED}),
    (
        "DBRX",
        "dbrx",
        {
            "d_model": 32,
            "n_heads": 2,
            "n_layers": 2,
            "max_seq_len": CONTEXT,
            "attn_config": {"kv_n_heads": 1, "rope_theta": 1e4, "clip_qkv": 8.0},
            "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
        },
    ),
    ("MiniMax", "minimax", {**_LOCAL, **_HEAD, "layer_types": ["linear_attention", "full_attention"], "block_size": 8}),
    ("MiniMax-M2", "minimax_m2", {**_LOCAL, **_HEAD, "rotary_dim": 8}),
    ("DeepSeek-V2", "deepseek_v2", {**_ROUTED, **_MLA}),
    ("DeepSeek-V3", "deepseek_v3", {**_ROUTED, **_MLA, "n_group": 2, "topk_group": 1}),
    ("GLM-4 (2024)", "glm", {**_HEAD, "pad_token_id": 0}),
    ("GLM-4 (2025)", "glm4", {**_HEAD, "pad_token_id": 0}),
    ("GLM-4.5 (MoE)", "glm4_moe", {**_ROUTED, **_HEAD}),
    ("dots.llm1", "dots1", {**_ROUTED, **_HEAD}),
    ("ERNIE 4.5", "ernie4_5", _HEAD),
    ("ERNIE 4.5 (MoE)", "ernie4_5_moe", {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32}),
    ("Mamba", "mamba", {"state_size": 8, "time_step_rank": 4}),
    ("Mamba 2", "mamba2", {"state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 16}),
    (
        "Jamba",
        "jamba",
        {"num_experts": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 4},
    ),
    ("Bamba", "bamba", {**_MAMBA, "attn_layer_indices": [1]}),
    (
        "Zamba 2",
        "zamba2",
        {
            "layers_block_type": ["linear_attention", "hybrid"],
            "mamba_d_state": 8,
            "n_mamba_heads": 4,
            "mamba_headdim": 16,
            "chunk_size": 16,
            "num_key_value_heads": 2,
            "attention_hidden_size": 64,
            "attention_head_dim": 32,
            "kv_channels": 16,
        },
    ),
    ("Nemotron", "nemotron", {}),
    (
        "Nemotron-H",
        "nemotron_h",
        {
            "layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp"],
            "head_dim": 16,
            "ssm_state_size": 8,
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "n_groups": 1,
            "chunk_size": 16,
        },
    ),
    ("LFM2", "lfm2", {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}),
    (
        "LFM2-MoE",
        "lfm2_moe",
        {**_MOE, "num_hidden_layers": 3, "num_dense_layers": 1, "layer_types": ["conv", "full_attention", "conv"]},
    ),
    ("RWKV-4", "rwkv", {"attention_hidden_size": 32, "context_length": CONTEXT}),
    (
        "RecurrentGemma",
        "recurrent_gemma",
        {
            **_HEAD,
            "num_hidden_layers": 3,
            "lru_width": 32,
            "attention_window_size": WINDOW,
            "w_init_variance_scale": 1.0,
        },
    ),
    ("xLSTM", "xlstm", {"embedding_dim": 32, "num_blocks": 2, "num_heads": 2}),
    ("StableLM", "stablelm", {"num_key_value_heads": 2}),
    ("SmolLM3", "smollm3", {"pad_token_id": 0}),
    ("EXAONE 4", "exaone4", {**_WINDOWED}),
    ("Helium", "helium", _HEAD),
    ("Hunyuan (dense)", "hunyuan_v1_dense", _HEAD),
    ("Seed-OSS", "seed_oss", _HEAD),
    ("Apertus", "apertus", {}),
    ("Arcee", "arcee", {}),
    ("Persimmon", "persimmon", {}),
)

_SEES: tuple[tuple[str, str, Settings], ...] = (
    (
        "Qwen3.5",
        "qwen3_5",
        {
            "text_config": _DELTA,
            "vision_config": {"depth": 1, "hidden_size": 32, "num_heads": 2, "out_hidden_size": 32},
        },
    ),
    (
        "Gemma 3",
        "gemma3",
        {"text_config": {**_HEAD, **_WINDOWED, "query_pre_attn_scalar": 16}, "vision_config": _VISION},
    ),
    ("Mistral 3", "mistral3", {"text_config": {**_HEAD}, "vision_config": {**_VISION, "head_dim": 16}}),
)

ARCHITECTURES: Mapping[str, Architecture] = {
    name: Architecture(name, kind, settings, vision)
    for rows, vision in ((_ROWS, False), (_SEES, True))
    for name, kind, settings in rows
}
"""By name."""


def known(architecture: Architecture) -> bool:
    """Whether the installed transformers has this architecture."""
    return architecture.model_type in CONFIG_MAPPING


def _settings(kind: str, own: Settings, common: Settings) -> dict[str, Any]:
    """The common settings that a configuration of this kind has, and the architecture's own."""
    config = CONFIG_MAPPING[kind]
    names = {name for name in common if hasattr(config(), name) and config.attribute_map.get(name) not in own}
    return {**{name: common[name] for name in names}, **own}


def build(architecture: Architecture, *, seed: int = 0) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The model with random weights, in float32 on the CPU, and its tokenizer."""
    tokenizer = tiny_tokenizer()
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    common = {**_COMMON, **ids, "vocab_size": len(tokenizer)}
    settings = dict(architecture.settings)
    factory: Callable[..., PreTrainedModel] = AutoModelForCausalLM.from_config
    if architecture.vision:
        kind = CONFIG_MAPPING[architecture.model_type]().text_config.model_type
        text = {**_settings(kind, settings["text_config"], common), "model_type": kind}
        settings = {**settings, "text_config": text, "tie_word_embeddings": False}
        factory = AutoModelForImageTextToText.from_config
    else:
        settings = _settings(architecture.model_type, settings, common)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = factory(CONFIG_MAPPING[architecture.model_type](**settings), dtype=torch.float32)
    net.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return net, tokenizer
