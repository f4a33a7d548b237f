import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hilander_dist.knn.local_means import COSINE_ONE, edge_cosines, local_means
from tests.points import random_rows
from tests.unit.knn.test_neighbour_overlap import random_lists


def means_by_definition(x_ND: np.ndarray, nbr_NK: np.ndarray, depth: int) -> np.ndarray:
    mean_ND = np.array([x_ND[[i, *row[: depth - 1][row[: depth - 1] >= 0]]].mean(0) for i, row in enumerate(nbr_NK)])
    return np.asarray(mean_ND / np.linalg.norm(mean_ND, axis=1, keepdims=True))


@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 12), st.integers(3, 70), st.integers(1, 14))
@settings(max_examples=60, deadline=None)
def test_cosines_are_those_of_the_means_of_nearest_rows(seed: int, n: int, k: int, dim: int, depth: int) -> None:
    x_ND = random_rows(seed, n, dim)
    nbr_NK = random_lists(seed, n, k, 1)
    mean_ND = local_means(x_ND, nbr_NK, depth)
    expected_ND = means_by_definition(x_ND.astype(np.float64), nbr_NK, depth)
    np.testing.assert_allclose(mean_ND, expected_ND, atol=1e-3)
    cos_NK = edge_cosines(mean_ND, nbr_NK)
    assert cos_NK.dtype == np.int16
    expected_NK = np.einsum("nd,nkd->nk", expected_ND, expected_ND[nbr_NK]) * (nbr_NK >= 0)
    np.testing.assert_allclose(cos_NK / COSINE_ONE, expected_NK, atol=2e-3)


def test_a_node_has_the_same_bits_wherever_its_neighbours_lie_in_the_table() -> None:
    x_ND, nbr_NK = random_rows(1, 50, 37), random_lists(1, 50, 9, 1)
    mean_ND = local_means(x_ND, nbr_NK, 5)
    cos_NK = edge_cosines(mean_ND, nbr_NK)
    order = np.r_[np.arange(20), 20 + np.random.default_rng(2).permutation(30)]
    local_NK = np.where(nbr_NK >= 0, np.argsort(order)[nbr_NK], -1)[:20]
    np.testing.assert_array_equal(local_means(x_ND[order], local_NK, 5), mean_ND[:20])
    np.testing.assert_array_equal(edge_cosines(mean_ND[order], local_NK), cos_NK[:20])


def test_rows_that_cancel_have_no_direction() -> None:
    x_ND = np.array([[1, 0], [-1, 0]], dtype=np.float32)
    nbr_NK = np.array([[1], [0]])
    mean_ND = local_means(x_ND, nbr_NK, 2)
    assert (mean_ND == 0).all()
    assert (edge_cosines(mean_ND, nbr_NK) == 0).all()
