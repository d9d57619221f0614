"""An adapter goes on the base it was made for, whole, or not at all."""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from checkpoints import damaged, disturb, edit_json, edit_weights, logits
from peft import PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file

from anchorlwf.cli import main
from anchorlwf.errors import ModelError, ModelWarning
from anchorlwf.evaluation.weights import named_hashes
from anchorlwf.model.adapter import NOTES, note_adapter
from anchorlwf.model.fingerprint import base_sha
from anchorlwf.model.language_model import LanguageModel, embedded_path, load_model

WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"


def load(base: Path, adapter: Path, dtype: str = "float32") -> LanguageModel:
    return load_model(str(base), adapter=adapter, dtype=dtype, device="cpu")


def tuned(base: Path, folder: Path, *, targets: str | list[str] = "all-linear", dtype: str = "float32") -> Path:
    """An adapter that changes every logit, saved as training saves it."""
    model = disturb(load_model(str(base), dtype=dtype, device="cpu"), 0.5, targets=targets)
    model.net.save_pretrained(folder, save_embedding_layers=False)
    note_adapter(folder, model.causal, model.stamp)
    return folder


@pytest.fixture
def ours(tiny_path: Path, tmp_path: Path) -> Path:
    """An adapter for the tiny model, with our notes."""
    return tuned(tiny_path, tmp_path / "adapter")


@pytest.fixture
def theirs(ours: Path) -> Path:
    """The same without them, as other tools write it."""
    (ours / NOTES).unlink()
    return ours


@pytest.fixture
def other_base(tiny_path: Path, tmp_path: Path) -> Path:
    """A model of the same architecture with one weight that differs."""
    folder = shutil.copytree(tiny_path, tmp_path / "other")

    def change(weights: dict[str, torch.Tensor]) -> None:
        weights["model.layers.1.mlp.up_proj.weight"][3, 5] += 1

    edit_weights(folder, change)
    return folder


def rewrite(adapter: Path, rename: Callable[[str], str | None]) -> None:
    weights = load_file(adapter / WEIGHTS)
    kept = {rename(name): weight for name, weight in weights.items()}
    save_file({name: weight for name, weight in kept.items() if name is not None}, adapter / WEIGHTS, {"format": "pt"})


