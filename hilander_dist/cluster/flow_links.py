"""Links of a level by relational scores: a forest of sure links first, then merges of whole trees by the map equation.

Trees of links with a probability above ``forest_tau`` are formed as ever (``decode``). The edges between them are added up per
pair of trees, with probabilities corrected by the level's base rate; trees merge by ``flow``, then by ``pairs``: each a
decision on all edges between two clusters, not on one. This is done twice: the clusters of the first time, whatever tau is
asked for, tell the base rate better than the probabilities do. Each merged tree's root links to the densest root of its group.
In the end clusters of two classes are split (``splits``). So every node still has at most one link, to a denser one.

The first rounds of merges run over the shards (``flow_rounds``), until one task holds what is left.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hilander_dist.cluster.base_rate import FAR, FIRST_TAU, base_rate_shift, least_shift, moved_shift
from hilander_dist.cluster.decode import densest_of_groups
from hilander_dist.cluster.flow import edge_weights, merge_flow, sum_pairs
from hilander_dist.cluster.flow_rounds import (
    answers_for,
    at_both_ends,
    count_pairs,
    merge_round,
    point,
    send_trees,
    serve_placed,
    share_trees,
    sum_clusters,
    sum_rows,
    whole,
)
from hilander_dist.cluster.forward import Halo, make_table, plan_halo
from hilander_dist.cluster.links import Linker, Links, decode_shard, density_columns
from hilander_dist.cluster.memory import gigabytes, merge_bytes, mergeable_pairs
from hilander_dist.cluster.pairs import CHANCE_ONE, Clusters, contract, merge_pairs
from hilander_dist.cluster.relations import chances, mean_chance, score_relations
from hilander_dist.cluster.roots import find_roots
from hilander_dist.cluster.splits import split_links
from hilander_dist.config import Calibration
from hilander_dist.errors import ClusterError
from hilander_dist.exchange import (
    Starts,
    as_list,
    concat_blocks,
    fetch_rows,
    partition_rows,
    shuffle,
    unpack,
)
from hilander_dist.knn.layout import Level
from hilander_dist.lander.relational import RelationalLander
from hilander_dist.monitor.log import logger
from hilander_dist.tasks import Block, Ref, Tasks

PAIRS_AT_ONCE = 16_000_000
"""Pairs of clusters that one task merges, fewer where no node has the 4 GB. 1.8 million took 6.4 s; a round over the shards
looks at all pairs and takes some ten tasks a shard."""


@dataclass(frozen=True)
class Forest:
    """A level's scores and its trees of sure links: what every tau has in common. Lists are per shard."""

    starts: Starts
    scores: list[Ref]
    links: list[Ref]
    own: list[Ref]
    pointers: list[Ref]
    pointers_away: list[list[Ref]]
    halo: Halo
    mean_probability: float
    least: float
    """The lowest shift, ``base_rate.least_shift``."""
    shift: float
    """Log-odds to add to all edges for the level's base rate."""
    model_ref: Ref
    k: int
    pair_tau: float


def link_by_relations(
    model: RelationalLander, model_ref: Ref, calibration: Calibration, k: int, tau: float, whitened: bool = False
) -> Linker:
    """Link by trees of sure links and merges of trees.

    Args:
        model: the network.
        model_ref: the network in the object store.
        calibration: what training found out: ``base_rate``, ``forest_tau`` and ``pair_tau``.
        k: length of the neighbour lists, the node itself included.
        tau: edges with a corrected probability up to this carry no weight.
        whitened: vectors were, by clusters; see ``base_rate.moved_shift``.
    """

    def link(tasks: Tasks, level: Level, graph: list[Ref], prefix: str) -> Links:
        scored = score_forest(tasks, model, model_ref, calibration, k, level, graph, prefix)
        forest = with_base_rate(tasks, scored, calibration.base_rate, whitened)
        if abs(forest.shift) > FAR:
            logger.warning(
                "base rate far from training's: look at a sample of the clusters; `hilander tune` tells the F to expect",
                stage=prefix,
                mean_probability=round(forest.mean_probability, 4),
                base_rate_shift=round(forest.shift, 2),
                training=calibration.base_rate,
            )
        numbers = {
            "mean_probability": round(forest.mean_probability, 6),
            "base_rate_shift": round(forest.shift, 6),
        }
        return Links(cluster_forest(tasks, forest, tau), numbers)

    return link


