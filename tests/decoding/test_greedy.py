"""Greedy decoding: the cache, the stop rules and the batches change nothing about the tokens.

The truth is a full forward pass per token, without any cache.
"""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import CONTEXT, WINDOW
from token_counting import counting_tokens

from anchorlwf.decoding import cache_use as caches
from anchorlwf.decoding import greedy as decoding
from anchorlwf.decoding.greedy import TIE, Decoded, GreedyDecoder, decode_batch, greedy_choices
from anchorlwf.errors import PromptError
from anchorlwf.model.language_model import LanguageModel, load_model

LIMIT = 24


@torch.inference_mode()
def logits_after(model: LanguageModel, ids: list[int]) -> torch.Tensor:
    return model.causal(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].float()


def from_scratch(model: LanguageModel, prompt: list[int], prefix: list[int], limit: int) -> list[int]:
    ids = list(prefix)
    while len(ids) < limit and not (ids and ids[-1] in model.stop_ids):
        ids.append(int(logits_after(model, prompt + ids).argmax()))
    return ids


@pytest.fixture(scope="module")
def greedy(any_model: LanguageModel, prompt_ids: list[int]) -> list[int]:
    """The model's own answer."""
    ids = from_scratch(any_model, prompt_ids, [], LIMIT)
    # Random weights that stop at once or say one thing for ever would make the tests below empty.
    assert len(ids) == LIMIT
    assert len(set(ids)) > LIMIT // 2
    return ids


# --- the cache ---


def test_random_rewinds_are_decoding_from_scratch(any_model, prompt_ids):
    rng = random.Random(0)
    decoder = GreedyDecoder(any_model)
    ids = decoder.complete(prompt_ids, [], LIMIT).ids
    vocabulary = sorted(set(any_model.codec.tokenizer.get_vocab().values()) - any_model.stop_ids)
    for _ in range(30):
        prefix = [*ids[: rng.randrange(len(ids))], rng.choice(vocabulary)]
        ids = decoder.complete(prompt_ids, prefix, LIMIT).ids
        assert ids == from_scratch(any_model, prompt_ids, prefix, LIMIT)


def test_another_prompt_may_follow(any_model, prompt_ids):
    other = any_model.codec.encode_prompt([{"role": "user", "content": "Which river?"}])
    decoder = GreedyDecoder(any_model)
    for prompt in (prompt_ids, other, prompt_ids[3:], prompt_ids):
        assert decoder.complete(prompt, [], 8).ids == from_scratch(any_model, prompt, [], 8)


def test_a_stream_that_is_left_early_spoils_nothing(any_model, prompt_ids, greedy):
    decoder = GreedyDecoder(any_model)
    stream = decoder.stream(prompt_ids, [], LIMIT)
    assert [next(stream).token_id for _ in range(5)] == greedy[:5]
    stream.close()
    assert decoder.complete(prompt_ids, greedy[:2], LIMIT).ids == greedy


def test_going_back_costs_one_token(any_model, prompt_ids, greedy):
    decoder = GreedyDecoder(any_model)
    decoder.complete(prompt_ids, [], LIMIT)
    with counting_tokens(any_model) as fed:
        decoder.complete(prompt_ids, greedy[:10], LIMIT)
    assert fed == [1] * (LIMIT - 10)


@pytest.fixture(scope="module")
def windowed(tiny_folder, prompt_ids):
    """A model whose every second layer sees only the last few tokens."""
    model = load_model(str(tiny_folder("gemma2")), dtype="float32", device="cpu")
    assert len(prompt_ids) > WINDOW == model.causal.config.sliding_window
    return model


def test_a_sliding_window_goes_back_as_far_as_it_remembers(windowed, prompt_ids, monkeypatch):
    monkeypatch.setattr(caches, "_REACH", 6)
    decoder = GreedyDecoder(windowed)
    ids = decoder.complete(prompt_ids, [], LIMIT).ids
    # It forgets in steps, so it can go back by as much as its reach and by less than twice that.
    for prompt, prefix, again in (
        (prompt_ids, ids[: LIMIT - 6], False),
        (prompt_ids, ids[: LIMIT - 2], False),
        (prompt_ids, ids[:3], True),
        (prompt_ids[: WINDOW + 2], [], True),
    ):
        decoder.complete(prompt_ids, ids[: LIMIT - 1], LIMIT)
        with counting_tokens(windowed) as fed:
            found = decoder.complete(prompt, prefix, LIMIT).ids
        assert found == from_scratch(windowed, prompt, prefix, LIMIT)
        assert fed[0] == (len(prompt) + len(prefix) if again else 1)


