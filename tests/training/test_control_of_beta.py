"""Beta follows the drift, within bounds, and never at the price of anchors; the rate falls where they do not rise."""

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
        steered.observe(0.02, 1.0, 0.0)
    high = steered.beta
    assert high == pytest.approx(2.0 * (0.02 / 0.008) ** (5 / 4))
    steered.observe(0.008, 1.0, 0.0)
    assert steered.beta == pytest.approx(high), "four fifths of the budget is the aim"
    steered.observe(100.0, 1.0, 0.0)
    assert steered.beta == pytest.approx(high * 1.5), "one wild batch does not take over"
    for _ in range(100):
        steered.observe(0.001, 1.0, 0.0)
    assert steered.beta == 2.0


def test_a_budget_that_cannot_be_reached_does_not_wind_up():
    steered = control()
    for _ in range(500):
        steered.observe(1.0, 1.0, 0.0)
    assert steered.beta == 2000.0, "a thousand times its start, and no more"
    for _ in range(40):
        steered.observe(1e-6, 1.0, 0.0)
    assert steered.beta < 2.5, "and it comes down at once"


def test_anchors_come_first():
    steered = control()
    steered.observe(0.02, 0.5, -1.0)
    steered.observe(0.02, 0.5, -0.5)
    rising = steered.beta
    assert rising > 2.0, "they do not hold yet, but they rise"
    steered.observe(0.02, 0.5, -0.5)
    assert steered.beta == pytest.approx(0.8 * rising), "they have come to a halt"
    steered.observe(0.02, 0.6, -0.5)
    assert steered.beta > 0.8 * rising, "more of them hold"


def test_where_anchors_never_hold_beta_ends_at_its_minimum_whatever_the_drift():
    steered = control()
    for _ in range(100):
        steered.observe(1.0, 0.9, -0.1)
    assert steered.beta == pytest.approx(0.2)


def test_the_rate_falls_where_anchors_have_come_to_a_halt_and_stays_there():
    steered = control()
    steered.observe(0.02, 0.5, -1.0)
    assert steered.rate == 1.0, "nothing was seen before"
    steered.observe(0.02, 0.5, -1.0)
    assert steered.rate == pytest.approx(0.8)
    steered.observe(0.02, 0.9, -0.5)
    steered.observe(0.02, 1.0, -0.1)
    assert steered.rate == pytest.approx(0.8)
    for _ in range(100):
        steered.observe(0.02, 0.9, -0.1)
    assert steered.rate == pytest.approx(0.1)


def test_beta_is_not_let_down_for_the_margin_of_answers_that_are_reproduced():
    steered = control()
    for _ in range(3):
        steered.observe(0.02, 0.9, -0.1)
    beta, rate = steered.beta, steered.rate
    steered.observe(0.02, 0.9, -0.1, reproduced=True)
    assert steered.beta == pytest.approx(beta * (0.02 / 0.008) ** 0.25), "the drift has its say"
    assert steered.rate == pytest.approx(0.8 * rate), "and still the anchors have come to a halt"
    steered.observe(0.02, 0.9, -0.1)
    assert steered.beta == pytest.approx(0.8 * beta * (0.02 / 0.008) ** 0.25), "an answer was lost"


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1), st.floats(-1e4, 0), st.booleans()), max_size=50))
def test_whatever_is_seen_beta_stays_within_its_bounds(seen):
    steered = control()
    for drift, held, log_p, reproduced in seen:
        steered.observe(drift, held, log_p, reproduced=reproduced)
        assert 0.2 <= steered.beta <= 2000.0
        assert 0.1 <= steered.rate <= 1.0
