"""Links of a level by relational scores: a forest of sure links first, then merges of whole trees by the map equation.

Trees of links with a probability above ``forest_tau`` are formed as ever (``decode``). The edges between them are added up
per pair of trees, with probabilities corrected by the level's base rate; trees merge by ``flow``, then by ``pairs``: each a
decision on all edges between two clusters, not on one. In the end each merged tree's root links to the densest root of its
group. So every node still has at most one link, to a denser one.

One task adds up all pairs of trees and merges them: it holds 40 bytes for each pair.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from hilander_dist.cluster.flow import edge_weights, merge_flow, sum_pairs
from hilander_dist.cluster.forward import make_table, plan_halo
from hilander_dist.cluster.links import Linker, Links, decode_shard, density_columns
from hilander_dist.cluster.memory import gigabytes, merge_bytes
from hilander_dist.cluster.pairs import CHANCE_ONE, Clusters, contract, merge_pairs
from hilander_dist.cluster.relations import chances, mean_chance, score_relations
from hilander_dist.cluster.roots import find_roots
from hilander_dist.config import Calibration
from hilander_dist.errors import ClusterError
from hilander_dist.exchange import Starts, as_list, concat_blocks, partition_rows
from hilander_dist.knn.layout import Level
from hilander_dist.lander.relational import RelationalLander
from hilander_dist.monitor.log import logger
from hilander_dist.tasks import Block, Ref, Tasks

FAR = 2.0
"""A correction of the base rate by more log-odds than this is reported: the model may not suit the data."""


@dataclass(frozen=True)
class Forest:
    """A level's scores and its trees of sure links: what every tau has in common. Lists are per shard."""

    starts: Starts
    scores: list[Ref]
    links: list[Ref]
    own: list[Ref]
    pointers: list[Ref]
    pointers_away: list[list[Ref]]
    local: list[Ref]
    mean_probability: float
    shift: float
    """Of all log-odds, for the level's base rate."""
    model_ref: Ref
    k: int
    pair_tau: float


def link_by_relations(model: RelationalLander, model_ref: Ref, calibration: Calibration, k: int, tau: float) -> Linker:
    """Link by trees of sure links and merges of trees.

    Args:
        model: the network.
        model_ref: the network in the object store.
        calibration: what training found out: ``base_rate`` and ``forest_tau``.
        k: length of the neighbour lists, the node itself included.
        tau: edges with a corrected probability up to this carry no weight.
    """

    def link(tasks: Tasks, level: Level, graph: list[Ref], prefix: str) -> Links:
        forest = grow_forest(tasks, model, model_ref, calibration, k, level, graph, prefix)
        numbers = {
            "mean_probability": round(forest.mean_probability, 6),
            "base_rate_shift": round(forest.shift, 6),
        }
        return Links(merge_forest(tasks, forest, tau), numbers)

    return link


def grow_forest(
    tasks: Tasks,
    model: RelationalLander,
    model_ref: Ref,
    calibration: Calibration,
    k: int,
    level: Level,
    graph: list[Ref],
    prefix: str,
) -> Forest:
    """Score a level and link what is sure; arguments as of ``link_by_relations``."""
    S, starts = level.shards, level.starts
    halo = plan_halo(tasks, level, graph)
    scores = score_relations(tasks, model, model_ref, level, graph, halo, k, prefix)
    mean_probability = mean_chance(tasks.get([tasks.call(_chance, block) for block in scores]))
    shift = base_rate_shift(mean_probability, calibration.base_rate)
    if abs(shift) > FAR:
        logger.warning(
            "base rate far from training's: look at a sample of the clusters, or recalibrate with `hilander tune`",
            stage=prefix,
            mean_probability=round(mean_probability, 4),
            training=calibration.base_rate,
        )
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
        halo.local,
        mean_probability,
        shift,
        model_ref,
        k,
        calibration.pair_tau,
    )


def merge_forest(tasks: Tasks, forest: Forest, tau: float) -> list[Ref]:
    """The level's links, per shard, after merges of trees with weights of probabilities above ``tau``."""
    starts = forest.starts
    S = len(starts) - 1
    pairs = [
        tasks.call(
            _tree_pairs,
            forest.scores[s],
            forest.pointers[s],
            forest.pointers_away[s],
            forest.local[s],
            forest.shift,
            tau,
        )
        for s in range(S)
    ]
    count = sum(tasks.get([tasks.call(_count_pairs, block) for block in pairs]))
    needed = merge_bytes(count)
    if needed > tasks.offered():
        raise ClusterError(
            f"not enough memory: the task that merges {count} pairs of trees takes up to {gigabytes(needed)}, the largest node"
            f" of the Ray cluster offers {gigabytes(tasks.offered())}: use nodes with more memory, or a smaller --k"
        )
    roots = [tasks.call(_roots, forest.pointers[s], forest.own[s], starts[s]) for s in range(S)]
    merged = tasks.asking(needed).call(
        _merge_trees, forest.model_ref, forest.k - 1, forest.pair_tau, roots, pairs, starts, returns=S
    )
    parents = as_list(merged, S)
    return [tasks.call(_join_roots, forest.links[s], parents[s], starts[s]) for s in range(S)]


