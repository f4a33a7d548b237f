"""Merging clusters by a learned score of pairs, after the map equation. Pure functions.

The map equation splits a class that is large against the neighbour lists. So a small network looks at each pair of clusters
of more members than a list that have edges between them: how probable these are against those inside both, how many there are
for the clusters' sizes. All inputs are sums over members. As in ``flow``, every cluster names the partner with the best score,
pairs that name each other merge, and the sums are added up.

Shapes: C clusters, E pairs of clusters (u < v) with edges between them, F inputs.
"""

from typing import NamedTuple

import numpy as np
import torch

from hilander_dist.cluster.flow import sum_pairs
from hilander_dist.lander.relational import PAIR_INPUTS, ClusterHead

CHANCE_ONE = 2.0**20
"""Fixed-point probability of 1."""

LIKELY = 0.85
"""Two clusters between which the mean probability is not above this never merge. On clusters larger than it has seen a head may say
anything: with .28 to .79 between them, 14 pairs of classes of texts had .86 to .99 (clinc150 .03/.16, so .85/.87). By three networks
left out, parts of one class of photos had .86 to .92, other photos .74 and less. Above it the head only has to be for it: of parts with
.89 it said .55, and with .7 to be asked of it below .9 one network left out lost .07 of F by a tau off by .1."""

LEAST_LISTS = 6
"""Two clusters with fewer members together are not parts of a class that was too large for the lists. Two classes of 150 texts in one
cluster, and a third, had .85 to .88 between them and .80 to .86 of the head by two networks of three: with five lists clinc150 has
.83/.88 and .84/.88 where it has .87/.88 and .86/.88. The parts of one class of photos come to 535 to 805 nodes; with seven lists they
stay apart (.82/.83, .97/.88)."""


class Clusters(NamedTuple):
    """Clusters and the edges between them; an edge is a directed one of the k-NN graph."""

    size_C: np.ndarray
    """int64 members."""
    count_C: np.ndarray
    """int64 edges inside."""
    chance_C: np.ndarray
    """int64 sum of their probabilities, in units of 2**-20."""
    u_E: np.ndarray
    """int64; pairs in the order of ``sum_pairs``."""
    v_E: np.ndarray
    count_E: np.ndarray
    """int64 edges between both."""
    chance_E: np.ndarray
    """int64 sum of their probabilities."""


def contract(clusters: Clusters, group_C: np.ndarray) -> Clusters:
    """The clusters' groups as clusters; ``group_C`` int64, from 0 up without gaps."""
    groups = int(group_C.max(initial=-1)) + 1
    size_G, count_G, chance_G = (np.zeros(groups, dtype=np.int64) for _ in range(3))
    for sum_G, column_C in zip((size_G, count_G, chance_G), clusters[:3], strict=True):
        np.add.at(sum_G, group_C, column_C)
    u_E, v_E = group_C[clusters.u_E], group_C[clusters.v_E]
    inside_E = u_E == v_E
    np.add.at(count_G, u_E[inside_E], clusters.count_E[inside_E])
    np.add.at(chance_G, u_E[inside_E], clusters.chance_E[inside_E])
    apart_E = ~inside_E
    u_E, v_E, count_E, chance_E = sum_pairs(
        u_E[apart_E], v_E[apart_E], clusters.count_E[apart_E], clusters.chance_E[apart_E]
    )
    return Clusters(size_G, count_G, chance_G, u_E, v_E, count_E, chance_E)


