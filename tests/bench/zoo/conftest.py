"""Trials of the zoo fork; from here on, they and all later tests do so from the same process."""

import pytest
from forks import forks


@pytest.fixture(scope="module", autouse=True)
def _forks():
    forks()
