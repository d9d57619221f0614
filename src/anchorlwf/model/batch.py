"""Records to tensors. Only completion positions are ever projected to the vocabulary; prompts carry no loss.

A batch is padded (`collate`: a row per record, as long as the longest) or packed (`pack`: one row, records end to end).
What all prompts of a packed batch begin with, such as a system prompt, may stand at its front once for all records.

Shape suffixes: B rows, T tokens of a row (prompts and completions, padded on the right), R records, N completion tokens
of the batch.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = ["Batch", "KeepTurn", "Turn", "collate", "pack", "shared_length"]

_WORTH_SHARING = 8
"""Tokens; attention to fewer shared ones costs more than it saves."""


class Turn(Protocol):
    """What a batch is made of; a `Record` is one."""

    @property
    def prompt_ids(self) -> list[int]:
        """The templated prompt."""
        ...

    @property
    def completion_ids(self) -> list[int]:
        """The answer."""
        ...

    @property
    def confidences(self) -> list[float]:
        """c_t per completion token, 0 at keep tokens."""
        ...


@dataclass(frozen=True)
class KeepTurn:
    """A turn of nothing but keep tokens, for measuring."""

    prompt_ids: list[int]
    completion_ids: list[int]

    @property
    def confidences(self) -> list[float]:
        """All 0."""
        return [0.0] * len(self.completion_ids)


class Batch(NamedTuple):
    """A batch of records. Position (row, column) is where the hidden state predicts the completion token."""

    input_ids_BT: Tensor
    """int64. The last completion token is predicted, never fed."""
    row_N: Tensor
    """int64 in [0, B)."""
    column_N: Tensor
    """int64 in [0, T)."""
    token_ids_N: Tensor
    """int64, the completion tokens."""
    confidence_N: Tensor
    """float32, 0 at keep tokens."""
    attention_mask_BT: Tensor | None = None
    """int64, 0 at padding. None: packed."""
    position_ids_BT: Tensor | None = None
    """int64, from 0 in each record; what is shared counts for all. None: padded."""
    bounds: Tensor | None = None
    """int32 [R + 1]: record r is columns bounds[r] to bounds[r + 1] of the one row. The first bounds[0] columns are
    shared. None: padded."""
    record_lengths: Tensor | None = None
    """int64 [R], tokens fed of each record besides shared ones, always on the CPU: whoever needs them needs numbers.
    None: padded."""
    reference_NX: Tensor | None = None
    """What is known of the reference at the N positions beforehand: its final hidden states, or their summary."""

    @property
    def anchors(self) -> int:
        """How many of the N tokens are anchors."""
        return int((self.confidence_N > 0).sum())

    @property
    def keeps(self) -> int:
        """How many of the N tokens are keep tokens."""
        return len(self.confidence_N) - self.anchors

    @property
    def retained_N(self) -> Tensor:  # noqa: N802 - a tensor's name
        """bool [N]: the token stands in a record without any anchor, a keep record."""
        return (self.per_record((self.confidence_N > 0).int()) == 0)[self._record_N()]

    @property
    def records(self) -> int:
        """R."""
        return len(self.input_ids_BT) if self.bounds is None else len(self.bounds) - 1

    def per_record(self, value_N: Tensor) -> Tensor:
        """Sums over the completion tokens of each record: [R]."""
        sums = torch.zeros(self.records, dtype=value_N.dtype, device=value_N.device)
        return sums.index_add_(0, self._record_N(), value_N)

    def _record_N(self) -> Tensor:  # noqa: N802 - a tensor's name
        """The record of each completion token: int64 [N] in [0, R)."""
        return self.row_N if self.bounds is None else torch.bucketize(self.column_N, self.bounds[1:], right=True)

    def turns(self, numbers: Sequence[int]) -> list["KeepTurn"]:
        """Prompt and completion of some of the records, by number in [0, R)."""
        chosen, record_N = [], self._record_N()
        shared = [] if self.bounds is None else self.input_ids_BT[0, : int(self.bounds[0])].tolist()
        for number in numbers:
            own_N = record_N == number
            row, first = (number, 0) if self.bounds is None else (0, int(self.bounds[number]))
            # The last token of the prompt is where the first of the completion is predicted.
            prompt = self.input_ids_BT[row, first : int(self.column_N[own_N][0]) + 1]
            chosen.append(KeepTurn(shared + prompt.tolist(), self.token_ids_N[own_N].tolist()))
        return chosen

    def tensors(self) -> dict[str, Tensor]:
        """The fields that are there, by name: `Batch(**batch.tensors())` is the batch."""
        return {name: tensor for name, tensor in self._asdict().items() if tensor is not None}

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device. Copies from pinned memory to a GPU are not waited for."""
        ahead = device.type == "cuda"
        stays = "record_lengths"
        tensors = self.tensors()
        return Batch(**{n: t if n == stays else t.to(device, non_blocking=ahead) for n, t in tensors.items()})

    def select(self, hidden_BTD: Tensor) -> Tensor:
        """Hidden states at the N predicting positions: [N, D]."""
        return hidden_BTD[self.row_N, self.column_N]


