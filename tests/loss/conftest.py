"""What the tests of the loss share."""

from collections.abc import Callable

import pytest

from anchorlwf.loss import chunked


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Make chunks of so many tokens for a vocabulary."""

    def shrink(tokens: int, vocabulary: int) -> None:
        monkeypatch.setattr(chunked, "CHUNK_BYTES", tokens * vocabulary * 4)
        assert chunked.chunk_size(vocabulary) == tokens

    return shrink
