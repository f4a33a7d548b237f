"""Clusters cut in two and split, against sums made edge by edge and clusters that were put together."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hilander_dist.cluster.halves import (
    LEAST_CUTS,
    LEAST_GAP,
    LEAST_MEMBERS,
    Cuts,
    Members,
    cut_clusters,
    head_inputs,
    medians,
    most_members,
    nearest,
    split_clusters,
    usual_numbers,
)
from hilander_dist.cluster.pairs import CHANCE_ONE
from hilander_dist.lander.relational import HALF_INPUTS, ClusterHead, split_head

K = 20


def lists(groups: list[int], inside: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Classes of members in no order, each with K neighbours, a share of them of its class, more of these among the nearest and
    more probable: class, neighbours and fixed-point probabilities."""
    rng = np.random.default_rng(seed)
    class_M = rng.permutation(np.repeat(np.arange(len(groups)), groups))
    nbr_MK = np.full((len(class_M), K), -1)
    chance_MK = np.zeros((len(class_M), K), dtype=np.int32)
    for i, c in enumerate(class_M):
        same = rng.permutation(np.setdiff1d(np.flatnonzero(class_M == c), [i]))[: round(K * inside)]
        found = np.concatenate([same, rng.permutation(np.flatnonzero(class_M != c))])[:K]
        nbr_MK[i, : len(found)] = found
        chance_MK[i, : len(found)] = np.where(np.arange(len(found)) < len(same), 0.9, 0.6) * CHANCE_ONE
    return class_M, nbr_MK, chance_MK


def one_cluster(nbr_MK: np.ndarray, chance_MK: np.ndarray) -> Members:
    own_E, rank_E = np.nonzero(nbr_MK >= 0)
    ends = own_E, nbr_MK[own_E, rank_E]
    return Members(np.zeros(len(nbr_MK), int), *ends, chance_MK[own_E, rank_E], rank_E < nearest(K))


def beside(one: Members, other: Members) -> Members:
    M, G = len(one.group_M), one.group_M.max() + 1
    moved = other._replace(group_M=other.group_M + G, own_E=other.own_E + M, other_E=other.other_E + M)
    return Members(*(np.concatenate(pair) for pair in zip(one, moved, strict=True)))


def always(answer: float) -> ClusterHead:
    return ClusterHead(HALF_INPUTS, answer)


def by_probability() -> ClusterHead:
    """Splits where edges across are clearly less probable than those inside."""
    head = split_head()
    with torch.no_grad():
        for layer in (head.body[0], head.body[2], head.out):
            assert isinstance(layer, torch.nn.Linear)
            layer.weight.zero_()
            layer.bias.zero_()
            layer.weight[0, 0] = -1.0 if layer is not head.body[2] else 1.0
        head.out.bias.fill_(0.2)
    return head


def test_a_cut_runs_between_two_classes() -> None:
    class_M, nbr_MK, chance_MK = lists([17, 23], 0.7)
    half_M = cut_clusters(one_cluster(nbr_MK, chance_MK), K).half_M
    assert len(np.unique(class_M * 2 + half_M)) == 2


@given(st.integers(0, 1000), st.integers(6, 30), st.integers(6, 30), st.floats(0.3, 0.8))
@settings(max_examples=25, deadline=None)
def test_numbers_are_those_of_single_edges(seed: int, a: int, b: int, inside: float) -> None:
    _, nbr_MK, chance_MK = lists([a, b], inside, seed)
    members = one_cluster(nbr_MK, chance_MK)
    cuts = cut_clusters(members, K)
    assert cuts.group_C.tolist() == [0]
    half_M = cuts.half_M
    smaller = int(np.bincount(half_M, minlength=2).argmin())
    count, near, chance = np.zeros((2, 2), int), np.zeros((2, 2), int), np.zeros((2, 2))
    for i, row in enumerate(nbr_MK):
        for rank, j in enumerate(row[row >= 0]):
            ends = half_M[i], half_M[j]
            count[ends] += 1
            near[ends] += rank < nearest(K)
            chance[ends] += chance_MK[i, rank] / CHANCE_ONE

    def odds(p: float) -> float:
        return float(np.log(p / (1 - p)))

    across = max(count[0, 1] + count[1, 0], 0.5)
    sizes = np.bincount(half_M)
    small, large = sizes[smaller], sizes[1 - smaller]
    within = [odds(chance[h, h] / count[h, h]) if count[h, h] else 2.0 for h in range(2)]
    inside_small, inside_large = count[smaller, smaller], count[1 - smaller, 1 - smaller]
    near_across = near[0, 1] + near[1, 0]
    expected = [
        (odds((chance[0, 1] + chance[1, 0]) / across) if across >= 1 else -7.0) - np.mean(within),
        np.log(across / np.sqrt((inside_small + 1) * (inside_large + 1))),
        np.log((near_across + 0.5) / (near[smaller, smaller] + 0.5)),
        np.log((near_across + 0.5) / (nearest(K) * small)),
        np.log(small / K),
        np.log(large / K),
        np.log(across / 2 / max(K * small - inside_small, 0.005 * K * small)),
        np.log((inside_small + 1) / (K * small)),
        np.log((inside_large + 1) / (K * large)),
    ]
    np.testing.assert_allclose(cuts.numbers_CF[0], expected, rtol=1e-9)


