"""Whether records still hold: the invariant of the protocol on the reference."""

import pytest
import torch
from annotation_cases import CONFIG, QUESTION, correct, holds, ordinary, others

from anchorlwf.annotation import Session, verify_records
from anchorlwf.data.record import Record
from anchorlwf.errors import StampError
from anchorlwf.model.language_model import LanguageModel, load_model


@pytest.fixture(scope="module")
def corrected(any_model: LanguageModel) -> Record:
    session = Session(any_model, QUESTION, CONFIG)
    for position in (3, 8):
        correct(session, position, *others(any_model, session, list(session.state.completion_ids[:position]), 1))
    return session.record("complete")


def changed(record: Record, **fields: object) -> Record:
    return Record.model_validate({**record.model_dump(), **fields})


def test_a_changed_token_is_named(any_model, corrected):
    ids = list(corrected.completion_ids)
    ids[5] = next(token for token in ordinary(any_model) if token != ids[5])
    text = any_model.codec.decode(ids)
    (finding,) = verify_records(any_model, [changed(corrected, completion_ids=ids, completion=text)])
    # What follows was chosen behind the old token, so other positions may be named as well; none before it.
    assert finding.unexplained[0] == 5
    assert not finding.holds


def test_a_removed_anchor_is_named(any_model, corrected):
    (finding,) = verify_records(any_model, [changed(corrected, anchors=corrected.anchors[1:])])
    assert (finding.unexplained, finding.idle, finding.holds) == ([3], [], False)


def test_an_anchor_that_the_model_picks_itself_is_idle(any_model, corrected):
    extra = {"position": 5, "token_id": corrected.completion_ids[5]}
    anchors = sorted([*corrected.model_dump()["anchors"], extra], key=lambda anchor: anchor["position"])
    (finding,) = verify_records(any_model, [changed(corrected, anchors=anchors)])
    assert (finding.unexplained, finding.idle, finding.holds) == ([], [5], True)


def test_a_confidence_below_one_makes_no_difference(any_model, corrected):
    anchors = [{**anchor, "confidence": 0.3} for anchor in corrected.model_dump()["anchors"]]
    assert holds(any_model, changed(corrected, anchors=anchors))


@pytest.mark.parametrize("field", ["tokenizer_sha", "template_sha"])
def test_a_record_of_another_tokenizer_or_template_is_refused(any_model, corrected, field):
    other = changed(corrected, model={**corrected.model.model_dump(), field: "f" * 64})
    found = verify_records(any_model, [corrected, other])
    assert next(found).holds
    with pytest.raises(StampError, match=rf"record {other.id}: .*: expected ffffffffffff .*, got"):
        next(found)


@pytest.mark.parametrize("field", ["prompt_ids", "completion_ids"])
def test_a_token_that_the_model_does_not_have_is_named(any_model, corrected, field):
    ids = [*getattr(corrected, field), 5_000]
    with pytest.raises(StampError, match=r"token ids: expected less than \d+, got 5000"):
        list(verify_records(any_model, [changed(corrected, **{field: ids})]))


def test_records_are_checked_on_the_reference_not_on_the_tuned_model(any_path, corrected):
    model = load_model(str(any_path), dtype="float32", device="cpu")
    model.attach_lora(4, 8.0, 0.0, "all-linear", seed=0)
    assert holds(model, corrected)
    for name, weight in model.net.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5, generator=torch.Generator().manual_seed(len(name)))
    again = Session(model, QUESTION, CONFIG).record("complete")
    assert again.completion_ids != corrected.original_ids, "the adapter must matter, or this test shows nothing"
    assert holds(model, corrected)
