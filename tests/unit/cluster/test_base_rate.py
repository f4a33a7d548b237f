"""The correction by the base rate, and how far it may go."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hilander_dist.cluster.base_rate import (
    ALONE,
    FIRST_TAU,
    base_rate_shift,
    count_best,
    least_shift,
    moved_shift,
)

LOGITS = hnp.arrays(np.float32, st.tuples(st.integers(1, 60), st.integers(1, 6)), elements=st.floats(-12, 12, width=32))


def test_no_shift_at_the_base_rate_of_training() -> None:
    assert base_rate_shift(0.3, 0.3) == 0
    assert base_rate_shift(0.0, 0.5) == base_rate_shift(0.001, 0.5)


def test_clusters_move_the_base_rate_only_so_far() -> None:
    assert moved_shift(0.5, 0.3, 0.3, -9.0) == 0
    assert moved_shift(0.5, 0.0, 0.3, -9.0) == -1.5
    assert moved_shift(0.5, 0.0, 0.3, -1.0) == -1
    assert moved_shift(0.5, 1.0, 0.3, -9.0) == 2.5
    assert moved_shift(0.5, 1.0, 0.3, -9.0, whitened=True) == 1.5
    assert moved_shift(-1.0, 0.0, 0.3, -1.5, whitened=True) == -1.5


@given(LOGITS, st.floats(0, 1))
def test_the_least_shift_leaves_few_nodes_alone(logit_NK: np.ndarray, share: float) -> None:
    real_NK = np.random.default_rng(len(logit_NK)).random(logit_NK.shape) < share
    least = least_shift(count_best(logit_NK, real_NK))
    best_N = np.where(real_NK, logit_NK, -np.inf).max(1)[real_NK.any(1)]
    limit = np.log(FIRST_TAU / (1 - FIRST_TAU))
    alone = np.count_nonzero(best_N + least < limit - 1e-6)
    assert least <= 0
    if least < 0:
        assert alone <= ALONE * len(best_N)
        # A little more, and it leaves too many: intervals are 1/32 wide.
        assert np.count_nonzero(best_N + least - 1 / 16 < limit) > ALONE * len(best_N)


@given(LOGITS, st.integers(0, 60))
def test_counts_of_parts_add_up(logit_NK: np.ndarray, cut: int) -> None:
    real_NK = logit_NK > -11
    parts = [count_best(logit_NK[at], real_NK[at]) for at in (slice(0, cut), slice(cut, None))]
    np.testing.assert_array_equal(sum(parts), count_best(logit_NK, real_NK))


def test_nothing_to_lower_without_edges() -> None:
    nothing = np.zeros((3, 0), dtype=np.float32)
    assert least_shift(count_best(nothing, np.zeros((3, 0), dtype=bool))) == 0
