"""A made-up study, as results.json has it and as it is read."""

import pytest
from arena_data import made_up

from anchorlwf.arena.study_results import Study


@pytest.fixture(scope="module")
def results():
    return made_up()


@pytest.fixture(scope="module")
def study(results):
    return Study.read(results)