def test_a_cut_does_not_depend_on_other_clusters_or_the_order_of_edges() -> None:
    one = one_cluster(*lists([15, 20], 0.7, 1)[1:])
    other = one_cluster(*lists([18, 18], 0.6, 2)[1:])
    order = np.random.default_rng(0).permutation(len(other.own_E))
    shuffled = Members(other.group_M, *(column[order] for column in other[1:]))
    alone, both = cut_clusters(other, K), cut_clusters(beside(one, shuffled), K)
    assert both.group_C.tolist() == [0, 1]
    np.testing.assert_array_equal(both.half_M[len(one.group_M) :], alone.half_M)
    assert both.numbers_CF[1].tobytes() == alone.numbers_CF[0].tobytes()


@pytest.mark.parametrize(("size", "fit"), [(LEAST_MEMBERS - 1, False), (LEAST_MEMBERS, True), (60, True), (61, False)])
def test_small_and_large_clusters_are_left_whole(size: int, fit: bool) -> None:
    assert most_members(K) == 60
    _, nbr_MK, chance_MK = lists([60, 61], 1.0)
    whole = one_cluster(nbr_MK, chance_MK)
    kept_E = (whole.own_E < size) & (whole.other_E < size)
    members = Members(np.zeros(size, int), *(column[kept_E] for column in whole[1:]))
    cuts = cut_clusters(members, K)
    assert (len(cuts.group_C) == 1) is fit
    assert cuts.half_M.any() == fit
    part_M = split_clusters(always(-20.0), members, K, cuts, np.zeros(4))
    assert part_M.any() == fit


def test_what_is_split_is_looked_at_again() -> None:
    class_M, nbr_MK, chance_MK = lists([14, 14, 14, 14], 0.6)
    members = beside(one_cluster(*lists([40], 0.9)[1:]), one_cluster(nbr_MK, chance_MK))
    cuts = cut_clusters(members, K)
    usual = medians(cuts.numbers_CF)
    part_M = split_clusters(by_probability(), members, K, cuts, usual)
    assert not part_M[:40].any()
    np.testing.assert_array_equal(np.unique(class_M * 100 + part_M[40:]) // 100, np.arange(4))
    assert len(np.unique(part_M[40:])) == 4
    assert not split_clusters(split_head(), members, K, cuts, usual).any()


def test_the_level_tells_what_is_usual() -> None:
    numbers_CF = np.random.default_rng(0).normal(size=(7, HALF_INPUTS - 4))
    inputs_CF = head_inputs(numbers_CF, medians(numbers_CF))
    assert inputs_CF.shape == (7, HALF_INPUTS)
    np.testing.assert_allclose(np.median(inputs_CF[:, -4:], 0), 0, atol=1e-7)
    moved = numbers_CF.copy()
    moved[:, :4] += 5
    np.testing.assert_allclose(head_inputs(moved, medians(moved))[:, -4:], inputs_CF[:, -4:], atol=1e-5)


def test_few_cuts_say_nothing_and_split_nothing() -> None:
    members = one_cluster(*lists([20, 20], 0.7)[1:])
    cuts = cut_clusters(members, K)
    many_CF = np.repeat(cuts.numbers_CF, LEAST_CUTS, 0)
    for numbers_CF, enough in ((many_CF, True), (many_CF[1:], False), (many_CF[:0], False)):
        assert split_clusters(always(-20.0), members, K, cuts, usual_numbers(numbers_CF)).any() == enough


def test_halves_with_as_probable_edges_across_as_inside_are_one() -> None:
    _, nbr_MK, chance_MK = lists([20, 20], 0.7)
    apart, alike = one_cluster(nbr_MK, chance_MK), one_cluster(nbr_MK, np.minimum(chance_MK, chance_MK[:, -1:]))
    for members, split in ((apart, True), (alike, False)):
        cuts = cut_clusters(members, K)
        assert (cuts.numbers_CF[0, 0] < -LEAST_GAP) == split
        assert split_clusters(always(-20.0), members, K, cuts, np.zeros(4)).any() == split


def test_no_members_have_no_cuts() -> None:
    nothing = np.zeros(0, int)
    members = Members(nothing, nothing, nothing, nothing.astype(np.int32), nothing.astype(bool))
    cuts = cut_clusters(members, K)
    assert [len(column) for column in cuts] == [0, 0, 0]
    assert len(split_clusters(always(-20.0), members, K, cuts, usual_numbers(cuts.numbers_CF))) == 0


def test_each_cut_is_scored_by_its_row_alone() -> None:
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    head = split_head()
    for layer in head.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.reset_parameters()
    members = one_cluster(*lists([20, 20], 0.7)[1:])
    cuts = cut_clusters(members, K)
    numbers_CF = rng.normal(size=(50, HALF_INPUTS - 4))
    # Every row once as the only cut: whether it splits is what the network says of it.
    with torch.inference_mode():
        score_C = head(torch.from_numpy(head_inputs(numbers_CF, np.zeros(4)))).numpy()
    limit = np.log(0.3 / 0.7)
    clear_C = np.abs(score_C - limit) > 1e-4
    found_C = [
        split_clusters(head, members, K, Cuts(cuts.group_C, cuts.half_M, row[None]), np.zeros(4)).any()
        for row in numbers_CF
    ]
    np.testing.assert_array_equal(np.array(found_C)[clear_C], (score_C < limit)[clear_C])
