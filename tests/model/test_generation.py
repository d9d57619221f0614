"""Generation configs that make greedy answers others than the plain argmax: warned of, measured, told in the card."""

import json
import re
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from anchorlwf.annotation import annotate, retention_records
from anchorlwf.annotation.verify import verify_records
from anchorlwf.config import AnnotateConfig, EvaluateConfig, TrainConfig
from anchorlwf.data.probe import Probe
from anchorlwf.data.record import Record
from anchorlwf.decoding.greedy import decode_batch
from anchorlwf.errors import ModelWarning
from anchorlwf.evaluation import answers, evaluate
from anchorlwf.model.generation import changes_greedy, greedy_call
from anchorlwf.model.language_model import load_model
from anchorlwf.training import train

TEXTS = ["Where was she born?", "Who?", "The river there is the Arrel, and where is it?", "How are you?"]
PENALTY = "generation_config.json: expected nothing that changes greedy answers, got repetition_penalty 1.7"


def chat(text):
    return [{"role": "user", "content": text}]


@pytest.fixture
def penalised(tiny_path, tmp_path):
    """Folder of a tiny model whose generation config has a repetition penalty."""
    folder = shutil.copytree(tiny_path, tmp_path / "model")
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "repetition_penalty": 1.7}))
    return folder


def loaded(folder):
    return load_model(str(folder), dtype="float32", device="cpu")


def shipped(folder, ids, **options):
    """What whoever has the folder gets: `generate`, and nothing of ours."""
    net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return net.generate(torch.tensor([ids]), max_new_tokens=24, **options)[0, len(ids) :].tolist()


def test_only_what_changes_a_greedy_choice_counts():
    neutral = GenerationConfig(
        do_sample=True, temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.0, eos_token_id=[1, 2], max_length=9
    )
    assert changes_greedy(neutral) == {}
    odd = GenerationConfig(repetition_penalty=1.3, no_repeat_ngram_size=3, suppress_tokens=[5], bad_words_ids=[[4]])
    found = changes_greedy(odd)
    assert found == {
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 3,
        "suppress_tokens": [5],
        "bad_words_ids": [[4]],
    }


def test_it_is_warned_of_wherever_answers_are_made_or_judged(penalised, tmp_path):
    model = loaded(penalised)
    with pytest.warns(ModelWarning, match=PENALTY):
        records = annotate(model, [{"prompt": TEXTS[0], "answer": "She was."}])
    with pytest.warns(ModelWarning, match=PENALTY):
        train(model, records, out=tmp_path / "run", config=TrainConfig(max_steps=1, reference_cache_size=0))
    with pytest.warns(ModelWarning, match=PENALTY):
        evaluate(model, [], records=records, config=EvaluateConfig(max_new_tokens=4, kl_prompts=0))


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.7},
        {"no_repeat_ngram_size": 2, "suppress_tokens": [70, 71]},
        {"bad_words_ids": [[64], [82]], "min_new_tokens": 6},
        {"num_beams": 3},
    ],
)
def test_evaluation_can_ask_as_the_shipped_model_answers(tiny_path, tmp_path, settings):
    folder = shutil.copytree(tiny_path, tmp_path / "model")
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    model = loaded(folder)
    prompts = [model.codec.encode_prompt(chat(text)) for text in TEXTS]
    own = {i: one.ids for batch in decode_batch(model, prompts, 24, settings="own") for i, one in batch}
    plain = {i: one.ids for batch in decode_batch(model, prompts, 24) for i, one in batch}
    for index, ids in enumerate(prompts):
        assert own[index] == shipped(folder, ids)
    assert own != plain, "the settings must matter, or this test shows nothing"
    probes = [Probe(id=text, kind="retain", messages=chat(text), expected="-") for text in TEXTS]
    said = answers(model, probes, EvaluateConfig(max_new_tokens=24, generation="own"))
    assert said == [model.codec.decode(own[index]) for index in range(len(TEXTS))]
    assert model.causal.generation_config.to_dict() == GenerationConfig.from_pretrained(folder).to_dict()


def test_sampled_answers_repeat_for_a_seed(tiny_path, tmp_path):
    folder = shutil.copytree(tiny_path, tmp_path / "model")
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "do_sample": True}))
    model = loaded(folder)
    probes = [Probe(id=text, kind="retain", messages=chat(text), expected="-") for text in TEXTS]
    first, second, other = (
        answers(model, probes, EvaluateConfig(max_new_tokens=24, generation="own", seed=seed)) for seed in (1, 1, 2)
    )
    assert first == second != other