def link_first(model: RelationalLander, model_ref: Ref, calibration: Calibration, k: int) -> Linker:
    """Link by the first merges alone, which tell the base rate; arguments as of ``link_by_relations``."""

    def link(tasks: Tasks, level: Level, graph: list[Ref], prefix: str) -> Links:
        forest = score_forest(tasks, model, model_ref, calibration, k, level, graph, prefix)
        return Links(merge_forest(tasks, forest, FIRST_TAU), {})

    return link


def score_forest(
    tasks: Tasks,
    model: RelationalLander,
    model_ref: Ref,
    calibration: Calibration,
    k: int,
    level: Level,
    graph: list[Ref],
    prefix: str,
) -> Forest:
    """Score a level and link what is sure, with the base rate of the mean probability; arguments as of ``link_by_relations``."""
    S, starts = level.shards, level.starts
    halo = plan_halo(tasks, level, graph)
    scores = score_relations(tasks, model, model_ref, level, graph, halo, k, prefix)
    mean_probability = mean_chance(tasks.get([tasks.call(_column, block, "chance_2") for block in scores]))
    least = least_shift(sum(tasks.get([tasks.call(_column, block, "best_G") for block in scores])))
    own = [tasks.call(density_columns, scores[s], level.nodes[s]) for s in range(S)]
    away = halo.tables(tasks, own)
    sure = [tasks.call(_sure_edges, block) for block in scores]
    limit = 1 - calibration.forest_tau
    links = [
        tasks.call(decode_shard, sure[s], graph[s], halo.local[s], own[s], away[s], limit, "default", starts[s])
        for s in range(S)
    ]
    pointers = find_roots(tasks, links, starts)
    pointers_away = halo.tables(tasks, pointers)
    return Forest(
        starts,
        scores,
        links,
        own,
        pointers,
        pointers_away,
        halo,
        mean_probability,
        least,
        max(base_rate_shift(mean_probability, calibration.base_rate), least),
        model_ref,
        k,
        calibration.pair_tau,
    )


def with_base_rate(tasks: Tasks, forest: Forest, base_rate: float, whitened: bool = False) -> Forest:
    """The forest with the base rate of first merges; ``base_rate`` of training, ``whitened`` as of ``link_by_relations``."""
    inside = share_inside(tasks, forest, merge_forest(tasks, forest, FIRST_TAU))
    return replace(forest, shift=moved_shift(forest.shift, inside, base_rate, forest.least, whitened))


def share_inside(tasks: Tasks, forest: Forest, links: list[Ref]) -> float:
    """The share of a level's edges inside the clusters of ``links``; half where there are no edges."""
    own = find_roots(tasks, links, forest.starts)
    away = forest.halo.tables(tasks, own)
    counts = [tasks.call(_inside, own[s], away[s], forest.halo.local[s]) for s in range(len(links))]
    inside, edges = sum(tasks.get(counts)).tolist()
    return inside / edges if edges else 0.5


def cluster_forest(tasks: Tasks, forest: Forest, tau: float) -> list[Ref]:
    """The level's links at a tau, per shard: trees are merged (``merge_forest``), and of the clusters that come out those split in
    which the merges joined two classes (``halves``)."""
    links = merge_forest(tasks, forest, tau)
    return split_links(tasks, forest.model_ref, links, forest.own, forest.scores, forest.halo, forest.k, forest.shift)


