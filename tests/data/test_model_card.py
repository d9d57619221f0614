"""The card beside the weights: what it says, and that the code in it runs without anchorlwf."""

import json
import os
import re
import subprocess
import sys

import pytest
import yaml
from training_runs import world_corrections

from anchorlwf.config import TrainConfig
from anchorlwf.data.model_card import FACTS, write_card
from anchorlwf.errors import RecordError
from anchorlwf.files import file_sha
from anchorlwf.model.language_model import load_model
from anchorlwf.training import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with the adapter of two corrections."""
    folder = tmp_path_factory.mktemp("card") / "run"
    model = load_model()
    train(model, world_corrections(model, 2), out=folder, config=TrainConfig(rank=4))
    return folder


def card_of(folder):
    text = (folder / "README.md").read_text()
    _, header, body = text.split("---\n", 2)
    return yaml.safe_load(header), body


def row(body, name):
    return re.search(rf"^\| {name} \| (.*) \|$", body, re.MULTILINE)[1]


def test_training_writes_what_was_corrected_and_measured(run):
    header, body = card_of(run / "adapter")
    assert header == {"license": "apache-2.0", "library_name": "peft", "tags": ["anchorlwf"]}
    facts, report = json.loads((run / FACTS).read_text()), json.loads((run / "train.json").read_text())["report"]
    assert len(facts["corrected"]) == facts["records"] == report["records"]
    for one in facts["corrected"]:
        assert f"| `{one['question']}` | `{one['after']}` |" in body
        assert all(f"`{old!r}` to `{new!r}`" in body for old, new in one["tokens"])
    assert row(body, "anchors held") == f"{report['anchors']} of {report['anchors']}"
    assert row(body, "drift at keep tokens") == f"{report['keep_kl']:.5f} nats per token"
    assert row(body, "dtype in training") == "float32"
    assert row(body, "certificate") == "none for these weights"
    assert "--max-lora-rank 16 --lora-modules corrected=path/to/this/folder --generation-config vllm" in body


def test_the_code_in_the_card_gives_the_corrected_answer_with_plain_peft(run):
    _, body = card_of(run / "adapter")
    code = re.search(r"```python\n(.*?)```", body, re.DOTALL)[1].replace("path/to/this/folder", str(run / "adapter"))
    # Nothing of ours is at work: the package is asked for its place alone.
    code += "import sys\nassert not [name for name in sys.modules if name.startswith('anchorlwf.')]\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    corrected = json.loads((run / FACTS).read_text())["corrected"][0]
    assert done.stdout.strip() == corrected["after"]


def test_an_evaluation_and_a_certificate_count_only_for_these_weights(run):
    group = {"value": 0.5, "probes": 4, "flips": [{"id": "1"}]}
    (run / "results.json").write_text(json.dumps({"details": {"kept": group}, "kl": 0.25, "kl_tokens": 3}))
    weights = {"adapter": {"adapter_model.safetensors": file_sha(run / "adapter" / "adapter_model.safetensors")}}
    certificate = {"passed": True, "checks": [1, 2], "sha256": "ab" * 32, "weights": weights}
    (run / "certificate.json").write_text(json.dumps(certificate))
    write_card(run, base="somebody/model")
    header, body = card_of(run / "adapter")
    assert header["base_model"] == "somebody/model"
    assert row(body, "kept") == "50.0% of 4 probes, 1 changed for the worse"
    assert row(body, "drift in the evaluation") == "0.25000 nats per token"
    assert row(body, "certificate") == "passed, 2 thresholds (SHA-256 abababababab)"
    # Of other weights, and older than these.
    weights["adapter"]["adapter_model.safetensors"] = "0" * 64
    (run / "certificate.json").write_text(json.dumps(certificate))
    os.utime(run / "results.json", (0, 0))
    write_card(run)
    _, body = card_of(run / "adapter")
    assert row(body, "certificate") == "none for these weights"
    assert "probes" not in body


def test_no_path_of_this_machine_is_in_the_card(tiny_path, tmp_path):
    (tiny_path / "README.md").write_text("---\nlicense: mit\n---\nA model.\n")
    try:
        model = load_model(str(tiny_path))
        from training_runs import corrections

        train(model, corrections(model, 2), out=tmp_path / "run", config=TrainConfig(max_steps=1))
    finally:
        (tiny_path / "README.md").unlink()
    header, body = card_of(tmp_path / "run" / "adapter")
    assert header["license"] == "mit"
    assert "under the licence `mit`" in body
    assert str(tiny_path.parent) not in body
    assert f'base = "{tiny_path.name}"' in body
    assert row(body, "training").startswith("NOT converged (")


def test_questions_with_markup_stay_in_their_cells(run, tmp_path):
    facts = json.loads((run / FACTS).read_text())
    facts["corrected"][0] |= {"question": "a | b\n`c` " + "x" * 500, "tokens": [["|", "`"]]}
    for name in ("adapter", "train.json"):
        (tmp_path / name).symlink_to(run / name)
    (tmp_path / FACTS).write_text(json.dumps(facts))
    write_card(tmp_path)
    _, body = card_of(run / "adapter")
    line = next(line for line in body.splitlines() if line.startswith(r"| `a \| b 'c' xxx"))
    assert len(re.findall(r"(?<!\\)\|", line)) == 4
    assert "x" * 161 not in line


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, r"expected a run folder with card\.json, got none"), ("{}", "expected what training wrote, got kind")],
)
def test_no_run_no_card(tmp_path, content, message):
    if content is not None:
        (tmp_path / FACTS).write_text(content)
    with pytest.raises(RecordError, match=message):
        write_card(tmp_path)
