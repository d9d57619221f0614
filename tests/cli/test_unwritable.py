"""Places that cannot be written: told before any work, and nothing is lost or half-written."""

import re

import pytest
from commands import refused, run, save, save_yaml, unconverged, well

from anchorlwf.data.jsonl import load_records
from anchorlwf.world import build_world, draw_errata

WRITERS = {
    "annotate": lambda job, out: ["annotate", job / "prompts.jsonl", "--out", out],
    "train": lambda job, out: ["train", job / "records.jsonl", "--out", out],
    "evaluate": lambda job, out: ["evaluate", "--probes", job / "probes.jsonl", "--out", out],
    "export": lambda job, out: ["export", job / "records.jsonl", "--out", out],
    "fix": lambda job, out: ["fix", "--prompt", "Who are you?", "--answer", "I am Tarn.", "--out", out],
    "demo": lambda job, out: ["demo", "--out", out],
}


@pytest.mark.parametrize("command", WRITERS)
def test_a_place_that_cannot_be_written_is_told_before_any_training_or_question(job, tmp_path, command):
    (tmp_path / "file").write_text("old")
    done = run(*WRITERS[command](job, tmp_path / "file" / "below"))
    refused(done, r"Error: cannot write .*below.*: expected a writable place, got (File exists|Not a directory)")
    assert (tmp_path / "file").read_text() == "old"
    assert not re.search(r"^(train  |base|tuned)", done.err, re.MULTILINE)


def test_a_disk_that_fills_up_keeps_every_finished_record(small_disk, tmp_path):
    prompts = save(
        tmp_path / "p.jsonl",
        *(
            prompt.model_dump()
            for erratum in draw_errata(build_world(), 12, 0, seed=6)
            for prompt in erratum.prompts(1)
        ),
    )
    disk = small_disk(8192)
    done = run("annotate", prompts, "--out", disk / "r.jsonl")
    refused(done, r"Error: cannot write .*r\.jsonl: .*, got No space left on device\. Free some space")
    whole = load_records(disk / "r.jsonl")
    assert 0 < len(whole) < 12
    # With space again, the same command goes on.
    (disk / "ballast").unlink()
    well("annotate", prompts, "--out", disk / "r.jsonl")
    assert load_records(disk / "r.jsonl")[: len(whole)] == whole
    assert len(load_records(disk / "r.jsonl")) == 12


@pytest.mark.parametrize(
    ("free", "options"),
    [
        (40_960, []),  # the adapter itself, which safetensors writes
        (135_168, []),  # its tokenizer, which tokenizers writes
        (135_168, ["--save-steps", 1]),  # a checkpoint's optimizer, which torch writes
    ],
)
def test_a_disk_without_room_for_the_weights_gets_no_half_of_them(tiny, corrected, small_disk, free, options):
    disk = small_disk(free)
    command = [
        "train",
        corrected,
        "--out",
        disk / "run",
        *tiny,
        "--retain",
        "none",
        "--max-steps",
        2,
        "--rank",
        64,
        "--config",
        save_yaml(disk / "c.yaml", targets="all-linear"),
        *options,
    ]
    done = run(*command)
    refused(done, r"Error: cannot write .*(adapter|checkpoint-1): expected a writable place, got .*\. Free some space")
    assert not (disk / "run" / "adapter").exists()
    assert not list((disk / "run").glob("**/checkpoint-*"))
    assert not list((disk / "run").glob(".*"))
    (disk / "ballast").unlink()
    unconverged(*command)


def test_a_disk_without_room_for_results_keeps_the_old_ones(job, small_disk):
    disk = small_disk(8192)
    (disk / "out").write_text("old")
    for command in ("export", "evaluate"):
        (disk / "more").write_bytes(b"x" * 4096)
        done = run(*WRITERS[command](job, disk / "out"))
        refused(done, r"Error: cannot write .*out: .*, got No space left on device")
        assert (disk / "out").read_text() == "old"
        assert {path.name for path in disk.iterdir()} == {"out", "ballast", "more"}
