"""What a certificate must notice: any file that decides an answer changed, swapped, added or fetched from elsewhere."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoints import disturbed, edit_json
from commands import run
from safetensors.torch import load_file, save_file

from anchorlwf.config import EvaluateConfig, GateConfig
from anchorlwf.data.jsonl import save_lines
from anchorlwf.data.probe import Probe
from anchorlwf.errors import AnchorLwfError, ConfigError, ModelError, ModelWarning, RecordError
from anchorlwf.evaluation import Results, certify, check_certificate, evaluate, named_hashes
from anchorlwf.model.language_model import LanguageModel, load_model

CONFIG = EvaluateConfig(max_new_tokens=4, resamples=50, kl_prompts=1)
GATE = GateConfig(kept=0.0)


def anything(name: str, text: str) -> Probe:
    """A probe for which every answer is right, so that the gate is passed."""
    messages = [{"role": "user", "content": text}]
    return Probe(id=name, kind="retain", messages=messages, expected="(?s).*", scorer="regex")


def loaded(model: Path, adapter: Path | None = None) -> LanguageModel:
    return load_model(str(model), adapter=adapter, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def certified(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, an adapter, probes, and a certificate of them that holds."""
    home = tmp_path_factory.mktemp("certified")
    shutil.copytree(tiny_path, home / "model")
    disturbed(home / "model", 0.3).net.save_pretrained(home / "adapter")
    # Copies of the two are one model wherever they lie.
    edit_json(home / "adapter" / "adapter_config.json", base_model_name_or_path="somebody/model")
    save_lines(home / "probes.jsonl", [anything(f"q{index}", f"Who is {index}?") for index in range(2)])
    model = loaded(home / "model", home / "adapter")
    found = evaluate(model, home / "probes.jsonl", config=CONFIG)
    report = certify(found, GATE, model, probes=home / "probes.jsonl", out=home / "certificate.json")
    assert report.passed
    return home


@pytest.fixture
def home(certified: Path, tmp_path: Path) -> Path:
    """A copy of it, free to be changed; its certificate holds."""
    copy = tmp_path / "home"
    shutil.copytree(certified, copy)
    assert problems_of(copy) == []
    return copy


def problems_of(home: Path) -> list[str]:
    hashes = named_hashes(str(home / "model"), str(home / "adapter"))
    return check_certificate(home / "certificate.json", hashes, probes=home / "probes.jsonl")[1]


# --- every file of a certified folder ---

MODEL = [
    *("chat_template.jinja", "config.json", "generation_config.json", "model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json"),
]
ADAPTER = ["adapter_config.json", "adapter_model.safetensors"]
CERTIFIED = [*(("model", name) for name in MODEL), *(("adapter", name) for name in ADAPTER), (".", "probes.jsonl")]


def test_the_table_names_every_file_but_the_card(certified):
    for folder, names in (("model", MODEL), ("adapter", ADAPTER)):
        assert {path.name for path in (certified / folder).iterdir()} - {"README.md"} == set(names)


@pytest.mark.parametrize(("folder", "name"), CERTIFIED)
@pytest.mark.parametrize("how", ["flipped", "swapped", "gone", "empty"])
def test_a_file_that_is_not_what_it_was_is_named(home, folder, name, how):
    path = home / folder / name
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[-1] ^= 1
        path.write_bytes(content)
    elif how == "swapped":  # another file by the same name, of the same size and age
        status = path.stat()
        (path.parent / "other").write_bytes(content[::-1])
        (path.parent / "other").replace(path)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif how == "gone":
        path.unlink()
    else:
        path.write_bytes(b"")
    try:
        problems = problems_of(home)
    except AnchorLwfError as error:  # no weights at all, or no probes
        problems = [str(error)]
    part = {"model": f"weights, base, {name}", "adapter": f"weights, adapter, {name}", ".": "probes"}[folder]
    # Without its configuration an adapter's folder holds weights for nobody: still one line that says so.
    assert [line for line in problems if name in line or part in line or str(path.parent) in line], problems


