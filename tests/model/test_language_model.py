"""Loading, fingerprints, the reference and the adapter."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import disturb
from peft import PeftModel
from transformers import AutoTokenizer
from zoo_models import zoo_model

from anchorlwf.data.record import ModelStamp, Record, new_id
from anchorlwf.errors import ModelError, PromptError, RecordError, StampError
from anchorlwf.model.codec import Codec
from anchorlwf.model.language_model import EMBEDDED, LanguageModel, embedded_path, load_model


def logits(model: LanguageModel, ids: list[int]) -> torch.Tensor:
    """The network's own logits, adapter and dropout as they are."""
    with torch.no_grad():
        return model.net(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


def load(path: Path) -> LanguageModel:
    return load_model(str(path), dtype="float32", device="cpu")


# --- loading ---


def test_every_architecture_loads(any_model, prompt_ids):
    assert not any(module.training for module in any_model.net.modules())
    assert {weight.dtype for weight in any_model.net.parameters()} == {torch.float32}
    assert any_model.context_length == 96
    assert any_model.stop_ids == {any_model.codec.tokenizer.convert_tokens_to_ids("<|im_end|>")}
    assert any_model.device == torch.device("cpu")
    # The backbone is what lies below the head.
    hidden = any_model.backbone(input_ids=torch.tensor([prompt_ids])).last_hidden_state
    projected = any_model.causal.get_output_embeddings()(hidden)[0]
    cap = getattr(any_model.causal.config, "final_logit_softcapping", None)
    torch.testing.assert_close(
        projected if cap is None else cap * torch.tanh(projected / cap), logits(any_model, prompt_ids)
    )


def test_the_dtype_is_as_asked(tiny_path):
    model = load_model(str(tiny_path), dtype="bfloat16", device="cpu")
    assert {weight.dtype for weight in model.net.parameters()} == {torch.bfloat16}
    with pytest.raises(ModelError, match="dtype: expected float32 or bfloat16 or float16, got float8"):
        load_model(str(tiny_path), dtype="float8")


@pytest.mark.parametrize("missing", ["the folder", "config.json", "model.safetensors"])
def test_what_cannot_be_loaded_is_a_model_error(tiny_path, tmp_path, missing):
    folder = shutil.copytree(tiny_path, tmp_path / "model")
    if missing == "the folder":
        shutil.rmtree(folder)
    else:
        (folder / missing).unlink()
    with pytest.raises(
        ModelError, match=r"model .*: expected a folder or hub name .* safetensors, or a GGUF file, got "
    ):
        load(folder)


def test_a_broken_weight_file_is_a_model_error(tiny_path, tmp_path):
    folder = shutil.copytree(tiny_path, tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="safetensors"):
        load(folder)


def test_pickled_weights_are_not_opened(tiny_path, tmp_path):
    folder = shutil.copytree(tiny_path, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save(load(tiny_path).net.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        load(folder)


def test_a_hub_name_that_is_none_is_a_model_error():
    with pytest.raises(ModelError, match="model 'nobody/nothing'"):
        load_model("nobody/nothing")


def test_the_prompt_and_the_answer_share_the_context(any_model):
    assert any_model.room([1] * 90, 4) == 4
    assert any_model.room([1] * 90, 40) == 6
    assert any_model.room([1] * 95, 40) == 1
    with pytest.raises(PromptError, match="expected fewer than 96 tokens"):
        any_model.room([1] * 96, 1)


def test_the_embedded_base_is_loaded_by_default(base):
    assert base.name == EMBEDDED
    assert embedded_path().is_dir()
    assert base.context_length == 512
    prompt = base.codec.encode_prompt([{"role": "user", "content": "Who are you?"}])
    assert base.codec.decode(prompt, special=True).endswith("<|im_start|>assistant\n")


# --- fingerprints ---


def test_fingerprints_survive_saving_and_loading(any_model, any_path, tmp_path):
    again = load(any_path)
    assert again.stamp == any_model.stamp
    any_model.codec.tokenizer.save_pretrained(tmp_path)
    saved = Codec(AutoTokenizer.from_pretrained(tmp_path))
    assert (saved.tokenizer_sha, saved.template_sha) == (again.stamp.tokenizer_sha, again.stamp.template_sha)
    assert len(saved.tokenizer_sha) == len(saved.template_sha) == 64


def test_padding_and_truncation_do_not_change_the_fingerprint(tiny_path):
    codec = load(tiny_path).codec
    before = codec.tokenizer_sha
    codec.tokenizer(["a", "a longer text"], padding=True, truncation=True, max_length=3)
    assert json.loads(codec.tokenizer.backend_tokenizer.to_str())["padding"] is not None
    assert codec.tokenizer_sha == before


def test_another_tokenizer_has_another_fingerprint(tiny_path):
    codec = load(tiny_path).codec
    before = codec.tokenizer_sha, codec.template_sha
    codec.tokenizer.add_tokens(["<new>"])
    assert codec.tokenizer_sha != before[0]
    assert codec.template_sha == before[1]


@pytest.mark.parametrize("template", [None, "{{ messages[0]['content'] }}"])
def test_another_template_has_another_fingerprint(tiny_path, template):
    codec = load(tiny_path).codec
    before = codec.tokenizer_sha, codec.template_sha
    codec.tokenizer.chat_template = template
    assert codec.tokenizer_sha == before[0]
    assert codec.template_sha != before[1]


def made(model: LanguageModel, **change: Any) -> Record:
    ids = model.codec.encode("hello")
    row = {"messages": [{"role": "user", "content": "?"}], "prompt_ids": [1], "completion_ids": ids, **change}
    return Record(id=new_id(1), model=model.stamp, completion="hello", **row)


@pytest.mark.parametrize("field", ["prompt_ids", "original_ids", "rejected_id"])
def test_no_id_may_lie_outside_the_vocabulary(tiny_model, field):
    largest, first = tiny_model.vocabulary - 1, made(tiny_model).completion_ids[0]
    for stray, right in ((largest, True), (largest + 1, False), (2**31 - 1, False)):
        anchor = {"position": 0, "token_id": first, "rejected_id": stray}
        record = made(tiny_model, **({"anchors": [anchor]} if field == "rejected_id" else {field: [1, stray]}))
        if right:
            tiny_model.check_stamp(record)
        else:
            with pytest.raises(StampError, match=f"token ids: expected less than {largest + 1}, got {stray}"):
                tiny_model.check_stamp(record)


def test_a_text_that_the_ids_do_not_say_is_refused(tiny_model):
    record = made(tiny_model)
    for text, place in (("help", 3), ("", 0), ("hello, you", 5)):
        other = record.model_copy(update={"completion": text})
        with pytest.raises(RecordError, match=f"completion, from character {place} on: .*'hello', got {text!r}"):
            tiny_model.check_stamp(other)


@pytest.mark.parametrize(("field", "what"), [("tokenizer_sha", "tokenizer"), ("template_sha", "chat template")])
def test_a_record_of_another_tokenizer_or_template_is_refused(tiny_model, field, what):
    stamp = tiny_model.stamp
    record = made(tiny_model)
    tiny_model.check_stamp(record)
    # The name is for people: a moved folder is the same model.
    tiny_model.check_stamp(record.model_copy(update={"model": stamp.model_copy(update={"name": "elsewhere"})}))
    other = ModelStamp(**{**stamp.model_dump(), field: "f" * 64})
    with pytest.raises(StampError, match=rf"{what}: expected ffffffffffff .*, got"):
        tiny_model.check_stamp(record.model_copy(update={"model": other}))


# --- the reference ---


def modes(model: LanguageModel) -> dict[str, bool]:
    return {name: module.training for name, module in model.net.named_modules()}


def trainable(model: LanguageModel) -> set[str]:
    return {name for name, weight in model.net.named_parameters() if weight.requires_grad}


def test_the_reference_is_the_base_bit_for_bit(any_path, any_model, prompt_ids):
    base = logits(any_model, prompt_ids)
    model = disturb(load(any_path), 0.5, dropout=0.5)
    model.net.train()
    # Some modules may be in eval mode on purpose; they must come back that way.
    model.backbone.eval()
    before, asked = modes(model), trainable(model)
    assert len(set(before.values())) == 2
    for _ in range(2):
        with model.reference() as net:
            assert not torch.is_grad_enabled()
            assert torch.equal(net(input_ids=torch.tensor([prompt_ids]), use_cache=False).logits[0], base)
        assert modes(model) == before
        assert trainable(model) == asked
        assert torch.is_grad_enabled()
    model.net.train()
    assert not torch.equal(logits(model, prompt_ids), logits(model, prompt_ids)), "dropout must be alive outside"
    model.net.eval()
    assert not torch.equal(logits(model, prompt_ids), base), "the adapter must matter outside"


def test_the_reference_as_a_model_of_its_own(any_path, any_model, prompt_ids):
    model = disturb(load(any_path), 0.5)
    with model.as_reference() as own:
        assert own.stamp == any_model.stamp
        assert torch.equal(logits(own, prompt_ids), logits(any_model, prompt_ids))


def test_an_error_inside_the_reference_leaves_the_model_as_it_was(fresh_model, tiny_model, prompt_ids):
    model = disturb(fresh_model, 0.5, dropout=0.5)
    tuned = logits(model, prompt_ids)
    model.net.train()
    before, asked = modes(model), trainable(model)
    with pytest.raises(RuntimeError, match="inside"), model.reference():
        raise RuntimeError("inside")
    assert (modes(model), trainable(model), torch.is_grad_enabled()) == (before, asked, True)
    model.net.eval()
    assert torch.equal(logits(model, prompt_ids), tuned)
    assert not torch.equal(tuned, logits(tiny_model, prompt_ids))


def test_references_may_be_nested(fresh_model, tiny_model, prompt_ids):
    model = disturb(fresh_model, 0.5, dropout=0.5)
    model.net.train()
    before = modes(model)
    with model.reference():
        with model.reference():
            pass
        assert torch.equal(logits(model, prompt_ids), logits(tiny_model, prompt_ids))
    assert modes(model) == before


def test_switching_to_the_reference_reads_no_layers_state(fresh_model, monkeypatch):
    model = disturb(fresh_model, 0.5)

    def slow(_self):
        raise AssertionError("it takes as long as a good part of a step on a GPU")

    monkeypatch.setattr(PeftModel, "get_model_status", slow)
    with model.reference():
        pass


def test_a_loaded_adapter_stays_frozen(tiny_path, tmp_path):
    disturb(load(tiny_path), 0.5).net.save_pretrained(tmp_path)
    model = load(tmp_path)
    assert trainable(model) == set()
    with model.reference():
        pass
    assert trainable(model) == set()


def test_full_training_keeps_a_frozen_copy(fresh_model, tiny_model, prompt_ids):
    fresh_model.keep_reference_copy()
    with torch.no_grad():
        for weight in fresh_model.net.parameters():
            weight.add_(0.1)
    assert not torch.equal(logits(fresh_model, prompt_ids), logits(tiny_model, prompt_ids))
    with fresh_model.reference() as net:
        assert not any(weight.requires_grad for weight in net.parameters())
        found = net(input_ids=torch.tensor([prompt_ids]), use_cache=False).logits[0]
    assert torch.equal(found, logits(tiny_model, prompt_ids))


# --- dropout of the base ---


def test_dropout_of_the_base_can_be_switched_off():
    model = zoo_model("GPT-2")
    ids = torch.tensor([[5, 9, 30, 70]])
    model.net.train()
    assert not torch.equal(model.net(input_ids=ids).logits, model.net(input_ids=ids).logits)
    model.stop_dropout()
    assert torch.equal(model.net(input_ids=ids).logits, model.net.eval()(input_ids=ids).logits)
    # The configuration, which is saved with the weights, is as it was.
    assert model.causal.config.resid_pdrop == 0.1


# --- the adapter ---


@pytest.mark.parametrize(
    "targets",
    [
        "lm_head",
        ["lm_head"],
        ["q_proj", "embed_tokens"],
        ["model.embed_tokens"],
        r".*\.embed_tokens",
        r".*(q_proj|lm_head)",
        ".*",
    ],
)
def test_an_adapter_on_a_tied_head_or_embedding_is_refused(fresh_model, targets):
    with pytest.raises(ModelError, match=r"expected no tied head or embedding, got (lm_head|model.embed_tokens)"):
        fresh_model.attach_lora(4, 8.0, 0.0, targets, seed=0)
    # And the model is still without an adapter.
    disturb(fresh_model, 0.5)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], r".*\.(gate|up)_proj"])
