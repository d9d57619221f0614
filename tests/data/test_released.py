"""Files that release 0.1.0 wrote open, and the work in them goes on.

`released_0_1_0/` holds, all on the embedded model: records of known answers (`records.jsonl`, asked by
`targets.jsonl`); a store with one session accepted and one under way, and the records beside it (`work.store.db`,
`work.jsonl`, asked by `prompts.jsonl`); and what a person left who accepted the first of these prompts and quit in the
middle of the second (`draft.jsonl`).
"""

import json
import shutil
from pathlib import Path

import pytest
from page_client import ORIGIN, Person
from sqlalchemy import select
from terminal_sitting import sit

from anchorlwf.annotation import Accept, annotate, verify_records
from anchorlwf.annotator.open import Work
from anchorlwf.annotator.project import Exchange
from anchorlwf.annotator.store.store import Store
from anchorlwf.annotator.store.tables import items, reading
from anchorlwf.annotator.web.app import create_app
from anchorlwf.annotator.web.settings import WebSettings
from anchorlwf.config import AnnotateConfig, TrainConfig
from anchorlwf.data.jsonl import append_record, load_prompts, load_records, save_lines
from anchorlwf.data.record import Prompt, Record
from anchorlwf.model.language_model import LanguageModel, load_model
from anchorlwf.training.stage import train

RELEASED = Path(__file__).parent / "released_0_1_0"
RECORD_FILES = ["records.jsonl", "work.jsonl", "draft.jsonl"]
CONFIG = AnnotateConfig(max_new_tokens=24, alternatives=5)
FINISHED, UNDER_WAY = "a5fde734-37bf-5316-adb3-9c73c814b08b", "c69a63b1-dcfd-5d84-a754-835bfb4683b8"


class Accepting:
    """A person who finds every answer right, and notes what was asked and what was shown."""

    source = "human:ada"

    def __init__(self) -> None:
        self.shown: list[tuple[str, str]] = []

    def review(self, view):
        self.shown.append((view.prompt.messages[0]["content"], view.codec.decode(view.completion_ids)))
        return Accept()

    def complain(self, error):
        raise error


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy to work on."""
    shutil.copytree(RELEASED, tmp_path / "work")
    return tmp_path / "work"


def work_in(folder: Path, **changes) -> Work:
    given = {"prompts": folder / "prompts.jsonl", "out": folder / "work.jsonl", "model": None, "config": CONFIG}
    return Work(**{**given, **changes})


def queue_of(exchange: Exchange) -> list[str]:
    """The record ids of a project's items, in order."""
    desk = exchange.desk
    query = select(items.c.record_id).where(items.c.project_id == desk.project).order_by(items.c.position)
    with reading(desk.store.engine) as db:
        return list(db.execute(query).scalars())


# --- records ---


@pytest.mark.parametrize("name", RECORD_FILES)
def test_records_are_read_written_and_verified(base, name, tmp_path):
    records = load_records(RELEASED / name)
    assert [record.status for record in records] == {"draft.jsonl": ["complete", "draft"]}.get(
        name, ["complete"] * len(records)
    )
    for record in records:
        append_record(tmp_path / "again.jsonl", record)
    assert load_records(tmp_path / "again.jsonl") == records
    for line, record in zip((RELEASED / name).read_text().splitlines(), records, strict=True):
        raw = json.loads(line)
        known = json.loads(record.model_dump_json())
        assert {**raw, "model": {**raw["model"], "date": None}} == known
    assert all(finding.holds for finding in verify_records(base, records))


def test_records_are_trained_on(tmp_path):
    config = TrainConfig(max_steps=2, stop=False)
    result = train(load_model(device="cpu"), RELEASED / "records.jsonl", out=tmp_path / "run", config=config)
    assert (result.records, result.steps) == (2, 2)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[1]["loss"] != rows[0]["loss"]


def test_finished_targets_are_not_annotated_again(base, folder):
    out, before = folder / "records.jsonl", (folder / "records.jsonl").read_bytes()
    assert annotate(base, folder / "targets.jsonl", out=out, config=CONFIG) == []
    assert out.read_bytes() == before
    # The same question with another answer wanted is another prompt, as it was then.
    other = load_prompts(folder / "targets.jsonl")[0].model_copy(update={"answer": "Vesna Mardelt lives in Belmora."})
    assert len(annotate(base, [other], out=out, config=CONFIG)) == 1


