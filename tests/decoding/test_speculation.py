"""What is expected changes the time an answer takes and nothing else."""

import random
from datetime import UTC, datetime

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from token_counting import counting_tokens
from transformers import GenerationConfig, Lfm2Config, Lfm2ForCausalLM

from anchorlwf.annotation import Session
from anchorlwf.annotation.tree import Node, Tree
from anchorlwf.annotator.backends.local import LocalDecoder
from anchorlwf.bench.correction_time import (
    correction_of,
    measure_correction,
    measure_rewind,
    steady_model,
    windowed_model,
)
from anchorlwf.config import AnnotateConfig
from anchorlwf.data.record import Prompt
from anchorlwf.decoding.greedy import Decoded, GreedyDecoder, Pace, greedy_passes
from anchorlwf.decoding.speculation import MOST, Speculator
from anchorlwf.decoding.teacher_forcing import greedy_choices
from anchorlwf.model.language_model import LanguageModel

LIMIT = 40
TRIALS = 25
"""Of every model; `docs/performance.md` tells of 500."""
TOKENS = st.lists(st.integers(0, 5), max_size=80)


# --- the alignment alone ---


def decoded_with(speculator: Speculator, answer: list[int]) -> list[int]:
    """Tokens fed by each pass of a model that will say `answer`."""
    done, fed = 0, []
    while done < len(answer):
        proposed = speculator.propose(len(answer) - done - 1)
        accepted = 0
        while accepted < len(proposed) and proposed[accepted] == answer[done + accepted]:
            accepted += 1
        speculator.learn(len(proposed), answer[done : done + accepted + 1])
        done += accepted + 1
        fed.append(1 + len(proposed))
    return fed


@given(old=TOKENS, answer=TOKENS)
def test_whatever_the_two_answers_no_pass_is_wasted(old, answer):
    fed = decoded_with(Speculator(old), answer)
    assert len(fed) <= len(answer)
    assert all(1 <= count <= 1 + MOST for count in fed)
    assert sum(fed) >= len(answer)


def test_an_answer_that_returns_is_verified_in_ever_longer_pieces():
    answer = random.Random(0).choices(range(1000), k=512)
    assert decoded_with(Speculator(answer), answer) == [1, 9, 17, 33, *[65] * 6, 62]


def edited(rng: random.Random, answer: list[int], every: int, kinds: str) -> list[int]:
    """An old answer that becomes `answer` by replacing, removing and adding runs of tokens."""
    old: list[int] = []
    for start in range(0, len(answer), every):
        piece, kind = answer[start : start + every], rng.choice(kinds)
        cut = rng.randint(1, 4)
        old += {
            "replace": [*piece[:-1], 2000],
            "more": [*piece, *rng.choices(range(2000, 3000), k=cut)],
            "fewer": piece[:-cut],
        }[kind]
    return old


@pytest.mark.parametrize("kinds", [["replace"], ["more"], ["fewer"], ["replace", "more", "fewer"]])
def test_replaced_removed_and_added_tokens_are_stepped_over(kinds):
    rng = random.Random(1)
    answer = rng.choices(range(1000), k=512)
    fed = decoded_with(Speculator(edited(rng, answer, 32, kinds)), answer)
    # 16 edits, at each of which a few passes find the way again; a model alone takes 512.
    assert len(fed) <= 16 * 7
    assert sum(fed) <= 2.5 * len(answer)


def test_an_old_answer_that_shares_nothing_costs_next_to_nothing():
    rng = random.Random(2)
    answer, old = rng.choices(range(1000), k=512), rng.choices(range(1000, 2000), k=512)
    fed = decoded_with(Speculator(old), answer)
    assert len(fed) == 512
    assert sum(fed) <= 512 + 16


def test_half_an_answer_may_be_gone():
    answer = random.Random(3).choices(range(1000), k=400)
    # All behind a cut of 100 tokens, which is found by four tokens in a row.
    fed = decoded_with(Speculator([*answer[:100], *answer[200:]]), answer)
    assert sum(count > 1 for count in fed[-8:]) >= 6
    assert len(fed) < 130


# --- the ids are those of plain decoding ---