ADDED = [
    (
        "model",
        "model.safetensors.index.json",
        '{"metadata": {}, "weight_map": {"lm_head.weight": "model.safetensors"}}',
    ),
    ("model", "additional_chat_templates/tool_use.jinja", "{{ messages }}"),
    ("model", "chat_template.json", '{"chat_template": "x"}'),
    ("model", "special_tokens_map.json", '{"eos_token": "<|endoftext|>"}'),
    ("model", "added_tokens.json", '{"<x>": 320}'),
    ("model", "tokenizer.model", "x"),
    ("model", "vocab.json", "{}"),
    ("model", "modeling_own.py", "print('mine')"),
    ("model", "custom_generate/generate.py", "print('mine')"),
    ("model", "adapter_model.bin", "x"),
    ("model", ".metadata", "x"),  # of a distributed checkpoint, which comes before safetensors
    ("adapter", "adapter_model.bin", "x"),
    ("adapter", "chat_template.jinja", "x"),
    ("adapter", "generation_config.json", "{}"),
]


@pytest.mark.parametrize(("folder", "name", "content"), ADDED)
def test_a_file_that_is_added_is_named(home, folder, name, content):
    path = home / folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    part = {"model": "base", "adapter": "adapter"}[folder]
    assert [line.split(": expected none")[0] for line in problems_of(home)] == [f"weights, {part}, {name}"]


@pytest.mark.parametrize(
    "name", ["README.md", "LICENSE", ".gitattributes", "results.json", "certificate.json", "a.png"]
)
def test_what_no_loader_reads_may_be_added(home, name):
    (home / "model" / name).write_text("hello")
    (home / "adapter" / name).write_text("hello")
    assert problems_of(home) == []


def test_an_added_template_does_change_the_answers(home):
    # The reason why files that are added count.
    messages = [{"role": "user", "content": "Who?"}]
    before = loaded(home / "model").codec.encode_prompt(messages)
    (home / "model" / "chat_template.jinja").unlink()
    bare = loaded(home / "model").codec.encode_prompt(messages)
    (home / "model" / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    assert len({tuple(ids) for ids in (before, bare, loaded(home / "model").codec.encode_prompt(messages))}) == 3


# --- code ---

CODE = """
from transformers import Qwen3Config, Qwen3ForCausalLM
class Own(Qwen3ForCausalLM):
    pass
"""


def test_code_counts_and_must_come_from_the_folder(home, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = home / "model"
    config = json.loads((folder / "config.json").read_text())
    (folder / "own_code.py").write_text(CODE)
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "own_code.Own"}}))
    model = load_model(str(folder), dtype="float32", device="cpu", trust_remote_code=True)
    assert type(model.net).__name__ == "Own"
    with pytest.warns(ModelWarning, match="a base to compare with"):
        found = evaluate(model, home / "probes.jsonl", config=CONFIG)
    report = certify(found, GATE, model, probes=home / "probes.jsonl")
    assert "own_code.py" in report.weights["base"]
    # As if it had come from another repository, or from a copy that is older than the folder.
    (folder / "own_code.py").write_text(CODE + "# another\n")
    model = model_of_now(model)
    with pytest.raises(ModelError, match="expected code from its own folder, got transformers_modules"):
        certify(found, GATE, model, probes=home / "probes.jsonl")


def model_of_now(model: LanguageModel) -> LanguageModel:
    """The model as if it had just been loaded."""
    model.marks = model.marks_now()
    return model


# --- between loading, evaluation and signing ---


def replace_weights(home: Path) -> None:
    other = load_file(home / "adapter" / "adapter_model.safetensors")
    save_file({name: value + 1 for name, value in other.items()}, home / "adapter" / "new", {"format": "pt"})
    (home / "adapter" / "new").replace(home / "adapter" / "adapter_model.safetensors")


def flip(path: Path) -> None:
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


