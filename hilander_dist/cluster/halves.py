"""Splitting clusters in which two classes were merged, by a learned score of their halves. Pure functions.

Where classes are smaller than the neighbour lists, two of them that lie side by side fill each other's lists: the map equation
makes one cluster of them, at any tau, though inside it the two stand apart for all to see (caltech101: two-means finds the two
classes of most such clusters again). So each cluster of at most ``MOST_LISTS`` lists is cut in two where the fewest of its probable
edges are cut (normalized cut, Shi and Malik, 2000), and a small network looks at the cut: how probable the edges across it are
against those inside both halves, and how many there are, also among the nearest neighbours. How clear a cut through one class
looks depends on the data; so the network is told each number again less its median over all cuts of the level. What is split
is looked at again.

Shapes: M members, ascending by cluster and position; E directed edges inside clusters; G clusters; C cuts; F inputs.
"""

from typing import NamedTuple

import numba
import numpy as np
from torch import nn

from hilander_dist.cluster.pairs import CHANCE_ONE, log_odds
from hilander_dist.lander.relational import HALF_INPUTS, ClusterHead

LEAST_MEMBERS = 12
"""Smaller clusters are left whole."""

MOST_LISTS = 3.0
"""Larger clusters are left whole: theirs is not the case above, and the cuts of a large class are clear by themselves."""

SPLIT_TAU = 0.3
"""A cluster is split where the head gives the halves a lower probability to be of one class."""

LEAST_GAP = 0.3
"""Log-odds by which edges across must be less probable than those inside both halves, whatever the head says: of long-tailed Gaussian
classes at 100,000 rows it cut those of 130 rows and more with a gap of .03 (.992/.974, so .981/.948). Two classes had gaps
of .6 to 2.7; on five sets no F is lower with this rule, and caltech101, left out, .006/.009 higher."""

ROUNDS = 3
"""Halves of halves of halves are looked at."""

LEAST_CUTS = 16
"""The median of fewer says little: one of three networks split a class of digits (10 cuts), for .04 of F."""

_ITERATIONS = 60
"""Of the power method, which finds the cut. It need not converge: the head sees what came out."""

_LEAST_SHARE = 0.05
"""Of a cluster's members in a half; at least two."""

_OF_DATA = 4
"""The first so many numbers of a cut are told against their median, too."""


class Members(NamedTuple):
    """Clusters by their members and the edges inside; both directions of an edge may be there."""

    group_M: np.ndarray
    """int64 cluster of each member, ascending from 0 up without gaps."""
    own_E: np.ndarray
    """int64 member whose list the edge is in."""
    other_E: np.ndarray
    """int64 member at its other end, in the same cluster."""
    chance_E: np.ndarray
    """int32 probability in units of 2**-20."""
    near_E: np.ndarray
    """bool, whether the edge is among the nearest of the list (``nearest``)."""


class Cuts(NamedTuple):
    """The halves of the clusters that may be split."""

    group_C: np.ndarray
    """int64 their clusters."""
    half_M: np.ndarray
    """int64 half of each member, 0 or 1; 0 in all other clusters."""
    numbers_CF: np.ndarray
    """float64, see ``describe``."""


def most_members(neighbours: int) -> int:
    """Members of the largest cluster that may be split."""
    return int(MOST_LISTS * neighbours)


def nearest(neighbours: int) -> int:
    """How many neighbours of a list are near ones: an eighth."""
    return max(1, round(neighbours / 8))


def cut_clusters(members: Members, neighbours: int) -> Cuts:
    """Cut every cluster of a fit size in two.

    Args:
        members: the clusters.
        neighbours: length K of the lists, the node itself excluded.
    """
    group_M, own_E, other_E, chance_E, near_E = members
    size_G = np.bincount(group_M)
    fit_G = (size_G >= LEAST_MEMBERS) & (size_G <= most_members(neighbours))
    fit_E = fit_G[group_M[own_E]]
    half_M = _halve(size_G, fit_G, own_E[fit_E], other_E[fit_E], chance_E[fit_E])
    side_E = half_M[own_E] + half_M[other_E]  # 0 and 2 are inside, 1 is across.
    key_E = group_M[own_E] * 3 + side_E
    count_G3, near_G3, chance_G3 = (
        np.bincount(key_E, weights, 3 * len(size_G)).reshape(-1, 3)
        for weights in (None, near_E.astype(np.float64), chance_E.astype(np.float64))
    )
    second_G = np.bincount(group_M, half_M, len(size_G)).astype(np.int64)
    group_C = np.flatnonzero(fit_G & (second_G > 0))
    size_C2 = np.stack([size_G - second_G, second_G], 1)[group_C]
    numbers_CF = describe(size_C2, count_G3[group_C], near_G3[group_C], chance_G3[group_C], neighbours)
    return Cuts(group_C, half_M, numbers_CF)


