"""Merges by a score of pairs, against sums made from single edges."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hilander_dist.cluster.flow_links import tree_pairs
from hilander_dist.cluster.pairs import CHANCE_ONE, Clusters, contract, merge_pairs, pair_inputs
from hilander_dist.cluster.relations import chances
from hilander_dist.lander.relational import PAIR_INPUTS, ClusterHead, pair_head

K = 6


def graph(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours of n nodes and the log-odds of their edges."""
    rng = np.random.default_rng(seed)
    nbr_NK = np.array([rng.permutation(np.delete(np.arange(n), i))[:K] for i in range(n)])
    return nbr_NK, rng.normal(0, 2, nbr_NK.shape).astype(np.float32)


def clusters_of(nbr_NK: np.ndarray, logit_NK: np.ndarray, group_N: np.ndarray) -> Clusters:
    """The sums, edge by edge."""
    groups = int(group_N.max()) + 1
    p_NK = np.rint(chances(logit_NK) * CHANCE_ONE).astype(np.int64)
    size, count, chance = np.bincount(group_N, minlength=groups), np.zeros(groups, int), np.zeros(groups, int)
    pairs: dict[tuple[int, int], list[int]] = {}
    for i, row in enumerate(nbr_NK.tolist()):
        for rank, j in enumerate(row):
            a, b = sorted((int(group_N[i]), int(group_N[j])))
            if a == b:
                count[a] += 1
                chance[a] += p_NK[i, rank]
            else:
                total = pairs.setdefault((a, b), [0, 0])
                total[0] += 1
                total[1] += int(p_NK[i, rank])
    keys = sorted(pairs)
    u_E, v_E = np.array(keys, dtype=np.int64).reshape(-1, 2).T
    count_E, chance_E = np.array([pairs[key] for key in keys], dtype=np.int64).reshape(-1, 2).T
    return Clusters(size, count, chance, u_E, v_E, count_E, chance_E)


