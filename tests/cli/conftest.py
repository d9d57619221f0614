"""What tests of several commands share."""

from pathlib import Path

import pytest
from commands import job

from anchorlwf.annotation import annotate
from anchorlwf.config import AnnotateConfig
from anchorlwf.data.jsonl import save_records
from anchorlwf.data.record import Prompt
from anchorlwf.model.language_model import LanguageModel

__all__ = ["job"]  # a fixture


@pytest.fixture(scope="module")
def corrected(tiny_model: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two records of the tiny model."""
    prompts = [Prompt(messages=[{"role": "user", "content": text}], answer="in a town") for text in ("hello", "Who?")]
    path = tmp_path_factory.mktemp("corrected") / "records.jsonl"
    save_records(path, annotate(tiny_model, prompts, config=AnnotateConfig(max_new_tokens=10)))
    return path


@pytest.fixture
def tiny(tiny_path: Path) -> tuple[str, Path]:
    return "--model", tiny_path
