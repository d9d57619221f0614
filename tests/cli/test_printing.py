"""What commands print of paths, questions and ids: as they stand, and only where they are good."""

import json
import re
from pathlib import Path

import pytest
from commands import refused, run, well

import anchorlwf
from anchorlwf.cli.shared import parted
from anchorlwf.data.jsonl import load_records, save_records


def test_no_console_takes_what_is_printed_for_markup():
    sources = {path: path.read_text() for path in Path(anchorlwf.__file__).parent.rglob("*.py")}
    for path, text in sources.items():
        for made in re.findall(r"(?<!\w)Console\((.*)\)", text):
            assert "markup=False, emoji=False" in made, path
        for made in re.findall(r"TextColumn\((\"[^)]*)\)", text):
            assert "markup=False" in made, path
        assert "markup=True" not in text, path
        assert "rich.markup" not in text, path


@pytest.mark.parametrize("name", ["r[/x]", "[bold]r", "a:cat:", "[link=x]"])
def test_a_path_with_brackets_is_a_path(job, tmp_path, name):
    folder = tmp_path / "cli" / name
    done = well("train", job / "records.jsonl", "--out", folder)
    assert f"weights: {folder / 'adapter'}" in done.out
    assert (folder / "adapter").is_dir()
    assert f" records in {folder / 's'}" in well("export", job / "records.jsonl", "--out", folder / "s").out
    files = ["--prompts", folder / "p", "--probes", folder / "q"]
    (folder / "e.json").write_text(
        json.dumps([{"subject": "s", "prompt": "p", "target_new": "t", "[/odd]:cat:": 1}]), encoding="utf-8"
    )
    done = well("import-edits", folder / "e.json", *files)
    assert f"prompts in {folder / 'p'}, probes in {folder / 'q'}" in done.out
    assert "not read: [/odd]:cat: (1)" in done.out
    refused(run("verify", folder / "none.jsonl"), re.escape(str(folder / "none.jsonl")))


def test_dpo_rows_are_not_made_of_ids_that_no_token_has(job, tmp_path):
    good, other = load_records(job / "records.jsonl")
    records = tmp_path / "records.jsonl"
    for change, told in (
        ({"original_ids": [2**31 - 1]}, "token ids: expected less than"),
        ({"completion": "Another."}, "completion, from character 0 on: expected the text of its ids"),
    ):
        save_records(records, [good.model_copy(update=change), other])
        options = ["export", records, "--to", "dpo", "--out", tmp_path / "dpo"]
        refused(run(*options), rf"records\.jsonl, line 1: record {good.id}: {told}")
        assert not (tmp_path / "dpo").exists()
        done = well(*options, "--skip-bad")
        assert done.out == f"1 of 1 records in {tmp_path / 'dpo'}\n"
        assert good.id in done.err
        (tmp_path / "dpo").unlink()


def test_long_answers_are_cut_to_the_place_where_they_part():
    same = "The sea is a vast and mysterious realm, teeming with life. "
    before, after = parted(same + "It is old." + "x" * 200, same + "It is young.")
    assert before.startswith("...")
    assert before.endswith("x...")
    assert "old." in before
    assert after.endswith("young.")
    assert len(before) <= 20 + 60 + 6
    assert parted("Paris.", "Lyon.") == ("Paris.", "Lyon.")
    assert parted("a" * 300, "a" * 300)[0].startswith("...")
