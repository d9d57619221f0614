"""Data sets of lawftrack come in with every anchor on the right token, or flagged."""

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anchorlwf.annotation.importers.lawftrack import CHECK, read_lawftrack
from anchorlwf.cli import main
from anchorlwf.data.jsonl import load_records, save_records
from anchorlwf.errors import RecordError
from anchorlwf.model.codec import Codec
from anchorlwf.model.language_model import LanguageModel
from anchorlwf.model.vocabulary import TokenTable

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


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30), st.data())
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
    assert "which of them is meant" in found.flags[0].reason


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


def test_broken_training_lines_are_flagged_and_the_others_come_in_under_the_ids_they_had(read):
    rows = [json.dumps({"prompt": ASK, "completion": answer}) for answer in ("hello", "Who?")]
    whole = read("\n".join(rows)).records
    torn = read("\n".join([rows[0], "", "{torn", "5", '{"prompt": "half \\ud800"}', rows[1]]))
    assert [flag.sample for flag in torn.flags] == ["line 3", "line 4", "line 5"]
    reasons = ["expected one JSON object, got broken JSON", "expected a JSON object, got int", "surrogates"]
    assert [reason in flag.reason for reason, flag in zip(reasons, torn.flags, strict=True)] == [True] * 3
    assert torn.records[0].id == whole[0].id
    assert [record.completion for record in torn.records] == ["hello", "Who?"]


@pytest.mark.parametrize(
    ("content", "message"), [(" \n", "at least one sample"), ("{a\n5\n", "line 1: .*\n.*line 2: ")]
)
def test_lines_of_which_none_is_a_sample_are_refused(read, content, message):
    with pytest.raises(RecordError, match=message):
        read(content)


# --- texts with their template's markers ---


def raw_index(table: TokenTable, raw: str, answer: str, position: int) -> int:
    """The number lawftrack gives the token at `position` of the answer: it counts from the raw text's first one."""
    whole, tokens = table.encode(raw), table.encode(answer)
    before = next(i for i in range(len(whole)) if whole[i : i + len(tokens)] == tokens)
    return before + position


LLAMA = (
    "{{ '<|begin_of_text|>' }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
OWN = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}[it says]\n{% endif %}"
)


def another(tiny_model: LanguageModel, template: str, *special: str) -> tuple[TokenTable, frozenset[int]]:
    """The tiny tokenizer with another template; the last of the special tokens ends a turn."""
    tokenizer = copy.deepcopy(tiny_model.codec.tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.chat_template = template
    end = special[-1] if special else "<|im_end|>"
    return TokenTable(Codec(tokenizer)), frozenset([tokenizer.convert_tokens_to_ids(end)])


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("template", ["chatml", "llama", "own", "plain"])
def test_token_numbers_count_the_header_so_each_of_equal_words_is_itself(tiny_model, table, template, which):
    stop_ids, raw = tiny_model.stop_ids, "{}"
    if template == "chatml":
        raw = "<|im_start|>assistant\n{}<|im_end|>\n"
    elif template == "llama":
        names = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
        (table, stop_ids), raw = (
            another(tiny_model, LLAMA, *names),
            "<|start_header_id|>assistant<|end_header_id|>\n\n{}<|eot_id|>",
        )
    elif template == "own":
        (table, stop_ids), raw = another(tiny_model, OWN), "[it says]\n{}<|im_end|>"
    answer = "hello you, hello you, hello"
    ids, raw = table.encode(answer), raw.format(answer)
    word = table.token(ids[0]).text
    places = [i for i, token in enumerate(ids) if table.token(token).text.strip() == word]
    assert len(places) == 3, "the words must be one token each"
    position = places[which]
    data = sample(raw, at(raw_index(table, raw, answer, position), table.token(ids[position]).text))
    found = read_lawftrack(json.dumps(data), table, tiny_model.stamp, stop_ids)
    assert not found.flags
    [record] = found.records
    assert [anchor.position for anchor in record.anchors] == [position]
    assert record.completion == answer
    assert record.completion_ids == [*ids, *stop_ids]


def test_an_answer_that_speaks_of_markers_keeps_its_beginning(read, table):
    answer = "A turn begins with <|im_start|>assistant, so"
    [record] = read(sample(answer, at(0, table.token(table.encode(answer)[0]).text))).records
    assert record.completion_ids[:-1] == table.encode(answer)


def test_a_word_that_stands_elsewhere_more_than_once_is_flagged_not_guessed(read):
    [flag] = read(sample("a hello, b c d e hello", at(9, " hello"))).flags
    assert "does not stand at token 9, but at" in flag.reason


def test_an_anchor_that_fits_several_messages_and_not_its_own_is_flagged(read, table):
    answers = ["hello you", "I am well", "hello there"]
    turns = [m for text in answers for m in (*ASK, {"role": "assistant", "content": text})]
    word = table.token(table.encode("hello")[0]).text
    found = read({"samples": [{"id": 1, "messages": turns, "anchors": [at(0, word, message_index=3)]}]})
    [flag] = found.flags
    assert "in message 1 and in 5" in flag.reason
    assert all(record.status == "draft" for record in found.records if record.messages == turns[:5])


def test_equal_anchors_of_two_messages_are_two(read, table):
    turns = [m for _ in range(2) for m in (*ASK, {"role": "assistant", "content": "hello"})]
    word = table.token(table.encode("hello")[0]).text
    anchors = [at(0, word, message_index=index) for index in (1, 3)]
    found = read({"samples": [{"id": 1, "messages": turns, "anchors": anchors, "edits": anchors}]})
    assert not found.flags
    assert [len(record.anchors) for record in found.records] == [1, 1]


def test_prompt_and_completion_may_be_texts(read, table, tiny_model):
    word = table.token(table.encode("hello")[0]).text
    plain = {"prompt": "hi", "completion": "hello", "anchors": [{"token_index": 0, "replacement_token": word}]}
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}]
    rendered = tiny_model.codec.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    found = read([plain, {**plain, "prompt": rendered}, {**plain, "prompt": rendered + "x"}])
    one, other = found.records
    assert one.messages == [{"role": "user", "content": "hi"}]
    assert other.messages == chat
    assert other.prompt_ids == tiny_model.codec.encode(rendered)
    assert [len(record.anchors) for record in found.records] == [1, 1]
    [flag] = found.flags
    assert "the model's own template up to the assistant's turn" in flag.reason


