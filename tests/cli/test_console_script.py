"""Processes of their own; errors of ours; interruptions."""

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Done, refused, run, told
from safetensors.torch import load_file

from anchorlwf import annotation

SCRIPT = Path(sys.executable).with_name("anchorlwf")


def start(*arguments: object, limit: int | None = None) -> "subprocess.Popen[str]":
    def confine() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.Popen(
        [SCRIPT, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=confine,  # noqa: PLW1509 - takes no lock
    )


def test_help_comes_at_once():
    # Processor time, which other work on the machine does not lengthen much.
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        out, _ = start("--help").communicate(timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert "Commands:" in out
    assert min(spent) < 0.4


def test_the_console_script_prints_its_result_and_nothing_else(corrected, tmp_path):
    process = start("export", corrected, "--out", tmp_path / "sft.jsonl")
    assert process.communicate(timeout=120) == (f"2 of 2 records in {tmp_path / 'sft.jsonl'}\n", "")
    assert process.returncode == 0
    assert len((tmp_path / "sft.jsonl").read_text().splitlines()) == 2


def test_a_write_that_breaks_off_is_reported_by_the_console_script(job, tmp_path):
    # The course of events of a full disk, for machines where none can be mounted.
    process = start("export", job / "records.jsonl", "--out", tmp_path / "sft.jsonl", limit=60)
    out, err = process.communicate(timeout=120)
    refused(Done(process.returncode, out, err), r"Error: cannot write .*sft\.jsonl: .*, got File too large")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_ends_training_without_a_traceback_and_keeps_the_last_step(tiny, corrected, tmp_path):
    options = ["--max-steps", 1_000_000, "--drift-budget", 1e-12, "--retain", "none"]
    process = start("train", corrected, "--out", tmp_path / "run", *tiny, *options)
    assert process.stderr is not None
    # The first line of all: no library has said anything before it.
    first = [process.stderr.readline() for _ in range(3)]
    assert first[0].startswith("model "), first
    assert first[1] == "reference 1/1\n", first
    assert first[2].startswith("train "), first
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    assert err.endswith("Interrupted. What was finished is kept.\n")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    last = tmp_path / "run" / "checkpoints" / f"checkpoint-{len(rows)}"
    assert f"SIGINT ended training after step {len(rows)}; kept: {last}, {tmp_path / 'run' / 'adapter'}" in err
    assert "and --resume" in err
    weights = [folder / "adapter_model.safetensors" for folder in (last, tmp_path / "run" / "adapter")]
    assert load_file(weights[0]).keys() == load_file(weights[1]).keys()
    assert not [path.name for path in (tmp_path / "run").rglob(".*")]


def failing(error: BaseException) -> Callable[..., object]:
    def fail(*_args: object, **_kwargs: object) -> object:
        raise error

    return fail


def test_an_error_of_ours_is_one_line_and_exit_code_1(monkeypatch, corrected):
    monkeypatch.setattr(annotation, "verify_records", failing(RuntimeError("out of cheese")))
    done = run("verify", corrected)
    assert (done.code, done.out) == (1, "")
    assert told(done) == "Internal error, please report it: RuntimeError: out of cheese (--debug shows where)\n"


def test_an_interruption_is_exit_code_130(monkeypatch, corrected):
    monkeypatch.setattr(annotation, "verify_records", failing(KeyboardInterrupt()))
    done = run("verify", corrected)
    assert (done.code, done.out) == (130, "")
    assert told(done).strip() == "Interrupted. What was finished is kept."


@pytest.mark.parametrize("arguments", [["--debug", "verify", "none.jsonl"], ["verify", "none.jsonl", "--debug"]])
def test_debug_shows_the_traceback_on_either_side_of_the_command(arguments):
    done = run(*arguments)
    assert done.code == 2
    assert done.err.startswith("Traceback (most recent call last):")
    assert done.err.endswith("Error: none.jsonl: expected a JSONL file, got no such file. Check the path.\n")
