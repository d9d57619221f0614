"""Records to tensors. Only completion positions are ever projected to the vocabulary; prompts carry no loss.

Shape suffixes: B records, T tokens (prompt and completion, padded on the right), N completion tokens of the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = ["Batch", "KeepTurn", "Turn", "collate"]


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
    attention_mask_BT: Tensor
    """int64, 0 at padding."""
    row_N: Tensor
    """int64 in [0, B)."""
    column_N: Tensor
    """int64 in [0, T)."""
    token_ids_N: Tensor
    """int64, the completion tokens."""
    confidence_N: Tensor
    """float32, 0 at keep tokens."""
    ref_hidden_ND: Tensor | None = None
    """The reference's final hidden states at the N positions, where they are known beforehand."""

    @property
    def anchors(self) -> int:
        """How many of the N tokens are anchors."""
        return int((self.confidence_N > 0).sum())

    @property
    def keeps(self) -> int:
        """How many of the N tokens are keep tokens."""
        return len(self.confidence_N) - self.anchors

    def tensors(self) -> dict[str, Tensor]:
        """The fields that are there, by name: `Batch(**batch.tensors())` is the batch."""
        return {name: tensor for name, tensor in self._asdict().items() if tensor is not None}

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        return Batch(**{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def select(self, hidden_BTD: Tensor) -> Tensor:
        """Hidden states at the N predicting positions: [N, D]."""
        return hidden_BTD[self.row_N, self.column_N]


def collate(records: Sequence[Turn], pad_id: int) -> Batch:
    """Batch turns, in the given order."""
    inputs = [[*record.prompt_ids, *record.completion_ids[:-1]] for record in records]
    width = max(len(ids) for ids in inputs)
    lengths = [len(record.completion_ids) for record in records]
    starts = [len(record.prompt_ids) - 1 for record in records]
    columns = [start + i for start, length in zip(starts, lengths, strict=True) for i in range(length)]
    return Batch(
        torch.tensor([ids + [pad_id] * (width - len(ids)) for ids in inputs]),
        torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in inputs]),
        torch.arange(len(records)).repeat_interleave(torch.tensor(lengths)),
        torch.tensor(columns),
        torch.tensor([token for record in records for token in record.completion_ids]),
        torch.tensor([c for record in records for c in record.confidences], dtype=torch.float32),
    )
