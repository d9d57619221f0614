"""Training goes on from what is whole and belongs to the run, or says why not; signals keep what is there."""

import json
import os
import random
import shutil
import signal
import time
import warnings
from contextvars import Context
from pathlib import Path

import pytest
import torch
from killed_training import killed_runs, life
from peft import PeftModel
from safetensors.torch import load_file
from training_runs import corrections, steps

from anchorlwf.config import TrainConfig
from anchorlwf.data.jsonl import save_records
from anchorlwf.data.record import Record
from anchorlwf.errors import AnchorLwfWarning, ConfigError, ConflictError, ModelError
from anchorlwf.model.language_model import LanguageModel, load_model
from anchorlwf.run import held_folder
from anchorlwf.training import train
from anchorlwf.training.checkpoint import Checkpoints, RunKey
from anchorlwf.workflow import demo, fix

CHECKPOINT_FILES = [
    "adapter_config.json",
    "adapter_model.safetensors",
    "checkpoint.json",
    "optimizer.pt",
    "rng_state.pth",
    "scheduler.pt",
    "trainer_state.json",
]


class StoppedError(Exception):
    pass


def options(**more: object) -> TrainConfig:
    # Two batches an epoch and dropout: a checkpoint lies within an epoch and random numbers matter.
    given = {"max_steps": 8, "stop": False, "batch_size": 2, "lora_dropout": 0.1, "save_steps": 2}
    return TrainConfig.of(**{**given, **more})


@pytest.fixture(scope="module")
def records(tiny_path: Path) -> list[Record]:
    return corrections(load_model(str(tiny_path), dtype="float32", device="cpu"), 3)


