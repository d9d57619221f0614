"""A GGUF file is a model like any other: read, trained, and its adapter found again."""

import json
from functools import reduce
from pathlib import Path

import pytest
import torch
from checkpoints import logits
from safetensors.torch import load_file
from training_runs import corrections

from anchorlwf.config import TrainConfig
from anchorlwf.errors import ModelError
from anchorlwf.evaluation.weights import named_hashes
from anchorlwf.model.formats import gguf as room
from anchorlwf.model.language_model import load_codec, load_model
from anchorlwf.training import train

gguf = pytest.importorskip("gguf")

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
    "input_layernorm": "attn_norm",
    "model.layers": "blk",
}


def interleaved(weight, heads):
    """Rows of a head as llama.cpp has them: halves of the rotation in turn."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


@pytest.fixture(scope="module")
def file(tiny_folder, tmp_path_factory):
    """The tiny Llama, as llama.cpp would write it."""
    folder, path = tiny_folder("llama"), tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    model = load_model(str(folder), dtype="float32", device="cpu")
    config, tokenizer = model.causal.config, model.codec.tokenizer
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    tokens = tokenizer.convert_ids_to_tokens(range(config.vocab_size))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_bos_token_id(tokenizer.pad_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in load_file(folder / "model.safetensors").items():
        layer = name.split(".")[-2]
        renamed = reduce(lambda text, pair: text.replace(*pair), NAMES.items(), name)
        turned = interleaved(weight, heads[layer]) if layer in heads else weight
        writer.add_tensor(renamed, turned.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_it_answers_as_the_safetensors_do(file, tiny_folder):
    model, plain = (load_model(str(path), dtype="float32", device="cpu") for path in (file, tiny_folder("llama")))
    torch.testing.assert_close(logits(model), logits(plain))
    question = [{"role": "user", "content": "Where was she born?"}]
    assert model.codec.encode_prompt(question) == plain.codec.encode_prompt(question)
    assert model.stop_ids == plain.stop_ids
    assert model.name == str(file.resolve())
    codec, ends = load_codec(str(file), trust_remote_code=False)
    assert (codec.encode_prompt(question), ends) == (plain.codec.encode_prompt(question), plain.stop_ids)


def test_an_adapter_on_it_is_found_again_and_the_network_can_be_saved(file, tmp_path):
    model = load_model(str(file), dtype="float32", device="cpu")
    model.causal.save_pretrained(tmp_path / "plain")
    assert load_file(tmp_path / "plain" / "model.safetensors")
    config = TrainConfig(max_steps=2, stop=False)
    result = train(model, corrections(model, 1), out=tmp_path / "run", config=config)
    # The adapter names its base, the file.
    again = load_model(result.weights, dtype="float32", device="cpu")
    assert torch.equal(logits(again), logits(model))
    assert again.marks == again.marks_now()
    assert set(named_hashes(result.weights)["base"]) == {"tiny.gguf"}


def test_what_is_no_gguf_file_is_refused_in_one_line(tmp_path, monkeypatch):
    torn = tmp_path / "torn.gguf"
    torn.write_bytes(b"GGUF" + b"\0" * 40)
    with pytest.raises(ModelError, match=r"torn\.gguf.*expected .* reads from GGUF") as said:
        load_model(str(torn), device="cpu")
    assert "\n" not in str(said.value)
    monkeypatch.setattr(room.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ModelError, match=r"the package gguf, which reads it, got none\. Run `pip install gguf`"):
        load_model(str(torn), device="cpu")
    with pytest.raises(ModelError, match="no such folder"):
        load_model(str(Path(tmp_path) / "missing.gguf"), device="cpu")