def describe(
    size_C2: np.ndarray, count_C3: np.ndarray, near_C3: np.ndarray, chance_C3: np.ndarray, neighbours: int
) -> np.ndarray:
    """What is told of two sets of nodes, float64 (C, F).

    Log-odds of the mean probability across less those inside both; logarithms: edges across against those inside, near edges across
    against those inside the smaller set and against its lists, members of both in lists, edges across against all that leave the
    smaller set, edges inside both against their lists.

    Args:
        size_C2: members of both.
        count_C3: edges inside the first, across, inside the second.
        near_C3: those among them that are near ones.
        chance_C3: sums of their probabilities, in units of 2**-20.
        neighbours: length of the lists.
    """
    every = np.arange(len(size_C2))
    odds_C3 = np.where(count_C3 > 0, log_odds(chance_C3 / CHANCE_ONE / np.maximum(count_C3, 1)), [2.0, -7.0, 2.0])
    small_C = np.where(size_C2[:, 0] <= size_C2[:, 1], 0, 2)
    inside_small_C, inside_large_C = count_C3[every, small_C], count_C3[every, 2 - small_C]
    across_C, near_C, near_small_C = np.maximum(count_C3[:, 1], 0.5), near_C3[:, 1], near_C3[every, small_C]
    smaller_C, larger_C = size_C2.min(1), size_C2.max(1)
    room_C = neighbours * smaller_C
    columns = (
        odds_C3[:, 1] - (odds_C3[:, 0] + odds_C3[:, 2]) / 2,
        np.log(across_C) - np.log((count_C3[:, 0] + 1) * (count_C3[:, 2] + 1)) / 2,
        np.log((near_C + 0.5) / (near_small_C + 0.5)),
        np.log((near_C + 0.5) / (nearest(neighbours) * smaller_C)),
        np.log(smaller_C / neighbours),
        np.log(larger_C / neighbours),
        np.log(across_C / 2 / np.maximum(room_C - inside_small_C, 0.005 * room_C)),
        np.log((inside_small_C + 1) / room_C),
        np.log((inside_large_C + 1) / (neighbours * larger_C)),
    )
    assert len(columns) + _OF_DATA == HALF_INPUTS
    return np.stack(columns, 1)


def medians(numbers_CF: np.ndarray) -> np.ndarray:
    """What is usual for these cuts, float64 (4)."""
    return np.asarray(np.median(numbers_CF[:, :_OF_DATA], 0))


def usual_numbers(numbers_CF: np.ndarray) -> np.ndarray:
    """``medians`` of a level's cuts; NaN where there are fewer than LEAST_CUTS, by which nothing is split."""
    return medians(numbers_CF) if len(numbers_CF) >= LEAST_CUTS else np.full(_OF_DATA, np.nan)


def head_inputs(numbers_CF: np.ndarray, usual: np.ndarray) -> np.ndarray:
    """The numbers of cuts, and the first of them less what is ``usual``: float32 (C, F)."""
    return np.concatenate([numbers_CF, numbers_CF[:, :_OF_DATA] - usual], 1).astype(np.float32)


def split_clusters(head: ClusterHead, members: Members, neighbours: int, cuts: Cuts, usual: np.ndarray) -> np.ndarray:
    """Split clusters whose halves are of two classes, and what comes out of it again.

    Args:
        head: the network.
        members: the clusters.
        neighbours: length of the lists, the node itself excluded.
        cuts: ``cut_clusters`` of them.
        usual: ``usual_numbers`` of the cuts of the whole level.

    Returns:
        ``part_M`` int64: the part of its cluster that each member is in, 0 for all of a cluster that is left whole.
    """
    part_M = np.zeros(len(members.group_M), dtype=np.int64)
    at_M, limit = np.arange(len(part_M)), float(np.log(SPLIT_TAU / (1 - SPLIT_TAU)))
    for round_ in range(ROUNDS):
        two_C = _row_by_row(head, head_inputs(cuts.numbers_CF, usual)) < limit
        two_C &= cuts.numbers_CF[:, 0] < -LEAST_GAP
        if not two_C.any():
            break
        split_M = np.isin(members.group_M, cuts.group_C[two_C])
        at_M, half_M = at_M[split_M], cuts.half_M[split_M]
        part_M[at_M] += half_M << round_
        members, order = _parts(members, split_M, half_M)
        at_M = at_M[order]
        cuts = cut_clusters(members, neighbours)
    return part_M