def pair_inputs(clusters: Clusters, neighbours: int) -> np.ndarray:
    """What is told of each pair, float32 (E, F).

    Log-odds of the mean probability: between both, inside the smaller, inside the larger; logarithms: share of all possible
    edges of the smaller and of the larger that run between both, sizes of both in lists, share of the smaller's outgoing
    edges, shares of edges inside both.

    Args:
        clusters: C clusters.
        neighbours: length K of the lists, the node itself excluded.
    """
    size_C, count_C, chance_C, u_E, v_E, count_E, chance_E = clusters
    leaving_C = np.zeros(len(size_C), dtype=np.int64)
    np.add.at(leaving_C, u_E, count_E)
    np.add.at(leaving_C, v_E, count_E)
    # A cluster without an edge inside is taken for a sure one.
    inside_C = np.where(count_C > 0, log_odds(chance_C / CHANCE_ONE / np.maximum(count_C, 1)), 2.0)
    smaller_E = np.where(size_C[u_E] <= size_C[v_E], u_E, v_E)
    larger_E = u_E + v_E - smaller_E
    room_C = neighbours * size_C
    columns = (
        log_odds(chance_E / CHANCE_ONE / count_E),
        inside_C[smaller_E],
        inside_C[larger_E],
        np.log(count_E / room_C[smaller_E]),
        np.log(count_E / room_C[larger_E]),
        np.log(size_C[smaller_E] / neighbours),
        np.log(size_C[larger_E] / neighbours),
        np.log(count_E / leaving_C[smaller_E]),
        np.log((count_C[smaller_E] + 1) / room_C[smaller_E]),
        np.log((count_C[larger_E] + 1) / room_C[larger_E]),
    )
    assert len(columns) == PAIR_INPUTS
    return np.stack(columns, 1).astype(np.float32)


def merge_pairs(head: ClusterHead, clusters: Clusters, neighbours: int) -> np.ndarray:
    """Merge clusters until there is no LIKELY pair that the head takes for one class: ``group_C`` int64, from 0 up without gaps.

    Only what is larger than a list was split for its size: with smaller clusters merged too, photos of small classes were
    joined (caltech101, mean of four networks trained without it and the general one: .907/.812, so .931/.839).
    """
    group_C, likely = np.arange(len(clusters.size_C)), float(np.log(LIKELY / (1 - LIKELY)))
    while len(large_E := _large_pairs(clusters, neighbours)):
        inputs_EF = pair_inputs(clusters, neighbours)[large_E]
        with torch.inference_mode():
            score_E = head(torch.from_numpy(inputs_EF)).numpy()
        good = (score_E > 0) & (inputs_EF[:, 0] > likely)
        good_E = large_E[good]
        into_C = mutual_best(len(clusters.size_C), clusters.u_E[good_E], clusters.v_E[good_E], score_E[good])
        if (into_C == np.arange(len(into_C))).all():
            break
        into_C = np.unique(into_C, return_inverse=True)[1]
        group_C = into_C[group_C]
        clusters = contract(clusters, into_C)
    return group_C


def _large_pairs(clusters: Clusters, neighbours: int) -> np.ndarray:
    """The pairs of two clusters that have more members than a list each, and than LEAST_LISTS together."""
    size_C, u_E, v_E = clusters.size_C, clusters.u_E, clusters.v_E
    fit_E = (size_C[u_E] > neighbours) & (size_C[v_E] > neighbours)
    return np.flatnonzero(fit_E & (size_C[u_E] + size_C[v_E] > LEAST_LISTS * neighbours))


def mutual_best(count: int, u_E: np.ndarray, v_E: np.ndarray, score_E: np.ndarray) -> np.ndarray:
    """The smaller of each pair of clusters that are each other's best partner, else the cluster itself. Of equal scores the
    smallest partner counts."""
    source, target, score = np.r_[u_E, v_E], np.r_[v_E, u_E], np.r_[score_E, score_E]
    order = np.lexsort((target, -score, source))
    partner_C = np.full(count, -1)
    named, first = np.unique(source[order], return_index=True)
    partner_C[named] = target[order][first]
    mutual = named[partner_C[partner_C[named]] == named]
    into_C = np.arange(count)
    into_C[mutual] = np.minimum(mutual, partner_C[mutual])
    return into_C


def log_odds(p: np.ndarray) -> np.ndarray:
    """Log-odds of probabilities, which are cut off at .001 and .999."""
    p = np.clip(p, 1e-3, 1 - 1e-3)
    odds: np.ndarray = np.log(p / (1 - p))
    return odds