def base_rate_shift(mean_probability: float, base_rate: float) -> float:
    """Log-odds to add to every edge of a level for its share of same-class edges, log-odds of the mean probability less
    those of the share in training: the first step of the EM for label shift (Saerens et al., 2002).

    Its further steps run away on embeddings that are hard: of .19, .86, .76 and .43 true share, the first step's .37, .65,
    .75 and .54 became .04, 1, 1 and .69.
    """
    mean_probability = min(max(mean_probability, 1e-3), 1 - 1e-3)
    return _log_odds(mean_probability) - _log_odds(base_rate)


def group_parents(group_R: np.ndarray, density_R: np.ndarray, id_R: np.ndarray) -> np.ndarray:
    """Index of the densest root of each root's group; of equally dense ones that of the smallest id.

    Args:
        group_R: int64 group of each root.
        density_R: float32.
        id_R: int64.
    """
    order = np.lexsort((id_R, -density_R, group_R))
    first = np.flatnonzero(np.r_[True, group_R[order][1:] != group_R[order][:-1]])
    best_R = np.empty(len(order), dtype=np.int64)
    best_R[order] = np.repeat(order[first], np.diff(np.r_[first, len(order)]))
    return best_R


def _log_odds(p: float) -> float:
    return math.log(p / (1 - p))


def _chance(scores: Block) -> np.ndarray:
    return scores["chance_2"]


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


def _count_pairs(pairs: Block) -> int:
    return len(pairs["u_E"])


def _roots(pointers: Block, own: Block, start: int) -> Block:
    at = np.flatnonzero(pointers["pointer_N"] == start + np.arange(len(pointers["pointer_N"])))
    return {"position_R": start + at, "density_R": own["density_N"][at], "id_R": own["id_N"][at]}


def _merge_trees(
    model: RelationalLander, neighbours: int, pair_tau: float, roots: list[Block], pairs: list[Block], starts: Starts
) -> Any:
    """Per shard the roots that it owns, in order, and the root that each one links to, both as positions."""
    root = concat_blocks(roots)
    parent_R = root["position_R"][merge_trees(model, neighbours, pair_tau, root, concat_blocks(pairs))]
    columns = {"position_R": root["position_R"], "parent_R": parent_R}
    return partition_rows(columns, root["position_R"], starts)


def merge_trees(model: RelationalLander, neighbours: int, pair_tau: float, root: Block, pair: Block) -> np.ndarray:
    """For each root the index of the one that it links to: itself, or the densest of its group.

    Args:
        model: its head of pairs is asked after the map equation.
        neighbours: length of the lists, the node itself excluded.
        pair_tau: see ``config.Calibration``.
        root: position_R ascending, density_R and id_R of all roots.
        pair: as of ``tree_pairs``, by positions; a pair and a root may come several times.
    """
    clusters, group_R = flow_clusters(root["position_R"], pair)
    group_R = merge_pairs(model.pair, clusters, neighbours, pair_tau)[group_R]
    return group_parents(group_R, root["density_R"], root["id_R"])


def flow_clusters(position_R: np.ndarray, pair: Block) -> tuple[Clusters, np.ndarray]:
    """Trees merged by the map equation: the clusters, and the cluster of each tree, from 0 up.

    Args:
        position_R: of all roots, ascending.
        pair: as of ``tree_pairs``.
    """
    first_E, second_E, at_M = (np.searchsorted(position_R, pair[name]) for name in ("u_E", "v_E", "root_M"))
    u_E, v_E, weight_E, count_E, chance_E = sum_pairs(
        first_E, second_E, pair["weight_E"], pair["count_E"], pair["chance_E"]
    )
    total_C, size_C, inner_C, inner_chance_C = (np.zeros(len(position_R), dtype=np.int64) for _ in range(4))
    np.add.at(total_C, u_E, weight_E)
    np.add.at(total_C, v_E, weight_E)
    np.add.at(size_C, at_M, pair["size_M"])
    apart, inside = u_E != v_E, u_E == v_E
    inner_C[u_E[inside]], inner_chance_C[u_E[inside]] = count_E[inside], chance_E[inside]
    trees = Clusters(size_C, inner_C, inner_chance_C, u_E[apart], v_E[apart], count_E[apart], chance_E[apart])
    flowing = weight_E[apart] > 0
    flow_C = merge_flow(total_C, trees.u_E[flowing], trees.v_E[flowing], weight_E[apart][flowing])
    group_R = np.unique(flow_C, return_inverse=True)[1]
    return contract(trees, group_R), group_R


def _join_roots(forest: Block, joined: Block, start: int) -> Block:
    parent_N = forest["parent_N"].copy()
    parent_N[joined["position_R"] - start] = joined["parent_R"]
    return {**forest, "parent_N": parent_N}
