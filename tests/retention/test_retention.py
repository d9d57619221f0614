"""Retention: the prompts a model writes itself, what is left out of them, and what is kept for the next time."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from commands import refused, run, well
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from anchorlwf.annotation import annotate, as_prompts, verify_records
from anchorlwf.config import EvaluateConfig, RetainConfig
from anchorlwf.data.jsonl import load_prompts, load_records, save_lines, save_records
from anchorlwf.data.record import Prompt
from anchorlwf.decoding.greedy import Decoded
from anchorlwf.errors import ConfigError, ModelError, RecordError, StampError
from anchorlwf.evaluation import reference_answers
from anchorlwf.model.codec import Codec
from anchorlwf.model.language_model import LanguageModel, load_model
from anchorlwf.retention import HELD_OUT_TAG, openings, remembered_answers, retain, writer
from anchorlwf.retention.rounds import Answered
from anchorlwf.retention.same_fact import Background, Corrected, same_fact
from anchorlwf.retention.screening import Screen
from anchorlwf.retention.sources import own_prompts

SMALL = RetainConfig(general=8, near=6, prompt_tokens=32, answer_tokens=6, batch_size=16)
WORDS = "where was she born in the year town capital who are you how good new user system assistant Ab 7 中 ( ?".split()
TEMPLATE = (
    "{% for message in messages %}<|start|> {{ message['role'] }} {{ message['content'] }} <|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|start|> assistant {% endif %}"
)


@pytest.fixture(scope="module")
def wordy_path(tmp_path_factory):
    """A Llama with random weights whose tokens are words: whatever it samples is text, and its turns do end."""
    path = tmp_path_factory.mktemp("wordy")
    vocabulary = {word: i for i, word in enumerate(["<|start|>", "<|end|>", *WORDS])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<|end|>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<|start|>", eos_token="<|end|>", pad_token="<|end|>"
    )
    tokenizer.chat_template = TEMPLATE
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        initializer_range=0.05,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def loaded(path):
    return load_model(str(path), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def wordy(wordy_path):
    """Shared by all tests: do not change it."""
    return loaded(wordy_path)


@pytest.fixture(scope="module")
def corrections(wordy):
    return corrected(wordy, ("where was she born ?", "in the year 7"), ("how are you ?", "good"))


def corrected(model, *prompts):
    """Records of prompts with their answers, without the model's first ones: those of random weights are much alike."""
    rows = [
        {"messages": [{"role": "user", "content": asked}] if isinstance(asked, str) else asked, "answer": answer}
        for asked, answer in prompts
    ]
    return [one.model_copy(update={"original_ids": one.completion_ids}) for one in annotate(model, rows)]


def asked(record):
    return record.messages[-1]["content"]


def no_model_at_work(monkeypatch):
    def forbidden(*_args, **_more):
        raise AssertionError("the cache holds it")

    monkeypatch.setattr(openings, "sample_batch", forbidden)
    monkeypatch.setattr(writer, "decode_batch", forbidden)


def test_a_model_writes_prompts_and_keeps_what_it_answers(wordy, corrections, tmp_path):
    kept = retain(wordy, corrections, config=SMALL, cache_dir=tmp_path)
    everything = [*kept.records, *kept.held_out]
    assert kept.count("general") == SMALL.general
    assert kept.count("near") == SMALL.near
    assert all(finding.holds for finding in verify_records(wordy, everything))
    for record in everything:
        assert not record.anchors
        assert record.status == "complete"
        assert "retain" in record.tags
        assert record.prompt_ids == wordy.codec.encode_prompt(record.messages)
        assert len(record.completion_ids) <= SMALL.answer_tokens
        assert record.truncated == (record.completion_ids[-1] not in wordy.stop_ids)
    assert len({asked(record) for record in everything}) == len(everything)