def refused(base: Path, adapter: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load(base, adapter)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- the base it was made for ---


def test_the_base_of_an_adapter_is_known_by_its_weights(ours, tiny_path, tiny_model, tmp_path):
    expected = logits(load(tiny_path, ours))
    assert not torch.equal(expected, logits(tiny_model))
    moved = shutil.copytree(tiny_path, tmp_path / "moved")
    assert torch.equal(logits(load(moved, ours)), expected)
    # In shards; or when the folder of the adapter is told where the base lies now.
    tiny_model.causal.save_pretrained(moved, max_shard_size="40KB")
    (moved / "model.safetensors").unlink()
    assert torch.equal(logits(load(moved, ours)), expected)
    edit_json(ours / SETTINGS, base_model_name_or_path=str(moved))
    assert torch.equal(logits(load_model(str(ours), dtype="float32", device="cpu")), expected)


def test_another_base_is_refused(ours, other_base):
    message = refused(other_base, ours)
    assert "expected the weights of " in message
    assert "got others (" in message
    edit_json(ours / SETTINGS, base_model_name_or_path=str(other_base))
    with pytest.raises(ModelError, match="got others"):
        load_model(str(ours), dtype="float32", device="cpu")


@pytest.mark.parametrize("trained", ["float32", "bfloat16"])
@pytest.mark.parametrize("used", ["float32", "bfloat16"])
def test_the_type_of_the_weights_does_not_matter(tiny_path, tmp_path, other_base, trained, used):
    adapter = tuned(tiny_path, tmp_path / "adapter", dtype=trained)
    load(tiny_path, adapter, used)
    with pytest.raises(ModelError, match="got others"):
        load(other_base, adapter, used)


def test_float16_cannot_be_compared_with_other_types(tiny_path, ours, other_base, tmp_path):
    with pytest.warns(ModelWarning, match=r"trained in torch.float32; in torch.float16 it cannot be told"):
        load(tiny_path, ours, "float16")
    half = tuned(tiny_path, tmp_path / "half", dtype="float16")
    load(tiny_path, half, "float16")
    with pytest.raises(ModelError, match="got others"):
        load(other_base, half, "float16")


def test_the_hash_is_of_the_base_whatever_lies_on_it(any_path, any_model):
    model = load_model(str(any_path), dtype="float32", device="cpu")
    model.attach_lora(4, 8.0, 0.0, "all-linear", seed=0)
    assert base_sha(model.causal) == base_sha(any_model.causal)
    next(weight for name, weight in model.net.named_parameters() if "base_layer" in name).data[0, 0] += 1
    assert base_sha(model.causal) != base_sha(any_model.causal)


def test_another_tokenizer_or_template_is_warned_of(ours, tiny_path, tmp_path):
    base = shutil.copytree(tiny_path, tmp_path / "base")
    (base / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    with pytest.warns(ModelWarning, match="chat template: expected that of .*, got another"):
        load(base, ours)


def test_without_notes_of_ours_names_are_compared(theirs, tiny_path, other_base, tmp_path):
    load(tiny_path, theirs)
    with pytest.warns(ModelWarning, match=rf"expected the base that it names, {tiny_path}, got {other_base}\."):
        load(other_base, theirs)
    # The hub's name and a folder of that name may well be one model.
    named = shutil.copytree(tiny_path, tmp_path / "Tiny-Model")
    edit_json(theirs / SETTINGS, base_model_name_or_path="somebody/tiny-model")
    load(named, theirs)
    edit_json(theirs / SETTINGS, base_model_name_or_path=None)
    load(tiny_path, theirs)


def test_the_embedded_model_is_known_by_its_folder_too(tmp_path):
    adapter = tuned(embedded_path(), tmp_path / "adapter")
    (adapter / NOTES).unlink()
    load_model(adapter=adapter, dtype="float32", device="cpu")


def test_a_base_that_is_gone_is_named_with_its_adapter(ours):
    edit_json(ours / SETTINGS, base_model_name_or_path="./gone")
    with pytest.raises(ModelError, match=rf"adapter {ours} names a base .* got no such folder.* the base with --model"):
        load_model(str(ours))


def test_a_base_that_is_an_adapter_itself_is_named(ours, tiny_path, tmp_path):
    second = tuned(tiny_path, tmp_path / "second")
    edit_json(second / SETTINGS, base_model_name_or_path=str(ours))
    with pytest.raises(ModelError, match=f"model '{ours}': expected a base model, got an adapter"):
        load_model(str(second))


def test_of_two_adapters_none_is_dropped(ours, tiny_path, tmp_path):
    second = tuned(tiny_path, tmp_path / "second")
    with pytest.raises(ModelError, match=f"expected a base model, where an adapter is given, got the adapter {ours}"):
        load_model(str(ours), adapter=second)
    load(ours, ours)


# --- weights that fit ---


def test_an_adapter_of_which_nothing_fits_is_refused(theirs, tiny_path):
    rewrite(theirs, lambda name: name.replace("model.layers", "transformer.h"))
    message = refused(tiny_path, theirs)
    assert "missing: base_model.model.model.layers.0." in message
    assert "of no layer: base_model.model.transformer.h.0." in message


def test_an_adapter_of_which_a_part_is_missing_is_refused(theirs, tiny_path):
    rewrite(theirs, lambda name: None if ".layers.1." in name else name)
    assert "missing: base_model.model.model.layers.1." in refused(tiny_path, theirs)


def test_an_adapter_of_which_a_part_finds_no_layer_is_refused(theirs, tiny_path):
    edit_json(theirs / SETTINGS, target_modules=["q_proj"])
    message = refused(tiny_path, theirs)
    assert "of no layer: " in message
    assert "missing" not in message


def test_shapes_that_do_not_fit_are_refused(theirs, tiny_path):
    edit_json(theirs / SETTINGS, r=3)
    assert "size mismatch for " in refused(tiny_path, theirs)


def test_an_empty_adapter_is_refused(theirs, tiny_path):
    rewrite(theirs, lambda name: None)
    assert "missing: " in refused(tiny_path, theirs)


@pytest.mark.parametrize("targets", [["lm_head"], ["embed_tokens", "q_proj"]])
def test_what_an_adapter_holds_of_the_base_must_be_the_bases(tiny_folder, tmp_path, targets):
    base = tiny_folder("llama")
    adapter = tuned(base, tmp_path / "adapter", targets=targets)
    expected = logits(load(base, adapter))
    assert not any("base_layer" in name for name in load_file(adapter / WEIGHTS))
    # As PEFT saves it by itself.
    (adapter / NOTES).unlink()
    load(base, adapter).net.save_pretrained(adapter, save_embedding_layers=True)
    own = [name for name in load_file(adapter / WEIGHTS) if "lora" not in name]
    assert own
    assert torch.equal(logits(load(base, adapter)), expected)
    weights = load_file(adapter / WEIGHTS)
    weights[own[0]] += 1
    save_file(weights, adapter / WEIGHTS, {"format": "pt"})
    assert "expected no weights of the base, or the same, got another " in refused(base, adapter)


def test_a_head_of_its_own_is_the_adapters(tiny_folder, tmp_path):
    base = tiny_folder("llama")
    adapter = tuned(base, tmp_path / "adapter")
    (adapter / NOTES).unlink()
    weights = load_file(adapter / WEIGHTS)
    head = load_model(str(base), dtype="float32", device="cpu").causal.get_output_embeddings().weight.detach()
    save_file({**weights, "base_model.model.lm_head.weight": head * 2}, adapter / WEIGHTS, {"format": "pt"})
    edit_json(adapter / SETTINGS, modules_to_save=["lm_head"])
    model = load(base, adapter)
    with model.reference():
        plain = logits(model)
    assert not torch.equal(logits(model), plain)


# --- files ---


def test_files_that_training_did_not_write_are_refused(ours, tiny_path):
    settings = (ours / SETTINGS).read_text()
    edit_json(ours / SETTINGS, lora_alpha=9)
    assert f"adapter {ours}, {SETTINGS}: expected what training wrote (" in refused(tiny_path, ours)
    (ours / SETTINGS).write_text(settings)
    flipped = bytearray((ours / WEIGHTS).read_bytes())
    flipped[-3] ^= 1
    (ours / WEIGHTS).write_bytes(flipped)
    assert f"adapter {ours}, {WEIGHTS}: expected what training wrote (" in refused(tiny_path, ours)


def test_however_a_file_is_damaged_the_adapter_is_refused_or_the_same(ours, tiny_path):
    expected, refusals = logits(load(tiny_path, ours)), 0
    for name, damage in damaged(ours):
        try:
            same = torch.equal(logits(load(tiny_path, ours)), expected)
        except ModelError:
            refusals += 1
        else:
            assert same, f"{name} {damage}"
            assert name not in (WEIGHTS, SETTINGS), f"{name} {damage}"
    assert refusals > 50


@pytest.mark.parametrize("kind", [b"I32", b"U32"])
def test_a_type_that_was_flipped_in_the_header_is_refused(theirs, tiny_path, kind):
    (theirs / WEIGHTS).write_bytes((theirs / WEIGHTS).read_bytes().replace(b"F32", kind, 1))
    assert f"expected floating-point weights, got {kind.decode()} for base_model." in refused(tiny_path, theirs)


def test_an_adapter_without_weights_is_not_sought_on_the_hub(theirs, tiny_path):
    torch.save(load_file(theirs / WEIGHTS), theirs / "adapter_model.bin")
    (theirs / WEIGHTS).unlink()
    assert f"expected a folder with {WEIGHTS}, got none" in refused(tiny_path, theirs)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"peft_type": "NO_SUCH"}, "adapter_config.json, peft_type: expected LORA, or .*, got 'NO_SUCH'"),
        ({"peft_type": None}, "peft_type: .* got None"),
        ({"peft_type": ["LORA"]}, "peft_type: .* got "),
        ({"task_type": "SEQ_CLS"}, "task_type: expected CAUSAL_LM, got 'SEQ_CLS'"),
        ({"base_model_name_or_path": 5}, "base_model_name_or_path: expected a name, got 5"),
        ({"r": "wide"}, "expected an adapter for this model, got "),
        ({"target_modules": ["no_such_layer"]}, "expected an adapter for this model, got "),
    ],
)
def test_settings_that_make_no_sense_are_refused(theirs, tiny_path, changes, named):
    edit_json(theirs / SETTINGS, **changes)
    with pytest.raises(ModelError, match=named):
        load(tiny_path, theirs)


