"""Nodes that merges and joins left alone, taken into the cluster of their most probable neighbour where few are alone.

A blurred character and a person with one photo look alike to the network: the most probable edge of either has about .49. What tells
them apart is how many there are: 4 to 7% of the characters of omniglot are left alone, none of them rightly, and a third of the
photos of people. So the edges of a lone node are corrected by the share of lone nodes as all edges are by the base rate
(``base_rate``): by the log-odds of the level's share less those of the share in training, once. Measured in benchmarks/README.md.

Shapes: N nodes of a shard, K neighbours, L lone nodes that are taken in.
"""

import math

import numpy as np

from hilander_dist.cluster.base_rate import base_rate_shift
from hilander_dist.cluster.flow_rounds import alone
from hilander_dist.cluster.forward import make_table
from hilander_dist.cluster.groups import cluster_sizes, link_groups
from hilander_dist.cluster.roots import find_roots
from hilander_dist.cluster.splits import Scored
from hilander_dist.tasks import Block, Ref, Tasks


def least_log_odds(lone: int, nodes: int, lone_rate: float) -> float:
    """The log-odds above which its most probable edge takes a lone node in.

    Args:
        lone: nodes that are alone.
        nodes: all nodes.
        lone_rate: ``config.Calibration.lone_rate``; with 0 nothing is taken in.
    """
    return base_rate_shift(lone / nodes, lone_rate) if lone_rate and nodes else math.inf


def taken_in(
    logit_NK: np.ndarray, real_NK: np.ndarray, lone_N: np.ndarray, lone_NK: np.ndarray, least: float
) -> tuple[np.ndarray, np.ndarray]:
    """Nodes that go to the cluster of a neighbour, and the rank 0 .. K-1 of that neighbour, int64 (L) each.

    Of equal edges the first counts. Where the best neighbour is alone, too, both stay so: two are not more of a cluster than one.

    Args:
        logit_NK: log-odds of the edges, without any correction.
        real_NK: where there is an edge.
        lone_N: bool, nodes that are alone.
        lone_NK: bool, neighbours that are.
        least: ``least_log_odds``.
    """
    row_L = np.flatnonzero(lone_N & real_NK.any(1))
    best_LK = np.where(real_NK[row_L], logit_NK[row_L], -np.inf)
    rank_L = best_LK.argmax(1) if len(row_L) else np.zeros(0, dtype=np.int64)
    goes_L = (best_LK.max(1, initial=-np.inf) > least) & ~lone_NK[row_L, rank_L]
    return row_L[goes_L], rank_L[goes_L]


def place_lone(tasks: Tasks, scored: Scored, links: list[Ref], lone_rate: float) -> list[Ref]:
    """A level's links with lone nodes taken in, per shard.

    Args:
        tasks: where to run.
        scored: the level's scores.
        links: per shard, of ``joins.join_links``.
        lone_rate: ``config.Calibration.lone_rate``.
    """
    S, starts, halo = len(links), scored.halo.starts, scored.halo
    pointers = find_roots(tasks, links, starts)
    sizes = cluster_sizes(tasks, pointers, starts)
    marked = [tasks.call(_mark, pointers[s], sizes[s]) for s in range(S)]
    lone = sum(tasks.get([tasks.call(_count_lone, block) for block in marked]))
    if not lone or not lone_rate:
        return links
    least = least_log_odds(lone, starts[-1], lone_rate)
    away = halo.tables(tasks, marked)
    groups = [
        tasks.call(_groups, scored.scores[s], marked[s], away[s], halo.local[s], least, starts[s], starts[s + 1])
        for s in range(S)
    ]
    return link_groups(tasks, links, pointers, scored.own, groups, starts)


def _mark(pointers: Block, sizes: Block) -> Block:
    """A lone node is its own root, so its cluster's size is in its shard."""
    lone_N = np.zeros(len(pointers["pointer_N"]), dtype=bool)
    lone_N[sizes["at_C"][sizes["size_C"] == 1]] = True
    return {"pointer_N": pointers["pointer_N"], "lone_N": lone_N}


def _count_lone(marked: Block) -> int:
    return int(np.count_nonzero(marked["lone_N"]))


def _groups(
    scores: Block, marked: Block, away: list[Block], local_NK: np.ndarray, least: float, start: int, stop: int
) -> Block:
    """The root of the cluster that each node goes to, itself where it goes nowhere."""
    table_T = make_table(marked, away)
    at_NK = np.maximum(local_NK, 0)
    row_L, rank_L = taken_in(scores["logit_NK"], local_NK >= 0, marked["lone_N"], table_T["lone_N"][at_NK], least)
    pointer_N = alone(start, stop)["parent_N"]
    pointer_N[row_L] = table_T["pointer_N"][at_NK[row_L, rank_L]]
    return {"pointer_N": pointer_N}
