"""Links of a level by relational scores: a forest of sure links first, then merges of whole trees by the map equation.

Trees of links with a probability above ``forest_tau`` are formed as ever (``decode``). The edges between them are added up
per pair of trees, with probabilities corrected by the level's base rate, and trees merge by ``flow``: a decision on all
edges between two clusters, not on one. In the end each merged tree's root links to the densest root of its group. So every
node still has at most one link, to a denser one.

One task adds up all pairs of trees and merges them: it holds O(trees) rows.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from hilander_dist.cluster.flow import edge_weights, merge_flow, sum_pairs
from hilander_dist.cluster.forward import make_table, plan_halo
from hilander_dist.cluster.links import Linker, Links, decode_shard, density_columns
from hilander_dist.cluster.relations import chances, mean_chance, score_relations
from hilander_dist.cluster.roots import find_roots
from hilander_dist.config import Calibration
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
    return Forest(starts, scores, links, own, pointers, pointers_away, halo.local, mean_probability, shift)


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
    roots = [tasks.call(_roots, forest.pointers[s], forest.own[s], starts[s]) for s in range(S)]
    parents = as_list(tasks.call(_merge_trees, roots, pairs, starts, returns=S), S)
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
    """A shard's edges by the pair of trees at their ends; those inside a tree have the same tree twice."""
    table_T = make_table(pointers, away)["pointer_N"]
    real_NK = local_NK >= 0
    weight_E = edge_weights(chances(scores["logit_NK"][real_NK], shift), tau)
    own_E = np.broadcast_to(pointers["pointer_N"][:, None], local_NK.shape)[real_NK]
    other_E = table_T[local_NK[real_NK]]
    kept_E = weight_E > 0
    u_E, v_E, sum_E = sum_pairs(own_E[kept_E], other_E[kept_E], weight_E[kept_E])
    return {"u_E": u_E, "v_E": v_E, "weight_E": sum_E}


def _roots(pointers: Block, own: Block, start: int) -> Block:
    at = np.flatnonzero(pointers["pointer_N"] == start + np.arange(len(pointers["pointer_N"])))
    return {"position_R": start + at, "density_R": own["density_N"][at], "id_R": own["id_N"][at]}


def _merge_trees(roots: list[Block], pairs: list[Block], starts: Starts) -> Any:
    """Per shard the roots that it owns, in order, and the root that each one links to, both as positions."""
    root, pair = concat_blocks(roots), concat_blocks(pairs)
    parent_R = root["position_R"][merge_trees(root, pair)]
    columns = {"position_R": root["position_R"], "parent_R": parent_R}
    return partition_rows(columns, root["position_R"], starts)


def merge_trees(root: Block, pair: Block) -> np.ndarray:
    """For each root the index of the one that it links to: itself, or the densest of its group.

    Args:
        root: position_R ascending, density_R and id_R of all roots.
        pair: u_E and v_E, positions of roots, and weight_E of their edges; a pair may come several times, and of edges
            inside a tree both are equal.
    """
    first_E, second_E = (np.searchsorted(root["position_R"], pair[end]) for end in ("u_E", "v_E"))
    u_E, v_E, weight_E = sum_pairs(first_E, second_E, pair["weight_E"])
    total_C = np.zeros(len(root["position_R"]), dtype=np.int64)
    np.add.at(total_C, u_E, weight_E)
    np.add.at(total_C, v_E, weight_E)
    apart = u_E != v_E
    group_C = merge_flow(total_C, u_E[apart], v_E[apart], weight_E[apart])
    return group_parents(group_C, root["density_R"], root["id_R"])


def _join_roots(forest: Block, joined: Block, start: int) -> Block:
    parent_N = forest["parent_N"].copy()
    parent_N[joined["position_R"] - start] = joined["parent_R"]
    return {**forest, "parent_N": parent_N}
