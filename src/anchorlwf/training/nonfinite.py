"""What is said where a loss is no finite number: which records it came from, and what may help.

Shape suffix: N completion tokens of one micro-batch.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from anchorlwf.data.record import Record
from anchorlwf.errors import ModelError, wrong
from anchorlwf.model.batch import Batch, KeepTurn

__all__ = ["nonfinite_error", "nonfinite_turns"]

_NAMED = 5
"""Records that a message names at the most."""


def nonfinite_turns(batch: Batch, value_N: Tensor) -> list[KeepTurn]:
    """Prompt and completion of the records with a value that is NaN or infinite; of all where only their sum is."""
    broken = batch.per_record((~value_N.isfinite()).int())
    return batch.turns((broken if broken.any() else torch.ones_like(broken)).nonzero()[:, 0].tolist())


def nonfinite_error(
    what: str, turns: Sequence[KeepTurn], records: Iterable[Record], learning_rate: float
) -> ModelError:
    """The error that ends training.

    Args:
        what: that is not finite.
        turns: where, as `nonfinite_turns` found them.
        records: that are trained on; those with these contents are named.
        learning_rate: named too, being the usual reason.
    """
    contents = {(tuple(turn.prompt_ids), tuple(turn.completion_ids)) for turn in turns}
    ids = [one.id for one in records if (tuple(one.prompt_ids), tuple(one.completion_ids)) in contents]
    more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    got = f"NaN or infinity at the records {', '.join(ids[:_NAMED])}{more}"
    fix = (
        f"Lower learning_rate (it is {learning_rate:g}), load the model in a wider dtype, or leave these records out. "
        "No weights were saved; what was saved before is as it was."
    )
    return ModelError(wrong(what, "finite numbers", got, fix))
