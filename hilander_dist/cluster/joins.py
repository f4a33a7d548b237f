"""Joining small clusters that the merges left apart, by a learned score of pairs, and the tasks around it.

At a high tau few edges have a weight, and classes come out in pieces. ``pairs`` looks at clusters larger than a list alone: of
smaller ones its head joins what is two classes. Told what is usual for a cut through one cluster of the level (``halves``), a head
tells them apart. So pairs of clusters of up to ``halves.MOST_LISTS`` lists together are looked at as the halves of a cluster are;
every cluster names the partner with the best score, pairs that name each other join, and this is repeated.

Shapes: C clusters, E pairs of clusters (u < v) with edges between them.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch

from hilander_dist.cluster.flow_rounds import (
    alone,
    count_pairs,
    for_pairs,
    pair_up,
    point,
    share_trees,
    spread_groups,
    whole,
    whole_trees,
)
from hilander_dist.cluster.forward import make_table
from hilander_dist.cluster.groups import link_groups
from hilander_dist.cluster.halves import describe, head_inputs, most_members, nearest
from hilander_dist.cluster.pairs import CHANCE_ONE, Clusters, contract, mutual_best
from hilander_dist.cluster.relations import chances
from hilander_dist.cluster.roots import find_roots
from hilander_dist.cluster.splits import Scored
from hilander_dist.exchange import Starts, as_list
from hilander_dist.lander.relational import CarefulHead, RelationalLander
from hilander_dist.tasks import Block, Ref, Tasks

LEAST_TOGETHER = 4
"""Pairs of fewer members are left apart."""


class Neighbourhood(NamedTuple):
    """Clusters, and the near edges among theirs."""

    clusters: Clusters
    near_C: np.ndarray
    """int64 near edges inside."""
    near_E: np.ndarray
    """int64 near edges between both."""


def join_clusters(
    head: CarefulHead, found: Neighbourhood, neighbours: int, usual: np.ndarray, join_tau: float
) -> np.ndarray:
    """Join clusters until no pair of a fit size has a probability above ``join_tau`` to be of one class.

    Args:
        head: the network.
        found: the clusters.
        neighbours: length K of the lists, the node itself excluded.
        usual: ``halves.usual_numbers`` of the level's cuts; with NaN nothing is joined.
        join_tau: see ``config.Calibration``.

    Returns:
        ``group_C`` int64, from 0 up without gaps.
    """
    group_C, limit = np.arange(len(found.clusters.size_C)), math.log(join_tau / (1 - join_tau))
    while True:
        clusters = found.clusters
        fit_E = np.flatnonzero(may_join(clusters, neighbours))
        with torch.inference_mode():
            score_E = head(torch.from_numpy(head_inputs(describe_pairs(found, neighbours, fit_E), usual))).numpy()
        one_E = fit_E[score_E > limit]
        into_C = mutual_best(len(clusters.size_C), clusters.u_E[one_E], clusters.v_E[one_E], score_E[score_E > limit])
        if (into_C == np.arange(len(into_C))).all():
            return group_C
        into_C = np.unique(into_C, return_inverse=True)[1]
        group_C = into_C[group_C]
        found = combine(found, into_C)


def may_join(clusters: Clusters, neighbours: int) -> np.ndarray:
    """Pairs of a fit size, bool (E)."""
    together_E = clusters.size_C[clusters.u_E] + clusters.size_C[clusters.v_E]
    return np.asarray((together_E >= LEAST_TOGETHER) & (together_E <= most_members(neighbours)))


def describe_pairs(found: Neighbourhood, neighbours: int, at_P: np.ndarray) -> np.ndarray:
    """``halves.describe`` of some pairs, float64 (P, F)."""
    size_C, count_C, chance_C, u_E, v_E, count_E, chance_E = found.clusters
    u_P, v_P = u_E[at_P], v_E[at_P]

    def three(inside_C: np.ndarray, across_E: np.ndarray) -> np.ndarray:
        return np.stack([inside_C[u_P], across_E[at_P], inside_C[v_P]], 1)

    return describe(
        np.stack([size_C[u_P], size_C[v_P]], 1),
        three(count_C, count_E),
        three(found.near_C, found.near_E),
        three(chance_C, chance_E),
        neighbours,
    )


def combine(found: Neighbourhood, group_C: np.ndarray) -> Neighbourhood:
    """The clusters' groups as clusters; ``group_C`` int64, from 0 up without gaps."""
    clusters = found.clusters
    near = contract(
        clusters._replace(count_C=found.near_C, chance_C=found.near_C, count_E=found.near_E, chance_E=found.near_E),
        group_C,
    )
    return Neighbourhood(contract(clusters, group_C), near.count_C, near.count_E)


