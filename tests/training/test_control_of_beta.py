"""Beta follows the drift, within bounds, and never at the price of anchors that held before."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anchorlwf.config import TrainConfig
from anchorlwf.training.stop_rule import DriftControl


def control(beta: float = 2.0, budget: float = 0.01) -> DriftControl:
    return DriftControl(TrainConfig(beta=beta, drift_budget=budget))


def test_the_budget_raises_beta_over_it_and_relaxes_well_below():
    steered = control()
    for _ in range(5):
        steered.observe(0.02, 1.0)
    high = steered.beta
    assert high == pytest.approx(2.0 * (0.02 / 0.008) ** (5 / 4))
    steered.observe(0.008, 1.0)
    assert steered.beta == pytest.approx(high), "four fifths of the budget is the aim"
    steered.observe(100.0, 1.0)
    assert steered.beta == pytest.approx(high * 1.5), "one wild batch does not take over"
    for _ in range(100):
        steered.observe(0.001, 1.0)
    assert steered.beta == 2.0


def test_a_budget_that_cannot_be_reached_does_not_wind_up():
    steered = control()
    for _ in range(500):
        steered.observe(1.0, 1.0)
    assert steered.beta == 2000.0, "a thousand times its start, and no more"
    for _ in range(40):
        steered.observe(1e-6, 1.0)
    assert steered.beta < 2.5, "and it comes down at once"


def test_it_does_not_rise_while_anchors_that_held_are_being_lost():
    steered = control()
    steered.observe(0.02, 0.9)
    before = steered.beta
    for _ in range(10):
        steered.observe(0.02, 0.5)
    assert steered.beta == before
    steered.observe(0.001, 0.5)
    assert steered.beta < before, "it may still relax"
    steered.observe(0.02, 0.9)
    assert steered.beta > 2.0, "and rises again once they are back"


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1)), max_size=50))
def test_whatever_is_seen_beta_stays_within_its_bounds(seen):
    steered = control()
    for drift, held in seen:
        steered.observe(drift, held)
        assert 2.0 <= steered.beta <= 2000.0