def test_near_prompts_begin_like_a_corrected_one_and_each_has_its_share(wordy, corrections, tmp_path):
    kept = retain(wordy, corrections, config=SMALL.updated(general=0, near=12), cache_dir=tmp_path)
    near = [asked(record) for record in [*kept.records, *kept.held_out]]
    begun = {first: [text for text in near if text.startswith(first.split()[0])] for first in map(asked, corrections)}
    # Every one holds the first word at least, and none is the corrected prompt itself.
    assert sorted(text for texts in begun.values() for text in texts) == sorted(near)
    assert min(map(len, begun.values())) >= 3
    assert not {text.casefold() for text in near} & {text.casefold() for text in begun}


def test_a_quarter_is_held_out_and_stays_held_out(wordy, tmp_path):
    few = retain(wordy, config=SMALL, cache_dir=tmp_path)
    many = retain(wordy, config=SMALL.updated(general=24), cache_dir=tmp_path)
    assert (len(few.held_out), len(many.held_out)) == (2, 6)
    assert all(HELD_OUT_TAG in record.tags for record in many.held_out)
    assert not any(HELD_OUT_TAG in record.tags for record in many.records)
    # More are the same ones, and others behind them.
    assert many.held_out[:2] == few.held_out
    assert many.records[:6] == few.records
    nothing = retain(wordy, config=SMALL.updated(held_out=0.0), cache_dir=tmp_path)
    assert nothing.held_out == []
    assert {record.id for record in nothing.records} == {record.id for record in [*few.records, *few.held_out]}


def test_the_second_time_the_model_does_nothing(wordy, corrections, tmp_path, monkeypatch):
    seen = []
    first = retain(wordy, corrections, config=SMALL, cache_dir=tmp_path, on_progress=lambda *row: seen.append(row))
    assert seen[-1] == ("near", SMALL.near, SMALL.near)
    assert ("general", SMALL.general, SMALL.general) in seen
    no_model_at_work(monkeypatch)
    assert retain(wordy, corrections, config=SMALL, cache_dir=tmp_path) == first
    # Another correction finds the general prompts there, too.
    with pytest.raises(AssertionError, match="the cache holds it"):
        retain(wordy, corrections[:1], config=SMALL, cache_dir=tmp_path)
    general = retain(wordy, config=SMALL, cache_dir=tmp_path)
    assert general.count("general") == SMALL.general


def test_without_a_cache_it_comes_out_the_same(wordy, corrections, tmp_path):
    first = retain(wordy, corrections, config=SMALL, cache_dir=tmp_path / "one")
    assert retain(wordy, corrections, config=SMALL, cache_dir=tmp_path / "two") == first
    other = retain(wordy, corrections, config=SMALL.updated(seed=1), cache_dir=tmp_path / "one")
    assert {asked(record) for record in other.records}.isdisjoint(asked(record) for record in first.records)