def test_a_shipped_model_that_does_not_stop_is_seen_to_run_on(tiny_folder):
    model = loaded(tiny_folder("llama"))
    end, ids = model.codec.end_id(model.stop_ids), model.codec.encode_prompt(chat(TEXTS[0]))
    [[(_, before)]] = decode_batch(model, [ids], 6)
    # The head is not tied: where it said its first token, it now ends the turn.
    head = model.causal.get_output_embeddings().weight.data
    head[[before.ids[0], end]] = head[[end, before.ids[0]]]
    model.causal.generation_config.eos_token_id = 0
    [[(_, ours)]] = decode_batch(model, [ids], 6)
    [[(_, theirs)]] = decode_batch(model, [ids], 6, settings="own")
    assert (ours.ids, ours.truncated) == ([end], False)
    assert (len(theirs.ids), theirs.ids[0], theirs.truncated) == (6, end, True)


def test_the_card_gives_a_call_that_answers_as_was_trained(penalised, tmp_path):
    model = loaded(penalised)
    with pytest.warns(ModelWarning, match=PENALTY):
        records = annotate(model, [{"prompt": TEXTS[0], "answer": "She was."}])
        done = train(model, records, out=tmp_path / "run", config=TrainConfig(max_steps=2, reference_cache_size=0))
    text = (tmp_path / "run" / "adapter" / "README.md").read_text()
    assert "library_name: peft" in text
    assert "`repetition_penalty: 1.7`" in text
    (whole,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    # Loading by name is tried elsewhere: this model has none.
    (code,) = (line for line in whole.splitlines() if line.startswith("output = "))
    assert "do_sample=False, repetition_penalty=1.0, eos_token_id=[2]" in code
    for prompt in TEXTS:
        ids = torch.tensor([model.codec.encode_prompt(chat(prompt))])
        scope = {"model": model.net, "inputs": {"input_ids": ids, "attention_mask": torch.ones_like(ids)}}
        exec(code.replace("512", "24"), scope)
        [[(_, ours)]] = decode_batch(model, ids.tolist(), 24)
        assert scope["output"][0, ids.shape[1] :].tolist() == ours.ids
    assert done.weights.endswith("adapter")
    # Whoever loads it again finds the card beside the weights and nothing else changed.
    assert AutoTokenizer.from_pretrained(done.weights).chat_template == model.codec.tokenizer.chat_template


def test_the_call_unsets_what_no_argument_can_switch_off():
    config = GenerationConfig(bad_words_ids=[[4]], no_repeat_ngram_size=3, suppress_tokens=[5])
    lines = greedy_call(config, {7, 2}).splitlines()
    assert lines[0] == "model.generation_config.bad_words_ids = None"
    assert "no_repeat_ngram_size=0, suppress_tokens=[], eos_token_id=[2, 7])" in lines[1]


# --- verify: how answers end ---


def test_verify_names_answers_that_end_otherwise_than_turns_do(tiny_path, tmp_path):
    folder = shutil.copytree(tiny_path, tmp_path / "model")
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": 0}))
    with pytest.warns(ModelWarning, match="end-of-turn token"):
        model = loaded(folder)
    (record,) = annotate(model, [{"prompt": TEXTS[0], "answer": "She was."}])
    (end,) = model.stop_ids - {0}
    (fine,) = verify_records(model, [record])
    assert (record.completion_ids[-1], fine.ending, fine.holds) == (end, None, True)

    def changed(ids, anchored):
        anchors = [{"position": position, "token_id": ids[position]} for position in anchored]
        changes = {"completion_ids": ids, "completion": model.codec.decode(ids), "anchors": anchors, "ties": []}
        return Record.model_validate({**record.model_dump(), **changes})

    def ending(ids):
        (finding,) = verify_records(model, [changed(ids, range(len(ids)))])
        assert finding.holds == (finding.ending is None)
        return finding.ending

    body = record.completion_ids[:-1]
    assert ending([*body, 0]) == "its last anchor is <|endoftext|>, where turns end with <|im_end|>"
    assert ending([*body, end, *body, end]) == f"it goes on behind the end of turn at {len(body)}"
    assert ending(body) == "it has no end of turn"
    (kept,) = retention_records(model, [{"prompt": TEXTS[0]}], AnnotateConfig(max_new_tokens=3))
    (cut,) = verify_records(model, [kept])
    assert (kept.truncated, cut.ending) == (True, None)
