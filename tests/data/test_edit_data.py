"""Knowledge-editing data: entries as the data sets' authors publish them, and every way in which one can be broken."""

import json
from pathlib import Path
from typing import Any

import pytest
from commands import refused, run, well
from hypothesis import given
from hypothesis import strategies as st

from anchorlwf.data.edit_data import Edits, load_edits
from anchorlwf.data.jsonl import BadLineWarning, load_probes, load_prompts
from anchorlwf.data.probe import Probe, score
from anchorlwf.errors import RecordError

ZSRE = {
    "subject": "Watts Humphrey",
    "src": "What university did Watts Humphrey attend?",
    "pred": "Trinity College",
    "rephrase": "What university did Watts Humphrey take part in?",
    "alt": "University of Michigan",
    "answers": ["Illinois Institute of Technology"],
    "loc": "nq question: who played desmond doss in hacksaw ridge",
    "loc_ans": "Hugo Weaving",
    "cond": "Trinity College >> University of Michigan || What university did W. H. attend?",
}
COUNTERFACT = {
    "case_id": 7,
    "pararel_idx": 2796,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "subject": "Danielle Darrieux",
        "target_new": {"str": "English", "id": "Q1860"},
        "target_true": {"str": "French", "id": "Q150"},
    },
    "paraphrase_prompts": ["Shayna does this and Yossel goes still and dies. Danielle Darrieux, a native"],
    "neighborhood_prompts": ["The mother tongue of Léon Blum is", "The native language of Montesquieu is"],
    "attribute_prompts": ["J.R.R. Tolkien is a native speaker of"],
    "generation_prompts": ["Danielle Darrieux's mother tongue is"],
}
RECENT = {
    "subject": "Leo Arons",
    "prompt": "The place of death of Leo Arons is",
    "target_new": "Berlin",
    "portability": {
        "Logical_Generalization": [{"prompt": "Is Leo Arons still alive?", "ground_truth": [["no"], ["is dead"]]}],
        "Subject_Aliasing": [
            {"prompt": "The place of death of Martin Leo Arons is", "ground_truth": [["Berlin", "Berlin (Germany)"]]}
        ],
    },
    "locality": {
        "Relation_Specificity": [
            {"prompt": "The name of the father of Leo Arons is", "ground_truth": [["Albert Arons"]]}
        ]
    },
}
KNOWEDIT_ZSRE = {
    "subject": "Epaspidoceras",
    "target_new": "Noctuidae",
    "prompt": "Which family does Epaspidoceras belong to?",
    "ground_truth": ["Aspidoceratidae"],
    "rephrase_prompt": "What family are Epaspidoceras?",
    "cond": "...",
    "locality": {"Relation_Specificity": [{"prompt": "Epaspidoceras taxon rank", "ground_truth": ["genus"]}]},
    "portability": {"Reasoning": [{"prompt": "What is the family's common name?", "ground_truth": "Owlet moths"}]},
}
WIKIBIO = {
    "text": "This is a Wikipedia passage about john russell reynolds.",
    "labels": "He was educated in London.",
    "concept": "john russell reynolds",
    "locality": {
        "Relation_Specificity": [{"prompt": ["His field of work is", "He works in"], "ground_truth": ["medicine"]}]
    },
}
ENTRIES = {"zsre": ZSRE, "counterfact": COUNTERFACT, "knowedit": RECENT}


def write(folder: Path, *entries: Any) -> Path:
    (folder / "edits.json").write_text(json.dumps(list(entries)), encoding="utf-8")
    return folder / "edits.json"


def asked(edits: Edits) -> list[tuple[str, str, str, list[str]]]:
    return [(probe.kind, str(probe.messages[0]["content"]), probe.expected, probe.tags) for probe in edits.probes]


def test_zsre(tmp_path):
    edits = load_edits(write(tmp_path, ZSRE))
    assert edits.layout == "zsre"
    [prompt] = edits.prompts
    assert prompt.messages == [{"role": "user", "content": ZSRE["src"]}]
    assert (prompt.answer, prompt.tags) == ("University of Michigan", ["zsre"])
    assert asked(edits) == [
        ("recall", ZSRE["src"], "University of Michigan", ["zsre", "edit"]),
        ("paraphrase", ZSRE["rephrase"], "University of Michigan", ["zsre", "rephrase"]),
        # Not about the subject at all, so it is kept by itself, and the KL is measured on it.
        ("retain", "who played desmond doss in hacksaw ridge?", "Hugo Weaving", ["zsre", "locality"]),
    ]
    assert {probe.group for probe in edits.probes} == {"zsre:0"}