def test_a_window_keeps_no_more_than_it_can_go_back(windowed, prompt_ids, monkeypatch):
    monkeypatch.setattr(caches, "_REACH", 4)
    decoder, sizes = GreedyDecoder(windowed), []
    for _ in decoder.stream(prompt_ids, [], 60):
        sizes.append(next(layer.keys.shape[-2] for layer in decoder._cache.layers if layer.is_sliding))
    assert min(sizes[10:]) >= WINDOW - 1 + 4
    assert max(sizes[1:]) <= WINDOW - 1 + 2 * 4


def test_tokens_that_return_are_verified_together_behind_a_window(windowed, prompt_ids):
    decoder = GreedyDecoder(windowed)
    ids = decoder.complete(prompt_ids, [], LIMIT).ids
    wrong = [*ids[4:12], 5, *ids[13:]]
    with counting_tokens(windowed) as fed:
        assert decoder.complete(prompt_ids, ids[:4], LIMIT, wrong).ids == ids
    assert len(fed) < 8


def test_a_fork_goes_its_own_way(any_model, prompt_ids, greedy):
    decoder = GreedyDecoder(any_model)
    decoder.complete(prompt_ids, [], LIMIT)
    other = [*greedy[:9], 70]
    with counting_tokens(any_model) as fed:
        fork = decoder.fork([*prompt_ids, *other])
        assert fork.complete(prompt_ids, other, LIMIT).ids == from_scratch(any_model, prompt_ids, other, LIMIT)
        assert fed[0] == 1
        # What it came from is as it was.
        assert decoder.is_within([*prompt_ids, *greedy])
        assert decoder.complete(prompt_ids, greedy[:-1], LIMIT).ids == greedy


def test_reading_an_answer_is_choosing_token_by_token(any_model, prompt_ids, greedy):
    decoder = GreedyDecoder(any_model, 3)
    steps = decoder.read(prompt_ids, greedy)
    decoded = list(GreedyDecoder(any_model, 3).stream(prompt_ids, [], LIMIT))
    assert [step.token_id for step in steps] == greedy
    for step, one in zip(steps, decoded, strict=True):
        assert [token for token, _ in step.alternatives] == [token for token, _ in one.alternatives]
        assert step.probability == pytest.approx(one.probability, abs=1e-5)
    assert decoder.shared([*prompt_ids, *greedy]) == len(prompt_ids) + LIMIT - 1


# --- the same answer every way ---


def test_stream_complete_and_generate_agree(any_model, prompt_ids, greedy):
    decoder = GreedyDecoder(any_model)
    assert [step.token_id for step in decoder.stream(prompt_ids, [], LIMIT)] == greedy
    assert decoder.complete(prompt_ids, [], LIMIT) == Decoded(greedy, truncated=True)
    inputs = torch.tensor([prompt_ids])
    output = any_model.causal.generate(
        input_ids=inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=LIMIT, do_sample=False
    )
    assert output[0, len(prompt_ids) :].tolist() == greedy


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_a_batch_decodes_each_prompt_as_if_alone(any_model, prompt_ids, batch_size):
    prompts = [prompt_ids, prompt_ids[5:], prompt_ids * 2, prompt_ids[:1], [*prompt_ids, 40, 41], prompt_ids]
    batches = list(decode_batch(any_model, prompts, 12, batch_size=batch_size))
    assert all(len(batch) <= batch_size for batch in batches)
    found = dict(pair for batch in batches for pair in batch)
    assert sum(map(len, batches)) == len(found) == len(prompts)
    for index, prompt in enumerate(prompts):
        ids = from_scratch(any_model, prompt, [], 12)
        assert found[index] == Decoded(ids, truncated=ids[-1] not in any_model.stop_ids)


def test_a_long_prompt_takes_no_room_from_the_others_of_its_batch(any_model, prompt_ids):
    long = (prompt_ids * 6)[: CONTEXT - 3]
    (batch, *rest) = decode_batch(any_model, [prompt_ids, long, prompt_ids[4:]], 12)
    found = dict(pair for part in (batch, *rest) for pair in part)
    assert [len(found[index].ids) for index in range(3)] == [12, 3, 12]
    for index, prompt in enumerate([prompt_ids, long, prompt_ids[4:]]):
        assert found[index].ids == from_scratch(any_model, prompt, [], len(found[index].ids))


def test_no_prompt_is_no_batch(tiny_model):
    assert list(decode_batch(tiny_model, [], 12)) == []