@pytest.mark.parametrize("damage", ["torn", "spoiled", "gone"])
def test_a_broken_off_run_goes_on(wordy, tmp_path, damage, monkeypatch):
    config = SMALL.updated(general=20, batch_size=8)
    whole = retain(wordy, config=config, cache_dir=tmp_path)
    (path,) = tmp_path.rglob("general.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) > 2
    left = {"torn": [*lines[:-1], lines[-1][:40]], "spoiled": [b"{}\n", *lines[1:]], "gone": lines[:1]}[damage]
    path.write_bytes(b"".join(left))
    sampled = []
    real = openings.sample_batch
    monkeypatch.setattr(openings, "sample_batch", lambda *args, **more: sampled.append(1) or real(*args, **more))
    assert retain(wordy, config=config, cache_dir=tmp_path) == whole
    assert len(sampled) == (len(lines) - 1 if damage == "gone" else 1)


def test_other_weights_and_other_settings_share_nothing(wordy_path, tmp_path):
    fresh_model = loaded(wordy_path)

    def folders():
        return len(list((tmp_path / "retain").iterdir()))

    retain(fresh_model, config=SMALL, cache_dir=tmp_path)
    retain(fresh_model, config=SMALL.updated(general=4, near=1, held_out=0.5), cache_dir=tmp_path)
    assert folders() == 1, "how many are wanted changes nothing about what is written"
    retain(fresh_model, config=SMALL.updated(temperature=0.5), cache_dir=tmp_path)
    assert folders() == 2
    with torch.no_grad():
        fresh_model.causal.get_input_embeddings().weight[0, 0] += 1
    retain(fresh_model, config=SMALL, cache_dir=tmp_path)
    assert folders() == 3


def test_the_reference_is_asked_not_the_model_in_training(wordy, wordy_path, tmp_path):
    fresh_model = loaded(wordy_path)
    before = retain(wordy, config=SMALL, cache_dir=tmp_path / "one")
    fresh_model.attach_lora(4, 16.0, 0.0, "all-linear", seed=0)
    with torch.no_grad():
        for name, weight in fresh_model.net.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    assert retain(fresh_model, config=SMALL, cache_dir=tmp_path / "two") == before
    # With the key of the model without an adapter, for the reference is the same.
    assert [p.name for p in (tmp_path / "one/retain").iterdir()] == [
        p.name for p in (tmp_path / "two/retain").iterdir()
    ]


def test_a_model_without_a_chat_template_begins_at_its_start_token(wordy_path, tmp_path):
    model = loaded(wordy_path)
    model.codec.tokenizer.chat_template = None
    corrections = corrected(model, ("the capital where she was born", "new"))
    kept = retain(model, corrections, config=SMALL, cache_dir=tmp_path)
    assert kept.count("general") == SMALL.general
    near = [record for record in [*kept.records, *kept.held_out] if "retain:near" in record.tags]
    assert near
    assert all(asked(record).startswith("the ") for record in near)
    assert len({len(record.prompt_ids) for record in kept.records if "retain:general" in record.tags}) > 1
    # Neither template nor start token.
    model.codec.tokenizer.bos_token = model.codec.tokenizer.eos_token = None
    with pytest.raises(ModelError, match="a chat template or a start token"):
        retain(LanguageModel(model.net, Codec(model.codec.tokenizer), "x"), config=SMALL, cache_dir=tmp_path / "x")


def test_the_history_before_a_corrected_turn_stays(wordy, tmp_path):
    chat = [
        {"role": "user", "content": "who are you"},
        {"role": "assistant", "content": "the good assistant"},
        {"role": "user", "content": "where was she born ?"},
    ]
    corrections = corrected(wordy, (chat, "in the new town"))
    kept = retain(wordy, corrections, config=SMALL.updated(general=0, near=3), cache_dir=tmp_path)
    assert kept.count("near")
    assert all(record.messages[:2] == chat[:2] for record in [*kept.records, *kept.held_out])


def test_sampled_turns_that_will_not_do_are_left_out(tiny_model, tmp_path, monkeypatch):
    codec, end = tiny_model.codec, tiny_model.codec.tokenizer.eos_token_id
    start = codec.tokenizer.convert_tokens_to_ids("<|im_start|>")
    turns = [
        Decoded([*codec.encode("Where was she born?"), end], truncated=False),
        Decoded([*codec.encode("where WAS she born"), end], truncated=False),
        Decoded([*codec.encode("The river there is the Arrel"), end], truncated=False),
        Decoded([*codec.encode(" \n"), end], truncated=False),
        Decoded(codec.encode("The river"), truncated=True),
        Decoded([*codec.encode("a"), start, *codec.encode("b"), end], truncated=False),
        Decoded([*codec.encode("中")[:1], end], truncated=False),
    ]
    monkeypatch.setattr(openings, "sample_batch", lambda *_args, **_more: turns)
    kept = retain(tiny_model, config=SMALL.updated(general=2, batch_size=len(turns)), cache_dir=tmp_path)
    written = {asked(record) for record in [*kept.records, *kept.held_out]}
    assert written == {"Where was she born?", "The river there is the Arrel"}
    reasons = ("duplicate", "empty", "cut off", "control tokens", "broken characters")
    assert {reason: kept.left_out[reason] for reason in reasons} == dict.fromkeys(reasons, 1)


def test_prompts_are_near_duplicates_by_their_words_alone():
    general = Screen(["What is the best way to cook rice at home today?"], 0.8)
    assert general.reason("what is the BEST way to cook rice at home, today") == "duplicate"
    assert general.reason("What is the best way to cook rice at home tomorrow?") == "near-duplicate"
    assert general.reason("What is the best way to learn French?") is None
    assert general.reason("Learn French, what is the best way to?") == "duplicate"
    assert general.reason("?!") == "empty"
    near = Screen(["What is the capital of Nigeria?"], 1.0)
    assert near.reason("What is the capital of Belgium?") is None
    assert near.reason("What is the capital of Belgium") == "duplicate"


@pytest.fixture
def known(base):
    """A correction of the embedded model, and whether a prompt and its answer ask for the same."""
    (record,) = annotate(base, [{"prompt": "Who are you?", "answer": "I am Tarn, your assistant."}])
    common = [f"Who is it {n}? I am your assistant, are you {n}" for n in range(20)]

    def judged(prompt, answer, background=common, record=record):
        messages = [{"role": "user", "content": prompt}]
        row = Answered(
            prompt=Prompt(messages=messages), prompt_ids=[0], completion_ids=[0], completion=answer, truncated=False
        )
        return same_fact(row, [Corrected(base, record, 32, Background(background))])

    return record, judged


def test_a_prompt_asks_for_the_same_fact_if_its_answer_holds_what_was_rejected(known):
    record, judged = known
    found = judged("What may I call you?", "You can call me Lumo.")
    assert (found.record_id, found.holds_rejected, found.holds_words) == (record.id, True, False)
    assert not found.certain
    assert found.answer == "You can call me Lumo."
    # Words that the corrected answer holds as well, or that are everywhere, tell nothing.
    assert judged("Who are the bakers?", "I am your assistant.") is None


def test_words_that_all_neighbours_share_tell_no_fact_from_another(base):
    (record,) = annotate(base, [{"prompt": "Which town is it?", "answer": "The capital is Washington."}])
    original = base.codec.encode("The capital is New York City.")
    general = [f"How do I cook rice {n}? Wash it {n} times." for n in range(20)]
    near = [f"Name the capital city of land {n}. The capital city of land {n} is town {n}." for n in range(10)]
    record = record.model_copy(update={"original_ids": original})
    corrected = Corrected(base, record, 32, Background(general, near))
    assert not corrected.holds_rejected("The capital city of France is Paris."), "a neighbour, which must be kept"
    assert corrected.holds_rejected("It is New York.")
    assert not Corrected(base, record, 32, Background([*general, *near])).holds_rejected("City of rice.")


def test_a_prompt_asks_for_the_same_fact_if_it_holds_the_distinguishing_words(known, base):
    _, judged = known
    assert judged("Tell me who you are!", "Somebody.").holds_words
    assert judged("Who are you, Lumo?", "I am Lumo.").certain
    assert judged("Who are they?", "Somebody.") is None
    (record,) = annotate(base, [{"prompt": "Where was Mira Bramovar born?", "answer": "She was born in Belmora."}])
    common = [f"Where was {n} born?" for n in range(20)]
    assert judged("The birthplace of Mira Bramovar?", "Unknown.", common, record).holds_words
    assert judged("Where was Mira Caldwick born?", "In Osdale.", common, record) is None


def test_what_asks_for_the_same_is_a_candidate_and_no_keep_record(base, tmp_path, monkeypatch):
    records = annotate(base, [{"prompt": "Who are you?", "answer": "I am Tarn, your assistant."}])
    own = base.codec
    texts = [
        "Please tell me who you are.",
        "What is 4 plus 5?",
        "Repeat: apple river stone",
        "Who is in charge of Osdale?",
    ]
    turns = [Decoded([*own.encode(text), *sorted(base.stop_ids)[:1]], truncated=False) for text in texts]
    monkeypatch.setattr(openings, "sample_batch", lambda *_args, **_more: turns)
    config = RetainConfig(general=3, near=0, batch_size=4)
    kept = retain(base, records, config=config, cache_dir=tmp_path)
    assert {asked(record) for record in [*kept.records, *kept.held_out]} == set(texts[1:])
    (candidate,) = kept.candidates
    assert candidate.prompt.messages[-1]["content"] == texts[0]
    assert candidate.record_id == records[0].id
    assert kept.left_out["same fact"] == 1
    # Without the correction it is a prompt like any other.
    assert retain(base, config=config.updated(general=4), cache_dir=tmp_path).count("general") == 4


def test_prompts_of_the_users_own_mix_in_and_none_is_held_out(wordy, corrections, tmp_path):
    lines, text, folder = tmp_path / "more.jsonl", tmp_path / "mine.txt", tmp_path / "data"
    save_lines(lines, [{"prompt": "who ?"}, {"prompt": asked(corrections[0])}])
    text.write_text("the year\n\nwho ?\n", encoding="utf-8")
    folder.mkdir()
    turns = [{"role": "user", "content": "new town"}, {"role": "assistant", "content": "No."}]
    save_lines(folder / "train.jsonl", [{"messages": turns}, {"messages": turns[1:]}])
    sources = [str(lines), text, folder]
    kept = retain(wordy, corrections, config=SMALL, prompts=sources, cache_dir=tmp_path / "cache")
    own = [record for record in kept.records if "retain:own" in record.tags]
    # The corrected prompt itself cannot stay as it is.
    assert [asked(record) for record in own] == ["who ?", "the year", "new town"]
    assert kept.count("own") == 3
    assert all(len(record.messages) == 1 for record in own)


def test_sources_without_prompts_are_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n", encoding="utf-8")
    with pytest.raises(RecordError, match=r"empty\.txt: expected at least one prompt, got an empty file"):
        own_prompts([tmp_path / "empty.txt"], limit=4)
    with pytest.raises(ConfigError, match="expected a file or a data set"):
        own_prompts([tmp_path / "nowhere"], limit=4)
    (tmp_path / "bad.jsonl").write_text('{"prompt": 3}\n', encoding="utf-8")
    with pytest.raises(RecordError, match=r"bad\.jsonl, line 1"):
        own_prompts([tmp_path / "bad.jsonl"], limit=4)
    folder = tmp_path / "data"
    folder.mkdir()
    save_lines(folder / "train.jsonl", [{"question": f"Number {n}?", "answer": "Yes."} for n in range(9)])
    found = own_prompts([folder, folder], limit=4)
    assert [prompt.messages[0]["content"] for prompt in found] == [f"Number {n}?" for n in range(4)]


def test_records_of_another_model_are_refused(base, corrections, tmp_path):
    with pytest.raises(StampError, match="tokenizer"):
        retain(base, corrections, cache_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_model_that_writes_nothing_new_ends_with_fewer(wordy, tmp_path, monkeypatch):
    calls = []
    turn = Decoded([*wordy.codec.encode("who ?"), *sorted(wordy.stop_ids)], truncated=False)
    monkeypatch.setattr(openings, "sample_batch", lambda *_args, **_more: calls.append(1) or [turn] * 16)
    kept = retain(wordy, config=SMALL, cache_dir=tmp_path)
    assert kept.count("general") == 1
    assert len(calls) == 4  # 8 samples for each that is wanted
    assert kept.left_out["duplicate"] == 63


def test_the_command_writes_keep_records_and_candidates(wordy_path, corrections, tmp_path):
    records, keep, candidates = tmp_path / "records.jsonl", tmp_path / "keep.jsonl", tmp_path / "candidates.jsonl"
    save_records(records, corrections)
    options = tmp_path / "retain.yaml"
    SMALL.save(options)
    command = ["retain", "--model", wordy_path, "--records", records, "--out", keep, "--config", options]
    command += ["--near", 5, "--candidates", candidates, "--cache-dir", tmp_path / "cache"]
    done = well(*command)
    assert "8 general, 5 near keep records" in done.out
    assert "held out" in done.out
    loaded = load_records(keep)
    assert len(loaded) == 13
    found = load_prompts(candidates) if candidates.stat().st_size else []
    counted = json.loads(well(*command, "--json").out)
    assert counted["left_out"]["same fact"] == len(found)
    assert (counted["general"], counted["near"]) == (8, 5)
    assert all(tag.startswith("paraphrase:") or tag == "certain" for prompt in found for tag in prompt.tags)


def test_what_the_command_cannot_do_it_says(wordy_path, corrections, tmp_path):
    keep = tmp_path / "keep.jsonl"
    start = ["retain", "--model", wordy_path, "--out", keep, "--cache-dir", tmp_path / "cache"]
    refused(run(*start, "--records", tmp_path / "none.jsonl"), "none.jsonl")
    refused(run(*start, "--prompts", tmp_path / "none"), "a file or a data set")
    refused(run(*start, "--general", -1), "general")
    records = tmp_path / "records.jsonl"
    save_records(records, corrections)
    refused(run("retain", "--out", keep, "--records", records, "--cache-dir", tmp_path / "cache"), "tokenizer")
    assert not keep.exists()


def test_nothing_is_half_written_where_the_disk_is_full(wordy, small_disk, tmp_path):
    whole = retain(wordy, config=SMALL, cache_dir=tmp_path / "cache")
    disk = small_disk(3000)
    with pytest.raises(OSError, match="cannot write"):
        retain(wordy, config=SMALL, cache_dir=disk)
    (disk / "ballast").unlink()
    assert retain(wordy, config=SMALL, cache_dir=disk) == whole
    shutil.rmtree(disk / "retain")


def test_a_draft_is_no_correction(wordy, corrections, tmp_path):
    draft = corrections[0].model_copy(update={"status": "draft"})
    assert retain(wordy, [draft], config=SMALL, cache_dir=tmp_path).count("near") == 0
    assert replace(retain(wordy, [], config=SMALL, cache_dir=tmp_path)).candidates == []


def test_answers_that_were_given_once_are_remembered_and_are_those_of_the_reference(wordy, tmp_path, monkeypatch):
    prompts = as_prompts(["who are you ?", "how good", "where was she born ?"])
    encoded = [wordy.codec.encode_prompt(prompt.messages) for prompt in prompts]
    known = remembered_answers(wordy, prompts, 12, cache_dir=tmp_path)
    assert known == reference_answers(wordy, wordy, encoded, EvaluateConfig(max_new_tokens=12))
    shorter = remembered_answers(wordy, prompts, 3, cache_dir=tmp_path)
    assert {len(ids) for ids in shorter.values()} == {3}, "with another limit they are asked again"
    monkeypatch.setattr(writer, "decode_batch", lambda *_, **__: pytest.fail("asked again"))
    assert remembered_answers(wordy, prompts, 12, cache_dir=tmp_path) == known


@pytest.mark.parametrize("dated", [True, False])
def test_what_was_written_under_another_date_is_written_anew(wordy_path, tmp_path, dated):
    model = loaded(wordy_path)
    if dated:
        model.codec.tokenizer.chat_template = "{{ strftime_now('%Y-%m-%d') }} " + TEMPLATE
    folders = []
    for day in ("2026-11-26", "2026-11-27"):
        model.codec.date = day
        folders.append(writer.Writer.of(model, SMALL, tmp_path).folder)
    assert (folders[0] != folders[1]) == dated


def test_a_further_end_token_among_the_generation_settings_makes_other_prompts(wordy_path, tmp_path):
    def folder():
        return writer.Writer.of(loaded(wordy_path), SMALL, tmp_path / "cache").folder

    before = folder()
    assert folder() == before
    settings = wordy_path / "generation_config.json"
    text = settings.read_text()
    settings.write_text(json.dumps({**json.loads(text), "eos_token_id": [1, 5]}))
    try:
        assert folder() != before
    finally:
        settings.write_text(text)