def test_confidence_and_time_come_in_as_they_are_or_are_flagged(read, table):
    word = table.token(table.encode("hello")[0]).text
    [record] = read(sample("hello", at(0, word, created_at=1_750_000_000, confidence=0.5))).records
    [anchor] = record.anchors
    assert (anchor.created_at.year, anchor.confidence) == (2025, 0.5)
    for change in ({"confidence": 0}, {"confidence": "1"}, {"created_at": 1e30}, {"created_at": "soon"}):
        found = read(sample("hello", at(0, word, **change)))
        assert not found.records
        assert next(iter(change)) in found.flags[0].reason
    assert "message_index" in read(sample("hello", at(0, word, message_index="1"))).flags[0].reason


# --- traces of the experiments ---


@pytest.fixture
def trace(table):
    ids = table.encode("The capital of Freedonia is Fredville")
    return {
        "task_name": "capital",
        "prompt": "hello?",
        "annotator_model": "gpt-5.5",
        "base_generation": "The capital",
        "gold_completion": "The capital of Freedonia is Fredville",
        "completion_ids": ids,
        "anchor_token_indices": [1, 3],
        "anchor_tokens": [table.token(ids[place]).text for place in (1, 3)],
        "rounds": [
            {
                "status": "corrected",
                "correction_tokens": [
                    {"token_index": 1, "top1_token_text": table.token(ids[0]).text, "reference_probability": 0.5}
                ],
            },
            {"status": "accepted"},
        ],
    }


def test_a_trace_comes_in_by_its_ids(read, tiny_model, trace):
    whole = {"tasks": [trace, {**trace, "prompt": "hi?"}], **trace, "prompt": "multi-task"}
    found = read(whole)
    assert not found.flags
    assert [record.messages[0]["content"] for record in found.records] == ["hello?", "hi?"]
    record = found.records[0]
    end = tiny_model.codec.end_id(tiny_model.stop_ids)
    assert record.completion_ids == [*trace["completion_ids"], end]
    assert [anchor.position for anchor in record.anchors] == [1, 3]
    first, second = record.anchors
    assert (first.source, first.confidence, first.ref_probability) == ("judge:gpt-5.5", 0.999, 0.5)
    assert (first.rejected_id, second.rejected_id) == (trace["completion_ids"][0], None)
    assert (record.status, record.tags) == ("complete", ["trace", "capital"])
    tiny_model.check_stamp(record)
    # The older form is one task, and the same one.
    assert [one.id for one in read(trace).records] == [record.id]


def test_a_trace_s_target_is_the_anchor_s_whole_probability(read, trace):
    [record] = read({**trace, "anchor_target_probabilities": [0.9, 0.8]}).records
    assert [anchor.confidence for anchor in record.anchors] == pytest.approx([0.8, 0.8])
    # 0.8 + 0.2 * 0.5 is 0.9.


def test_a_trace_that_was_cut_has_no_end_of_turn(read, trace):
    rounds = [{"status": "accepted_truncated", "truncated_by_length": True}]
    [record] = read({**trace, "rounds": rounds}).records
    assert record.truncated
    assert record.completion_ids == trace["completion_ids"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"gold_completion": "Another text"}, "completion_ids: expected ids of gold_completion"),
        ({"anchor_tokens": ["a", "b"]}, "anchor_token_indices: expected tokens"),
        ({"completion_ids": [1, 2, 10**6]}, "token id: expected 0 to"),
        ({"completion_ids": [1, True]}, "completion_ids: expected a list of integers"),
        ({"anchor_token_indices": [999]}, "anchor_token_indices: expected positions below"),
        ({"anchor_token_indices": ["1"]}, "anchor_token_indices: expected a list of integers"),
        ({"prompt": None}, "prompt: expected a text"),
        ({"anchor_target_probabilities": [0.9]}, "anchor_target_probabilities: expected one for each of 2"),
        ({"anchor_target_probabilities": ["0.9", 0.9]}, "confidence"),
    ],
)
def test_a_trace_that_does_not_fit_is_flagged_by_name(read, trace, change, named):
    found = read({"tasks": [{**trace, **change}, trace]})
    assert len(found.records) == 1
    [flag] = found.flags
    assert named in flag.reason
    assert flag.sample == "capital"


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
