"""What `train`, `evaluate`, `annotate` and `save_records` take: every form in which rows come, or one clear error."""

import datasets
import pytest
import torch
from torch.utils.data import ConcatDataset
from training_runs import corrections, steps

from anchorlwf.annotation import annotate, as_prompts
from anchorlwf.config import EvaluateConfig
from anchorlwf.data.jsonl import load_probes, load_records, save_records
from anchorlwf.data.probe import Probe
from anchorlwf.data.record import Prompt
from anchorlwf.data.record_file import RecordFile
from anchorlwf.errors import RecordError
from anchorlwf.evaluation import evaluate
from anchorlwf.model.language_model import load_model
from anchorlwf.training import train
from anchorlwf.training.dataset import by_number

FORMS = {
    "list": list,
    "tuple": tuple,
    "generator": lambda rows: (row for row in rows),
    "dicts": lambda rows: [row.model_dump() for row in rows],
    "JSON dicts": lambda rows: [row.model_dump(mode="json") for row in rows],
    "generator of dicts": lambda rows: (row.model_dump() for row in rows),
    "dicts and objects": lambda rows: [rows[0].model_dump(), *rows[1:]],
    "dataset": lambda rows: datasets.Dataset.from_list([row.model_dump(mode="json") for row in rows]),
    "iterable dataset": lambda rows: datasets.Dataset.from_list(
        [row.model_dump(mode="json") for row in rows]
    ).to_iterable_dataset(),
}
WRONG = {
    "nothing": (lambda rows: None, r"expected a path, a (record|probe), or rows of them, got NoneType"),
    "a number": (lambda rows: 5, r"expected a path, a (record|probe), or rows of them, got int"),
    "bytes": (lambda rows: b"ab", r"expected a path, a (record|probe), or rows of them, got bytes"),
    "texts": (lambda rows: ["a", "b"], r"line 1: expected a dict, got str\n.*line 2: expected a dict, got str"),
    "a hole": (lambda rows: [rows[0], None], r"line 2: expected a dict, got NoneType\n1 other lines are good"),
    "other dicts": (lambda rows: [rows[0], {"id": "x"}], r"line 2: .*expected"),
    "one other dict": (lambda rows: {"id": "x"}, r"line 1: .*expected"),
    "prompts": (lambda rows: [Prompt(messages=[{"role": "user", "content": "a"}])], r"line 1: line: expected"),
    "splits": (
        lambda rows: datasets.DatasetDict(train=FORMS["dataset"](rows), test=FORMS["dataset"](rows)),
        r"expected one dataset, got the splits train, test. Choose one, such as \['train'\]",
    ),
    "a table": (lambda rows: FORMS["dataset"](rows).to_pandas(), r"line 1: expected a dict, got str"),
    "an open file": (lambda rows: iter(["{}\n"]), r"line 1: expected a dict, got str"),
}


@pytest.fixture(scope="module")
def records(tiny_model):
    return corrections(tiny_model, 3)


@pytest.fixture(scope="module")
def probes():
    return [
        Probe(id=name, kind="retain", messages=[{"role": "user", "content": name}], expected="sea") for name in "abc"
    ]


def trained(path, given, out):
    rows = []
    train(load_model(str(path)), given, out=out, config=steps(2), on_step=rows.append)
    return [row["loss"] for row in rows]


@pytest.mark.parametrize("form", list(FORMS))
def test_train_takes_records_in_every_form(tiny_path, records, tmp_path, form):
    expected = trained(tiny_path, records, tmp_path / "list")
    assert trained(tiny_path, FORMS[form](records), tmp_path / "form") == expected


@pytest.mark.parametrize("form", ["record", "dict"])
def test_train_takes_one_record(tiny_path, records, tmp_path, form):
    expected = trained(tiny_path, records[:1], tmp_path / "list")
    one = records[0] if form == "record" else records[0].model_dump()
    assert trained(tiny_path, one, tmp_path / "one") == expected