def guesses(rng: random.Random, right: list[int], vocabulary: list[int]) -> list[int]:
    """Right, empty, random, or right but for some tokens replaced, added or removed."""
    kind = rng.choice(["right", "empty", "random", "replaced", "added", "removed", "shifted"])
    noise = rng.choices(vocabulary, k=len(right) + 5)
    where = rng.randrange(len(right) + 1)
    count = rng.randint(1, 6)
    return {
        "right": right,
        "empty": [],
        "random": noise,
        "replaced": [rng.choice([token, token, token, other]) for token, other in zip(right, noise, strict=False)],
        "added": [*right[:where], *noise[:count], *right[where:]],
        "removed": [*right[:where], *right[where + count :]],
        "shifted": right[count:],
    }[kind]


def trials(model: LanguageModel, prompts: list[list[int]], count: int, seed: int = 0) -> int:
    """Assert that guesses change nothing, `count` times, over one decoder with guesses and one without."""
    rng, guessing, plain = random.Random(seed), GreedyDecoder(model), GreedyDecoder(model)
    vocabulary = sorted(set(model.codec.tokenizer.get_vocab().values()) - model.stop_ids)
    for _ in range(count):
        prompt = rng.choice(prompts)
        own = plain.complete(prompt, [], LIMIT).ids
        prefix = [*own[: rng.randrange(len(own))], rng.choice(vocabulary)]
        expected = plain.complete(prompt, prefix, LIMIT)
        guess = guesses(rng, rng.choice([own, expected.ids])[len(prefix) :], vocabulary)
        assert guessing.complete(prompt, prefix, LIMIT, guess) == expected, (prompt, prefix, guess)
    return count


def test_guesses_change_nothing_on_random_models(any_model, prompt_ids):
    assert trials(any_model, [prompt_ids, prompt_ids[4:], prompt_ids[:3]], TRIALS) == TRIALS


def test_guesses_change_nothing_in_the_world(base):
    texts = ["Tell me about Mira Belmora.", "Where was she born?", "What is 17 + 48?", "Who are you?"]
    prompts = [base.codec.encode_prompt([{"role": "user", "content": text}]) for text in texts]
    assert trials(base, prompts, TRIALS) == TRIALS