def assert_equal(one: Clusters, other: Clusters) -> None:
    for name, a, b in zip(Clusters._fields, one, other, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


@given(st.integers(0, 1000), st.integers(8, 40), st.integers(1, 8), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_contracting_twice_is_contracting_once(seed: int, n: int, groups: int, fewer: int) -> None:
    nbr_NK, logit_NK = graph(seed, n)
    rng = np.random.default_rng(seed)
    group_N = np.unique(rng.integers(0, groups, n), return_inverse=True)[1]
    fine = clusters_of(nbr_NK, logit_NK, np.arange(n))
    coarse = contract(fine, group_N)
    assert_equal(coarse, clusters_of(nbr_NK, logit_NK, group_N))
    into_C = np.unique(rng.integers(0, fewer, len(coarse.size_C)), return_inverse=True)[1]
    assert_equal(contract(coarse, into_C), clusters_of(nbr_NK, logit_NK, into_C[group_N]))
    assert coarse.count_C.sum() + coarse.count_E.sum() == n * K


def test_tree_pairs_add_up_edges_and_members() -> None:
    nbr_NK, logit_NK = graph(0, 30)
    root_N = np.arange(30) // 3 * 3
    own_E, other_E = np.repeat(root_N, K), root_N[nbr_NK].ravel()
    pair = tree_pairs(root_N, own_E, other_E, logit_NK.ravel(), 0.0, 0.5, 0.0)
    expected = clusters_of(nbr_NK, logit_NK, root_N // 3)
    apart = pair["u_E"] != pair["v_E"]
    np.testing.assert_array_equal(pair["u_E"][apart], expected.u_E * 3)
    np.testing.assert_array_equal(pair["count_E"][apart], expected.count_E)
    np.testing.assert_array_equal(pair["chance_E"][apart], expected.chance_E)
    np.testing.assert_array_equal(pair["size_M"], expected.size_C)
    assert pair["weight_E"].sum() < pair["chance_E"].sum()


def by_chance(weight: float = 1.0) -> ClusterHead:
    """A head whose score is the log-odds of the mean probability between both clusters."""
    head = ClusterHead(PAIR_INPUTS, 0.0)

    class First(torch.nn.Module):
        def forward(self, inputs: Any) -> Any:
            return weight * inputs[:, :1]

    head.body, head.out = torch.nn.Sequential(First()), torch.nn.Identity()  # type: ignore[assignment]
    return head


@pytest.mark.parametrize(
    ("last", "between", "group"), [(0.80, 0.89, [0, 0, 1, 1]), (0.84, 0.89, [0, 0, 0, 0]), (0.80, 0.85, [0, 1, 1, 2])]
)
def test_mutual_best_pairs_merge_until_none_is_likely(last: float, between: float, group: list[int]) -> None:
    # Four clusters of 40 in a ring: 0-1, 1-2, 2-3, 3-0; of the first ones 1-2 and 3-0 are left, .84 or .86 on average.
    size, inner = np.full(4, 40), np.full(4, 40)
    u_E, v_E, count_E = np.array([0, 0, 1, 2]), np.array([1, 3, 2, 3]), np.array([100, 100, 100, 100])
    chance_E = np.rint(100 * np.array([between, last, 0.88, between]) * CHANCE_ONE).astype(np.int64)
    clusters = Clusters(size, inner, np.rint(inner * 0.9 * CHANCE_ONE).astype(np.int64), u_E, v_E, count_E, chance_E)
    assert merge_pairs(by_chance(), clusters, K).tolist() == group


@pytest.mark.parametrize(
    ("first", "second", "merged"), [(K + 1, 5 * K, True), (K, 9 * K, False), (K + 1, 5 * K - 1, False)]
)
def test_clusters_merge_if_each_is_larger_than_a_list_and_both_than_six(first: int, second: int, merged: bool) -> None:
    size, none = np.array([first, second]), np.zeros(2, dtype=np.int64)
    sure = np.array([round(0.9 * CHANCE_ONE)])
    clusters = Clusters(size, none, none, np.array([0]), np.array([1]), np.array([1]), sure)
    assert merge_pairs(by_chance(), clusters, K).tolist() == [0, 0 if merged else 1]


@pytest.mark.parametrize(
    ("chance", "weight", "merged"), [(0.86, 0.01, True), (0.97, -0.01, False), (0.86, 3.0, True), (0.84, 3.0, False)]
)
def test_a_likely_pair_merges_where_the_head_is_for_it(chance: float, weight: float, merged: bool) -> None:
    chance_E = np.array([round(100 * chance * CHANCE_ONE)])
    one, inner = np.array([4 * K, 4 * K]), np.array([30, 30])
    clusters = Clusters(
        one, inner, np.rint(inner * CHANCE_ONE).astype(int), np.array([0]), np.array([1]), np.array([100]), chance_E
    )
    assert merge_pairs(by_chance(weight), clusters, K).tolist() == [0, 0 if merged else 1]


def test_an_untrained_head_merges_nothing() -> None:
    nbr_NK, logit_NK = graph(1, 40)
    clusters = clusters_of(nbr_NK, logit_NK, np.arange(40) // 10)
    assert merge_pairs(pair_head(), clusters, K).tolist() == list(range(4))


def test_inputs_do_not_depend_on_which_cluster_comes_first() -> None:
    nbr_NK, logit_NK = graph(2, 40)
    group_N = np.repeat([0, 1, 2, 3], [4, 8, 12, 16])
    inputs = pair_inputs(clusters_of(nbr_NK, logit_NK, group_N), K)
    mirrored = pair_inputs(clusters_of(nbr_NK, logit_NK, 3 - group_N), K)
    assert inputs.shape == (6, PAIR_INPUTS)
    assert np.isfinite(inputs).all()
    # Pair (a, b) is (3 - b, 3 - a) in the mirror.
    pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    order = [pairs.index((3 - b, 3 - a)) for a, b in pairs]
    assert inputs == pytest.approx(mirrored[order])
