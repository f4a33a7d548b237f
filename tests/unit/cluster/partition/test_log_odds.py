import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilander_dist.cluster.partition.log_odds import (
    MOST,
    ONE,
    STEP,
    histogram,
    log_odds,
    mean_probability,
    probabilities,
    quantise,
    share_above,
    weights,
)

LOGITS = st.lists(st.floats(-40, 40), min_size=1, max_size=30)
STEPS = st.lists(st.integers(-MOST, MOST), max_size=50)
SHIFTS = st.floats(-8, 8)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@given(LOGITS)
def test_steps_are_the_nearest_and_cut_at_16(logits: list[float]) -> None:
    step_NK = quantise(np.array([logits], dtype=np.float32))
    assert step_NK.dtype == np.int16
    for step, logit in zip(step_NK[0].tolist(), np.array(logits, dtype=np.float32).tolist(), strict=True):
        assert abs(step / STEP - min(max(logit, -16.0), 16.0)) <= 0.5 / STEP


@given(LOGITS)
def test_steps_of_the_opposite_log_odds_are_opposite(logits: list[float]) -> None:
    logit_N = np.array(logits, dtype=np.float32)
    np.testing.assert_array_equal(quantise(-logit_N), -quantise(logit_N))


@given(SHIFTS, st.integers(-MOST, MOST))
def test_a_probability_is_the_logistic_of_the_shifted_log_odds(shift: float, step: int) -> None:
    p = int(probabilities(shift)[step + MOST])
    assert abs(p / ONE - sigmoid(step / STEP + shift)) <= 0.5000001 / ONE
    # A weight is what is above one half, twice; never below 0.
    assert weights(shift)[step + MOST] == max(2 * p - ONE, 0)


def test_probabilities_ascend_over_all_steps_and_weights_from_one_half_on() -> None:
    chance_Q, weight_Q = probabilities(0.0), weights(0.0)
    assert len(chance_Q) == len(weight_Q) == 2 * MOST + 1
    assert (np.diff(chance_Q) >= 0).all()
    assert chance_Q[MOST] * 2 == ONE
    assert (weight_Q[: MOST + 1] == 0).all()
    assert (weight_Q[MOST + 1 :] > 0).all()
    assert weight_Q[-1] <= ONE


@given(STEPS, STEPS, SHIFTS)
def test_a_histogram_of_parts_tells_the_means_of_all(one: list[int], other: list[int], shift: float) -> None:
    parts = [np.array(steps, dtype=np.int16) for steps in (one, other)]
    edges_Q = histogram(parts[0]) + histogram(parts[1])
    every = one + other
    np.testing.assert_array_equal(edges_Q, histogram(np.concatenate(parts)))
    assert edges_Q.sum() == len(every)
    if not every:
        assert (mean_probability(edges_Q), share_above(edges_Q, 0.0)) == (0.5, 0.0)
        return
    expected = np.mean([sigmoid(step / STEP + shift) for step in every])
    assert mean_probability(edges_Q, shift) == pytest.approx(expected, abs=1 / ONE)
    for least in (0.0, 1.0):
        share = np.mean([step > least * STEP for step in every])
        assert share_above(edges_Q, least) == pytest.approx(share)


@given(st.floats(1e-6, 1 - 1e-6))
def test_log_odds_are_the_inverse_of_the_logistic(p: float) -> None:
    assert sigmoid(log_odds(p)) == pytest.approx(p)


def test_log_odds_of_0_and_1_are_finite() -> None:
    assert log_odds(1.0) == pytest.approx(-log_odds(0.0)) == pytest.approx(13.8155, abs=1e-3)
    assert log_odds(0.5) == 0