def test_what_is_finished_is_skipped_and_a_draft_is_taken_up_under_its_id(base, folder):
    out, ada = folder / "draft.jsonl", Accepting()
    finished, draft = load_records(out)
    records = annotate(base, folder / "prompts.jsonl", ada, out=out, config=CONFIG)
    asked = [prompt.messages[0]["content"] for prompt in load_prompts(folder / "prompts.jsonl")]
    assert [question for question, _ in ada.shown] == asked[1:]
    assert ada.shown[0][1] == draft.completion
    taken_up = records[0]
    assert (taken_up.id, taken_up.status, taken_up.anchors) == (draft.id, "complete", draft.anchors)
    assert (taken_up.completion_ids, taken_up.original_ids) == (draft.completion_ids, draft.original_ids)
    assert load_records(out) == [finished, *records]
    # Now everything is finished, some of it under former ids.
    assert annotate(base, folder / "prompts.jsonl", ada, out=out, config=CONFIG) == []


def test_a_target_takes_the_place_of_a_draft(base, folder):
    out = folder / "draft.jsonl"
    prompt = Prompt(prompt="When was Fenella Stedonne born?")
    draft = load_records(out)[1]
    answered = prompt.model_copy(update={"answer": "Fenella Stedonne was born in the year 1920."})
    ids = base.codec.encode_prompt(prompt.messages)
    save_lines(out, [draft.model_copy(update={"id": answered.former_id("embedded", ids)})])
    [made] = annotate(base, [answered], out=out, config=CONFIG)
    assert load_records(out) == [made]


def test_work_on_another_model_is_not_taken_for_this_models(tiny_path, tmp_path):
    out, model = tmp_path / "out.jsonl", load_model(str(tiny_path), device="cpu")
    prompt = Prompt(prompt="hello")
    ids = model.codec.encode_prompt(prompt.messages)
    finished = annotate(model, [prompt], Accepting(), config=CONFIG)[0]

    def begun_by(name: str) -> Record:
        stamp = finished.model.model_copy(update={"name": name})
        return finished.model_copy(update={"id": prompt.former_id(name, ids), "model": stamp})

    save_lines(out, [begun_by("./elsewhere")])
    assert len(annotate(model, [prompt], Accepting(), out=out, config=CONFIG)) == 1
    # 0.1.0 wrote a folder as it was given, such as a path through another folder.
    detour = f"{tiny_path.parent}/../{tiny_path.parent.name}/{tiny_path.name}"
    save_lines(out, [begun_by(detour)])
    assert annotate(model, [prompt], Accepting(), out=out, config=CONFIG) == []


# --- the store ---


def test_a_store_opens_with_its_queue_its_history_and_its_way_back(folder):
    with work_in(folder).open() as exchange:
        desk = exchange.desk
        live = desk.next("ada")
        assert (live.row.record_id, live.row.version) == (UNDER_WAY, 5)
        assert (live.tree.note, len(live.tree.nodes), live.tree.current) == ("unsure", 2, 1)
        assert [anchor.position for anchor in live.tree.anchors()] == [4, 5]
        desk.undo(live)
        assert live.tree.current == 0
        assert desk.decoder.table.codec.decode(list(live.tree.node.completion_ids)).startswith("Fenella Stedonne was")
        desk.redo(live)
        desk.undo(live)
        desk.decide(live, "keep")
        # The queue has its four prompts once, under the ids that it gave them.
        assert queue_of(exchange)[:2] == [FINISHED, UNDER_WAY]
        assert len(queue_of(exchange)) == 4
    records = load_records(folder / "work.jsonl")
    assert [(record.id, record.status) for record in records] == [(FINISHED, "complete"), (UNDER_WAY, "complete")]
    assert records[0] == load_records(RELEASED / "work.jsonl")[0]