def collate(records: Sequence[Turn], pad_id: int) -> Batch:
    """Batch turns in the given order, each in a row of its own."""
    inputs = [_input_ids(record) for record in records]
    width = max(len(ids) for ids in inputs)
    starts = [0] * len(records)
    return Batch(
        torch.tensor([ids + [pad_id] * (width - len(ids)) for ids in inputs]),
        torch.arange(len(records)).repeat_interleave(torch.tensor([len(record.completion_ids) for record in records])),
        **_completions(records, starts),
        attention_mask_BT=torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in inputs]),
    )


def pack(records: Sequence[Turn], *, share: bool = False) -> Batch:
    """Batch turns in the given order, end to end in one row: no padding, and no mask.

    Args:
        records: the turns.
        share: put what all prompts begin with to the front once, where it is long enough to pay.
    """
    shared = shared_length(records) if share else 0
    inputs = [_input_ids(record)[shared:] for record in records]
    bounds = list(itertools.accumulate((len(ids) for ids in inputs), initial=shared))
    completions = _completions(records, [bound - shared for bound in bounds[:-1]])
    positions = [torch.arange(shared), *(torch.arange(shared, shared + len(ids)) for ids in inputs)]
    return Batch(
        torch.tensor([[*records[0].prompt_ids[:shared], *itertools.chain.from_iterable(inputs)]]),
        torch.zeros_like(completions["column_N"]),
        **completions,
        position_ids_BT=torch.cat(positions)[None],
        bounds=torch.tensor(bounds, dtype=torch.int32),
        record_lengths=torch.tensor([len(ids) for ids in inputs]),
    )


def shared_length(records: Sequence[Turn]) -> int:
    """Tokens that all prompts begin with and that are worth sharing; each record keeps one token of its prompt."""
    prompts = [record.prompt_ids for record in records]
    alike = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*prompts, strict=False))
    length = min(len(list(alike)), min(map(len, prompts)) - 1)
    return length if len(prompts) > 1 and length >= _WORTH_SHARING else 0


def _input_ids(record: Turn) -> list[int]:
    return [*record.prompt_ids, *record.completion_ids[:-1]]


def _completions(records: Sequence[Turn], starts: Sequence[int]) -> dict[str, Tensor]:
    """The columns, ids and confidences of all completion tokens; record r begins at column starts[r]."""
    firsts = [start + len(record.prompt_ids) - 1 for start, record in zip(starts, records, strict=True)]
    columns = [
        first + i for first, record in zip(firsts, records, strict=True) for i in range(len(record.completion_ids))
    ]
    return {
        "column_N": torch.tensor(columns),
        "token_ids_N": torch.tensor([token for record in records for token in record.completion_ids]),
        "confidence_N": torch.tensor([c for record in records for c in record.confidences], dtype=torch.float32),
    }