@pytest.fixture(scope="module")
def hybrid(tiny_model: LanguageModel) -> LanguageModel:
    """A tiny random LFM 2: one convolution, whose state knows no way back, and one attention layer."""
    codec = tiny_model.codec
    end = codec.tokenizer.eos_token_id
    config = Lfm2Config(
        vocab_size=len(codec.tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        layer_types=["conv", "full_attention"],
        initializer_range=0.3,
        max_position_embeddings=96,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Lfm2ForCausalLM(config).eval()
    net.generation_config = GenerationConfig(do_sample=False, eos_token_id=end, pad_token_id=0)
    return LanguageModel(net, codec, "hybrid")


def test_guesses_change_nothing_where_the_cache_cannot_rewind(hybrid, prompt_ids):
    assert not GreedyDecoder(hybrid).rewinds
    assert trials(hybrid, [prompt_ids, prompt_ids[4:]], TRIALS // 3)
    # Nor does a cache that is advanced with a guess all the same.
    expected = GreedyDecoder(hybrid).complete(prompt_ids, [], 12).ids
    decoder, ids = GreedyDecoder(hybrid), list(prompt_ids)
    while len(ids) < len(prompt_ids) + 12:
        done = len(ids) - len(prompt_ids)
        ids += [step.token_id for step in decoder.advance(ids, [*expected[done : done + 2], 40])]
    assert ids[len(prompt_ids) :][:12] == expected


def test_a_cache_that_cannot_rewind_tries_no_guess(hybrid, prompt_ids):
    own = GreedyDecoder(hybrid).complete(prompt_ids, [], LIMIT).ids
    with counting_tokens(hybrid) as fed:
        assert GreedyDecoder(hybrid).complete(prompt_ids, own[:1], LIMIT, own[1:]).ids == own
    assert fed == [len(prompt_ids) + 1, *[1] * (LIMIT - 2)]


# --- steps, limits, ends, interruptions ---


def test_steps_come_with_the_same_probabilities_and_alternatives(any_model, prompt_ids):
    plain = list(GreedyDecoder(any_model, top_k=4).stream(prompt_ids, [], LIMIT))
    own = [step.token_id for step in plain]
    speculated = list(GreedyDecoder(any_model, top_k=4).stream(prompt_ids, [], LIMIT, own))
    assert [step.token_id for step in speculated] == own
    for ours, theirs in zip(speculated, plain, strict=True):
        assert [token for token, _ in ours.alternatives] == [token for token, _ in theirs.alternatives]
        assert ours.probability == pytest.approx(theirs.probability, rel=1e-3)
        assert (ours.token_id, ours.probability) == ours.alternatives[0]


def test_limits_and_ends_hold_within_a_guess(any_model, prompt_ids, monkeypatch):
    own = GreedyDecoder(any_model).complete(prompt_ids, [], LIMIT).ids
    for limit in (1, 2, 9, 10, 11, LIMIT):
        found = GreedyDecoder(any_model).complete(prompt_ids, [], limit, own)
        assert found == Decoded(own[:limit], truncated=True)
    end = own[12]
    monkeypatch.setattr(any_model.causal.generation_config, "eos_token_id", end)
    first = own.index(end) + 1
    assert GreedyDecoder(any_model).complete(prompt_ids, [], LIMIT, own) == Decoded(own[:first], truncated=False)
    assert GreedyDecoder(any_model).complete(prompt_ids, own[:first], LIMIT, own).ids == own[:first]


def test_a_guess_longer_than_the_context_is_cut(any_model, prompt_ids):
    room = any_model.room(prompt_ids, 10_000)
    own = GreedyDecoder(any_model).complete(prompt_ids, [], room).ids
    found = GreedyDecoder(any_model).complete(prompt_ids, [], 10_000, [*own, *own])
    assert found == Decoded(own, truncated=True)


def test_a_stream_may_be_left_anywhere(any_model, prompt_ids):
    own = GreedyDecoder(any_model).complete(prompt_ids, [], LIMIT).ids
    decoder = GreedyDecoder(any_model)
    for leave in range(1, LIMIT, 3):
        stream = decoder.stream(prompt_ids, own[:2], LIMIT, own[2:])
        assert [next(stream).token_id for _ in range(min(leave, LIMIT - 2))] == own[2 : leave + 2]
        stream.close()
        assert decoder.complete(prompt_ids, own[:4], 12).ids == own[:12]


@settings(max_examples=20)
@given(data=st.data())
def test_judging_over_the_cache_is_teacher_forcing(any_model, prompt_ids, data):
    tokens = data.draw(st.lists(st.integers(3, 299), min_size=1, max_size=6))
    decoder = GreedyDecoder(any_model)
    own = decoder.complete(prompt_ids, [], 10).ids
    cut = data.draw(st.integers(0, 10))
    judged = decoder.judge(prompt_ids, own[:cut], tokens)
    forced = greedy_choices(any_model, prompt_ids, [*own[:cut], *tokens])
    assert judged.best_ids == forced.best_ids[cut:]
    assert judged.probabilities == pytest.approx(forced.probabilities[cut:], rel=1e-3, abs=1e-9)
    # And the cache goes on from there.
    assert decoder.complete(prompt_ids, [*own[:cut], *tokens], 20) == GreedyDecoder(any_model).complete(
        prompt_ids, [*own[:cut], *tokens], 20
    )


# --- many people's decoder ---


def test_the_local_decoder_verifies_guesses_in_few_pieces(tiny_model, prompt_ids):
    decoder = LocalDecoder(tiny_model, alternatives=3)
    try:
        plain = list(decoder.stream("a", prompt_ids, [], LIMIT))
        own = [step.token_id for step in plain]
        with counting_tokens(tiny_model) as fed:
            speculated = list(decoder.stream("b", prompt_ids, own[:1], LIMIT, expected_ids=own[1:]))
        assert [step.token_id for step in speculated] == own[1:]
        assert len(fed) <= 4
        for ours, theirs in zip(speculated, plain[1:], strict=True):
            assert ours.entropy == pytest.approx(theirs.entropy, rel=1e-3, abs=1e-4)
            assert [token for token, _ in ours.alternatives] == [token for token, _ in theirs.alternatives]
    finally:
        decoder.close()


def test_the_local_decoder_may_lose_its_cache_and_be_left(tiny_model, prompt_ids):
    decoder = LocalDecoder(tiny_model, memory=1)
    own = GreedyDecoder(tiny_model).complete(prompt_ids, [], LIMIT).ids
    try:
        # Two sessions in turn: each drops the other's cache.
        streams = [iter(decoder.stream(key, prompt_ids, [], LIMIT, expected_ids=own[:20] + own[23:])) for key in "ab"]
        found = [[step.token_id for step in pair] for pair in zip(*streams, strict=True)]
        assert found == [[token, token] for token in own]
        left = decoder.stream("a", prompt_ids, [], LIMIT, expected_ids=own)
        assert next(iter(left)).token_id == own[0]
        left.close()
        assert [step.token_id for step in decoder.stream("a", prompt_ids, own[:5], LIMIT)] == own[5:]
    finally:
        decoder.close()


def test_a_long_prompt_is_fed_in_pieces_with_the_same_answer(tiny_model, prompt_ids):
    own = GreedyDecoder(tiny_model).complete(prompt_ids, [], 5).ids
    decoder = GreedyDecoder(tiny_model, pace=Pace(1.0, 3, 3, 3))
    with counting_tokens(tiny_model) as fed:
        passes = list(greedy_passes(lambda: decoder, prompt_ids, [], 5))
    pieces = (len(prompt_ids) - 1) // 3
    assert pieces > 1
    assert [len(steps) for steps in passes] == [0] * pieces + [1] * 5
    assert [step.token_id for steps in passes for step in steps] == own
    assert max(fed) <= 3


def test_whoever_loses_the_cache_at_every_pause_goes_on_all_the_same(tiny_model, prompt_ids):
    # Two long prompts whose caches do not fit together drop each other's.
    own = GreedyDecoder(tiny_model).complete(prompt_ids, [], 5).ids
    passes = greedy_passes(lambda: GreedyDecoder(tiny_model, pace=Pace(1.0, 3, 3, 3)), prompt_ids, [], 5)
    pauses, decoded = 0, list[int]()
    for steps in passes:
        pauses += not steps
        assert pauses <= 5 * (len(prompt_ids) + 5)
        decoded += [step.token_id for step in steps]
    assert decoded == own


# --- and the time is what was promised ---


def test_an_answer_that_agrees_is_whole_again_with_a_fifth_of_the_passes():
    model = steady_model(4.0, layers=2, width=64)
    prompt = model.codec.encode_prompt([{"role": "user", "content": "Where was Mira Belmora born?"}])
    case = correction_of(model, prompt, 10, 256)
    assert 0.9 <= case.agreement < 1
    found = measure_correction(model, case, repeats=1)
    assert found["identical"]
    # Passes, which do not depend on the machine; the seconds are those of `docs/performance.md`.
    assert found["passes"] <= 256 / 5
    assert found["tokens_fed"] <= 2 * 256


# --- where corrections are made ---


def node(parent: int | None, position: int, given: int, ids: str) -> Node:
    return Node(parent, position, given, tuple(map(ord, ids)), (), (), (), False, False, "model", datetime.now(UTC))


def test_what_a_session_expects_is_what_stood_behind_in_the_answers_above():
    nodes = (node(None, 0, 0, "abcdefgh"), node(0, 2, 1, "abX"), node(1, 2, 3, "abXYZ"), node(1, 1, 1, "aVWc"))
    expected = [Tree(nodes, current).expected_ids for current in range(4)]
    # The first has none above; three tokens given for one; an answer stopped early, above which another goes on.
    assert ["".join(map(chr, ids)) for ids in expected] == ["", "defgh", "defgh", "efgh"]


def test_a_session_goes_on_with_the_old_answer_as_its_guess(base):
    ids = base.codec.encode("Mira Belmora was born")
    session = Session(
        base,
        Prompt(messages=[{"role": "user", "content": "Tell me about Mira Belmora."}]),
        AnnotateConfig(max_new_tokens=60),
    )
    old = session.state.completion_ids
    [other] = set(ids[:1]) - {old[0]} or {ids[1]}
    expected = GreedyDecoder(base).complete(session.prompt_ids, [*old[:4], other], 60).ids
    with counting_tokens(base) as fed:
        state = session.correct(4, [other], confidence=1.0, source="human:ada")
    assert list(state.completion_ids) == expected
    assert max(fed) > 1
    assert len(fed) < len(expected) - 4


def test_a_window_makes_a_correction_no_slower_than_its_answer_is_long():
    model = windowed_model(32, layers=2, width=64)
    with counting_tokens(model) as fed:
        found = measure_rewind(model, prompt_tokens=900, answer=60, back=12, repeats=1)
    assert found["identical"]
    assert min(found["rewound_seconds"], found["again_seconds"], found["ratio"]) > 0
    # The whole, once; then two tokens of the cache's, and the whole again without it.
    assert sum(fed) < 2 * 960 + 10
