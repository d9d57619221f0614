"""What is wrong in a file gets one message that names it, and exit code 2."""

import json
import re
from pathlib import Path

import pytest
from commands import ERRATUM, refused, run, save, well

from anchorlwf.data.jsonl import load_records, save_lines, save_records
from anchorlwf.world import fact_probe, templates


def with_line(path: Path, corrected: Path, change: dict[str, object] | str) -> Path:
    """The records with a line between them: the first record changed, or any text."""
    first, second = corrected.read_text().splitlines()
    bad = change if isinstance(change, str) else json.dumps({**json.loads(first), **change})
    path.write_text(f"{first}\n{bad}\n{second}\n")
    return path


def anchor(**change: object) -> dict[str, object]:
    return {"position": 0, "token_id": 5, **change}


BAD_LINES = {
    "broken JSON": ('{"id": ', r"expected one JSON object, got broken JSON \(Expecting value at column 8\)"),
    "no object": ("[1, 2]", r"expected a JSON object, got list"),
    "a field too few": ("{}", r"id: expected the field, got nothing"),
    "a field too many": ({"colour": "red"}, r"colour: expected extra inputs are not permitted, got 'red'"),
    "an empty completion": (
        {"completion_ids": [], "anchors": []},
        r"completion_ids: expected .*at least 1 item.*, got \[\]",
    ),
    "anchors out of order": (
        {"completion_ids": [5, 5, 5], "anchors": [anchor(position=1), anchor(position=0)]},
        r"anchors\[1\]\.position: expected more than 1 \(strictly increasing\); got 0",
    ),
    "an anchor out of range": (
        {"completion_ids": [5], "anchors": [anchor(position=1)]},
        r"anchors\[0\]\.position: expected less than the completion's 1 tokens; got 1",
    ),
    "a token id that does not match": (
        {"completion_ids": [6], "anchors": [anchor()]},
        r"anchors\[0\]\.token_id: expected 6, the token at completion_ids\[0\]; got 5",
    ),
    "confidence 0": (
        {"completion_ids": [5], "anchors": [anchor(confidence=0)]},
        r"confidence: expected greater than 0, got 0",
    ),
    "confidence 2": (
        {"completion_ids": [5], "anchors": [anchor(confidence=2)]},
        r"confidence: expected less than or equal to 1, got 2",
    ),
    "confidence NaN": (
        {"completion_ids": [5], "anchors": [anchor(confidence=float("nan"))]},
        r"confidence: expected a finite number, got nan",
    ),
    "no UUID": ({"id": "one"}, r"id: expected a UUID; got 'one'"),
}


@pytest.mark.parametrize("name", BAD_LINES)
@pytest.mark.parametrize("command", ["verify", "train", "export"])
def test_a_bad_line_is_named_and_nothing_is_done(corrected, tmp_path, command, name):
    change, problem = BAD_LINES[name]
    path = with_line(tmp_path / "r.jsonl", corrected, change)
    done = run(command, path, *([] if command == "verify" else ["--out", tmp_path / "out"]))
    refused(done, rf"Error: {path}, line 2: .*{problem}")
    assert "2 other lines are good." in done.err
    assert not (tmp_path / "out").exists()


def test_bad_lines_can_be_skipped(tiny, corrected, tmp_path):
    path = with_line(tmp_path / "r.jsonl", corrected, "{")
    done = well("verify", path, "--skip-bad", *tiny)
    assert done.out == "2 of 2 records hold\n"
    assert re.sub(r"\s+", " ", done.err).count("line 2: expected one JSON object, got broken JSON") == 1


def test_every_command_that_speaks_of_skipping_has_the_option(tiny, corrected, tmp_path):
    records = with_line(tmp_path / "r.jsonl", corrected, "{")
    refused(run("export", records, "--out", tmp_path / "x"), r"skip them \(--skip-bad")
    assert well("export", records, "--out", tmp_path / "x", "--skip-bad").out == f"2 of 2 records in {tmp_path / 'x'}\n"
    probes = tmp_path / "probes.jsonl"
    save_lines(probes, [fact_probe(ERRATUM.fact, templates("home")[0], "retain")])
    probes.write_text(probes.read_text() + "{\n")
    ask = ["evaluate", "--probes", probes, "--records", records, *tiny, "--json", "--max-new-tokens", 3]
    refused(run(*ask), r"skip them \(--skip-bad")
    done = well(*ask, "--skip-bad")
    assert json.loads(done.out)["details"]["recall"]["probes"] == 2
    assert done.err.count("expected one JSON object, got broken JSON") == 2


def test_prompts_that_are_no_good_are_all_named_before_any_work_and_can_be_skipped(tiny, tmp_path):
    rows = [
        {"prompt": "hello", "answer": "in a town"},
        {"prompt": LONG, "answer": "in a town"},
        {"prompt": "Who?"},
        {"prompt": "Who?", "answer": "a town"},
    ]
    prompts, out = save(tmp_path / "p.jsonl", *rows), tmp_path / "r.jsonl"
    prompts.write_text(prompts.read_text() + "{\n")
    done = run("annotate", prompts, "--out", out, *tiny)
    refused(
        done,
        rf"Error: {prompts}, line 2: prompt: expected fewer than 96 tokens \(context\), got \d+\..*\n"
        rf"{prompts}, line 3: target answer: expected some text, got nothing\..*\n"
        rf"{prompts}, line 5: expected one JSON object, got broken JSON .*\n2 other lines are good\. ",
    )
    assert not out.exists()
    done = well("annotate", prompts, "--out", out, *tiny, "--skip-bad")
    assert done.out.startswith("2 records, ")
    assert [f"line {number}: " in done.err for number in range(1, 6)] == [False, True, True, False, True]