def merge_forest(tasks: Tasks, forest: Forest, tau: float) -> list[Ref]:
    """Merge trees with weights of probabilities above ``tau``, corrected by the base rate: the level's links, per shard.

    Rounds run over the shards while there are more pairs of clusters than one task holds.
    """
    starts = forest.starts
    S = len(starts) - 1
    pairs = [
        tasks.call(
            _tree_pairs,
            forest.scores[s],
            forest.pointers[s],
            forest.pointers_away[s],
            forest.halo.local[s],
            forest.shift,
            tau,
        )
        for s in range(S)
    ]
    share = share_trees(tasks, pairs, starts)
    del pairs
    parents = [tasks.call(_alone, starts[s], starts[s + 1]) for s in range(S)]
    at_once = min(PAIRS_AT_ONCE, mergeable_pairs(tasks.offered()))
    held, done = None, False
    if (count := count_pairs(tasks, share)) > at_once:
        share = at_both_ends(tasks, share, starts)
    while count > at_once and not done:
        logger.info("merging over shards", pairs=count)
        share, become, held, done = merge_round(tasks, share, starts, held)
        if become is not None:
            parents = [tasks.call(point, parents[s], become[s]) for s in range(S)]
        count = count_pairs(tasks, share)
    needed = merge_bytes(count)
    if needed > tasks.offered():
        raise ClusterError(
            f"not enough memory: the task that merges {count} pairs of clusters takes up to {gigabytes(needed)}, the largest"
            f" node of the Ray cluster offers {gigabytes(tasks.offered())}: use nodes with more memory, or a smaller --k"
        )
    rest = tasks.asking(needed).call(
        _merge_rest,
        forest.model_ref,
        forest.k - 1,
        forest.pair_tau,
        share.clusters,
        share.rows,
        held,
        starts,
        returns=S,
    )
    parents = [tasks.call(point, parents[s], become) for s, become in enumerate(as_list(rest, S))]
    return _link_groups(tasks, forest, find_roots(tasks, parents, starts))


def _link_groups(tasks: Tasks, forest: Forest, groups: list[Ref]) -> list[Ref]:
    """Links with every tree's root linked to the densest root of its group; per shard pointer_N leads to the group."""
    starts = forest.starts
    S = len(starts) - 1
    roots = [tasks.call(_roots, forest.pointers[s], forest.own[s], groups[s], starts[s]) for s in range(S)]
    best = [tasks.call(_best_of_shard, block, starts, returns=S) for block in roots]
    densest = [tasks.call(_densest, inbox, starts[s]) for s, inbox in enumerate(shuffle(best, S))]
    needs, answers = fetch_rows(
        tasks, [tasks.call(_group_keys, block) for block in roots], densest, starts, serve_placed
    )
    return [tasks.call(_join_roots, forest.links[s], roots[s], needs[s], answers[s], starts[s]) for s in range(S)]


def _column(block: Block, name: str) -> np.ndarray:
    return block[name]


def _inside(pointers: Block, away: list[Block], local_NK: np.ndarray) -> np.ndarray:
    """Edges inside clusters and all edges of a shard, int64 (2)."""
    table_T = make_table(pointers, away)["pointer_N"]
    real_NK = local_NK >= 0
    same_NK = pointers["pointer_N"][:, None] == table_T[np.maximum(local_NK, 0)]
    return np.array([np.count_nonzero(same_NK & real_NK), np.count_nonzero(real_NK)])


def _sure_edges(scores: Block) -> Block:
    p1_NK = chances(scores["logit_NK"]).astype(np.float32)
    return {"p0_NK": chances(-scores["logit_NK"]).astype(np.float32), "p1_NK": p1_NK}


def _tree_pairs(
    scores: Block,
    pointers: Block,
    away: list[Block],
    local_NK: np.ndarray,
    shift: float,
    tau: float,
) -> Block:
    table_T = make_table(pointers, away)["pointer_N"]
    real_NK = local_NK >= 0
    own_E = np.broadcast_to(pointers["pointer_N"][:, None], local_NK.shape)[real_NK]
    return tree_pairs(pointers["pointer_N"], own_E, table_T[local_NK[real_NK]], scores["logit_NK"][real_NK], shift, tau)


def tree_pairs(
    root_N: np.ndarray, own_E: np.ndarray, other_E: np.ndarray, logit_E: np.ndarray, shift: float, tau: float
) -> Block:
    """Edges by the pair of trees at their ends, and the trees' sizes.

    Args:
        root_N: int64 root of each node.
        own_E: root of each edge's owner.
        other_E: root of its neighbour.
        logit_E: its log-odds.
        shift: of the level's base rate.
        tau: edges up to this probability have no weight.

    Returns:
        root_M and size_M of the trees; u_E <= v_E (equal for edges inside a tree), weight_E, count_E, chance_E.
    """
    p1_E = chances(logit_E, shift)
    ones_E = np.ones(len(p1_E), dtype=np.int64)
    chance_E = np.rint(p1_E * CHANCE_ONE).astype(np.int64)
    u_E, v_E, weight_E, count_E, chance_E = sum_pairs(own_E, other_E, edge_weights(p1_E, tau), ones_E, chance_E)
    root_M, size_M = np.unique(root_N, return_counts=True)
    pairs = {"u_E": u_E, "v_E": v_E, "weight_E": weight_E, "count_E": count_E, "chance_E": chance_E}
    return {**pairs, "root_M": root_M, "size_M": size_M}


