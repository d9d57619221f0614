"""Which records a step is made of: the corrections, or an even share of them, and a fresh sample of keep records.

Only a step that sees both can weigh one against the other. Were they shuffled together, 256 keep records would let a
correction be seen in one batch of seventeen.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

__all__ = ["StepPlan", "StepSampler"]


@dataclass(frozen=True)
class StepPlan:
    """How many records of each kind an optimizer step holds, over all micro-batches and processes."""

    corrections: int
    keeps: int
    micro_batches: int
    """Of all processes together."""

    @classmethod
    def of(cls, corrections: int, keeps: int, *, batch_size: int, micro_batches: int) -> "StepPlan":
        """Half of the step for keep records; as many corrections as fit beside them.

        Where corrections are few the step stays small: more keep records in it make it slower, and training needs as
        many steps; but no micro-batch goes without a record. A step with room for one record alone gets room for two,
        so that it can hold both kinds.

        Args:
            corrections, keeps: how many records there are of each kind; at least one correction.
            batch_size: records of a micro-batch.
            micro_batches: per optimizer step, of all processes together.
        """
        room = batch_size * micro_batches
        if not keeps:
            return cls(min(corrections, room), 0, micro_batches)
        room = max(room, 2)
        beside = min(keeps, room // 2)
        shown = min(corrections, room - beside)
        return cls(shown, min(keeps, max(beside, micro_batches - shown)), micro_batches)

    def steps_per_pass(self, corrections: int) -> int:
        """Optimizer steps that hold as many corrections as there are: from the start of a round on, each of them."""
        return -(-corrections // self.corrections)


class StepSampler(Sampler[list[int]]):
    """The micro-batches of one process, for `DataLoader(batch_sampler=...)`, over the whole of training.

    What step `s` holds depends on the seed and on `s` alone, so a run that is resumed sees what it would have seen.
    Both kinds are gone through in a new order on every pass, so none is shown twice before all were shown once.

    Args:
        plan: of a step.
        corrections: numbers of the records with anchors.
        keeps: numbers of the keep records.
        lengths: tokens of every record. Within a step records of like length share a micro-batch.
        steps: optimizer steps at the most.
        seed: of the orders.
        rank, processes: which of them this is.
        grouped: put corrections of like length into the same step, which saves padding.
    """

    def __init__(
        self,
        plan: StepPlan,
        corrections: Sequence[int],
        keeps: Sequence[int],
        lengths: Sequence[int],
        *,
        steps: int,
        seed: int,
        rank: int = 0,
        processes: int = 1,
        grouped: bool = False,
    ) -> None:
        self._plan, self._lengths, self._steps = plan, lengths, steps
        self._rank, self._processes = rank, processes
        self._corrections = _Rounds(corrections, plan.corrections, (seed, 0), lengths if grouped else None)
        self._keeps = _Rounds(keeps, plan.keeps, (seed, 1), None)

    def __len__(self) -> int:
        return self._steps * (self._plan.micro_batches // self._processes)

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self._steps):
            yield from self._micro_batches(step)[self._rank :: self._processes]

    def _micro_batches(self, step: int) -> list[list[int]]:
        chosen = [*self._corrections.draw(step), *self._keeps.draw(step)]
        chosen.sort(key=self._lengths.__getitem__)
        # Every process needs its micro-batch, or the others would wait for it. Where there are fewer records than
        # processes, one stands in several, and counts as often.
        count = self._plan.micro_batches
        parts = np.array_split(np.array(chosen), min(count, len(chosen)))
        return [parts[number % len(parts)].tolist() for number in range(count)]


class _Rounds:
    """Numbers dealt out in rounds: each once, in a new order, before any a second time."""

    def __init__(self, numbers: Sequence[int], size: int, seed: tuple[int, int], lengths: Sequence[int] | None) -> None:
        self._numbers, self._size, self._seed, self._lengths = numbers, size, seed, lengths
        self._orders: dict[int, list[int]] = {}

    def draw(self, step: int) -> list[int]:
        """What step number `step` gets: `size` numbers, or all of them where there are fewer."""
        if not self._size:
            return []
        total = len(self._numbers)
        places = range(step * self._size, (step + 1) * self._size)
        return [self._order(place // total)[place % total] for place in places]

    def _order(self, round_number: int) -> list[int]:
        if round_number not in self._orders:
            # A step may reach from one round into the next; older ones are not asked for again.
            self._orders = {number: order for number, order in self._orders.items() if number == round_number - 1}
            state = np.random.SeedSequence([*self._seed, round_number]).generate_state(1, np.uint32)
            generator = torch.Generator().manual_seed(int(state[0]))
            self._orders[round_number] = [self._numbers[index] for index in self._shuffled(generator)]
        return self._orders[round_number]

    def _shuffled(self, generator: torch.Generator) -> list[int]:
        if self._lengths is None or self._size >= len(self._numbers):
            return torch.randperm(len(self._numbers), generator=generator).tolist()
        lengths = [self._lengths[number] for number in self._numbers]
        order: list[int] = get_length_grouped_indices(lengths, self._size, generator=generator)
        return order
