"""How long an answer takes to be whole again after a correction: with its old continuation as a draft, and without."""

import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM

from anchorlwf.decoding.greedy import Decoded, GreedyDecoder
from anchorlwf.model.language_model import LanguageModel, load_model

__all__ = [
    "CorrectedAnswer",
    "correction_of",
    "measure_correction",
    "measure_drafts",
    "measure_rewind",
    "prompt_of",
    "steady_model",
    "windowed_model",
]

_PROMPT = "Where was Mira Belmora born?"


def steady_model(steadiness: float = 3.5, *, layers: int = 4, width: int = 160, seed: int = 0) -> LanguageModel:
    """A random GPT-2 of the embedded model's size and vocabulary that says nearly the same again after a correction.

    Its position embeddings are `steadiness` times as large as usual, so what it says depends on the place more than on
    the words before. It never ends its turn, and its window holds 1,024 tokens.
    """
    codec = load_model(dtype="float32", device="cpu").codec
    end = codec.tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(codec.tokenizer),
        n_positions=1024,
        n_embd=width,
        n_layer=layers,
        n_head=4,
        eos_token_id=end,
        bos_token_id=None,
        pad_token_id=codec.pad_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        net.transformer.wpe.weight.mul_(steadiness)
        net.transformer.wte.weight[end] = 0  # its logit is 0, and some other one is always larger
    return LanguageModel(net, codec, "steady")


