"""Data sets of lawftrack come in with every anchor on the right token, or flagged."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anchorlwf.annotation.lawftrack import CHECK, read_lawftrack, strip_template
from anchorlwf.annotation.tokens import TokenTable
from anchorlwf.cli import main
from anchorlwf.errors import RecordError
from anchorlwf.jsonl import load_records, save_records
from anchorlwf.model import LanguageModel

ASK = [{"role": "user", "content": "你好 👋"}]


@pytest.fixture(scope="module")
def table(tiny_model: LanguageModel) -> TokenTable:
    return TokenTable(tiny_model.codec)


@pytest.fixture
def read(tiny_model, table):
    def run(data, **more):
        content = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
        return read_lawftrack(content, table, tiny_model.stamp, tiny_model.stop_ids, **more)

    return run


def sample(answer: str, *anchors: dict, **more: object) -> dict:
    return {
        "samples": [
            {
                "id": "s1",
                "title": "t",
                "messages": [*ASK, {"role": "assistant", "content": answer}],
                "anchors": list(anchors),
                **more,
            }
        ],
        "name": "set",
        "base_model": "m",
    }


def at(position: int, text: str, **more: object) -> dict:
    return {
        "message_index": 1,
        "token_index": position,
        "original_token": "x",
        "replacement_token": text,
        "regenerated_from_token_index": position,
        "created_at": "2025-05-05T10:00:00Z",
        **more,
    }


def test_a_plain_anchor_stands_where_it_was(read, tiny_model):
    ids = tiny_model.codec.encode("The capital of Freedonia is Fredville")
    [piece] = tiny_model.codec.pieces([ids[3]])
    [record] = read(sample("The capital of Freedonia is Fredville", at(3, piece))).records
    [anchor] = record.anchors
    assert (anchor.position, anchor.token_id, anchor.confidence) == (3, ids[3], 0.999)
    assert record.completion_ids == [*ids, tiny_model.codec.end_id(tiny_model.stop_ids)]
    assert record.status == "complete"
    assert record.messages == ASK


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).map(strip_template), st.data())
def test_any_text_comes_in_with_its_anchor_on_the_token_or_flagged(tiny_model, table, text, data):
    ids = tiny_model.codec.encode(text)
    if not ids:
        return
    position = data.draw(st.integers(0, len(ids) - 1))
    piece = table.token(ids[position]).text
    found = read_lawftrack(json.dumps(sample(text, at(position, piece))), table, tiny_model.stamp, tiny_model.stop_ids)
    [record] = found.records
    if found.flags:
        assert record.status == "draft"
    else:
        [anchor] = record.anchors
        assert table.token(ids[anchor.position]).text == piece
        assert anchor.position == position


@pytest.mark.parametrize("answer", ["北京是中国的首都。", "好的 👍🏽 再见", "\u202e\u05e2\u05d1 и"])
def test_several_tokens_of_one_character_offer_first_and_whole(read, table, answer):
    ids = table.encode(answer)
    # The tiny vocabulary has no such characters, so each takes several tokens.
    wanted = answer[0]
    count = len(wanted.encode())
    [first] = read(sample(answer, at(0, wanted))).records
    [whole] = read(sample(answer, at(0, wanted)), span="whole").records
    assert [a.position for a in first.anchors] == [0]
    assert [a.position for a in whole.anchors] == list(range(count))
    assert b"".join(table.raw(token) for token in ids[:count]).decode() == wanted
    assert table.token(ids[0]).hex == wanted.encode()[:1].hex()


@pytest.mark.parametrize(
    "raw",
    [
        "hello<|im_end|>",
        "<|im_start|>assistant\nhello<|im_end|>\n",
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhello<|im_end|>\n<|im_start|>user\nmore",
        "hello",
    ],
)
def test_raw_template_text_is_stripped(read, raw, table):
    [record] = read(sample(raw, at(0, table.token(table.encode("hello")[0]).text))).records
    assert record.completion_ids[:-1] == table.encode("hello")
    assert "<|im" not in record.completion
    assert [a.position for a in record.anchors] == [0]


def test_an_anchor_a_little_off_is_found_and_one_far_off_is_flagged(read, table):
    answer = "hello how are you? I am well"
    ids = table.encode(answer)
    texts = [table.token(token).text for token in ids]
    only = next(i for i, text in enumerate(texts) if texts.count(text) == 1 and i > 3)
    [record] = read(sample(answer, at(only - 3, texts[only]))).records
    assert [a.position for a in record.anchors] == [only]
    found = read(sample(answer, at(only, "zebra"), at(only, texts[only])))
    [record], [flag] = found.records, found.flags
    assert (flag.sample, flag.anchor) == ("s1", 0)
    assert "zebra" in flag.reason
    assert record.status == "draft"
    assert CHECK in record.tags
    assert [a.position for a in record.anchors] == [only]


def test_two_places_equally_near_are_flagged(read):
    found = read(sample("a b a", at(1, "Q")))
    assert found.flags
    found = read(sample("121", at(1, "1")))
    assert "as near" in found.flags[0].reason


def test_an_unreliable_message_index_goes_to_the_message_that_fits(read, table):
    turns = [
        *ASK,
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "and?"},
        {"role": "assistant", "content": "I am well"},
    ]
    text = table.token(table.encode("I am well")[0]).text
    for index in (0, 1, 3, 7):
        found = read({"samples": [{"id": 1, "messages": turns, "anchors": [at(0, text, message_index=index)]}]})
        [record] = found.records
        assert record.messages == turns[:3], index
        assert [a.position for a in record.anchors] == [0]


def test_training_lines_and_the_older_form(read, table):
    text = table.token(table.encode("hello")[0]).text
    new = {
        "prompt": ASK,
        "completion": [{"role": "assistant", "content": "hello"}],
        "anchors": [{"token_index": 0, "replacement_token": text}],
        "tools": None,
    }
    edit = {"position": 0, "replacement_token": text, "confidence": 0.7}
    old = {
        "messages": [*ASK, {"role": "assistant", "content": "hello"}],
        "completion_message_index": 1,
        "anchors": [edit],
        "edits": [edit],
    }
    found = read("\n".join(json.dumps(row) for row in (new, old)) + "\n")
    assert [[(a.position, a.confidence) for a in r.anchors] for r in found.records] == [[(0, 0.999)], [(0, 0.7)]]
    assert not found.flags


@pytest.mark.parametrize(
    "row",
    [
        5,
        {},
        {"messages": "x"},
        {"messages": [{"role": "user", "content": "only"}]},
        {"messages": [{"content": "x"}]},
        {"messages": [*ASK, {"role": "assistant", "content": "hi"}], "anchors": [{"token_index": "1"}]},
        {"messages": [*ASK, {"role": "assistant", "content": "hi"}], "anchors": ["x"]},
        {"messages": [*ASK, {"role": "assistant", "content": "h"}], "completion_message_index": "x"},
    ],
)
def test_a_sample_that_cannot_be_read_is_flagged_and_the_others_come_in(read, row):
    good = sample("hello")["samples"][0]
    found = read({"samples": [row, good]})
    assert len(found.records) == 1
    assert found.flags


@pytest.mark.parametrize("content", ["{", "[1, 2", '{"samples": 3}', "[" * 100_000])
def test_what_is_no_data_set_is_refused(read, content):
    with pytest.raises(RecordError):
        read(content)


def test_a_file_of_records_from_the_command_line(tiny_path, tiny_model, tmp_path, capsys):
    answer = "The capital of Freedonia is Fredville"
    ids = tiny_model.codec.encode(answer)
    [piece] = tiny_model.codec.pieces([ids[3]])
    data = sample(answer, at(3, piece))
    data["samples"].append({**data["samples"][0], "id": "s2", "anchors": [at(3, piece), at(3, "zebra")]})
    path, out = tmp_path / "set.json", tmp_path / "records.jsonl"
    path.write_text(json.dumps(data, ensure_ascii=False))

    def run(*more):
        with pytest.raises(SystemExit) as ended:
            main(["import-lawftrack", str(path), "--out", str(out), "--model", str(tiny_path), *more])
        return ended.value.code, *capsys.readouterr()

    code, said, told = run()
    assert code == 0
    assert said == (f"2 records, 2 anchors, in {out}\n1 places flagged, 1 records are drafts because of them\n")
    assert told.replace("\n", " ").startswith("sample s2, anchor 2: 'zebra' stands nowhere")
    one, other = load_records(out)
    assert (one.status, other.status, one.model.tokenizer_sha) == ("complete", "draft", tiny_model.stamp.tokenizer_sha)
    tiny_model.check_stamp(one)
    # What was there stays: somebody may have finished a draft meanwhile.
    finished = other.model_copy(update={"status": "complete"})
    save_records(out, [one, finished])
    code, said, _ = run("--json")
    assert (code, json.loads(said)["records"], json.loads(said)["known"]) == (0, 0, 2)
    assert load_records(out) == [one, finished]
    # The whole span; and files that are none.
    out.unlink()
    wanted = "Freedonia"
    path.write_text(json.dumps(sample(wanted, at(0, wanted))))
    anchors = [
        json.loads(run("--json", "--span", span)[1])["anchors"]
        for span in ("first", "whole")
        if not out.unlink(missing_ok=True)
    ]
    assert anchors == [1, len(tiny_model.codec.encode(wanted))]
    for content in (b"\xff", b"5"):
        path.write_bytes(content)
        code, _, told = run()
        assert code == 2
        assert told.startswith("Error: ")
