"""Where the level path begins: the scores' histograms, and the trees of sure links."""

import numpy as np

from hilander_dist.cluster.hierarchy.decode import decode_links, parent_positions
from hilander_dist.cluster.hierarchy.links import density_columns, neighbour_columns
from hilander_dist.cluster.hierarchy.roots import find_roots
from hilander_dist.cluster.partition.log_odds import STEP, histogram, log_odds, share_above
from hilander_dist.cluster.scoring.halo import Halo
from hilander_dist.cluster.sharded.labels import make_labels
from hilander_dist.cluster.sharded.path import ScoredGraph
from hilander_dist.knn.layout import Level
from hilander_dist.lander.inference import Inference
from hilander_dist.tasks import Block, Ref, Tasks


def scored_graph(
    tasks: Tasks, level: Level, graph: list[Ref], halo: Halo, scores: list[Ref], inference: Inference
) -> ScoredGraph:
    """What the path needs of a level.

    Args:
        tasks: where to run.
        level: id_N of the nodes.
        graph: nbr_NK, per shard.
        halo: of the graph.
        scores: step_NK and density_N, per shard.
        inference: links above its ``seed_probability`` make the trees.
    """
    S, starts = level.shards, level.starts
    own = [tasks.call(density_columns, scores[s], level.nodes[s]) for s in range(S)]
    away = halo.tables(tasks, own)
    limit = log_odds(inference.seed_probability) * STEP
    links = [
        tasks.call(_sure_links, scores[s], graph[s], halo.local[s], own[s], away[s], limit, starts[s]) for s in range(S)
    ]
    pointers = find_roots(tasks, links, starts)
    pointers_away = halo.tables(tasks, pointers)
    seeds = [tasks.call(make_labels, pointers[s], pointers_away[s]) for s in range(S)]
    count = sum(tasks.get([tasks.call(_count_roots, pointers[s], starts[s]) for s in range(S)]))
    found = tasks.get([tasks.call(_histograms, scores[s], halo.local[s]) for s in range(S)])
    edges_Q, best_Q = np.sum(found, axis=0)
    linked = share_above(best_Q, 0.0) if share_above(best_Q, 1.0) >= inference.least_sure else 0.0
    return ScoredGraph(starts, halo.local, scores, seeds, count, edges_Q, linked)


def _sure_links(
    scores: Block, graph: Block, local_NK: np.ndarray, own: Block, away: list[Block], limit: float, start: int
) -> Block:
    """Each node's parent: of its neighbours that are denser and more probable than the limit the most probable one."""
    at_neighbours = neighbour_columns(own, away, local_NK)
    rank_N = decode_links(
        -scores["step_NK"].astype(np.float32),
        graph["nbr_NK"],
        own["density_N"],
        own["id_N"],
        at_neighbours("density_N"),
        at_neighbours("id_N"),
        -limit,
        "default",
    )
    return {"parent_N": parent_positions(rank_N, graph["nbr_NK"], start)}


def _count_roots(pointers: Block, start: int) -> int:
    return int(np.count_nonzero(pointers["pointer_N"] == start + np.arange(len(pointers["pointer_N"]))))


def _histograms(scores: Block, local_NK: np.ndarray) -> np.ndarray:
    """Of all edges, and of each row's most probable one: int64 (2, Q)."""
    real_NK = local_NK >= 0
    step_NK = scores["step_NK"]
    best_N = np.where(real_NK, step_NK, np.iinfo(np.int16).min).max(1, initial=np.iinfo(np.int16).min)
    return np.stack([histogram(step_NK[real_NK]), histogram(best_N[real_NK.any(1)])])