def windowed_model(window: int = 512, *, layers: int = 4, width: int = 160, seed: int = 0) -> LanguageModel:
    """A random Mistral of the embedded model's size and vocabulary, every layer of which sees `window` tokens."""
    codec = load_model(dtype="float32", device="cpu").codec
    config = MistralConfig(
        vocab_size=len(codec.tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1 << 16,
        sliding_window=window,
        eos_token_id=codec.tokenizer.eos_token_id,
        pad_token_id=codec.pad_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LanguageModel(MistralForCausalLM(config).eval(), codec, "windowed")


def prompt_of(model: LanguageModel) -> list[int]:
    """Ids of a question."""
    return model.codec.encode_prompt([{"role": "user", "content": _PROMPT}])


@dataclass(frozen=True)
class CorrectedAnswer:
    """An answer before and after one correction."""

    prompt_ids: list[int]
    old_ids: list[int]
    prefix_ids: list[int]
    """The corrected token is the last of them."""
    new_ids: list[int]
    """By plain greedy decoding."""

    @property
    def rest_ids(self) -> list[int]:
        """What stood behind the correction."""
        return self.old_ids[len(self.prefix_ids) :]

    @property
    def agreement(self) -> float:
        """Share of the positions behind the correction where the same token stands again."""
        pairs = list(zip(self.rest_ids, self.new_ids[len(self.prefix_ids) :], strict=False))
        return sum(old == new for old, new in pairs) / max(1, len(pairs))


def correction_of(
    model: LanguageModel, prompt_ids: list[int], position: int, limit: int, seed: int = 0
) -> CorrectedAnswer:
    """The model's own answer, and the one with a random token at `position`."""
    decoder = GreedyDecoder(model)
    old = decoder.complete(prompt_ids, [], limit).ids
    others = sorted(set(range(model.vocabulary)) - model.stop_ids - {old[position]})
    prefix = [*old[:position], random.Random(seed).choice(others)]
    return CorrectedAnswer(prompt_ids, old, prefix, decoder.complete(prompt_ids, prefix, limit).ids)


@contextmanager
def _counted(model: LanguageModel) -> Iterator[list[int]]:
    fed: list[int] = []

    def count(_module: object, _args: object, kwargs: dict[str, torch.Tensor]) -> None:
        fed.append(kwargs["input_ids"].numel())

    handle = model.net.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield fed
    finally:
        handle.remove()


def _timed(work: Callable[[], Decoded]) -> tuple[float, Decoded]:
    begin = time.perf_counter()
    decoded = work()
    return time.perf_counter() - begin, decoded


def measure_correction(
    model: LanguageModel, case: CorrectedAnswer, *, draft_ids: Sequence[int] | None = None, repeats: int = 5
) -> dict[str, Any]:
    """Time from the correction to the whole answer, plain and with the draft in turn; the cache holds the old answer.

    Args:
        model: the model of the case.
        case: see `correction_of`.
        draft_ids: another draft than the old continuation.
        repeats: of each; medians are given.

    Returns:
        Seconds of both and their ratio (draft / plain), forward passes and tokens fed with the draft, agreement of
        the two answers, and whether both ways gave the same ids.
    """
    decoder, limit = GreedyDecoder(model), len(case.new_ids)
    drafts = {"plain": (), "draft": case.rest_ids if draft_ids is None else draft_ids}
    seconds: dict[str, list[float]] = {name: [] for name in drafts}
    identical, fed = True, list[int]()
    for _ in range(repeats):
        for name, draft in drafts.items():
            decoder.advance([*case.prompt_ids, *case.old_ids], [])
            with _counted(model) as counts:
                took, decoded = _timed(partial(decoder.complete, case.prompt_ids, case.prefix_ids, limit, draft))
            seconds[name].append(took)
            identical &= decoded.ids == case.new_ids
            fed = counts if name == "draft" else fed
    plain, draft_time = (statistics.median(seconds[name]) for name in ("plain", "draft"))
    return {
        "tokens": limit,
        "corrected_at": len(case.prefix_ids) - 1,
        "agreement": case.agreement,
        "plain_seconds": plain,
        "draft_seconds": draft_time,
        "ratio": draft_time / plain,
        "passes": len(fed),
        "tokens_fed": sum(fed),
        "identical": identical,
        "repeats": repeats,
    }


def measure_drafts(*, tokens: int = 512, position: int = 10, repeats: int = 5, seed: int = 0) -> dict[str, Any]:
    """Right and wrong drafts on `steady_model`: the old continuation, one that shares nothing, one of the same words.

    Returns:
        `measure_correction` by name of the draft.
    """
    model, rng = steady_model(seed=seed), random.Random(seed)
    case = correction_of(model, prompt_of(model), position, tokens, seed)
    words = [token for token in range(model.vocabulary) if token not in set(case.new_ids)]
    drafts = {
        "old": case.rest_ids,
        "foreign": rng.choices(words, k=len(case.rest_ids)),
        "shuffled": rng.sample(case.rest_ids, k=len(case.rest_ids)),
    }
    return {name: measure_correction(model, case, draft_ids=draft, repeats=repeats) for name, draft in drafts.items()}


def measure_rewind(
    model: LanguageModel,
    *,
    prompt_tokens: int = 3400,
    answer: int = 150,
    back: int = 20,
    repeats: int = 5,
    seed: int = 0,
) -> dict[str, Any]:
    """Time from a correction near the end of an answer to the next token: with the cache, and reading it all again.

    Args:
        model: such as `windowed_model()`.
        prompt_tokens, answer: tokens of a random prompt and of a random answer to it.
        back: how many tokens from its end the answer is corrected.
        repeats: of each, in turn; medians are given.
        seed: of the tokens.

    Returns:
        Seconds of both and their ratio (rewound / again), bytes of the cache, and whether both gave the same token.
    """
    rng = random.Random(seed)
    others = sorted(set(range(model.vocabulary)) - model.stop_ids)
    ids = rng.choices(others, k=prompt_tokens + answer)
    corrected, wrong = ids[: prompt_tokens + answer - back], rng.choice(others)
    kept, seconds, same = GreedyDecoder(model), dict[str, list[float]](rewound=[], again=[]), True
    for _ in range(repeats):
        kept.advance(ids, [])
        found = []
        for name, decoder in (("rewound", kept), ("again", GreedyDecoder(model))):
            begin = time.perf_counter()
            decoder.judge(corrected, [], [wrong])
            found.append(decoder.advance([*corrected, wrong], [])[0].token_id)
            seconds[name].append(time.perf_counter() - begin)
        same &= found[0] == found[1]
    rewound, again = (statistics.median(seconds[name]) for name in ("rewound", "again"))
    return {
        "rewound_seconds": rewound,
        "again_seconds": again,
        "ratio": rewound / again,
        "bytes": kept.nbytes,
        "identical": same,
        "repeats": repeats,
    }
