"""What the model would choose at each token of completions that are given: one forward pass, no decoding.

Shape suffixes: B completions, T tokens (padded on the right), D hidden width, N completion tokens of a batch, C of a
chunk, V vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from anchorlwf.divergence import completion_hidden
from anchorlwf.model.batch import KeepTurn, Turn, collate
from anchorlwf.model.language_model import LanguageModel

__all__ = ["TIE", "Choices", "choices_of", "forced_choices", "greedy_choices", "windows"]

TIE = 1e-3
"""Two logits closer than this (nats) are a tie: batched and incremental passes may rank them either way."""

_TOKENS = 4096
"""Maximum number of tokens of a forward pass, padding included (one completion may be longer): what its activations
take."""
_VALUES = 1 << 24
"""Maximum number of logits at a time, 64 MiB in float32: 110 positions of a vocabulary of 151,936."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Choices:
    """The model's view of given tokens, one entry per token."""

    best_ids: list[int]
    """Its greedy choice given the tokens before."""
    probabilities: list[float]
    """Its probability of the token that stands there."""
    tied: list[bool]
    """The standing token is not its choice, but within `TIE` of it."""


def choices_of(logits_CV: Tensor, token_ids: Sequence[int]) -> Choices:
    """What float32 logits say of the tokens that stand at their positions."""
    stands_C = torch.tensor(token_ids, device=logits_CV.device)
    best_C = logits_CV.argmax(-1)
    own_C = logits_CV.gather(-1, stands_C[:, None])[:, 0]
    gap_C = logits_CV.max(-1).values - own_C
    # Rounding may leave a certain token a hair above 1.
    probability_C = (own_C - logits_CV.logsumexp(-1)).exp().clamp(max=1.0)
    tied_C = (gap_C < TIE) & (best_C != stands_C)
    return Choices(best_C.tolist(), probability_C.tolist(), tied_C.tolist())


def _projected(model: LanguageModel, hidden_ND: Tensor) -> Iterator[Tensor]:
    """The model's own logits [C, V] of final hidden states, a chunk at a time.

    Whatever its head does (scaling, soft caps, rounding to half precision) it does here too: its own forward runs over
    one token, and finds these hidden states in the place of that token's.
    """
    token_BT = torch.zeros((1, 1), dtype=torch.long, device=hidden_ND.device)
    for hidden_CD in hidden_ND.split(max(1, _VALUES // model.vocabulary)):

        def put(_module: object, _inputs: object, output: dict[str, Tensor], hidden: Tensor = hidden_CD) -> object:
            output["last_hidden_state"] = hidden[None]
            return output

        handle = model.backbone.register_forward_hook(put)
        try:
            yield model.net(input_ids=token_BT, use_cache=False).logits[0].float()
        finally:
            handle.remove()


@torch.inference_mode()
def _forced(model: LanguageModel, turns: Sequence[Turn]) -> list[Choices]:
    batch = collate(turns, model.codec.pad_id).to(model.device)
    tokens, whole = batch.token_ids_N.tolist(), Choices([], [], [])
    for logits_CV in _projected(model, completion_hidden(model.net, model.backbone, batch)):
        model.check_finite(logits_CV.amax(-1))
        start = len(whole.best_ids)
        part = choices_of(logits_CV, tokens[start : start + len(logits_CV)])
        whole.best_ids.extend(part.best_ids)
        whole.probabilities.extend(part.probabilities)
        whole.tied.extend(part.tied)
    by_turn, start = [], 0
    for turn in turns:
        own = slice(start, start + len(turn.completion_ids))
        by_turn.append(Choices(whole.best_ids[own], whole.probabilities[own], whole.tied[own]))
        start = own.stop
    return by_turn


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices in batches of like length, none wider in all than `_TOKENS` but where a single one is."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        # The first is the longest, and all are padded to it.
        if batch and lengths[batch[0]] * (len(batch) + 1) > _TOKENS:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def forced_choices(
    model: LanguageModel, turns: Sequence[Turn], *, progress: Callable[[int], None] | None = None
) -> list[Choices]:
    """The model's choice at every completion token of every turn: length-sorted batches, one forward pass each.

    Only completion positions are projected to the vocabulary, a bounded chunk at a time.

    Args:
        model: taken as it is (adapter on unless inside `model.reference()`).
        turns: prompts with their completions; hold no more of them than memory takes (`windows`).
        progress: called after each batch with the number of turns in it.

    Returns:
        One per turn, in their order.
    """
    by_turn = [Choices([], [], [])] * len(turns)
    filled = [index for index, turn in enumerate(turns) if turn.completion_ids]
    lengths = [len(turns[index].prompt_ids) + len(turns[index].completion_ids) for index in filled]
    for batch in _batches(lengths):
        chosen = [filled[number] for number in batch]
        for index, choices in zip(chosen, _forced(model, [turns[index] for index in chosen]), strict=True):
            by_turn[index] = choices
        if progress is not None:
            progress(len(batch))
    return by_turn


def greedy_choices(model: LanguageModel, prompt_ids: list[int], completion_ids: list[int]) -> Choices:
    """`forced_choices` of one completion: the invariant of `docs/method.md` is read off the result."""
    return forced_choices(model, [KeepTurn(prompt_ids, completion_ids)])[0]


def windows(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Items in lists of `size`; what came before an error among them is handed over before it is raised."""
    window: list[Item] = []
    try:
        for item in items:
            window.append(item)
            if len(window) == size:
                yield window
                window = []
    except Exception:
        if window:
            yield window
        raise
    if window:
        yield window
