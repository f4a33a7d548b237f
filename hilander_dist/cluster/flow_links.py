"""Links of a level by relational scores: a forest of sure links first, then merges of whole trees by the map equation.

Trees of links with a probability above ``forest_tau`` are formed as ever (``decode``). The edges between them are added up per
pair of trees, with probabilities corrected by the level's base rate; trees merge by ``flow``, then by ``pairs``: each a
decision on all edges between two clusters, not on one. This is done twice: the clusters of the first time, whatever tau is
asked for, tell the base rate better than the probabilities do. Each merged tree's root links to the densest root of its group.
In the end clusters of two classes are split (``splits``), small ones joined (``joins``), and nodes that are still alone taken in
(``lone``). So every node still has at most one link, to a denser one.

The first rounds of merges run over the shards (``flow_rounds``), until one task holds what is left.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hilander_dist.cluster.base_rate import FAR, FIRST_TAU, base_rate_shift, least_shift, moved_shift
from hilander_dist.cluster.flow import REST_TAU, WEIGHT_ONE, edge_weights, merge_flow, rest_at
from hilander_dist.cluster.flow_rounds import (
    alone,
    at_both_ends,
    count_pairs,
    for_pairs,
    merge_round,
    pair_up,
    point,
    share_trees,
    spread_groups,
    whole,
)
from hilander_dist.cluster.forward import Halo, make_table, plan_halo
from hilander_dist.cluster.groups import link_groups
from hilander_dist.cluster.joins import join_links
from hilander_dist.cluster.links import Linker, Links, decode_shard, density_columns
from hilander_dist.cluster.lone import place_lone
from hilander_dist.cluster.memory import mergeable_pairs
from hilander_dist.cluster.pairs import CHANCE_ONE, Clusters, contract, merge_pairs
from hilander_dist.cluster.relations import chances, mean_chance, score_relations
from hilander_dist.cluster.roots import find_roots
from hilander_dist.cluster.splits import Scored, cut_links, split_links, usual_cuts
from hilander_dist.config import Calibration
from hilander_dist.exchange import (
    Starts,
    as_list,
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
    calibration: Calibration
    rest: float
    """Of the walk at a tau (``rested``); the calibration's until then."""