def _parts(members: Members, split_M: np.ndarray, half_M: np.ndarray) -> tuple[Members, np.ndarray]:
    """The halves of the split clusters as clusters, and the order of their members."""
    key_M = members.group_M[split_M] * 2 + half_M
    order = np.argsort(key_M, kind="stable")
    place_M = np.full(len(split_M), -1)
    place_M[np.flatnonzero(split_M)[order]] = np.arange(len(order))
    whole_M = np.zeros(len(split_M), dtype=np.int64)
    whole_M[split_M] = key_M
    own_E, other_E = members.own_E, members.other_E
    kept_E = split_M[own_E] & (whole_M[own_E] == whole_M[other_E])
    group_M = np.unique(key_M[order], return_inverse=True)[1]
    edges = place_M[own_E[kept_E]], place_M[other_E[kept_E]], members.chance_E[kept_E], members.near_E[kept_E]
    return Members(group_M, *edges), order


def _row_by_row(head: ClusterHead, inputs_CF: np.ndarray) -> np.ndarray:
    """The head's log-odds, each from its row alone: the same bits whatever cuts are beside it, as no product of matrices has."""
    state_CW = (inputs_CF.astype(np.float64) - head.mean_F.numpy()) / head.deviation_F.numpy()
    layers = [layer for layer in head.modules() if isinstance(layer, nn.Linear)]
    for layer in layers:
        weight_VW, bias_V = (part.detach().numpy().astype(np.float64) for part in (layer.weight, layer.bias))
        state_CW = np.stack([(state_CW * row_W).sum(1) for row_W in weight_VW], 1) + bias_V
        if layer is not layers[-1]:
            state_CW = np.maximum(state_CW, 0)
    return np.asarray(state_CW[:, 0])


def _halve(
    size_G: np.ndarray, fit_G: np.ndarray, own_E: np.ndarray, other_E: np.ndarray, chance_E: np.ndarray
) -> np.ndarray:
    """The half of each member, int64; edges count in both directions."""
    M = int(size_G.sum())
    from_R, to_R = np.concatenate([own_E, other_E]), np.concatenate([other_E, own_E])
    # By both ends, so that the order of sums does not depend on how edges came here.
    order = np.argsort(from_R * M + to_R, kind="stable")
    weight_R = np.concatenate([chance_E, chance_E])[order] / CHANCE_ONE
    first_M = np.searchsorted(from_R[order], np.arange(M + 1))
    start_G = np.concatenate([[0], np.cumsum(size_G)])
    half_M = np.zeros(M, dtype=np.int64)
    _cut_each(start_G, fit_G, first_M, to_R[order], weight_R, half_M)
    return half_M


@numba.njit(cache=True)
def _cut_each(start_G, fit_G, first_M, to_R, weight_R, half_M):  # type: ignore[no-untyped-def]
    """Halve the clusters in place: members in the order of the second eigenvector of the normalized weights, cut where the
    weight across is least against that of either half's edges."""
    for g in range(len(fit_G)):
        if not fit_G[g]:
            continue
        a, b = start_G[g], start_G[g + 1]
        n = b - a
        degree = np.empty(n)
        for i in range(n):
            degree[i] = 1e-9 + weight_R[first_M[a + i] : first_M[a + i + 1]].sum()
        total = degree.sum()
        root = np.sqrt(degree)
        x, y = np.empty(n), np.empty(n)
        for i in range(n):
            x[i] = (i * 0.6180339887498949) % 1.0 - 0.5
        for _ in range(_ITERATIONS):
            along = 0.0
            for i in range(n):
                reached = 0.0
                for r in range(first_M[a + i], first_M[a + i + 1]):
                    j = to_R[r] - a
                    reached += weight_R[r] / root[j] * x[j]
                y[i] = (x[i] + reached / root[i]) / 2
                along += y[i] * root[i]
            length = 0.0
            for i in range(n):
                y[i] -= along * root[i] / total
                length += y[i] * y[i]
            if length == 0.0:
                break
            for i in range(n):
                x[i] = y[i] / np.sqrt(length)
        order = np.argsort(x / root, kind="mergesort")
        place = np.empty(n, dtype=np.int64)
        place[order] = np.arange(n)
        least = max(2, int(np.ceil(_LEAST_SHARE * n)))
        volume, across, best, at = 0.0, 0.0, np.inf, -1
        for k in range(n - least):
            i = order[k]
            volume += degree[i]
            for r in range(first_M[a + i], first_M[a + i + 1]):
                across += weight_R[r] if place[to_R[r] - a] > k else -weight_R[r]
            if k + 1 >= least:
                cost = across / volume + across / (total - volume)
                if cost < best:
                    best, at = cost, k
        for k in range(at + 1, n if at >= 0 else 0):
            half_M[a + order[k]] = 1