def test_settings_that_peft_leaves_out_are_warned_of(theirs, tiny_path):
    edit_json(theirs / SETTINGS, use_something_new=True, something_else=None)
    with pytest.warns(ModelWarning, match=r"got use_something_new\. They are left out"):
        load(tiny_path, theirs)


def test_a_learned_prompt_is_not_an_adapter_of_layers(tiny_path, tmp_path):
    net = load_model(str(tiny_path), dtype="float32", device="cpu").causal
    get_peft_model(net, PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")).save_pretrained(tmp_path)
    assert "peft_type: expected LORA, or another kind that changes layers" in refused(tiny_path, tmp_path)


def lines(text: str) -> Iterable[str]:
    return [line for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("command", [["chat", "--prompt", "Hello"], ["certificate", "c.json"]])
def test_the_command_line_says_it_in_one_line(ours, capsys, command):
    (ours / SETTINGS).write_text((ours / SETTINGS).read_text()[:40])
    with pytest.raises(ModelError, match="expected a JSON object, got a damaged file"):
        named_hashes(str(ours))
    with pytest.raises(SystemExit) as left:
        main([*command, "--model", str(ours)])
    assert left.value.code == 2
    shown = lines(capsys.readouterr().err)
    assert len(shown) == 1
    assert shown[0].startswith("Error: ")


def test_a_run_folder_is_not_its_adapter(ours, tiny_path):
    with pytest.raises(ModelError, match=rf"Give {ours}\."):
        load_model(str(tiny_path), adapter=ours.parent)
    with pytest.raises(ModelError, match="got no such folder"):
        load_model(str(tiny_path), adapter=ours.parent / "none")


def test_notes_are_json_that_anyone_can_read(ours, tiny_model):
    notes = json.loads((ours / NOTES).read_text())
    assert notes["base"] == tiny_model.stamp.model_dump(mode="json")
    assert notes["base_sha"] == base_sha(tiny_model.causal)