def link_by_relations(
    model: RelationalLander, model_ref: Ref, calibration: Calibration, k: int, tau: float, whitened: bool = False
) -> Linker:
    """Link by trees of sure links and merges of trees.

    Args:
        model: the network.
        model_ref: the network in the object store.
        calibration: what training found out: ``tau``, ``base_rate``, ``forest_tau``, ``join_tau``, ``rest`` and
            ``lone_rate``.
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
        return Links(cluster_forest(tasks, forest, tau, calibration.tau), numbers)

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
        calibration,
        calibration.rest,
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


def cluster_forest(tasks: Tasks, forest: Forest, tau: float, usual_tau: float) -> list[Ref]:
    """The level's links at a tau, per shard: trees are merged (``merge_forest``), clusters split in which the merges joined two
    classes (``halves``), small ones joined that they left apart (``joins``), and lone nodes taken in (``lone``).

    Args:
        tasks: where to run.
        forest: of ``with_base_rate``.
        tau: edges with a corrected probability up to this carry no weight.
        usual_tau: whose clusters tell what is usual for a cut. At a low tau many clusters are two classes, which then look as is
            usual: with the calibrated tau here, a tau off by .1 costs .010 and .009 of F on omniglot by two general checkpoints, and
            .021 and .016 with that which is asked for.
    """
    scored = Scored(forest.model_ref, forest.own, forest.scores, forest.halo, forest.k, forest.shift)

    def merged_at(tau: float) -> list[Ref]:
        return merge_forest(tasks, rested(tasks, forest, tau), tau)

    merged = merged_at(tau)
    cuts = cut_links(tasks, scored, merged)
    usual = usual_cuts(tasks, cuts if tau == usual_tau else cut_links(tasks, scored, merged_at(usual_tau)))
    joined = join_links(
        tasks, scored, split_links(tasks, scored, merged, cuts, usual), usual, forest.calibration.join_tau
    )
    return place_lone(tasks, scored, joined, forest.calibration.lone_rate)


def rested(tasks: Tasks, forest: Forest, tau: float) -> Forest:
    """The forest with the rest that goes with a tau (``flow.rest_at``)."""
    if not forest.rest or tau == REST_TAU:
        return forest
    sums = [
        tasks.call(_sum_weights, block, local_NK, forest.shift, (tau, REST_TAU))
        for block, local_NK in zip(forest.scores, forest.halo.local, strict=True)
    ]
    weight, at_rest_tau = sum(tasks.get(sums)).tolist()
    return replace(forest, rest=rest_at(forest.rest, weight, at_rest_tau))


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
            forest.rest,
        )
        for s in range(S)
    ]
    share = share_trees(tasks, pairs, starts)
    del pairs
    parents = [tasks.call(alone, starts[s], starts[s + 1]) for s in range(S)]
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
    rest = for_pairs(tasks, count).call(
        _merge_rest,
        forest.model_ref,
        forest.k - 1,
        share.clusters,
        share.rows,
        held,
        starts,
        returns=S,
    )
    parents = [tasks.call(point, parents[s], become) for s, become in enumerate(as_list(rest, S))]
    groups = find_roots(tasks, parents, starts)
    return link_groups(tasks, forest.links, forest.pointers, forest.own, groups, starts)


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


def _sum_weights(scores: Block, local_NK: np.ndarray, shift: float, taus: tuple[float, float]) -> np.ndarray:
    return sum_weights(scores["logit_NK"][local_NK >= 0], shift, taus)


def sum_weights(logit_E: np.ndarray, shift: float, taus: tuple[float, ...]) -> np.ndarray:
    """The weight of all edges at some taus, int64; arguments as of ``tree_pairs``."""
    p1_E = chances(logit_E, shift)
    return np.array([edge_weights(p1_E, tau).sum() for tau in taus])


def _tree_pairs(
    scores: Block,
    pointers: Block,
    away: list[Block],
    local_NK: np.ndarray,
    shift: float,
    tau: float,
    rest: float,
) -> Block:
    table_T = make_table(pointers, away)["pointer_N"]
    real_NK = local_NK >= 0
    own_E = np.broadcast_to(pointers["pointer_N"][:, None], local_NK.shape)[real_NK]
    other_E, logit_E = table_T[local_NK[real_NK]], scores["logit_NK"][real_NK]
    return tree_pairs(pointers["pointer_N"], own_E, other_E, logit_E, shift, tau, rest)


def tree_pairs(
    root_N: np.ndarray,
    own_E: np.ndarray,
    other_E: np.ndarray,
    logit_E: np.ndarray,
    shift: float,
    tau: float,
    rest: float,
) -> Block:
    """Edges by the pair of trees at their ends, and the trees' sizes.

    Args:
        root_N: int64 root of each node.
        own_E: root of each edge's owner.
        other_E: root of its neighbour.
        logit_E: its log-odds.
        shift: of the level's base rate.
        tau: edges up to this probability have no weight.
        rest: see ``config.Calibration``.

    Returns:
        As of ``flow_rounds.pair_up``.
    """
    p1_E = chances(logit_E, shift)
    chance_E = np.rint(p1_E * CHANCE_ONE).astype(np.int64)
    return pair_up(root_N, own_E, other_E, edge_weights(p1_E, tau), chance_E, round(rest * WEIGHT_ONE))


def merge_trees(
    model: RelationalLander,
    neighbours: int,
    total_C: np.ndarray,
    trees: Clusters,
    weight_E: np.ndarray,
    held: int | None = None,
) -> np.ndarray:
    """Merge clusters by the map equation, then by the model's head of pairs: ``group_C`` int64, from 0 up without gaps.

    Args:
        model: its head of pairs is asked.
        neighbours: length of the lists, the node itself excluded.
        total_C: weight at the members' ends.
        trees: the clusters.
        weight_E: weight of each pair of them.
        held: of earlier rounds, see ``flow.renewed``.
    """
    clusters, group_C = flow_clusters(total_C, trees, weight_E, held)
    return np.asarray(merge_pairs(model.pair, clusters, neighbours)[group_C])


def flow_clusters(
    total_C: np.ndarray, trees: Clusters, weight_E: np.ndarray, held: int | None = None
) -> tuple[Clusters, np.ndarray]:
    """Trees merged by the map equation: the clusters, and the cluster of each tree, from 0 up; arguments as above."""
    flowing_E = weight_E > 0
    flow_C = merge_flow(total_C, trees.u_E[flowing_E], trees.v_E[flowing_E], weight_E[flowing_E], held)
    group_C = np.unique(flow_C, return_inverse=True)[1]
    return contract(trees, group_C), group_C


def _merge_rest(
    model: RelationalLander,
    neighbours: int,
    clusters: list[Block],
    rows: list[Block],
    held: int | None,
    starts: Starts,
) -> Any:
    """See ``flow_rounds.spread_groups``."""
    id_C, total_C, trees, weight_E = whole(clusters, rows)
    group_C = merge_trees(model, neighbours, total_C, trees, weight_E, held)
    return spread_groups(id_C, group_C, starts)