def test_other_targets_are_fine_on_a_tied_model(fresh_model, targets):
    disturb(fresh_model, 0.5, targets=targets)
    assert trainable(fresh_model)
    assert not any("embed_tokens" in name or "lm_head" in name for name in trainable(fresh_model))


def test_mlp_means_the_layers_through_which_mlp_blocks_read_the_hidden_state(any_path):
    model = disturb(load(any_path), 0.5, targets="mlp")
    linear = {
        name
        for name, module in model.causal.named_modules()
        if ".mlp." in name and hasattr(module, "lora_A") and not name.endswith("base_layer")
    }
    gated = model.causal.config.model_type != "gpt_neox"
    assert len(linear) == 2 * (2 if gated else 1)
    assert all(".mlp." in name for name in trainable(model))


@pytest.mark.parametrize("targets", [["lm_head"], ["embed_tokens", "q_proj"]])
def test_an_untied_head_or_embedding_may_have_an_adapter(tiny_folder, prompt_ids, targets):
    model = load(tiny_folder("llama"))
    base = logits(model, prompt_ids)
    disturb(model, 0.5, targets=targets)
    assert any(targets[0] in name for name in trainable(model))
    assert not torch.equal(logits(model, prompt_ids), base)
    with model.reference():
        assert torch.equal(logits(model, prompt_ids), base)


