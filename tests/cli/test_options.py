"""What is wrong in an option gets one message that names it, and exit code 2."""

import subprocess
import sys
from contextlib import chdir

import pytest
from commands import refused, run, save_yaml

ANNOTATE = ["annotate", "p.jsonl", "--out", "r.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nosuch"], r"No such command 'nosuch'"),
        (["verify", "r.jsonl", "--colour"], r"No such option: --colour"),
        (["annotate", "p.jsonl"], r"Missing option '--out'"),
        ([*ANNOTATE, "--annotator", "oracle"], r"'oracle' is not one of 'target'"),
        ([*ANNOTATE, "--store", "x.db"], r"--store: expected --web or --annotator terminal, got none\. Add"),
        ([*ANNOTATE, "--remote", "http://x/v1"], r"--remote: expected --web or --annotator terminal, got none"),
        ([*ANNOTATE, "--per-item", "1"], r"--per-item: expected --web or"),
        ([*ANNOTATE, "--host", "0.0.0.0"], r"--host: expected --web, got none\. Add --web to use --host, or leave it"),
        ([*ANNOTATE, "--annotator", "terminal", "--port", "1"], r"--port: expected --web, got none"),
        ([*ANNOTATE, "--annotators", "team.yaml"], r"--annotators: expected --web or --annotator terminal"),
        ([*ANNOTATE, "--allow-host", "x.example"], r"--allow-host: expected --web, got none"),
        ([*ANNOTATE, "--memory", "1"], r"--memory: expected --web or --annotator terminal"),
        ([*ANNOTATE, "--web", "--allow-host", "http://x.example"], r"--allow-host: expected a name such as"),
        ([*ANNOTATE, "--web", "--json"], r"--json: expected --annotator target or terminal, got a page\. Leave it out"),
        ([*ANNOTATE, "--web", "--memory", "0"], r"--memory: expected GiB above 0"),
        ([*ANNOTATE, "--web", "--memory", "1", "--remote", "http://x/v1"], r"--memory: expected .*, got --remote"),
        ([*ANNOTATE, "--max-new-tokens", "0"], r"'--max-new-tokens'.*1"),
        ([*ANNOTATE, "--confidence", "high"], r"'--confidence'"),
        ([*ANNOTATE, "--confidence", "0"], r"confidence: expected greater than 0, got 0"),
        ([*ANNOTATE, "--confidence", "2"], r"confidence: expected less than or equal to 1, got 2"),
        ([*ANNOTATE, "--confidence", "nan"], r"confidence: expected a finite number, got nan"),
        (["train", "r.jsonl", "--out", "run", "--lr", "-1"], r"learning_rate: expected greater than 0, got -1"),
        (["train", "r.jsonl", "--out", "run", "--config", "none.yaml"], r"none\.yaml: expected a YAML file, got"),
        (["evaluate", "--probes", "p.jsonl", "--seed", "-1"], r"seed: expected greater than or equal to 0, got -1"),
        (["train", "r.jsonl", "--out", "run", "--seed", str(2**32)], r"seed: expected less than 4294967296, got"),
        (["bench", "decode", "--set", "tokens=16", "--set", "position=16"], r"expected a position below the .* 16"),
        (["bench", "decode", "--set", "steadiness=-1"], r"steadiness.*: expected greater than 0, got '-1'"),
        (["evaluate", "--probes", "p.jsonl", "--batch-size", "0"], r"batch_size: expected greater than .* 1, got 0"),
        (["chat", "--model", "nobody/nothing", "-p", "hello"], r"model 'nobody/nothing': expected a folder or hub"),
        (["chat", "--model", "no-folder", "-p", "hello"], r"model 'no-folder': expected a folder or hub name"),
        (["chat", "--adapter", "no-folder", "-p", "hello"], r"adapter no-folder: .*, got no such folder"),
        (["export", "r.jsonl", "--to", "csv", "--out", "x"], r"'csv' is not one of 'sft', 'dpo'"),
    ],
)
def test_a_wrong_option_is_named(tmp_path, arguments, message):
    with chdir(tmp_path):
        refused(run(*arguments), message)
        assert not list(tmp_path.iterdir())


def test_a_wrong_option_in_a_file_is_named(corrected, tmp_path):
    done = run("train", corrected, "--out", tmp_path / "run", "--config", save_yaml(tmp_path / "train.yaml", ranks=3))
    refused(done, r"Error: TrainConfig: ranks: .*got 3\. Known options: .*rank")


@pytest.mark.parametrize(
    "content", [bytes(range(256)), b"[" * 5000, b"- " * 3000, b"seed: 2026-99-99", b"1: 2", b"seed: " + b"1" * 5000]
)
def test_a_file_of_options_that_no_reader_takes_is_refused(tmp_path, content):
    (tmp_path / "x.yaml").write_bytes(content)
    probes = ["evaluate", "--probes", tmp_path / "p.jsonl"]
    refused(run(*probes, "--config", tmp_path / "x.yaml"), r"Error: ")
    refused(run(*probes, "--certificate", tmp_path / "x.yaml"), r"Error: ")


def test_a_full_output_is_the_surroundings_fault():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "anchorlwf", "doctor", "--json"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2, done
    assert "Error: output: expected room for it, got No space left on device" in done.stderr


def test_options_that_do_not_go_with_the_records_are_refused(tiny, corrected, tmp_path):
    refused(
        run("train", corrected, "--out", tmp_path / "run", *tiny, "--retain", "none", "--direction", "reverse"),
        r"Error: direction reverse: expected anchors with confidence below 1, got confidence 1",
    )
    refused(
        run("train", corrected, "--out", tmp_path / "run", *tiny, "--retain", "none", "--resume"),
        r"Error: resume .*: expected a checkpoint in checkpoints/, got none",
    )
