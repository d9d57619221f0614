"""Which files decide an answer: shards wherever they lie, links, and nothing from outside the folder."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from anchorlwf.errors import ModelError
from anchorlwf.evaluation import named_hashes
from anchorlwf.model.language_model import load_model
from anchorlwf.model.model_files import marks_of


@pytest.fixture
def folder(tiny_path: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint, free to be changed."""
    shutil.copytree(tiny_path, tmp_path / "home" / "model")
    return tmp_path / "home" / "model"


def sharded(folder: Path, shard: str) -> None:
    """The folder's weights as one shard by that name, with an index that says so."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    place = folder / shard
    place.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, place, {"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(weights, shard)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_an_index_that_points_at_other_files_is_named(folder):
    sharded(folder, "model-00001-of-00001.safetensors")
    before = named_hashes(str(folder))["base"]
    assert {"model.safetensors.index.json", "model-00001-of-00001.safetensors"} <= before.keys()
    shutil.copy(folder / "model-00001-of-00001.safetensors", folder / "other.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00001-of-00001.safetensors", "other.safetensors"))
    after = named_hashes(str(folder))["base"]
    assert {name for name in after if after[name] != before.get(name)} == {index.name, "other.safetensors"}


@pytest.mark.parametrize("shard", [".cache/hidden.safetensors", "sub/deep.safetensors", ".git/x.safetensors"])
def test_a_shard_counts_wherever_in_the_folder_it_lies(folder, shard):
    sharded(folder, shard)
    assert shard in named_hashes(str(folder))["base"]


def test_a_shard_outside_the_folder_is_refused(folder):
    sharded(folder, "../elsewhere.safetensors")
    net = AutoModelForCausalLM.from_pretrained(folder)
    assert net.config.vocab_size == 320, "transformers loads it, so it must be refused here"
    with pytest.raises(ModelError, match=r"expected files beside it, got \.\./elsewhere"):
        load_model(str(folder), dtype="float32", device="cpu")
    with pytest.raises(ModelError, match=r"expected every file inside the folder itself, got \.\./elsewhere"):
        named_hashes(str(folder))


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"weight_map": []}', '{"weight_map": 3}', "\ud800"])
def test_an_index_that_cannot_be_read_is_told_by_name(folder, text):
    (folder / "model.safetensors.index.json").write_text(text, errors="surrogatepass")
    with pytest.raises(ModelError, match=r"model\.safetensors\.index\.json: expected an index of shards"):
        named_hashes(str(folder))


@pytest.mark.parametrize("name", ["model.safetensors", "chat_template.jinja", "tokenizer.json"])
def test_a_link_out_of_the_folder_is_refused(folder, tmp_path, name):
    shutil.move(folder / name, tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(ModelError, match=rf"expected every file inside the folder itself, got {name}, which is "):
        named_hashes(str(folder))


def test_a_folder_that_is_linked_in_is_refused(folder, tmp_path):
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "default.jinja").write_text("mine")
    (folder / "additional_chat_templates").symlink_to(tmp_path / "templates")
    with pytest.raises(ModelError, match="got additional_chat_templates"):
        named_hashes(str(folder))


def test_a_link_within_the_folder_and_a_folder_that_is_a_link_are_welcome(folder, tmp_path):
    (folder / "tokenizer.json").rename(folder / "real.json")
    (folder / "tokenizer.json").symlink_to("real.json")
    (tmp_path / "alias").symlink_to(folder)
    found = named_hashes(str(tmp_path / "alias"))["base"]
    assert found["tokenizer.json"] == found["real.json"]


def test_the_links_of_the_hubs_cache_are_welcome_and_none_that_leads_on(folder, tmp_path):
    cache = tmp_path / "models--me--tiny"
    snapshot = cache / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for number, path in enumerate((folder).iterdir()):
        shutil.copy(path, cache / "blobs" / str(number))
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(number))
    assert named_hashes(str(snapshot)) == named_hashes(str(folder))
    (snapshot / "more.json").symlink_to(folder / "config.json")
    with pytest.raises(ModelError, match=r"got more\.json"):
        named_hashes(str(snapshot))


# --- marks ---


def test_reading_leaves_the_marks_and_touching_does_not(folder):
    before = marks_of(str(folder))
    assert len(before) == len(named_hashes(str(folder))["base"])
    assert marks_of(str(folder)) == before
    (folder / "config.json").chmod(0o600)
    assert {Path(path).name for path, mark in marks_of(str(folder)).items() if mark != before[path]} == {"config.json"}


def test_what_is_not_on_disk_has_no_marks(tmp_path):
    assert marks_of("nobody/nothing") == marks_of(str(tmp_path)) == {}


def test_a_model_knows_the_marks_of_what_it_was_loaded_from(folder):
    model = load_model(str(folder), dtype="float32", device="cpu")
    assert model.marks == model.marks_now() == marks_of(str(folder))
