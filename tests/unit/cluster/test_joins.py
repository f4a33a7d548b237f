"""Small clusters joined, against sums made edge by edge and heads whose rule is known."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hilander_dist.cluster.halves import Members, cut_clusters, describe, nearest
from hilander_dist.cluster.joins import (
    LEAST_TOGETHER,
    Neighbourhood,
    cluster_pairs,
    combine,
    describe_pairs,
    join_clusters,
    may_join,
    whole_neighbourhood,
)
from hilander_dist.cluster.pairs import CHANCE_ONE
from hilander_dist.cluster.relations import chances
from hilander_dist.lander.relational import HALF_INPUTS, CarefulHead, ClusterHead, join_head

K = 16
NOTHING_USUAL = np.zeros(4)


def graph(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Lists of K or fewer neighbours, -1 pads, and log-odds."""
    rng = np.random.default_rng(seed)
    nbr_NK = np.full((n, K), -1)
    for i in range(n):
        found = rng.permutation(np.delete(np.arange(n), i))[: rng.integers(1, K + 1)]
        nbr_NK[i, : len(found)] = found
    return nbr_NK, rng.normal(0, 2, nbr_NK.shape).astype(np.float32)


def around(nbr_NK: np.ndarray, logit_NK: np.ndarray, label_N: np.ndarray) -> Neighbourhood:
    other_NK = label_N[np.maximum(nbr_NK, 0)]
    return whole_neighbourhood(cluster_pairs(label_N, other_NK, nbr_NK >= 0, logit_NK, 0.5))


def by_size() -> CarefulHead:
    """One class where the larger cluster has fewer members than a list."""
    head = ClusterHead(HALF_INPUTS, 0.0)
    with torch.no_grad():
        for layer in (head.body[0], head.body[2], head.out):
            assert isinstance(layer, torch.nn.Linear)
            layer.weight.zero_()
            layer.bias.zero_()
        for layer in (head.body[0], head.body[2]):
            assert isinstance(layer, torch.nn.Linear)
            layer.weight[0, 5 if layer is head.body[0] else 0] = -1 if layer is head.body[0] else 1
        head.out.weight[0, 0] = 1
        head.out.bias.fill_(-1e-6)
    return CarefulHead([head])


@given(st.integers(0, 1000), st.integers(6, 40), st.integers(2, 8), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_sums_are_those_of_single_edges_also_when_clusters_are_combined(
    seed: int, n: int, groups: int, fewer: int
) -> None:
    nbr_NK, logit_NK = graph(seed, n)
    rng = np.random.default_rng(seed)
    label_N = np.unique(rng.integers(0, groups, n), return_inverse=True)[1]
    found = around(nbr_NK, logit_NK, label_N)
    into_C = np.unique(rng.integers(0, fewer, label_N.max() + 1), return_inverse=True)[1]
    joint = combine(found, into_C)
    for name, one, other in zip(
        ("near_C", "near_E"), joint[1:], around(nbr_NK, logit_NK, into_C[label_N])[1:], strict=True
    ):
        np.testing.assert_array_equal(one, other, err_msg=name)
    size = np.bincount(label_N)
    count, near, chance = (dict[tuple[int, int], int]() for _ in range(3))
    for i, row in enumerate(nbr_NK.tolist()):
        for rank, j in enumerate(row):
            if j >= 0:
                a, b = sorted((int(label_N[i]), int(label_N[j])))
                count[a, b] = count.get((a, b), 0) + 1
                near[a, b] = near.get((a, b), 0) + (rank < nearest(K))
                p = np.rint(chances(logit_NK[i, rank], 0.5) * CHANCE_ONE)
                chance[a, b] = chance.get((a, b), 0) + int(p)
    numbers = describe_pairs(found, K, np.arange(len(found.near_E)))
    for e, (u, v) in enumerate(zip(found.clusters.u_E.tolist(), found.clusters.v_E.tolist(), strict=True)):
        three = [(u, u), (u, v), (v, v)]
        inside = [np.array([[sums.get(key, 0) for key in three]]) for sums in (count, near, chance)]
        expected = describe(np.array([[size[u], size[v]]]), inside[0], inside[1], inside[2], K)
        np.testing.assert_array_equal(numbers[e], expected[0])


def test_a_pair_is_told_what_a_cut_between_both_would_be() -> None:
    nbr_NK, logit_NK = graph(3, 40)
    own_E, rank_E = np.nonzero(nbr_NK >= 0)
    chance_E = np.rint(chances(logit_NK[own_E, rank_E], 0.5) * CHANCE_ONE).astype(np.int32)
    ends = own_E, nbr_NK[own_E, rank_E]
    cuts = cut_clusters(Members(np.zeros(40, int), *ends, chance_E, rank_E < nearest(K)), K)
    found = around(nbr_NK, logit_NK, cuts.half_M)
    np.testing.assert_array_equal(describe_pairs(found, K, np.array([0])), cuts.numbers_CF)


def test_pairs_join_while_the_head_says_so() -> None:
    nbr_NK, logit_NK = graph(0, 60)
    label_N = np.repeat(np.arange(20), 3)
    found = around(nbr_NK, logit_NK, label_N)
    group_C = join_clusters(by_size(), found, K, NOTHING_USUAL, 0.5)
    sizes = np.bincount(group_C[label_N])
    # Clusters smaller than a list join until no two of them are left with edges between them.
    assert sizes.max() < 2 * K
    assert (sizes < K).sum() <= 1
    # Its log-odds are at most log(K), 2.8; of .95 they are 2.9.
    assert (join_clusters(by_size(), found, K, NOTHING_USUAL, 0.95) == np.arange(20)).all()
    assert (join_clusters(join_head(), found, K, NOTHING_USUAL, 0.5) == np.arange(20)).all()
    assert (join_clusters(by_size(), found, K, np.full(4, np.nan), 0.5) == np.arange(20)).all()


def test_pairs_of_a_few_members_and_of_several_lists_are_left_apart() -> None:
    nbr_NK, logit_NK = graph(1, 80)
    label_N = np.repeat(np.arange(5), [1, 2, 3, 44, 30])
    clusters = around(nbr_NK, logit_NK, label_N).clusters
    together_E = clusters.size_C[clusters.u_E] + clusters.size_C[clusters.v_E]
    np.testing.assert_array_equal(may_join(clusters, K), (together_E >= LEAST_TOGETHER) & (together_E <= 3 * K))
    assert set(together_E[~may_join(clusters, K)]) <= {3, 74}
    always = CarefulHead([ClusterHead(HALF_INPUTS, 20.0)])
    sizes = np.bincount(join_clusters(always, around(nbr_NK, logit_NK, label_N), K, NOTHING_USUAL, 0.5)[label_N])
    assert sizes.max() <= 3 * K