def merge_trees(
    model: RelationalLander,
    neighbours: int,
    pair_tau: float,
    total_C: np.ndarray,
    trees: Clusters,
    weight_E: np.ndarray,
    held: int | None = None,
) -> np.ndarray:
    """Merge clusters by the map equation, then by the model's head of pairs: ``group_C`` int64, from 0 up without gaps.

    Args:
        model: its head of pairs is asked.
        neighbours: length of the lists, the node itself excluded.
        pair_tau: see ``config.Calibration``.
        total_C: weight at the members' ends.
        trees: the clusters.
        weight_E: weight of each pair of them.
        held: of earlier rounds, see ``flow.renewed``.
    """
    clusters, group_C = flow_clusters(total_C, trees, weight_E, held)
    return np.asarray(merge_pairs(model.pair, clusters, neighbours, pair_tau)[group_C])


def flow_clusters(
    total_C: np.ndarray, trees: Clusters, weight_E: np.ndarray, held: int | None = None
) -> tuple[Clusters, np.ndarray]:
    """Trees merged by the map equation: the clusters, and the cluster of each tree, from 0 up; arguments as above."""
    flowing_E = weight_E > 0
    flow_C = merge_flow(total_C, trees.u_E[flowing_E], trees.v_E[flowing_E], weight_E[flowing_E], held)
    group_C = np.unique(flow_C, return_inverse=True)[1]
    return contract(trees, group_C), group_C


def whole_trees(pairs: Block) -> tuple[np.ndarray, Clusters, np.ndarray]:
    """total_C, trees and weight_E of a graph in one process, from its ``tree_pairs``; trees ascend by root."""
    clusters, rows = send_trees(pairs, (0, 0))
    return whole([sum_clusters([clusters])], [sum_rows([rows])])[1:]


def _alone(start: int, stop: int) -> Block:
    return {"parent_N": np.arange(start, stop)}


def _merge_rest(
    model: RelationalLander,
    neighbours: int,
    pair_tau: float,
    clusters: list[Block],
    rows: list[Block],
    held: int | None,
    starts: Starts,
) -> Any:
    """Per shard the clusters that it owns, and the position of the first cluster of each one's group."""
    id_C, total_C, trees, weight_E = whole(clusters, rows)
    group_C = merge_trees(model, neighbours, pair_tau, total_C, trees, weight_E, held)
    first_G = np.unique(group_C, return_index=True)[1]
    S = len(starts) - 1
    pieces = as_list(partition_rows({"id_C": id_C, "into_C": id_C[first_G][group_C]}, id_C, starts), S)
    return unpack([{"at_C": piece["id_C"] - starts[s], "into_C": piece["into_C"]} for s, piece in enumerate(pieces)])


def _roots(pointers: Block, own: Block, groups: Block, start: int) -> Block:
    at = np.flatnonzero(pointers["pointer_N"] == start + np.arange(len(pointers["pointer_N"])))
    group_R = groups["pointer_N"][at]
    return {"position_R": start + at, "density_R": own["density_N"][at], "id_R": own["id_N"][at], "group_R": group_R}


def _best_of_shard(roots: Block, starts: Starts) -> Any:
    best = densest_of_groups(roots)
    return partition_rows(best, best["group_R"], starts)


def _densest(inbox: list[Block], start: int) -> Block:
    best = densest_of_groups(concat_blocks(inbox))
    return {"at_C": best["group_R"] - start, "position_C": best["position_R"]}


def _group_keys(roots: Block) -> np.ndarray:
    return roots["group_R"]


def _join_roots(forest: Block, roots: Block, needs: list[np.ndarray], answers: list[Block], start: int) -> Block:
    parent_N = forest["parent_N"].copy()
    parent_N[roots["position_R"] - start] = answers_for(roots["group_R"], needs, answers)["position_C"]
    return {**forest, "parent_N": parent_N}