EMPTY = {
    "annotate": lambda path, out: ["annotate", path, "--out", out],
    "verify": lambda path, out: ["verify", path],
    "train": lambda path, out: ["train", path, "--out", out],
    "export": lambda path, out: ["export", path, "--out", out],
    "evaluate": lambda path, out: ["evaluate", "--probes", path, "--out", out],
}


@pytest.mark.parametrize(
    ("content", "got"), [("", "an empty file"), ("\n \n", "an empty file"), (None, "no such file")]
)
@pytest.mark.parametrize("command", EMPTY)
def test_a_file_that_holds_nothing_is_named(tmp_path, command, content, got):
    if content is not None:
        (tmp_path / "in.jsonl").write_text(content)
    done = run(*EMPTY[command](tmp_path / "in.jsonl", tmp_path / "deep" / "out"))
    refused(done, rf"Error: {tmp_path / 'in.jsonl'}: expected .*, got {got}\.")


def test_records_of_another_tokenizer_are_refused(corrected, tmp_path):
    for arguments in (["verify", corrected], ["train", corrected, "--out", tmp_path / "run"]):
        refused(run(*arguments), r"Error: record .*: tokenizer: expected [0-9a-f]{12} .*, got .* \(embedded\)")
    assert not (tmp_path / "run").exists()


def test_a_token_that_the_model_does_not_have_is_refused(tiny, corrected, tmp_path):
    path = with_line(tmp_path / "r.jsonl", corrected, {"prompt_ids": [1, 99_999]})
    refused(run("verify", path, *tiny), r"token ids: expected less than 320, got 99999")


def test_a_changed_record_does_not_hold(tiny, corrected, tmp_path):
    first, second = load_records(corrected)
    changed = first.model_copy(update={"anchors": first.anchors[1:]})
    save_records(tmp_path / "r.jsonl", [changed, second])
    done = run("verify", tmp_path / "r.jsonl", *tiny)
    place = first.anchors[0].position
    assert (done.code, done.out) == (2, "1 of 2 records hold\n")
    assert f"record {first.id}: the model would choose another token at {place};" in re.sub(r"\s+", " ", done.err)
    done = run("verify", tmp_path / "r.jsonl", *tiny, "--json")
    assert json.loads(done.out)["broken"] == [{"id": first.id, "positions": [place], "ending": None}]
    assert done.code == 2


LONG = "she " * 200


def test_what_does_not_fit_the_context_is_refused(tiny, corrected, tmp_path):
    question = save(tmp_path / "p.jsonl", {"prompt": "hello", "answer": LONG})
    refused(
        run("annotate", question, "--out", tmp_path / "r.jsonl", *tiny),
        rf"Error: {question}, line 1: prompt \+ answer: expected at most 96 tokens, got \d+ \+ \d+",
    )
    question = save(tmp_path / "p.jsonl", {"prompt": LONG, "answer": "in a town"})
    probes = save(
        tmp_path / "probes.jsonl",
        {"id": "1", "kind": "retain", "expected": "x", "messages": [{"role": "user", "content": LONG}]},
    )
    for arguments in (
        ["annotate", question, "--out", tmp_path / "r.jsonl"],
        ["chat", "-p", LONG],
        ["evaluate", "--probes", probes],
        ["fix", "--prompt", LONG, "--answer", "in a town", "--out", tmp_path / "run"],
        ["train", corrected, "--out", tmp_path / "run", "--retain", question],
    ):
        refused(run(*arguments, *tiny), r"Error: (.*p\.jsonl, line 1: )?prompt: expected fewer than 96 tokens")
    first = load_records(corrected)[0]
    long = save(tmp_path / "long.jsonl", first.model_copy(update={"prompt_ids": first.prompt_ids * 9}))
    refused(
        run("train", long, "--out", tmp_path / "run", *tiny, "--retain", "none"),
        r"Error: record .*: expected at most 96 tokens, got \d+",
    )


def test_an_answer_that_is_given_already_is_nothing_to_do(tmp_path):
    done = run("fix", "--prompt", "Who are you?", "--answer", "I am Lumo, your assistant.", "--out", tmp_path / "run")
    refused(done, r"Error: answer: expected one that differs from the model's own, got the same\. Nothing to do\.")
    assert not (tmp_path / "run").exists()


def test_a_blank_prompt_is_no_question(tmp_path):
    done = run("fix", "--prompt", " ", "--answer", "I am Tarn.", "--out", tmp_path / "run")
    refused(done, r"Error: prompt: expected a question, got a blank one\.")
    assert not (tmp_path / "run").exists()


def test_records_without_an_anchor_teach_nothing(tiny, corrected, tmp_path):
    kept = [record.model_copy(update={"anchors": []}) for record in load_records(corrected)]
    refused(
        run("train", save(tmp_path / "r.jsonl", *kept), "--out", tmp_path / "run", *tiny),
        "Error: records: expected at least one anchor, got none",
    )


def test_a_prompt_without_an_answer_is_refused(tiny, tmp_path):
    prompts = save(tmp_path / "p.jsonl", {"prompt": "hello"})
    refused(
        run("annotate", prompts, "--out", tmp_path / "r.jsonl", *tiny),
        rf"Error: {prompts}, line 1: target answer: expected some text, got nothing",
    )