@pytest.mark.parametrize("wrong", list(WRONG))
def test_train_says_what_is_no_record_and_writes_nothing(tiny_model, records, tmp_path, wrong):
    given, message = WRONG[wrong]
    with pytest.raises(RecordError, match=f"(?s){message}"):
        train(tiny_model, given(records), out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_what_reads_its_rows_when_asked_stays_as_it_is_and_is_checked_row_by_row(tiny_model, records, tmp_path):
    save_records(tmp_path / "records.jsonl", records)
    assert isinstance(by_number(tmp_path / "records.jsonl"), RecordFile)
    several = ConcatDataset([RecordFile(tmp_path / "records.jsonl"), records])
    assert by_number(several) is several
    mixed = ConcatDataset([records, [records[0].model_dump()]])
    with pytest.raises(
        RecordError, match=r"records\[3\]: expected a Record, got dict. Load the rows with load_records"
    ):
        train(tiny_model, mixed, out=tmp_path / "run")
    with pytest.raises(RecordError, match=r"line 1: expected a dict, got Tensor"):
        train(tiny_model, torch.arange(3), out=tmp_path / "run")


def measured(model, *arguments, **options):
    return evaluate(model, *arguments, base=model, config=EvaluateConfig(max_new_tokens=4), **options).as_dict()


def steady(results):
    return {name: value for name, value in results.items() if name != "evaluate_seconds"}


@pytest.mark.parametrize("form", list(FORMS))
def test_evaluate_takes_probes_and_records_in_every_form(tiny_model, records, probes, form):
    expected = steady(measured(tiny_model, probes, records=records))
    assert steady(measured(tiny_model, FORMS[form](probes), records=FORMS[form](records))) == expected
    assert expected["annotated_tokens"] == 3


def test_evaluate_takes_one_probe_and_one_record(tiny_model, records, probes):
    expected = steady(measured(tiny_model, probes[:1], records=records[:1]))
    assert steady(measured(tiny_model, probes[0], records=records[0])) == expected
    assert steady(measured(tiny_model, probes[0].model_dump(), records=records[0].model_dump())) == expected


@pytest.mark.parametrize("wrong", list(WRONG))
def test_evaluate_says_what_is_no_probe_and_what_is_no_record(tiny_model, records, probes, wrong):
    given, message = WRONG[wrong]
    # Corrected records are enough to measure; without those, too, there is nothing.
    message = "expected at least one probe or corrected record" if wrong == "nothing" else message
    with pytest.raises(RecordError, match=f"(?s){message}"):
        measured(tiny_model, given(probes))
    if wrong != "nothing":
        with pytest.raises(RecordError, match=f"(?s){message}"):
            measured(tiny_model, probes, records=given(records))


@pytest.mark.parametrize("form", list(FORMS))
def test_load_records_takes_what_train_takes(records, form):
    assert load_records(FORMS[form](records)) == records


@pytest.mark.parametrize("wrong", list(WRONG))
def test_load_records_and_load_probes_refuse_what_train_refuses(records, probes, wrong):
    given, message = WRONG[wrong]
    for load, rows in ((load_records, records), (load_probes, probes)):
        with pytest.raises(RecordError, match=f"(?s){message}"):
            load(given(rows))


@pytest.mark.parametrize("form", [*FORMS, "one"])
def test_save_records_writes_records_and_nothing_else(records, tmp_path, form):
    save_records(tmp_path / "r.jsonl", records[0] if form == "one" else FORMS[form](records))
    assert load_records(tmp_path / "r.jsonl") == (records[:1] if form == "one" else records)


def test_save_records_keeps_the_old_file_where_it_is_given_something_else(records, tmp_path):
    save_records(tmp_path / "r.jsonl", records)
    for given, _ in WRONG.values():
        with pytest.raises(RecordError):
            save_records(tmp_path / "r.jsonl", given(records))
    assert load_records(tmp_path / "r.jsonl") == records


def test_one_prompt_is_one_prompt(tiny_model):
    wanted = Prompt(messages=[{"role": "user", "content": "Where was she born?"}], answer="By the sea.")
    for given in (wanted, wanted.model_dump(), {"prompt": "Where was she born?", "answer": "By the sea."}, [wanted]):
        assert as_prompts(given) == [wanted]
        assert len(annotate(tiny_model, given)) == 1
    for given in (None, 5, b"ab"):
        with pytest.raises(RecordError, match="expected a path, a prompt, or rows of them"):
            as_prompts(given)
    assert as_prompts([]) == []