def test_counterfact_prompts_stay_beginnings_of_sentences(tmp_path):
    edits = load_edits(write(tmp_path, COUNTERFACT))
    [prompt] = edits.prompts
    assert prompt.messages == [{"role": "user", "content": "The mother tongue of Danielle Darrieux is"}]
    assert prompt.answer == "English"
    assert asked(edits) == [
        ("recall", "The mother tongue of Danielle Darrieux is", "English", ["counterfact", "edit"]),
        ("paraphrase", COUNTERFACT["paraphrase_prompts"][0], "English", ["counterfact", "paraphrase"]),
        ("near", "The mother tongue of Léon Blum is", "French", ["counterfact", "neighborhood"]),
        ("near", "The native language of Montesquieu is", "French", ["counterfact", "neighborhood"]),
        ("near", "J.R.R. Tolkien is a native speaker of", "English", ["counterfact", "attribute"]),
    ]


def test_knowedit_in_its_several_shapes(tmp_path):
    edits = load_edits(write(tmp_path, RECENT, KNOWEDIT_ZSRE, WIKIBIO))
    assert edits.layout == "knowedit"
    assert [prompt.answer for prompt in edits.prompts] == ["Berlin", "Noctuidae", "He was educated in London."]
    tags = [(probe.kind, probe.tags[1:]) for probe in edits.probes]
    assert tags == [
        ("recall", ["edit"]),
        ("paraphrase", ["portability", "portability:Logical_Generalization"]),
        ("paraphrase", ["portability", "portability:Subject_Aliasing"]),
        ("near", ["locality", "locality:Relation_Specificity"]),
        ("recall", ["edit"]),
        ("paraphrase", ["rephrase"]),
        ("paraphrase", ["portability", "portability:Reasoning"]),
        ("near", ["locality", "locality:Relation_Specificity"]),
        ("recall", ["edit"]),
        ("near", ["locality", "locality:Relation_Specificity"]),
        ("near", ["locality", "locality:Relation_Specificity"]),
    ]
    assert [probe.group for probe in edits.probes[-3:]] == ["knowedit:2"] * 3


FLAT = {
    "case_id": 3,
    "prompt": "Blackwater Glacier is in",
    "target_new": "Asia",
    "subject": "Blackwater Glacier",
    "ground_truth": "Antarctica",
    "rephrase_prompt": "Blackwater Glacier is located in the continent",
    "locality_prompt": "nq question: Mount Example, in",
    "locality_ground_truth": "Antarctica",
}


def test_a_flat_locality_question_is_asked_and_what_is_not_read_is_said(tmp_path):
    without = {key: value for key, value in FLAT.items() if not key.startswith("locality")}
    edits = load_edits(write(tmp_path, FLAT, without))
    assert [(probe.kind, probe.messages[0]["content"], probe.expected) for probe in edits.probes[:3]] == [
        ("recall", FLAT["prompt"], "Asia"),
        ("paraphrase", FLAT["rephrase_prompt"], "Asia"),
        ("near", "Mount Example, in", "Antarctica"),
    ]
    assert edits.probes[2].tags == ["knowedit", "locality"]
    assert len(edits.probes) == 5
    assert edits.read == {
        "prompt": 2, "target_new": 2, "subject": 2, "rephrase_prompt": 2, "locality_prompt": 1,
        "locality_ground_truth": 1,
    }  # fmt: skip
    assert edits.unread == {"case_id": 2, "ground_truth": 2}


@pytest.mark.parametrize("missing", ["locality_prompt", "locality_ground_truth"])
def test_half_of_a_flat_locality_question_is_a_bad_entry(tmp_path, missing):
    with pytest.raises(RecordError, match=f"{missing}: expected the field, for there is locality_.*; got nothing"):
        load_edits(write(tmp_path, changed(FLAT, missing)))


