"""What several tests of the annotator begin with."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from page_client import Rig
from terminal_sitting import work_of

from anchorlwf.annotator.open import Work
from anchorlwf.model.language_model import LanguageModel


@pytest.fixture
def rig(tiny_model: LanguageModel, tmp_path: Path) -> Iterator[Rig]:
    """An application over a tiny model."""
    made = Rig(tiny_model, tmp_path)
    yield made
    made.close()


@pytest.fixture
def work(tmp_path: Path, tiny_path: Path) -> Work:
    """A few questions to the tiny model."""
    return work_of(tmp_path, tiny_path)