@pytest.fixture
def model(tiny_path: Path) -> LanguageModel:
    return load_model(str(tiny_path), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def whole(tiny_path: Path, records: list[Record], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole")
    train(load_model(str(tiny_path), dtype="float32", device="cpu"), records, out=out, config=options())
    return out


@pytest.fixture(scope="module")
def broken_off(tiny_path: Path, records: list[Record], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, broken off in step 7: checkpoints of steps 4 and 6. Not to be changed: see `cut`."""
    out = tmp_path_factory.mktemp("broken_off")

    def stop(row: dict) -> None:
        if row["step"] == 7:
            raise StoppedError

    with pytest.raises(StoppedError):
        fresh = load_model(str(tiny_path), dtype="float32", device="cpu")
        train(fresh, records, out=out, config=options(), on_step=stop)
    return out


@pytest.fixture
def cut(broken_off: Path, tmp_path: Path) -> Path:
    """A copy of the broken off run."""
    shutil.copytree(broken_off, tmp_path / "cut")
    return tmp_path / "cut"


def same(one: Path, other: Path) -> bool:
    """Whether two runs ended alike, bit by bit, and logged every step once."""
    names = ("adapter/adapter_model.safetensors", "metrics.jsonl")
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def steps_of(out: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def checkpoints(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir())


# --- whole ones -----------------------------------------------------------------------------------------------------


def test_a_resumed_run_ends_as_if_nothing_had_happened(whole, cut, model, records):
    assert checkpoints(cut) == ["checkpoint-4", "checkpoint-6"]
    assert steps_of(cut)[-1] == 7, "a step behind the checkpoint was logged"
    with warnings.catch_warnings():
        warnings.simplefilter("error", AnchorLwfWarning)
        train(model, records, out=cut, config=options(), resume=True)
    assert same(whole, cut)


def test_a_finished_run_resumes_to_the_same_end(whole, tmp_path, model, records):
    # A checkpoint of the last step would make Trainer take one more.
    shutil.copytree(whole, tmp_path / "again")
    assert checkpoints(whole) == ["checkpoint-4", "checkpoint-6"]
    train(model, records, out=tmp_path / "again", config=options(), resume=True)
    assert same(whole, tmp_path / "again")


def test_how_often_a_run_is_saved_may_change(whole, cut, model, records):
    train(model, records, out=cut, config=options(save_steps=1), resume=True)
    assert same(whole, cut)
    assert checkpoints(cut) == ["checkpoint-6", "checkpoint-7"]


@pytest.mark.parametrize("name", CHECKPOINT_FILES)
@pytest.mark.parametrize("damage", ["missing", "flipped", "cut short"])
def test_a_damaged_checkpoint_is_told_of_and_the_one_before_taken(broken_off, cut, name, damage):
    file = cut / "checkpoints" / "checkpoint-6" / name
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    file.unlink() if damage == "missing" else file.write_bytes(content[: -9 if damage == "cut short" else None])
    key = json.loads((broken_off / "checkpoints" / "checkpoint-4" / "checkpoint.json").read_text())["key"]
    with pytest.warns(AnchorLwfWarning, match=rf"checkpoint-6: {name} is .*\. Going on from checkpoint-4 instead\."):
        newest = Checkpoints(cut / "checkpoints", RunKey(**key)).newest()
    assert newest == cut / "checkpoints" / "checkpoint-4"
    assert checkpoints(cut) == ["checkpoint-4"]


def test_a_flipped_bit_of_the_adapter_is_trained_again(whole, cut, model, records):
    file = cut / "checkpoints" / "checkpoint-6" / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 64
    file.write_bytes(content)
    with pytest.warns(AnchorLwfWarning, match="Going on from checkpoint-4"):
        train(model, records, out=cut, config=options(), resume=True)
    assert same(whole, cut)


def test_a_file_that_is_too_many_is_not_read(whole, cut, model, records):
    # Trainer would read these weights instead of the adapter.
    (cut / "checkpoints" / "checkpoint-6" / "pytorch_model.bin").write_bytes(b"x")
    with pytest.warns(AnchorLwfWarning, match="pytorch_model.bin does not belong to it"):
        train(model, records, out=cut, config=options(), resume=True)
    assert same(whole, cut)


def test_where_no_checkpoint_is_whole_nothing_is_trained_or_removed(cut, model, records):
    for place in (cut / "checkpoints").iterdir():
        (place / "optimizer.pt").unlink()
    before = (cut / "metrics.jsonl").read_bytes()
    with pytest.raises(ConfigError, match=r"checkpoint-6: optimizer.pt is missing; checkpoint-4: optimizer.pt is miss"):
        train(model, records, out=cut, config=options(), resume=True)
    assert checkpoints(cut) == ["checkpoint-4", "checkpoint-6"]
    assert (cut / "metrics.jsonl").read_bytes() == before


def test_a_checkpoint_that_was_not_finished_is_cleared_away(whole, cut, model, records):
    part = cut / "checkpoints" / ".checkpoint-8.abcdefgh" / "new" / "checkpoint-8"
    part.mkdir(parents=True)
    train(model, records, out=cut, config=options(), resume=True)
    assert same(whole, cut)
    assert checkpoints(cut) == ["checkpoint-4", "checkpoint-6"]


def test_a_checkpoint_that_breaks_off_leaves_nothing(tmp_path, model, records, monkeypatch):
    plain = torch.save

    def full(thing, file, *more, **options):
        if "scheduler" in str(file):
            raise OSError(28, "No space left on device")
        plain(thing, file, *more, **options)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        train(model, records, out=tmp_path, config=options())
    assert checkpoints(tmp_path) == []


# --- another run's --------------------------------------------------------------------------------------------------


def unsure(record: Record) -> Record:
    return record.model_copy(
        update={"anchors": [anchor.model_copy(update={"confidence": 0.9}) for anchor in record.anchors]}
    )


@pytest.mark.parametrize(
    ("other", "config", "told"),
    [
        (lambda records: records[:2], {}, "other records, anchors or confidences"),
        (lambda records: records[::-1], {}, "other records, anchors or confidences"),
        (lambda records: [unsure(records[0]), *records[1:]], {}, "other records, anchors or confidences"),
        (lambda records: records, {"learning_rate": 1e-3}, r"learning_rate 0\.001 \(was 0\.0003\)"),
        (lambda records: records, {"max_steps": 9, "hinge": False}, r"max_steps 9 \(was 8\); hinge False \(was True\)"),
    ],
    ids=["fewer records", "another order", "edited confidence", "another rate", "two options"],
)
def test_a_run_with_something_else_is_refused_with_what_differs(cut, model, records, other, config, told):
    before = sorted(path for path in cut.rglob("*") if path.is_file())
    with pytest.raises(ConfigError, match=rf"resume .*cut: expected the records, model and options .*, got .*{told}"):
        train(model, other(records), out=cut, config=options(**config), resume=True)
    assert sorted(path for path in cut.rglob("*") if path.is_file()) == before
    assert not isinstance(model.net, PeftModel), "the right options may follow"


def test_another_model_is_refused(cut, model, records):
    with torch.no_grad():
        next(model.net.parameters())[0, 0] += 1e-3
    with pytest.raises(ConfigError, match="another reference model"):
        train(model, records, out=cut, config=options(), resume=True)


def test_ids_texts_and_times_of_records_do_not_matter(whole, cut, model, records):
    renamed = [record.model_copy(update={"id": records[0].id[::-1], "tags": ["x"]}) for record in records]
    train(model, renamed, out=cut, config=options(), resume=True)
    assert same(whole, cut)


def test_a_fresh_run_never_goes_on_from_an_earlier_one(cut, tiny_path, model, records):
    def stop(_row: dict) -> None:
        raise StoppedError

    with pytest.raises(StoppedError):
        train(model, records[:2], out=cut, config=options(), on_step=stop)
    assert checkpoints(cut) == []
    assert steps_of(cut) == [1]
    again = load_model(str(tiny_path), dtype="float32", device="cpu")
    with pytest.raises(ConfigError, match="expected a checkpoint in checkpoints/, got none"):
        train(again, records[:2], out=cut, config=options(), resume=True)


def test_full_fine_tuning_resumes_bit_by_bit(tiny_path, tmp_path, records):
    config = options(method="full", learning_rate=1e-3, max_steps=4, save_steps=3)
    for name, resume in (("whole", False), ("cut", False), ("cut", True)):
        train(load_model(str(tiny_path)), records, out=tmp_path / name, config=config, resume=resume)
    one, other = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert steps_of(tmp_path / "cut") == [1, 2, 3, 4]


# --- signals --------------------------------------------------------------------------------------------------------


def signalled(number: int, at: int = 5):
    """An `on_step` that sends this process a signal."""

    def send(row: dict) -> None:
        if row["step"] == at:
            os.kill(os.getpid(), number)

    return send


def test_sigterm_writes_a_checkpoint_and_says_how_to_go_on(whole, tmp_path, tiny_path, model, records):
    config = options(save_steps=0)
    with pytest.warns(AnchorLwfWarning) as told, pytest.raises(SystemExit) as ended:
        train(model, records, out=tmp_path, config=config, on_step=signalled(signal.SIGTERM))
    assert ended.value.code == 143
    [message] = [str(one.message) for one in told if one.category is AnchorLwfWarning]
    assert message.startswith("SIGTERM ended training after step 5; kept: ")
    assert str(tmp_path / "checkpoints" / "checkpoint-5") in message
    assert "--resume" in message
    assert not (tmp_path / "adapter").exists(), "nothing half-trained is left where a result belongs"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    train(load_model(str(tiny_path)), records, out=tmp_path, config=config, resume=True)
    assert same(whole, tmp_path)


def test_ctrl_c_keeps_the_adapter_of_the_last_step(whole, tmp_path, tiny_path, model, records, capfd):
    shutil.copytree(whole, tmp_path / "run")
    message = r"SIGINT ended training after step 5; kept: .*checkpoint-5, .*adapter \(without a stop report\)"
    with pytest.warns(AnchorLwfWarning, match=message), pytest.raises(KeyboardInterrupt):
        train(model, records, out=tmp_path / "run", config=options(), on_step=signalled(signal.SIGINT))
    assert "finishing this step" in capfd.readouterr().err
    kept = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    saved = load_file(tmp_path / "run" / "checkpoints" / "checkpoint-5" / "adapter_model.safetensors")
    assert all(torch.equal(kept[name], saved[name]) for name in kept)
    assert not (tmp_path / "run" / "train.json").exists(), "it told of the adapter before"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    train(load_model(str(tiny_path)), records, out=tmp_path / "run", config=options(), resume=True)
    assert same(whole, tmp_path / "run")


def test_a_second_ctrl_c_ends_at_once(tmp_path, model, records):
    def twice(_row: dict) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("went on")

    with pytest.raises(KeyboardInterrupt):
        train(model, records, out=tmp_path, config=options(), on_step=twice)
    assert checkpoints(tmp_path) == []


def test_a_signal_in_the_last_step_lets_the_result_be_written_first(whole, tmp_path, model, records):
    with pytest.raises(KeyboardInterrupt):
        train(model, records, out=tmp_path, config=options(), on_step=signalled(signal.SIGINT, at=8))
    assert same(whole, tmp_path)
    assert json.loads((tmp_path / "train.json").read_text())["steps"] == 8


def test_a_programs_own_handlers_are_its_own_business(tmp_path, model, records):
    heard = []
    usual = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        train(model, records, out=tmp_path, config=options(), on_step=signalled(signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, usual)
    assert heard == [signal.SIGTERM]
    assert steps_of(tmp_path)[-1] == 8


# --- two at once, and kills -----------------------------------------------------------------------------------------


def test_two_runs_into_one_folder_are_one_too_many(cut, model, records):
    before = sorted(path for path in cut.rglob("*") if path.is_file())
    inside = []

    def second(_row: dict) -> None:
        report = cut.parent / "log.txt"
        process = life(["train", "none.jsonl", "--out", cut], report)
        process.join()
        inside.append((process.exitcode, report.read_text()))
        raise StoppedError

    with pytest.raises(StoppedError):
        train(model, records, out=cut, config=options(), resume=True, on_step=second)
    [(code, told)] = inside
    assert code == 2
    assert f"run folder {cut}: expected no other process in it, got process {os.getpid()} on " in told
    after = [path for path in cut.rglob("*") if path.is_file()]
    assert sorted(after) == before


@pytest.mark.parametrize(
    "work", [demo, lambda out: fix(None, "Who are you?", "I am Tarn.", out=out)], ids=["demo", "fix"]
)
def test_demo_and_fix_write_into_no_folder_that_another_holds(tmp_path, work):
    with held_folder(tmp_path / "run"), pytest.raises(ConflictError):
        Context().run(work, tmp_path / "run")  # as another thread or process would
    assert not list(tmp_path.iterdir())


def test_killed_training_resumes_to_the_same_bits(tmp_path, tiny_path, records):
    save_records(tmp_path / "records.jsonl", records)
    options(max_steps=30, save_steps=1).save(tmp_path / "train.yaml")
    arguments = ["train", tmp_path / "records.jsonl", "--model", tiny_path, "--config", tmp_path / "train.yaml"]
    arguments += ["--retain", "none"]
    report = killed_runs(tmp_path, arguments, kills=4, seed=random.randrange(2**32))
    assert report.wrong == []
    assert report.kills == 4
    assert report.resumed + report.started_anew >= 4


def test_sigterm_to_the_command_is_exit_code_143_and_a_line(tmp_path, tiny_path, records):
    save_records(tmp_path / "records.jsonl", records)
    options(max_steps=10**6).save(tmp_path / "train.yaml")
    out, log = tmp_path / "run", tmp_path / "log.txt"
    arguments = ["train", tmp_path / "records.jsonl", "--model", tiny_path, "--config", tmp_path / "train.yaml"]
    arguments += ["--retain", "none"]
    process = life([*arguments, "--out", out], log)
    end = time.monotonic() + 60
    while not (out / "metrics.jsonl").exists() and time.monotonic() < end:
        time.sleep(0.01)
    process.terminate()
    process.join()
    assert process.exitcode == 143, log.read_text()
    assert "SIGTERM ended training after step" in log.read_text()
    assert "Traceback" not in log.read_text()


def test_a_run_that_is_refused_leaves_the_earlier_one_as_it_was(tiny_path, tmp_path):
    def files():
        return {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}

    model = load_model(str(tiny_path), dtype="float32", device="cpu")
    records = corrections(model, 2)
    train(model, records, out=tmp_path / "run", config=steps(2, save_steps=1))
    before = files()
    with pytest.raises(ModelError, match="LoRA targets"):
        other = load_model(str(tiny_path), dtype="float32", device="cpu")
        train(other, records, out=tmp_path / "run", config=steps(2, targets="nope"))
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) > 0
    assert files() == before