def test_whatever_is_not_read_is_counted_however_deep_it_stands(tmp_path):
    assert load_edits(write(tmp_path, COUNTERFACT, COUNTERFACT)).unread == {
        "case_id": 2,
        "generation_prompts": 2,
        "pararel_idx": 2,
        "requested_rewrite.relation_id": 2,
        "requested_rewrite.target_new.id": 2,
        "requested_rewrite.target_true.id": 2,
    }
    asked = {"x": [{"prompt": "Q", "ground_truth": "a", "why": 1}, {"prompt": "R", "ground_truth": "a", "why": 2}]}
    assert load_edits(write(tmp_path, {**RECENT, "locality": asked, "text": "other"})).unread == {
        "locality.why": 1,
        "text": 1,
    }


@pytest.mark.parametrize(
    ("answer", "right"),
    [("No.", True), ("He IS DEAD, sadly", True), ("nothing is known", False), ("He is alive", False)],
)
def test_any_of_several_answers_will_do(tmp_path, answer, right):
    alive = load_edits(write(tmp_path, RECENT)).probes[1]
    assert score(alive, answer) is right


@given(texts=st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=4))
def test_each_of_the_answers_is_right_by_itself(tmp_path_factory, texts):
    entry = {**RECENT, "portability": {}, "locality": {"x": [{"prompt": "Q", "ground_truth": texts}]}}
    probe = load_edits(write(tmp_path_factory.mktemp("edits"), entry)).probes[-1]
    assert all(score(probe, f"({text.strip()})") for text in texts)


def test_what_must_stay_can_be_given_another_kind(tmp_path):
    for entry in (ZSRE, COUNTERFACT, RECENT):
        for kind, other in (("near", "retain"), ("retain", "near")):
            kinds = {probe.kind for probe in load_edits(write(tmp_path, entry), locality=kind).probes}
            assert kind in kinds
            assert other not in kinds


def test_the_first_edits_are_taken(tmp_path):
    entries = [{**ZSRE, "src": f"question {index}?"} for index in range(5)]
    edits = load_edits(write(tmp_path, *entries), limit=2)
    assert [prompt.messages[0]["content"] for prompt in edits.prompts] == ["question 0?", "question 1?"]
    assert {probe.group for probe in edits.probes} == {"zsre:0", "zsre:1"}


# --- what is broken ---


def changed(entry: dict[str, Any], *way: str, to: Any = None) -> dict[str, Any]:
    *path, last = way
    copy = json.loads(json.dumps(entry))
    place = copy
    for key in path:
        place = place[key]
    if to is None:
        del place[last]
    else:
        place[last] = to
    return copy