def cluster_pairs(
    root_N: np.ndarray, other_NK: np.ndarray, real_NK: np.ndarray, logit_NK: np.ndarray, shift: float
) -> Block:
    """``flow_rounds.pair_up`` of nodes whose trees are clusters, the near edges as weights.

    Args:
        root_N: int64 cluster of each node.
        other_NK: int64 cluster of each neighbour.
        real_NK: where there is an edge.
        logit_NK: log-odds of the edges.
        shift: of the level's base rate.
    """
    own_E = np.broadcast_to(root_N[:, None], real_NK.shape)[real_NK]
    near_E = np.broadcast_to(np.arange(real_NK.shape[1]) < nearest(real_NK.shape[1]), real_NK.shape)[real_NK]
    chance_E = np.rint(chances(logit_NK[real_NK], shift) * CHANCE_ONE).astype(np.int64)
    return pair_up(root_N, own_E, other_NK[real_NK], near_E.astype(np.int64), chance_E)


def neighbourhood(total_C: np.ndarray, clusters: Clusters, near_E: np.ndarray) -> Neighbourhood:
    """Clusters of ``flow_rounds.whole`` with near edges as weights."""
    between_C = np.zeros(len(total_C), dtype=np.int64)
    np.add.at(between_C, clusters.u_E, near_E)
    np.add.at(between_C, clusters.v_E, near_E)
    return Neighbourhood(clusters, (total_C - between_C) // 2, near_E)


def whole_neighbourhood(pairs: Block) -> Neighbourhood:
    """The clusters of a graph in one process, from its ``cluster_pairs``; they ascend."""
    return neighbourhood(*whole_trees(pairs))


def join_links(tasks: Tasks, scored: Scored, links: list[Ref], usual: Ref, join_tau: float) -> list[Ref]:
    """A level's links with small clusters joined, per shard.

    Args:
        tasks: where to run.
        scored: the level's scores.
        links: per shard, of ``splits.split_links``.
        usual: ``splits.usual_cuts``.
        join_tau: see ``config.Calibration``.
    """
    S, starts, halo = len(links), scored.halo.starts, scored.halo
    pointers = find_roots(tasks, links, starts)
    away = halo.tables(tasks, pointers)
    pairs = [tasks.call(_pairs, scored.scores[s], pointers[s], away[s], halo.local[s], scored.shift) for s in range(S)]
    share = share_trees(tasks, pairs, starts)
    del pairs, away
    joined = for_pairs(tasks, count_pairs(tasks, share)).call(
        _join, scored.model_ref, scored.k - 1, usual, join_tau, share.clusters, share.rows, starts, returns=S
    )
    parents = [
        tasks.call(point, tasks.call(alone, starts[s], starts[s + 1]), become)
        for s, become in enumerate(as_list(joined, S))
    ]
    return link_groups(tasks, links, pointers, scored.own, find_roots(tasks, parents, starts), starts)


def _pairs(scores: Block, pointers: Block, away: list[Block], local_NK: np.ndarray, shift: float) -> Block:
    other_NK = make_table(pointers, away)["pointer_N"][np.maximum(local_NK, 0)]
    return cluster_pairs(pointers["pointer_N"], other_NK, local_NK >= 0, scores["logit_NK"], shift)


def _join(
    model: RelationalLander,
    neighbours: int,
    usual: np.ndarray,
    join_tau: float,
    clusters: list[Block],
    rows: list[Block],
    starts: Starts,
) -> Any:
    """See ``flow_rounds.spread_groups``."""
    id_C, total_C, every, near_E = whole(clusters, rows)
    group_C = join_clusters(model.join, neighbourhood(total_C, every, near_E), neighbours, usual, join_tau)
    return spread_groups(id_C, group_C, starts)
