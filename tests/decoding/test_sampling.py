"""Sampling: from the model's own distribution, by a seed, without a trace in the global random state."""

import pytest
import torch
from tiny import CONTEXT

from anchorlwf.decoding.greedy import decode_batch, sample_batch
from anchorlwf.errors import PromptError


def test_first_tokens_follow_the_models_probabilities(base):
    ids = base.codec.encode_prompt([{"role": "user", "content": "Tell me a name."}])
    with torch.inference_mode():
        logits = base.causal(input_ids=torch.tensor([ids])).logits[0, -1].double()
    count = 2000
    for temperature in (1.0, 0.5):
        expected = (logits / temperature).softmax(-1)
        drawn = sample_batch(base, [ids] * count, 1, seed=5, temperature=temperature)
        seen = torch.bincount(torch.tensor([turn.ids[0] for turn in drawn]), minlength=len(expected)) / count
        frequent = expected > 0.01
        assert frequent.any()
        error = 4 * (expected * (1 - expected) / count).sqrt()
        assert ((seen - expected).abs() <= error)[frequent].all()
        assert not frequent.all()
        # No top-k and no top-p: what is improbable comes as often as it should, all of it together.
        assert seen[~frequent].sum() == pytest.approx(float(expected[~frequent].sum()), abs=0.04)


def test_the_seed_decides_and_the_global_state_is_left_alone(tiny_model, prompt_ids):
    prompts = [prompt_ids, prompt_ids[3:], prompt_ids]
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = sample_batch(tiny_model, prompts, 12, seed=7)
    assert torch.equal(torch.rand(3), expected)
    assert sample_batch(tiny_model, prompts, 12, seed=7) == first
    assert sample_batch(tiny_model, prompts, 12, seed=8) != first
    assert first[0] != first[2], "each row is a draw of its own"


def test_a_turn_ends_with_any_of_the_given_ids(tiny_model, prompt_ids):
    everything = frozenset(range(0, tiny_model.vocabulary, 2))
    for turn in sample_batch(tiny_model, [prompt_ids] * 8, 20, seed=1, stop_ids=everything):
        assert not turn.truncated
        assert turn.ids[-1] in everything
        assert everything.isdisjoint(turn.ids[:-1])
    cut = sample_batch(tiny_model, [prompt_ids] * 4, 2, seed=1, stop_ids=frozenset({0}))
    assert all(turn.truncated and len(turn.ids) == 2 for turn in cut if 0 not in turn.ids)


def test_padding_on_the_left_changes_no_draw_that_is_certain(base):
    prompts = [base.codec.encode_prompt([{"role": "user", "content": text}]) for text in ("Who made you?", "Hi")]
    greedy = dict(pair for batch in decode_batch(base, prompts, 8) for pair in batch)
    cold = sample_batch(base, prompts, 8, seed=0, temperature=1e-4)
    assert cold == [greedy[0], greedy[1]]


def test_what_does_not_fit_the_context_is_cut_or_refused(tiny_model, prompt_ids):
    long = (prompt_ids * 20)[: CONTEXT - 3]
    assert all(len(turn.ids) <= 3 for turn in sample_batch(tiny_model, [long, prompt_ids], 10, seed=0))
    with pytest.raises(PromptError, match="context"):
        sample_batch(tiny_model, [(prompt_ids * 20)[:CONTEXT]], 10, seed=0)