CHANGES: dict[str, tuple[type[AnchorLwfError], Callable[[Path], object]]] = {
    "adapter replaced": (ModelError, replace_weights),
    "adapter written to, times put back": (
        ModelError,
        lambda home: flip(home / "adapter" / "adapter_model.safetensors"),
    ),
    "adapter's options": (ModelError, lambda home: flip(home / "adapter" / "adapter_config.json")),
    "base written to": (ModelError, lambda home: flip(home / "model" / "model.safetensors")),
    "template": (ModelError, lambda home: flip(home / "model" / "chat_template.jinja")),
    "generation config": (ModelError, lambda home: (home / "model" / "generation_config.json").unlink()),
    "index added": (ModelError, lambda home: (home / "model" / "vocab.json").write_text("{}")),
    "probes replaced": (
        RecordError,
        lambda home: save_lines(home / "probes.jsonl", [anything("other", "Is this easier?")]),
    ),
    "probes gone": (RecordError, lambda home: (home / "probes.jsonl").unlink()),
    "probes a folder": (RecordError, lambda home: ((home / "probes.jsonl").unlink(), (home / "probes.jsonl").mkdir())),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("hashed", [False, True], ids=["noted by the file system", "hashed before loading"])
def test_what_is_changed_between_loading_and_signing_is_not_certified(home, change, hashed):
    kind, apply = CHANGES[change]
    probes, out = home / "probes.jsonl", home / "new.json"
    before = named_hashes(str(home / "model"), str(home / "adapter")) if hashed else None
    model = loaded(home / "model", home / "adapter")
    found = evaluate(model, probes, config=CONFIG)
    apply(home)
    with pytest.raises(kind):
        certify(found, GATE, model, probes=probes, weights=before, out=out)
    assert not out.exists()


def test_what_is_only_looked_at_meanwhile_may_be_certified(home):
    model = loaded(home / "model", home / "adapter")
    found = evaluate(model, home / "probes.jsonl", config=CONFIG)
    shutil.copytree(home / "model", home / "copy")
    assert certify(found, GATE, model, probes=home / "probes.jsonl").passed


def test_the_command_notices_what_is_replaced_while_it_evaluates(home, monkeypatch):
    (home / "gate.yaml").write_text("kept: 0.0\n")
    from anchorlwf import evaluation

    real = evaluation.evaluate

    def interrupted(*args: object, **options: object) -> Results:
        found = real(*args, **options)
        replace_weights(home)
        return found

    monkeypatch.setattr(evaluation, "evaluate", interrupted)
    done = run(
        *("evaluate", "--model", home / "model", "--adapter", home / "adapter", "--probes", home / "probes.jsonl"),
        *("--certificate", home / "gate.yaml", "--out", home / "results.json", "--max-new-tokens", 4),
        *("--certificate-out", home / "new.json"),
    )
    assert done.code == 2, done
    assert "weights, adapter, adapter_model.safetensors: expected" in done.err
    # What was measured is not lost.
    assert json.loads((home / "results.json").read_text())["kept"] == 1.0
    assert not (home / "new.json").exists()


def test_a_file_of_probes_that_grows_while_it_is_read_is_refused(home, monkeypatch):
    from anchorlwf.evaluation import stage

    def load(path: Path, **_options: object) -> list[Probe]:
        with open(path, "a") as stream:
            stream.write(anything("late", "Me too?").model_dump_json() + "\n")
        return [anything("q", "Who?")]

    monkeypatch.setattr(stage, "load_probes", load)
    with pytest.raises(RecordError, match="expected a file at rest, got one that was written to meanwhile"):
        evaluate(loaded(home / "model"), home / "probes.jsonl", config=CONFIG)


# --- what is certified is what was evaluated ---


@pytest.fixture
def evaluated(home: Path) -> tuple[LanguageModel, Results]:
    model = loaded(home / "model", home / "adapter")
    return model, evaluate(model, home / "probes.jsonl", config=CONFIG)


def test_results_of_another_model_are_refused(home, evaluated):
    with pytest.raises(ModelError, match=r"models: expected .*adapter, got .*model\. Give the models"):
        certify(evaluated[1], GATE, loaded(home / "model"), probes=home / "probes.jsonl")


def test_results_of_other_options_data_or_hands_are_refused(home, evaluated):
    model, found = evaluated
    probes = home / "probes.jsonl"
    with pytest.raises(ConfigError, match="config: expected the options of the evaluation, got others"):
        certify(found, GATE, model, probes=probes, config=EvaluateConfig())
    with pytest.raises(RecordError, match="records to certify: expected none, got"):
        certify(found, GATE, model, probes=probes, records=[])
    with pytest.raises(RecordError, match="probes to certify"):
        certify(found, GATE, model, probes=iter([]))
    with pytest.raises(ConfigError, match="results: expected what evaluate returned, got results put together by hand"):
        certify(Results(**{**vars(found), "origin": None}), GATE, model, probes=probes)
    assert certify(found, GATE, model, probes=probes).evaluate == CONFIG.model_dump(mode="json")


@pytest.mark.parametrize("how", ["lora", "full"])
def test_a_model_that_was_trained_in_memory_is_in_no_file(home, how):
    model = loaded(home / "model")
    if how == "lora":
        model.attach_lora(2, 4.0, 0.0, "all-linear", seed=0)
    else:
        model.keep_reference_copy()
    found = evaluate(model, home / "probes.jsonl", config=CONFIG)
    with pytest.raises(ModelError, match="got what lives in memory"):
        certify(found, GATE, model, probes=home / "probes.jsonl")


# --- the certificate itself ---


def resealed(home: Path, change: Callable[[dict], object]) -> Path:
    """A certificate with other content and the hash that fits it."""
    from anchorlwf.evaluation.gate import _digest

    data = json.loads((home / "certificate.json").read_text())
    change(data)
    (home / "forged.json").write_text(json.dumps({**data, "sha256": _digest(data)}))
    return home / "forged.json"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda data: data["gate"].update(kept=0.9), "kept: at least 0 is none of the gate's thresholds"),
        (lambda data: data["gate"].update(kl=0.1), "kl: the gate asks for it, and no check holds it"),
        (lambda data: data["checks"].clear(), "kept: the gate asks for it, and no check holds it"),
        (lambda data: data["gate"].update(tasks={"mmlu": 0.1}), "tasks.mmlu: the gate asks for it"),
        (lambda data: data["gate"].clear(), "gate: GateConfig: "),
        (lambda data: data["checks"][0].update(bound="at most"), "kept: at most 0 is none of the gate's"),
        (lambda data: data["checks"].append({**data["checks"][0], "name": "recall"}), "recall: at least 0 is none of"),
    ],
)
def test_checks_that_are_not_those_of_the_gate_are_noticed(home, change, problem):
    assert any(problem in line for line in check_certificate(resealed(home, change))[1])