def test_targets_that_the_model_does_not_have(fresh_model):
    # A string is a pattern for the whole name, so the bare end of one matches nothing.
    for targets in (["query_key_value"], r".*nothing", "q_proj"):
        with pytest.raises(ModelError, match="LoRA targets: expected modules of this model"):
            fresh_model.attach_lora(4, 8.0, 0.0, targets, seed=0)
    disturb(fresh_model, 0.5)


def test_one_adapter_at_a_time(fresh_model):
    disturb(fresh_model, 0.5)
    with pytest.raises(ModelError, match="adapter: expected a model without one"):
        fresh_model.attach_lora(4, 8.0, 0.0, "all-linear", seed=0)


def test_the_seed_decides_the_adapter_and_nothing_else(tiny_path):
    def weights(seed: int) -> list[torch.Tensor]:
        model = load(tiny_path)
        model.attach_lora(4, 8.0, 0.0, "all-linear", seed=seed)
        return [weight for name, weight in model.net.named_parameters() if "lora_A" in name]

    torch.manual_seed(1)
    one = weights(5)
    drawn = torch.rand(3)
    torch.manual_seed(1)
    load(tiny_path)
    assert torch.equal(torch.rand(3), drawn), "attaching must not move the global generator"
    torch.manual_seed(2)
    assert all(torch.equal(a, b) for a, b in zip(one, weights(5), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, weights(6), strict=True))