@given(st.lists(st.integers(1, 700), max_size=60), st.integers(1, 20))
def test_no_batch_is_mostly_padding(lengths, most):
    prompts = [[0] * length for length in lengths]
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    batches = list(decoding._batches(order, prompts, most, 100))
    assert [index for batch in batches for index in batch] == order
    for batch in batches:
        assert 1 <= len(batch) <= most
        longest = len(prompts[batch[0]])
        assert all(longest - len(prompts[index]) <= max(32, len(prompts[index]) // 2) for index in batch)


def test_a_batch_of_long_prompts_is_small():
    prompts = [[0] * 4000] * 40
    batches = list(decoding._batches(list(range(40)), prompts, 64, 512))
    assert [len(batch) for batch in batches] == [14, 14, 12]
    assert [len(b) for b in decoding._batches([0, 1], [[0] * 100_000] * 2, 64, 512)] == [1, 1], "one at least"


def test_a_pass_that_fails_leaves_no_half_of_itself_in_the_cache(any_model, prompt_ids, greedy, monkeypatch):
    decoder = GreedyDecoder(any_model)
    decoder.logits(prompt_ids, greedy[:2])
    forward = any_model.net.forward

    def fails(*arguments, **options):
        forward(*arguments, **options)  # the cache has the tokens by now
        raise RuntimeError("out of memory")

    monkeypatch.setattr(any_model.net, "forward", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        decoder.logits(prompt_ids, greedy[:4])
    monkeypatch.undo()
    assert decoder.complete(prompt_ids, greedy[:4], 6).ids == greedy[:6]


# --- probabilities ---


def test_probabilities_are_those_of_the_full_forward_pass(any_model, prompt_ids, greedy):
    steps = list(GreedyDecoder(any_model, top_k=5).stream(prompt_ids, [], 6))
    for index, step in enumerate(steps):
        expected = logits_after(any_model, prompt_ids + greedy[:index]).softmax(-1)
        values, ids = expected.topk(5)
        assert [token for token, _ in step.alternatives] == ids.tolist()
        assert [p for _, p in step.alternatives] == pytest.approx(values.tolist(), rel=1e-4)
        assert (step.token_id, step.probability) == step.alternatives[0]


def test_alternatives_of_a_completion_take_one_pass(any_model, prompt_ids, greedy):
    given = [*greedy[:4], (greedy[4] + 1) % 300, *greedy[5:8]]
    decoder = GreedyDecoder(any_model, top_k=3)
    with counting_tokens(any_model) as fed:
        steps = decoder.alternatives(prompt_ids, given)
    assert fed == [len(prompt_ids) + len(given) - 1]
    for index, step in enumerate(steps):
        (alone,) = decoder.stream(prompt_ids, given[:index], index + 1)
        assert step.token_id == alone.token_id
        assert [token for token, _ in step.alternatives] == [token for token, _ in alone.alternatives]
        assert step.probability == pytest.approx(alone.probability, rel=1e-4)
    choices = greedy_choices(any_model, prompt_ids, given)
    assert choices.best_ids == [step.token_id for step in steps]
    assert choices.best_ids[:5] == greedy[:5]
    for index, (token, probability) in enumerate(zip(given, choices.probabilities, strict=True)):
        expected = logits_after(any_model, prompt_ids + given[:index]).softmax(-1)[token].item()
        assert probability == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("top_k", [1, 2, 7, 10_000])
def test_alternatives_are_ordered_and_no_more_than_everything(any_model, prompt_ids, top_k):
    (step,) = GreedyDecoder(any_model, top_k).stream(prompt_ids, [], 1)
    size = any_model.causal.config.get_text_config().vocab_size
    ids, values = zip(*step.alternatives, strict=True)
    assert len(set(ids)) == len(ids) == min(top_k, size)
    assert list(values) == sorted(values, reverse=True)
    assert sum(values) <= 1 + 1e-5
    if top_k > size:
        assert sum(values) == pytest.approx(1, abs=1e-5)


def test_an_empty_completion_has_no_alternatives(any_model, prompt_ids):
    assert GreedyDecoder(any_model).alternatives(prompt_ids, []) == []
    assert greedy_choices(any_model, prompt_ids, []).best_ids == []


def test_equal_logits_are_a_tie_and_the_lowest_id_is_the_choice(tiny_folder, prompt_ids):
    model = load_model(str(tiny_folder("llama")), dtype="float32", device="cpu")
    best = int(logits_after(model, prompt_ids).argmax())
    twin, near, far = (best + 1) % 300, (best + 2) % 300, (best + 3) % 300
    hidden = model.backbone(input_ids=torch.tensor([prompt_ids])).last_hidden_state[0, -1]
    with torch.no_grad():
        head = model.causal.lm_head.weight
        direction = hidden / hidden.square().sum()
        head[twin] = head[best]
        head[near], head[far] = head[best] - direction * TIE / 2, head[best] - direction * TIE * 2
    lowest, other = sorted((best, twin))
    (step,) = GreedyDecoder(model, top_k=4).stream(prompt_ids, [], 1)
    assert step.token_id == lowest
    assert [token for token, _ in step.alternatives] == [lowest, other, near, far]
    tied = {token: greedy_choices(model, prompt_ids, [token]).tied for token in (lowest, other, near, far)}
    assert tied == {lowest: [False], other: [True], near: [True], far: [False]}


# --- where an answer ends ---


@pytest.mark.parametrize("as_list", [True, False])
def test_an_answer_ends_at_any_stop_token_of_the_generation_config(any_model, prompt_ids, greedy, monkeypatch, as_list):
    end = greedy[5]
    first = greedy.index(end) + 1
    stops = [any_model.codec.tokenizer.eos_token_id, end] if as_list else end
    monkeypatch.setattr(any_model.causal.generation_config, "eos_token_id", stops)
    expected = Decoded(greedy[:first], truncated=False)
    decoder = GreedyDecoder(any_model)
    assert decoder.complete(prompt_ids, [], LIMIT) == expected
    # A finished answer is not continued, and one that ends exactly at the limit is not truncated.
    assert decoder.complete(prompt_ids, greedy[:first], LIMIT) == expected
    assert decoder.complete(prompt_ids, [], first) == expected
    assert list(decode_batch(any_model, [prompt_ids], LIMIT)) == [[(0, expected)]]


def test_the_limit_counts_the_prefix(any_model, prompt_ids, greedy):
    decoder = GreedyDecoder(any_model)
    assert decoder.complete(prompt_ids, greedy[:4], 10) == Decoded(greedy[:10], truncated=True)
    assert decoder.complete(prompt_ids, greedy[:10], 10) == Decoded(greedy[:10], truncated=True)
    assert decoder.complete(prompt_ids, [], 1) == Decoded(greedy[:1], truncated=True)


def test_the_context_ends_an_answer(any_model, prompt_ids):
    long = (prompt_ids * 6)[: CONTEXT - 2]
    decoder = GreedyDecoder(any_model)
    expected = Decoded(from_scratch(any_model, long, [], 2), truncated=True)
    assert decoder.complete(long, [], LIMIT) == expected
    assert list(decode_batch(any_model, [long], LIMIT)) == [[(0, expected)]]


@pytest.mark.parametrize("extra", [0, 5])
def test_a_prompt_that_fills_the_context_is_refused(any_model, prompt_ids, extra):
    full = (prompt_ids * 6)[: CONTEXT + extra]
    message = rf"prompt: expected fewer than {CONTEXT} tokens \(context\), got {CONTEXT + extra}"
    with pytest.raises(PromptError, match=message):
        GreedyDecoder(any_model).complete(full, [], LIMIT)
    with pytest.raises(PromptError, match=message):
        list(decode_batch(any_model, [prompt_ids, full], LIMIT))


# --- what the checkpoint or an adapter adds ---


@pytest.fixture(scope="module")
def penalised(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Qwen 3 with a generation config that penalises and samples."""
    folder = shutil.copytree(tiny_path, tmp_path_factory.mktemp("penalised") / "model")
    path = folder / "generation_config.json"
    more = {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "do_sample": True, "temperature": 5.0, "top_k": 3}
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))
    return folder


def test_penalties_of_the_checkpoint_do_not_touch_greedy_decoding(penalised, tiny_model, prompt_ids):
    plain = from_scratch(tiny_model, prompt_ids, [], LIMIT)
    model = load_model(str(penalised), dtype="float32", device="cpu")
    inputs = torch.tensor([prompt_ids])
    own = model.causal.generate(
        input_ids=inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=LIMIT, do_sample=False
    )
    assert own[0, len(prompt_ids) :].tolist() != plain, "the penalty must matter, or this test shows nothing"
    assert GreedyDecoder(model).complete(prompt_ids, [], LIMIT).ids == plain
    assert list(decode_batch(model, [prompt_ids], LIMIT)) == [[(0, Decoded(plain, truncated=True))]]
    assert model.causal.generation_config.repetition_penalty == 1.5


def test_an_adapter_is_decoded_with_and_the_reference_without(penalised, tiny_model, prompt_ids):
    plain = from_scratch(tiny_model, prompt_ids, [], LIMIT)
    model = load_model(str(penalised), dtype="float32", device="cpu")
    model.attach_lora(4, 8.0, 0.0, "all-linear", seed=0)
    for name, weight in model.net.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5, generator=torch.Generator().manual_seed(len(name)))
    tuned = from_scratch(model, prompt_ids, [], LIMIT)
    assert tuned != plain
    for _ in range(2):
        assert GreedyDecoder(model).complete(prompt_ids, [], LIMIT).ids == tuned
        assert [pair[1].ids for batch in decode_batch(model, [prompt_ids], LIMIT) for pair in batch] == [tuned]
        with model.reference():
            assert GreedyDecoder(model).complete(prompt_ids, [], LIMIT).ids == plain
            assert [pair[1].ids for batch in decode_batch(model, [prompt_ids], LIMIT) for pair in batch] == [plain]