@pytest.mark.parametrize(
    ("layout", "entry", "problem"),
    [
        ("zsre", changed(ZSRE, "alt"), r"alt: expected the field, got nothing"),
        ("zsre", changed(ZSRE, "alt", to=""), r"alt: expected .*at least 1 character, got ''"),
        ("zsre", changed(ZSRE, "rephrase", to=["a"]), r"rephrase: expected a valid string, got \['a'\]"),
        ("zsre", "text", r"expected a JSON object, got str"),
        (
            "counterfact",
            changed(COUNTERFACT, "requested_rewrite", "prompt", to="The mother tongue is"),
            r"requested_rewrite\.prompt: expected .*\\\{\\\}.*, got 'The mother tongue is'",
        ),
        (
            "counterfact",
            changed(COUNTERFACT, "requested_rewrite", "target_new", "str"),
            r"requested_rewrite\.target_new\.str: expected the field, got nothing",
        ),
        (
            "counterfact",
            changed(COUNTERFACT, "neighborhood_prompts", to=["a", 5]),
            r"neighborhood_prompts\.1: expected a valid string, got 5",
        ),
        ("knowedit", changed(RECENT, "target_new"), r"target_new: expected the field, got nothing"),
        (
            "knowedit",
            changed(RECENT, "locality", to={"x": [{"prompt": "Q", "ground_truth": []}]}),
            r"locality\.x\.0\.ground_truth: expected .*at least 1 item",
        ),
        (
            "knowedit",
            changed(RECENT, "portability", to={"x": [{"ground_truth": "a"}]}),
            r"portability\.x\.0\.prompt: expected the field, got nothing",
        ),
    ],
)
def test_a_bad_entry_is_named_by_file_index_field_expected_and_got(tmp_path, layout, entry, problem):
    good = ENTRIES[layout]
    path = write(tmp_path, good, entry, good)
    message = rf"edits\.json, entry 1: {problem}"
    with pytest.raises(RecordError, match=rf"(?s){message}.*2 other entries are good\. Mend the bad ones"):
        load_edits(path)
    with pytest.warns(BadLineWarning, match=message):
        edits = load_edits(path, skip_bad=True)
    # Groups go by the place in the file, so they do not move where an entry is skipped.
    assert {probe.group for probe in edits.probes} == {f"{layout}:0", f"{layout}:2"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected one JSON array, got broken JSON"),
        ("{", "expected one JSON array, got broken JSON"),
        ('[{"src": "\\ud800", "alt": "x"}]', "expected one JSON array, got broken JSON .*surrogates not allowed"),
        ("{}", "expected one JSON array of entries, got dict"),
        ("[]", "expected one JSON array of entries, got an empty"),
        ('[{"question": "Q"}]', "entry 0: expected the fields of zsre or counterfact or knowedit, got question"),
        ("[3]", "entry 0: expected the fields of .*, got int"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, text, message):
    (tmp_path / "edits.json").write_text(text)
    with pytest.raises(RecordError, match=message):
        load_edits(tmp_path / "edits.json")


def test_a_missing_file_and_a_layout_that_no_entry_has(tmp_path):
    with pytest.raises(RecordError, match=r"none\.json: expected a JSON file, got no such file"):
        load_edits(tmp_path / "none.json")
    path = write(tmp_path, ZSRE)
    with (
        pytest.warns(BadLineWarning, match="requested_rewrite: expected the field"),
        pytest.raises(RecordError, match="expected at least one good counterfact entry, got none"),
    ):
        load_edits(path, layout="counterfact", skip_bad=True)


# --- the command ---


def test_the_command_writes_files_that_the_stages_read(tmp_path):
    path = write(tmp_path, COUNTERFACT, COUNTERFACT)
    done = well("import-edits", path, "--prompts", tmp_path / "p.jsonl", "--probes", tmp_path / "q.jsonl")
    assert done.out == (
        f"counterfact: 2 prompts in {tmp_path / 'p.jsonl'}, probes in {tmp_path / 'q.jsonl'}: "
        "2 recall, 2 paraphrase, 6 near\n"
        "read: requested_rewrite (2), paraphrase_prompts (2), neighborhood_prompts (2), attribute_prompts (2)\n"
        "not read: case_id (2), generation_prompts (2), pararel_idx (2), requested_rewrite.relation_id (2), "
        "requested_rewrite.target_new.id (2), requested_rewrite.target_true.id (2)\n"
    )
    edits = load_edits(path)
    assert load_prompts(tmp_path / "p.jsonl") == edits.prompts
    # Ids must be unique for this to load.
    assert load_probes(tmp_path / "q.jsonl") == edits.probes
    assert all(isinstance(probe, Probe) for probe in edits.probes)
    done = well(
        "import-edits",
        path,
        "--prompts",
        tmp_path / "p.jsonl",
        "--probes",
        tmp_path / "q.jsonl",
        "--limit",
        1,
        "--locality",
        "retain",
        "--json",
    )
    said = json.loads(done.out)
    assert (said.pop("read")["paraphrase_prompts"], said.pop("not_read")["generation_prompts"]) == (1, 1)
    assert said == {"layout": "counterfact", "prompts": 1, "probes": {"recall": 1, "paraphrase": 1, "retain": 3}}


def test_a_bad_file_is_the_users_mistake(tmp_path):
    path = write(tmp_path, changed(ZSRE, "loc"))
    files = ["--prompts", tmp_path / "p.jsonl", "--probes", tmp_path / "q.jsonl"]
    refused(run("import-edits", path, *files), r"Error: .*edits\.json, entry 0: loc: expected the field, got nothing")
    assert not (tmp_path / "p.jsonl").exists()
