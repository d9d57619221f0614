"""Caches that do less than they claim: what is decoded is what decoding without a cache gives."""

import pytest
import torch
from zoo_models import zoo_model

from anchorlwf.decoding.cache_use import CacheUse, cache_use, generate_use
from anchorlwf.decoding.greedy import GreedyDecoder, Pace, decode_batch, sample_batch

# Plain; states fed one token at a time; positions that must be told; none of the common kind; none at all.
KINDS = ["Llama", "Mamba", "Jamba", "Bamba", "MiniMax", "RWKV-4", "xLSTM"]


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    return zoo_model(request.param)


@torch.no_grad()
def plainly(model, ids, count):
    """Greedy, everything fed at every step."""
    ids, start = list(ids), len(ids)
    while len(ids) < start + count and (len(ids) == start or ids[-1] not in model.stop_ids):
        ids.append(int(model.net(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[start:]


def test_streaming_is_decoding_from_scratch(model):
    prompt = model.codec.encode_prompt([{"role": "user", "content": "Where was she born?"}])
    decoder = GreedyDecoder(model, pace=Pace(0.1, 8, 8, 8))
    answer = decoder.complete(prompt, [], 10).ids
    assert answer == plainly(model, prompt, 10)
    # A correction in the middle, the same again, and another prompt in the same cache.
    other = (answer[3] + 1) % model.vocabulary
    corrected = [*answer[:3], other]
    for expected in ((), answer[4:]):
        again = decoder.complete(prompt, corrected, 10, expected).ids
        assert again == [*corrected, *plainly(model, [*prompt, *corrected], 6)]
    assert decoder.complete(prompt[:9], [], 5).ids == plainly(model, prompt[:9], 5)
    judged = decoder.judge(prompt, answer[:2], answer[2:5])
    assert judged.best_ids == answer[2:5]
    # Nothing is held where there is no cache.
    assert (decoder.nbytes > 0) == (cache_use(model).argument is not None)


def test_prompts_of_several_lengths_answer_as_each_alone(model):
    long = model.codec.encode_prompt([{"role": "user", "content": "Where was she born, and when?"}])
    prompts = [long, long[:7], long[:20], long[3:10]]
    found = {index: answer.ids for part in decode_batch(model, prompts, 6) for index, answer in part}
    assert [found[index] for index in range(4)] == [plainly(model, prompt, 6) for prompt in prompts]
    drawn = sample_batch(model, prompts, 4, seed=1)
    assert drawn == sample_batch(model, prompts, 4, seed=1)
    assert len(drawn) == 4


def test_what_a_cache_is_good_for_is_found_out_once():
    found = {name: cache_use(zoo_model(name)) for name in ("Llama", "Mistral", "Mamba", "Bamba", "RWKV-4", "xLSTM")}
    assert found == {
        "Llama": CacheUse("past_key_values", rewinds=True, appends=True),
        # A sliding window remembers for a while what has left it.
        "Mistral": CacheUse("past_key_values", rewinds=True, appends=True),
        "Mamba": CacheUse("cache_params"),
        "Bamba": CacheUse("past_key_values", appends=True, positions=True),
        "RWKV-4": CacheUse(None),
        "xLSTM": CacheUse(None),
    }
    model = zoo_model("Mamba")
    calls = []
    model.causal.register_forward_pre_hook(lambda *_: calls.append(1))
    assert cache_use(model) is cache_use(model)
    assert generate_use(model) is generate_use(model)
    tried = len(calls)
    GreedyDecoder(model)
    assert len(calls) == tried > 0