def test_prompts_that_come_in_again_are_known(folder):
    again = (folder / "prompts.jsonl").read_text()
    save_lines(folder / "prompts.jsonl", [*load_prompts(folder / "prompts.jsonl"), Prompt(prompt="Who made you?")])
    with work_in(folder).open() as exchange:
        assert len(queue_of(exchange)) == 5
        prompts = [Prompt.model_validate_json(line) for line in again.splitlines()]
        assert exchange.add([*prompts, Prompt(prompt="Who are you?"), Prompt(prompt="Who made you?")]) == (1, 5)
    with work_in(folder).open() as exchange:
        assert len(queue_of(exchange)) == 6


def test_a_decision_of_0_1_0_is_taken_back(folder):
    with work_in(folder).open() as exchange:
        desk = exchange.desk
        live = desk.open(1, "ada")
        assert (live.tree.verdict, len(live.tree.nodes)) == ("accept", 3)
        desk.undo(live)
        assert [record.status for record in load_records(folder / "work.jsonl")] == ["draft"]
        desk.undo(live)
        desk.move(live, 1)
        desk.decide(live, "accept")
    [record] = load_records(folder / "work.jsonl")
    assert (record.id, [anchor.position for anchor in record.anchors]) == (FINISHED, [5, 6])


def test_the_terminal_goes_on_with_the_open_session(folder):
    with work_in(folder).open() as exchange:
        records, screen = sit(exchange, "u", "a", "q")
    assert "unsure" in screen
    [record] = records
    assert (record.id, record.anchors) == (UNDER_WAY, [])
    assert record.completion == "Fenella Stedonne was born in the year 1914."
    assert [record.id for record in load_records(folder / "work.jsonl")] == [FINISHED, UNDER_WAY]


def test_the_page_goes_on_with_the_open_session(folder):
    token = "t" * 43
    work = work_in(folder)
    with work.open() as exchange:
        app = create_app(exchange, WebSettings({"ada": token}, rate=1e6, burst=10**6), work.jobs(exchange))
        ada = Person(app, token, {"origin": ORIGIN})
        queue = ada.ok(ada.get("/api/queue"))
        assert (queue["total"], [item["status"] for item in queue["items"]][:2]) == (4, ["done", "waiting"])
        session = ada.ok(ada.post("/api/next"))
        assert (session["note"], session["node"], session["version"]) == ("unsure", 1, 5)
        address = f"/api/sessions/{session['id']}"
        ada.ok(ada.post(f"{address}/undo"))
        assert (ada.ok(ada.get(address))["node"], ada.ok(ada.get(address))["note"]) == (0, "unsure")
        ada.ok(ada.post(f"{address}/decide", {"verdict": "accept"}))
        exported = ada.get("/api/export").text.splitlines()
    assert [json.loads(line)["id"] for line in exported] == [FINISHED, UNDER_WAY]


def test_a_new_store_beside_records_of_0_1_0_knows_what_is_finished_and_begun(folder):
    place = work_in(folder, out=folder / "draft.jsonl", store=str(folder / "new.store.db"))
    draft = load_records(folder / "draft.jsonl")[1]
    with place.open() as exchange:
        live = exchange.desk.next("ada")
        assert (live.row.record_id, list(live.tree.node.completion_ids)) == (UNDER_WAY, draft.completion_ids)
        assert live.tree.anchors() == tuple(draft.anchors)
        exchange.desk.decide(live, "accept")
    with place.open() as exchange:
        assert queue_of(exchange)[:2] == [FINISHED, UNDER_WAY]
        assert len(queue_of(exchange)) == 4


def test_a_program_goes_on_where_the_page_ended(base: LanguageModel, folder):
    with work_in(folder).open() as exchange:
        exchange.desk.decide(exchange.desk.next("ada"), "accept")
    ada = Accepting()
    annotate(base, folder / "prompts.jsonl", ada, out=folder / "work.jsonl", config=CONFIG)
    assert [question for question, _ in ada.shown] == [
        "What does Hesper Nostonne do for a living?",
        "Where were you made?",
    ]
    store = Store(str(folder / "work.store.db"))
    assert [store.session(number).verdict for number in (1, 2)] == ["accept", "accept"]
    store.close()
