"""Checkpoints that are torn, incomplete, quantised or of another kind are refused by name; whole ones load."""

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import damaged, edit_json, edit_weights, logits
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BartConfig,
    BertConfig,
    GPTNeoConfig,
    GPTNeoForCausalLM,
)

from anchorlwf.cli import main
from anchorlwf.errors import ModelError, PromptError
from anchorlwf.model.language_model import LanguageModel, load_codec, load_model
from anchorlwf.model.loading import few, reading


def load(path: Path) -> LanguageModel:
    return load_model(str(path), dtype="float32", device="cpu")


def refused(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert ": expected " in message
    return message


@pytest.fixture
def copied(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a tiny checkpoint, free to be changed."""
    return lambda architecture: shutil.copytree(tiny_folder(architecture), tmp_path / "model")


# --- weights ---


def test_missing_layers_are_refused_by_name(copied):
    folder = copied("llama")
    gone: list[str] = []

    def drop(weights: dict[str, torch.Tensor]) -> None:
        gone.extend(name for name in weights if ".layers.1." in name)
        for name in gone:
            del weights[name]

    edit_weights(folder, drop)
    message = refused(folder)
    assert "missing: model.layers.1.input_layernorm.weight" in message
    assert f"and {len(gone) - 4} more" in message


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_a_missing_head_is_refused(copied, architecture):
    folder = copied(architecture)
    edit_weights(
        folder, lambda weights: weights.pop(next(name for name in weights if "embed_out" in name or "lm_head" in name))
    )
    assert "missing: lm_head.weight" in refused(folder)


def test_a_tied_head_may_be_stored_once_or_twice_or_alone(copied, tiny_model):
    folder = copied("qwen3")
    embedding = "model.embed_tokens.weight"
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    edit_weights(folder, lambda weights: weights.update({"lm_head.weight": weights[embedding].clone()}))
    assert torch.equal(logits(load(folder)), logits(tiny_model))
    edit_weights(folder, lambda weights: weights.pop(embedding))
    assert torch.equal(logits(load(folder)), logits(tiny_model))
    edit_weights(folder, lambda weights: weights.pop("lm_head.weight"))
    assert "missing: " in refused(folder)


def test_what_is_left_over_is_refused_by_name(copied):
    folder = copied("qwen3")
    edit_json(folder / "config.json", num_hidden_layers=1, layer_types=["full_attention"])
    assert "left over: model.layers.1." in refused(folder)


@pytest.mark.parametrize("table", ["attn.attention.bias", "attn.attention.masked_bias", "attn.rotary_emb.inv_freq"])
def test_masks_and_positions_that_old_checkpoints_store_are_no_weights(copied, table):
    folder = copied("qwen3")
    size = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "attention_types": [[["global"], 1]]}
    ends = {"bos_token_id": None, "eos_token_id": 2}
    net = GPTNeoForCausalLM(GPTNeoConfig(vocab_size=300, max_position_embeddings=96, **size, **ends))
    net.save_pretrained(folder)
    mask = torch.ones(1, 1, 96, 96, dtype=torch.bool).tril()
    edit_weights(folder, lambda weights: weights.update({f"transformer.h.0.{table}": mask}))
    load(folder)
    # The same in a place of its own is left over.
    edit_weights(folder, lambda weights: weights.update({"transformer.h.0.attn.extra": mask.clone()}))
    assert "left over: transformer.h.0.attn.extra." in refused(folder) + "."


def test_weights_of_another_shape_are_refused_by_name(copied):
    folder = copied("qwen3")
    edit_json(folder / "config.json", intermediate_size=48)
    assert "another shape: model.layers.0.mlp.down_proj.weight [32, 64] for [32, 48]" in refused(folder)


@pytest.mark.parametrize("kind", [b"I32", b"U32"])
def test_a_type_that_was_flipped_in_the_header_is_refused(copied, kind):
    folder = copied("qwen3")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes().replace(b"F32", kind, 1))
    assert f"expected floating-point weights, got {kind.decode()} for model." in refused(folder)


def sharded(folder: Path) -> list[Path]:
    net = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    net.save_pretrained(folder, max_shard_size="40KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    return shards


def test_shards_load_and_a_missing_one_is_named(copied, tiny_folder):
    folder = copied("llama")
    shards = sharded(folder)
    assert torch.equal(logits(load(folder)), logits(load(tiny_folder("llama"))))
    shards[1].unlink()
    assert f"expected every file that the index names, got {shards[1].name} missing" in refused(folder)


def test_an_index_is_taken_at_its_word_only_about_files_beside_it(copied, tmp_path):
    folder = copied("llama")
    shards = sharded(folder)
    index = folder / "model.safetensors.index.json"
    shutil.copy(shards[0], tmp_path / "elsewhere.safetensors")
    index.write_text(index.read_text().replace(shards[0].name, "../elsewhere.safetensors"))
    assert "expected files beside it, got ../elsewhere.safetensors" in refused(folder)
    edit_json(index, weight_map=[1])
    assert "expected a weight_map of file names, got [1]" in refused(folder)


# --- the kind of model ---


def bert(tokenizer: Path, **options: object) -> BertConfig:
    size = len(AutoTokenizer.from_pretrained(tokenizer))
    wide = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return BertConfig(vocab_size=size, initializer_range=0.3, **wide, **options)


@pytest.mark.parametrize("kind", [AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification])
def test_an_encoder_is_refused(copied, kind):
    folder = copied("qwen3")
    (folder / "generation_config.json").unlink()
    net = kind.from_config(bert(folder))
    net.save_pretrained(folder)
    assert f"config.json: expected a causal language model, got {type(net).__name__}" in refused(folder)
    # And where it does not say so itself, by its weights or by what it does.
    edit_json(folder / "config.json", architectures=None)
    message = refused(folder)
    if kind is AutoModelForMaskedLM:
        assert "got an encoder, which sees later tokens" in message
    else:
        assert "missing: cls.predictions" in message


def test_a_decoder_of_an_encoders_architecture_loads(copied):
    folder = copied("qwen3")
    net = AutoModelForCausalLM.from_config(bert(folder, is_decoder=True))
    net.save_pretrained(folder)
    load(folder)


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_a_classifier_is_refused(copied, architecture):
    folder = copied(architecture)
    net = AutoModelForSequenceClassification.from_pretrained(folder)
    net.save_pretrained(folder)
    assert f"got {type(net).__name__}" in refused(folder)
    edit_json(folder / "config.json", architectures=None)
    assert "left over: score.weight" in refused(folder)


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_a_model_without_its_head_is_refused(copied, architecture):
    folder = copied(architecture)
    net = AutoModel.from_pretrained(folder)
    net.save_pretrained(folder)
    assert f"got {type(net).__name__}" in refused(folder)
    if architecture == "llama":
        edit_json(folder / "config.json", architectures=None)
        assert "missing: lm_head.weight" in refused(folder)


def test_an_encoder_with_a_decoder_is_refused(copied):
    folder = copied("qwen3")
    size = {"vocab_size": 300, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 96}
    BartConfig(**size).save_pretrained(folder)
    assert "got an encoder with a decoder (bart)" in refused(folder)


def test_a_model_that_hides_an_adapter_is_refused(copied, tiny_path, tmp_path):
    model = load(tiny_path)
    model.attach_lora(4, 8.0, 0.0, "all-linear", seed=0)
    inner = copied("qwen3")
    model.net.save_pretrained(inner)
    # transformers would put both on without a word.
    outer = tmp_path / "outer"
    model.net.save_pretrained(outer)
    edit_json(outer / "adapter_config.json", base_model_name_or_path=str(inner))
    assert "expected a base model, got an adapter on one" in refused(outer)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}, "by awq"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 32}, "by gptq"),
        ({"quant_method": "gptq"}, "by gptq"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "the package bitsandbytes"),
        ({"load_in_8bit": True}, "the package bitsandbytes"),
        *[
            ({"quant_method": method}, f"by {method}")
            for method in ("fp8", "mxfp4", "hqq", "torchao", "no-such-method")
        ],
        ({}, "a quantization_config of no known method"),
        ("awq", "a quantization_config of no known method"),
        ([], "a quantization_config of no known method"),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_quantised_checkpoints_are_refused(copied, settings, named, nested, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else real(name))
    folder = copied("qwen3")
    said = {"quantization_config": settings}
    edit_json(folder / "config.json", **({"text_config": said} if nested else said))
    message = refused(folder)
    assert named in message
    assert "Give the checkpoint it was made from" in message


def test_what_is_null_is_not_said(copied, tiny_model):
    folder = copied("qwen3")
    edit_json(folder / "config.json", quantization_config=None, dtype=None, torch_dtype=None, architectures=None)
    assert torch.equal(logits(load(folder)), logits(tiny_model))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"dtype": "float99"}, "config.json, dtype: expected a type of torch, got 'float99'"),
        ({"torch_dtype": "nn"}, "config.json, torch_dtype: expected a type of torch, got 'nn'"),
        ({"model_type": None}, "config.json: expected a model_type, got None"),
        ({"model_type": "no-such"}, "no-such"),
        ({"architectures": "LlamaForCausalLM"}, "config.json, architectures: expected a list of names"),
        ({"hidden_size": "wide"}, "config.json: expected a configuration that transformers knows, got "),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(copied, changes, named):
    folder = copied("qwen3")
    edit_json(folder / "config.json", **changes)
    assert named in refused(folder)


def test_code_of_the_models_author_is_asked_about(copied):
    folder = copied("qwen3")
    edit_json(
        folder / "config.json", model_type="mine", auto_map={"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}
    )
    assert "--trust-remote-code" in refused(folder)


# --- where it is ---


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "~/model", "runs/first/adapter", "../x", "a b"])
def test_a_folder_that_is_not_there_is_not_sought_on_the_hub(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    message = refused(Path(name)) if name != "./nowhere" else ""
    with pytest.raises(ModelError, match="got no such folder") as caught:
        load_model(name)
    assert "connect" not in str(caught.value) + message


def test_names_that_may_be_the_hubs_are_sought_in_both_places(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("nobody/nothing", "nothing"):
        with pytest.raises(ModelError, match="got no folder of that name, and no such model on the hub"):
            load_model(name)
        with pytest.raises(ModelError, match="got no folder of that name, and no such model on the hub"):
            load_codec(name, trust_remote_code=False)


def test_an_empty_name_is_not_the_embedded_model():
    with pytest.raises(ModelError, match="got an empty name"):
        load_model("")


def test_a_file_is_not_a_folder(tiny_path):
    with pytest.raises(ModelError, match=r"got a file. Give the folder that holds it: .*qwen3\."):
        load_model(str(tiny_path / "model.safetensors"))


def test_a_run_folder_names_what_lies_in_it(tmp_path):
    (tmp_path / "adapter").mkdir()
    with pytest.raises(ModelError, match=rf"a folder without config.json. Give {tmp_path}/adapter\."):
        load_model(str(tmp_path))


def test_a_device_that_is_not_there(tiny_path):
    for device in ("no-such-device", "cuda:77"):
        with pytest.raises(ModelError, match=device):
            load_model(str(tiny_path), device=device)


# --- torn files ---


UNSEEN = {
    "chat_template.jinja": "any text is a template",
    "model.safetensors": "weights carry no checksum",
    "tokenizer.json": "any other vocabulary is one",
    "config.json": "any other number is one",
}
"""What no look at the files alone can show; `adapter` and the certificate have hashes."""


@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
def test_damaged_files_never_end_in_a_traceback(copied, tiny_folder, architecture):
    folder = copied(architecture)
    question = [{"role": "user", "content": "Hello you"}]

    def behaviour(model: LanguageModel) -> tuple[object, ...]:
        return logits(model).tolist(), model.stop_ids, model.codec.encode_prompt(question)

    whole, counts = behaviour(load(tiny_folder(architecture))), {"refused": 0, "same": 0}
    for name, damage in damaged(folder):
        try:
            same = behaviour(load(folder)) == whole
        except ModelError:
            counts["refused"] += 1
        except PromptError:
            # A template that does not compile is refused with the first prompt.
            counts["refused"] += name == "chat_template.jinja"
        else:
            counts["same"] += same
            assert same or name in UNSEEN, f"{name} {damage}"
    assert counts["refused"] > 50


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json", "model.safetensors"]
)
def test_half_a_file_is_refused(copied, name):
    folder = copied("qwen3")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    assert name.split(".")[0].split("_")[0] in refused(folder)


@pytest.mark.parametrize("kind", ["Qwen2Tokenizer", "LlamaTokenizer", "GPT2Tokenizer", "GemmaTokenizer"])
def test_a_tokenizer_without_its_vocabulary_is_not_an_empty_one(copied, kind):
    folder = copied("qwen3")
    edit_json(folder / "tokenizer_config.json", tokenizer_class=kind)
    load(folder)
    (folder / "tokenizer.json").unlink()
    assert "tokenizer: expected a vocabulary, such as tokenizer.json, got none" in refused(folder)
    with pytest.raises(ModelError, match="a vocabulary"):
        load_codec(str(folder), trust_remote_code=False)


@pytest.mark.parametrize("content", [None, "{}"])
def test_a_tokenizer_without_its_settings_is_refused(copied, content):
    folder = copied("qwen3")
    settings = folder / "tokenizer_config.json"
    settings.unlink()
    if content is not None:
        settings.write_text(content)
    assert len(AutoTokenizer.from_pretrained(folder)) == 320, "transformers takes defaults of its own"
    got = "no such file" if content is None else "an empty object"
    assert f"tokenizer, tokenizer_config.json: expected its settings, got {got}. Copy" in refused(folder)
    with pytest.raises(ModelError, match="expected its settings"):
        load_codec(str(folder), trust_remote_code=False)


def test_text_for_which_a_tokenizer_has_no_token_is_refused_in_a_sentence(copied):
    folder = copied("qwen3")
    edit_json(folder / "tokenizer_config.json", tokenizer_class="GemmaTokenizer")
    codec = load(folder).codec
    with pytest.raises(PromptError, match="text: expected what the tokenizer has tokens for, got Unk token"):
        codec.encode_prompt([{"role": "user", "content": "Who?"}])
    with pytest.raises(PromptError, match="expected what the tokenizer has tokens for"):
        codec.encode("\n")


def test_a_torn_file_of_a_served_models_tokenizer_is_refused_too(copied):
    folder = copied("qwen3")
    assert load_codec(str(folder), trust_remote_code=False)[1] == load(folder).stop_ids
    for name in ("generation_config.json", "tokenizer_config.json", "tokenizer.json"):
        content = (folder / name).read_text()
        (folder / name).write_text(content[: len(content) // 2])
        with pytest.raises(ModelError, match=name.split("_")[0].removesuffix(".json")):
            load_codec(str(folder), trust_remote_code=False)
        (folder / name).write_text(content)


def test_the_command_line_says_it_in_one_line(copied, capsys):
    folder = copied("qwen3")
    edit_json(folder / "config.json", quantization_config={"quant_method": "awq"})
    with pytest.raises(SystemExit) as left:
        main(["chat", "--model", str(folder), "--prompt", "Hello"])
    assert left.value.code == 2
    shown = capsys.readouterr().err.strip()
    assert shown.startswith("Error: model ")
    assert shown.count("\n") == 0


# --- the helpers ---


def test_few_names_and_how_many_more():
    assert few(["b", "a"]) == "a, b"
    assert few("fedcba") == "a, b, c, d and 2 more"


class PanicException(BaseException):
    """Named as pyo3 names what a panic in Rust becomes."""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError(""), "ValueError"),
        (KeyError("name"), "KeyError 'name'"),
        (ValueError("Several:\n  first\n second"), "Several: first"),
        (ImportError("needs a library.\nAnd more"), "needs a library"),
        (PanicException("index out of bounds"), "index out of bounds"),
    ],
)
def test_whatever_a_library_raises_is_said_in_one_line(error, said):
    with pytest.raises(ModelError) as caught, reading("it", "a file", "Mend it."):
        raise error
    assert str(caught.value) == f"it: expected a file, got {said}. Mend it."


def test_ctrl_c_while_reading_stays_ctrl_c():
    with pytest.raises(KeyboardInterrupt), reading("it", "a file", "Mend it."):
        raise KeyboardInterrupt


def test_without_a_template_the_parts_of_a_message_are_put_together(fresh_model):
    codec = fresh_model.codec
    codec.tokenizer.chat_template = None
    parts = [{"type": "text", "text": "Where was "}, {"type": "text", "text": "she born?"}]
    plain = codec.encode_prompt([{"role": "user", "content": "Where was she born?"}])
    assert codec.encode_prompt([{"role": "user", "content": parts}]) == plain
    with pytest.raises(PromptError, match=r"expected text \(no chat template\), got a part of another kind"):
        codec.encode_prompt([{"role": "user", "content": [*parts, {"type": "image", "url": "x.png"}]}])
    with pytest.raises(PromptError, match=r"expected one user message \(no chat template\), got system"):
        codec.encode_prompt([{"role": "system", "content": "Be brief."}])
