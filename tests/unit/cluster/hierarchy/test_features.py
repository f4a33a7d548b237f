import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hilander_dist.cluster.hierarchy.features import FIXED_POINT, MAX_MEMBERS, cluster_means, member_sums
from hilander_dist.ingest import UNIT_TOLERANCE
from tests import oracle
from tests.points import random_rows

SEEDS = st.integers(0, 10**6)


@settings(max_examples=30)
@given(seed=SEEDS, n=st.integers(1, 60), groups=st.integers(1, 8), cuts=st.lists(st.integers(0, 60), max_size=4))
def test_sums_do_not_depend_on_how_the_members_are_divided(seed: int, n: int, groups: int, cuts: list[int]) -> None:
    rng = np.random.default_rng(seed)
    x_ND, group_N = random_rows(seed, n, 5), rng.integers(0, groups, n)
    x_ND[:, :2] *= np.float32(1e-7)  # below 2^-9 a coordinate has digits that the sums drop
    sum_GD, count_G = member_sums({"x_ND": x_ND}, group_N, groups)
    expected = [[sum(round(float(x) * 2**32) for x in x_ND[group_N == g, d]) for d in range(5)] for g in range(groups)]
    assert sum_GD.tolist() == expected
    assert count_G.tolist() == np.bincount(group_N, minlength=groups).tolist()
    order = rng.permutation(n)
    parts = [
        member_sums({"x_ND": x_ND[rows]}, group_N[rows], groups)
        for rows in np.split(order, [min(c, n) for c in sorted(cuts)])
    ]
    np.testing.assert_array_equal(sum(part[0] for part in parts), sum_GD)
    np.testing.assert_array_equal(sum(part[1] for part in parts), count_G)


@settings(max_examples=30)
@given(seed=SEEDS)
def test_sums_of_sums_are_the_sums_of_the_samples(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x_ND = random_rows(seed, 50, 4)
    low_N = np.concatenate([np.arange(12), rng.integers(0, 12, 38)])  # each sample's cluster
    high_G = np.concatenate([np.arange(3), rng.integers(0, 3, 9)])  # each cluster's cluster
    sum_GD, count_G = member_sums({"x_ND": x_ND}, low_N, 12)
    nodes = {"x_ND": x_ND[:12], "sum_ND": sum_GD, "count_N": count_G}
    once, twice = member_sums({"x_ND": x_ND}, high_G[low_N], 3), member_sums(nodes, high_G, 3)
    np.testing.assert_array_equal(twice[0], once[0])
    np.testing.assert_array_equal(twice[1], once[1])
    means_GD = cluster_means({"x_ND": x_ND[:3], "sum_ND": twice[0], "count_N": twice[1]})
    np.testing.assert_array_equal(means_GD, oracle.cluster_means(x_ND, high_G[low_N]))
    assert means_GD.dtype == np.float32


def test_samples_are_their_own_means() -> None:
    x_ND = random_rows(0, 3, 4)
    assert cluster_means({"x_ND": x_ND}) is x_ND


def test_a_group_without_members_sums_to_zero() -> None:
    sum_GD, count_G = member_sums({"x_ND": np.ones((2, 3), dtype=np.float32)}, np.array([2, 2]), 4)
    assert count_G.tolist() == [0, 0, 2, 0]
    assert (sum_GD[[0, 1, 3]] == 0).all()
    assert (sum_GD[2] == 2 * FIXED_POINT).all()


def test_the_most_members_that_a_cluster_may_have_fit_even_as_the_longest_unit_rows_along_one_axis() -> None:
    x_ND = np.array([[1 + UNIT_TOLERANCE], [-1 - UNIT_TOLERANCE]], dtype=np.float32)
    one_ND = member_sums({"x_ND": x_ND}, np.arange(2), 2)[0]
    assert MAX_MEMBERS * int(one_ND[0, 0]) < 2**63 <= (MAX_MEMBERS + 1) * int(one_ND[0, 0])
    count_N = np.array([MAX_MEMBERS // 3, MAX_MEMBERS - MAX_MEMBERS // 3])
    for row_D in one_ND:
        nodes = {"x_ND": x_ND, "sum_ND": count_N[:, None] * row_D, "count_N": count_N}
        sum_GD, count_G = member_sums(nodes, np.zeros(2, dtype=np.int64), 1)
        assert (sum_GD.tolist(), count_G.tolist()) == ([[MAX_MEMBERS * int(row_D[0])]], [MAX_MEMBERS])
        means_GD = cluster_means({"x_ND": x_ND[:1], "sum_ND": sum_GD, "count_N": count_G})
        assert means_GD.tolist() == [[row_D[0] / FIXED_POINT]]


@settings(max_examples=30)
@given(
    seed=SEEDS,
    n=st.one_of(st.integers(1, 30), st.integers(1000, 3000)),
    dim=st.sampled_from([64, 256, 1024]),
    alike=st.floats(0, 10),
)
def test_a_mean_is_that_in_float64_to_little_more_than_its_own_rounding(
    seed: int, n: int, dim: int, alike: float
) -> None:
    rng = np.random.default_rng(seed)
    x_ND = rng.standard_normal((n, dim)) + alike * rng.standard_normal(dim)
    x_ND = (x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)).astype(np.float32)
    sum_GD, count_G = member_sums({"x_ND": x_ND}, np.zeros(n, dtype=np.int64), 1)
    mean_D = cluster_means({"x_ND": x_ND[:1], "sum_ND": sum_GD, "count_N": count_G})[0]
    exact_D = x_ND.mean(0, dtype=np.float64)
    assert np.abs(mean_D - exact_D).max() <= 0.55 * np.spacing(np.float32(np.abs(exact_D).max()))
