"""How many tokens a model was fed."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from anchorlwf.model.language_model import LanguageModel


@contextmanager
def counting_tokens(model: LanguageModel) -> Iterator[list[int]]:
    """How many tokens each forward pass was given."""
    fed: list[int] = []

    def count(_module: object, _args: object, kwargs: dict[str, torch.Tensor]) -> None:
        fed.append(kwargs["input_ids"].shape[1])

    handle = model.net.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield fed
    finally:
        handle.remove()
