import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilander_dist.knn.neighbour_overlap import count_shared


def by_sets(nbr_NK: np.ndarray, depth_Q: list[int]) -> np.ndarray:
    """The definition: lists as sets."""

    def members(node: int, depth: int) -> set[int]:
        return ({node} | set(nbr_NK[node, : depth - 1].tolist())) - {-1}

    shared_NKQ = np.zeros((*nbr_NK.shape, len(depth_Q)), dtype=np.uint8)
    for i, row in enumerate(nbr_NK.tolist()):
        for rank, j in enumerate(row):
            if j >= 0:
                shared_NKQ[i, rank] = [len(members(i, depth) & members(j, depth)) for depth in depth_Q]
    return shared_NKQ


def random_lists(seed: int, n: int, k: int, scale: int) -> np.ndarray:
    """Distinct neighbours of each node, multiples of ``scale`` apart, some rows with pads at the end."""
    rng = np.random.default_rng(seed)
    nbr_NK = np.full((n, k), -1)
    for i in range(n):
        others = np.delete(np.arange(n), i)
        count = min(len(others), rng.integers(0, k + 1))
        nbr_NK[i, :count] = rng.permutation(others)[:count]
    return np.where(nbr_NK >= 0, nbr_NK * scale, -1)


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 12), st.sampled_from([1, 1024, 2**20 + 7]))
@settings(max_examples=60, deadline=None)
def test_counts_are_those_of_sets(seed: int, n: int, k: int, scale: int) -> None:
    nbr_NK = random_lists(seed, n, k, scale)
    local_NK = np.where(nbr_NK >= 0, nbr_NK // scale, -1)
    depth_Q = [1, 2, 3, k + 1]
    shared = count_shared(nbr_NK, np.arange(n) * scale, nbr_NK, local_NK, sorted(depth_Q))
    np.testing.assert_array_equal(shared, by_sets(local_NK, sorted(depth_Q)))


def test_the_longest_lists_fit_in_a_byte() -> None:
    n = 255
    nbr_NK = np.array([np.delete(np.arange(n), i) for i in range(n)])
    assert (count_shared(nbr_NK, np.arange(n), nbr_NK, nbr_NK, [255]) == 255).all()
    with pytest.raises(ValueError, match="255 neighbours"):
        count_shared(np.zeros((1, 255), np.int64), np.zeros(1, np.int64), nbr_NK, nbr_NK, [2])