def test_a_gate_that_is_given_must_be_the_one_that_was_held(home):
    path = home / "certificate.json"
    assert check_certificate(path, gate=GATE)[1] == []
    assert "gate: expected {'kept': 0.0}, got {'kept': 0.5}" in check_certificate(path, gate=GateConfig(kept=0.5))[1]


@pytest.mark.parametrize("place", ["value", "threshold", "gate"])
@pytest.mark.parametrize("figure", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_figure_that_is_none_ends_in_a_sentence(home, place, figure):
    data = json.loads((home / "certificate.json").read_text())
    holder, key = (data["gate"], "kept") if place == "gate" else (data["checks"][0], place)
    holder[key] = "HERE"
    (home / "certificate.json").write_text(json.dumps(data).replace('"HERE"', figure))
    with pytest.raises(RecordError, match=r"certificate\.json: expected a certificate, got "):
        check_certificate(home / "certificate.json")


@pytest.mark.parametrize(
    "content",
    [
        b'{"passed": "\\ud800"}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a": ' + b"9" * 5000 + b"}",
        b"\x00" * 10,
        b'{"passed": false, "passed": true}',
    ],
)
def test_what_no_certificate_can_be_ends_in_a_sentence(home, content):
    (home / "certificate.json").write_bytes(content)
    done = run("certificate", home / "certificate.json")
    assert (done.code, done.out) == (2, "")
    assert "expected a certificate, got " in done.err


def test_a_lone_surrogate_in_a_certificate_ends_in_a_sentence(home):
    text = (home / "certificate.json").read_text()
    (home / "certificate.json").write_text(text.replace('"float32"', '"\\ud800"'))
    with pytest.raises(RecordError, match=r"expected a certificate, got .*surrogates not allowed"):
        check_certificate(home / "certificate.json")


def test_a_certificate_that_says_a_thing_twice_is_refused(home):
    text = (home / "certificate.json").read_text()
    (home / "certificate.json").write_text(text.replace('"passed": true', '"passed": false, "passed": true', 1))
    with pytest.raises(RecordError, match="expected a certificate, got 'passed' twice"):
        check_certificate(home / "certificate.json")


def test_an_older_certificate_says_that_it_is_one(home):
    path = resealed(home, lambda data: data.update(schema_version=1))
    with pytest.raises(RecordError, match="schema_version: expected 2, got 1"):
        check_certificate(path)


@pytest.mark.parametrize("what", ["missing", "folder"])
def test_a_certificate_that_is_no_file_ends_in_a_sentence(tmp_path, what):
    path = tmp_path if what == "folder" else tmp_path / "none.json"
    done = run("certificate", path)
    assert (done.code, done.out) == (2, "")
    assert "expected a certificate, got " in done.err


def test_the_command_compares_probes_records_and_gate(home):
    (home / "gate.yaml").write_text("kept: 0.0\n")
    path, model = home / "certificate.json", ["--model", home / "model", "--adapter", home / "adapter"]
    good = run("certificate", path, *model, "--probes", home / "probes.jsonl", "--gate", home / "gate.yaml")
    assert (good.code, good.err) == (0, ""), good
    assert "Good: of these weights and probes, unchanged" in good.out
    save_lines(home / "other.jsonl", [anything("x", "Other?")])
    bad = run(
        "certificate", path, *model, "--probes", home / "other.jsonl", "--records", home / "other.jsonl", "--json"
    )
    assert bad.code == 3
    said = json.loads(bad.out)
    assert said["compared"] == ["weights", "probes", "records"]
    assert [line.split(":")[0] for line in said["problems"]] == [
        f"probes {home / 'other.jsonl'}",
        f"records {home / 'other.jsonl'}",
    ]
    gone = run("certificate", path, "--probes", home / "none.jsonl")
    assert (gone.code, gone.out) == (2, "")
    assert "none.jsonl: expected a file, got No such file" in gone.err


def test_probes_at_the_place_it_names_are_compared_unasked(tiny_path, tmp_path):
    probes = tmp_path / "probes.jsonl"
    save_lines(probes, [anything("q", "Who?")])
    model = loaded(tiny_path)
    found = evaluate(model, probes, base=model, config=CONFIG)
    certify(found, GATE, model, base=model, probes=probes, out=tmp_path / "c.json")
    assert check_certificate(tmp_path / "c.json")[1] == []
    save_lines(probes, [anything("q", "Whom?")])
    assert [line.split(":")[0] for line in check_certificate(tmp_path / "c.json")[1]] == [f"probes {probes}"]
    probes.unlink()  # nothing to compare with
    assert check_certificate(tmp_path / "c.json")[1] == []


# --- figures and names that JSON cannot hold ---


def test_a_model_of_nan_is_no_model_to_be_certified(home):
    path = home / "adapter" / "adapter_model.safetensors"
    save_file({name: value * float("nan") for name, value in load_file(path).items()}, path, {"format": "pt"})
    model = loaded(home / "model", home / "adapter")
    with pytest.raises(ModelError, match=r"expected finite numbers, got NaN or infinity, which stand in its weights"):
        evaluate(model, home / "probes.jsonl", config=CONFIG, out=home / "results.json")
    assert not (home / "results.json").exists()


@pytest.mark.parametrize("figure", [float("nan"), float("inf")])
def test_a_figure_that_json_cannot_hold_is_null_and_passes_no_gate(home, figure):
    # A drift may be infinite: where the tuned model excludes a token that its base does not.
    model = loaded(home / "model", home / "adapter")
    measured = evaluate(model, home / "probes.jsonl", config=CONFIG, facts={"x": float("inf")})
    found = replace(measured, kl=figure, kl_interval=(figure, figure))
    found.save(home / "results.json")
    data = json.loads((home / "results.json").read_text(), parse_constant=pytest.fail)
    assert (data["kl"], data["kl_interval"], data["x"]) == (None, [None, None], None)
    report = certify(found, GateConfig(kl=100, kept=0.0), model, probes=home / "probes.jsonl", out=home / "new.json")
    assert [(check.name, check.value, check.passed) for check in report.checks] == [
        ("kept", 1.0, True),
        ("kl", None, False),
    ]
    assert check_certificate(home / "new.json")[1] == ["the gate was not passed"]


def test_half_characters_and_names_that_are_no_text_are_written_all_the_same(home):
    odd = home / os.fsdecode(b"probes-\xff.jsonl")
    shutil.copy(home / "probes.jsonl", odd)
    model = loaded(home / "model")
    found = evaluate(model, odd, base=model, config=CONFIG, out=home / "results.json", facts={"note\ud800": "\udfff"})
    assert json.loads((home / "results.json").read_text())["note?"] == "?"
    certify(found, GATE, model, base=model, probes=odd, out=home / "new.json")
    assert check_certificate(home / "new.json")[0].probes.path == str(home / "probes-\ufffd.jsonl")