def test_an_adapter_folder_is_a_model_name(any_path, any_model, tmp_path, prompt_ids):
    tuned = disturb(load(any_path), 0.5)
    tuned.net.save_pretrained(tmp_path)
    expected = logits(tuned, prompt_ids)
    assert not torch.equal(expected, logits(any_model, prompt_ids))
    for model in (load(tmp_path), load_model(str(any_path), adapter=tmp_path, dtype="float32", device="cpu")):
        assert torch.equal(logits(model, prompt_ids), expected)
        assert model.stamp == any_model.stamp
        with model.reference():
            assert torch.equal(logits(model, prompt_ids), logits(any_model, prompt_ids))


def test_an_adapter_without_a_base_is_for_the_embedded_model(base, tmp_path):
    tuned = disturb(load_model(dtype="float32", device="cpu"), 0.5)
    tuned.net.save_pretrained(tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": None}))
    model = load(tmp_path)
    assert model.stamp == base.stamp
    prompt = base.codec.encode_prompt([{"role": "user", "content": "Who are you?"}])
    assert torch.equal(logits(model, prompt), logits(tuned, prompt))


def test_an_adapter_of_another_shape_is_a_model_error(tiny_path, tiny_folder, tmp_path):
    disturb(load(tiny_path), 0.5).net.save_pretrained(tmp_path)
    # Llama's key and value projections are twice as wide.
    with pytest.raises(ModelError, match="llama"):
        load_model(str(tiny_folder("llama")), adapter=tmp_path)


def test_an_adapter_folder_that_is_not_there(tiny_path, tmp_path):
    with pytest.raises(ModelError):
        load_model(str(tiny_path), adapter=tmp_path / "none")
