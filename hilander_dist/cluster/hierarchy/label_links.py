"""A training hierarchy: the level loop with links chosen by the labels (algorithm.md 2.1, 2.2).

Each level leaves, per shard, the arrays that meta-training reads (``training.level_graphs``).
"""

import numpy as np

from hilander_dist.cluster.hierarchy.decode import decode_links, parent_positions
from hilander_dist.cluster.hierarchy.features import cluster_means
from hilander_dist.cluster.hierarchy.links import Linker, Links, neighbour_columns
from hilander_dist.cluster.scoring.halo import plan_halo
from hilander_dist.knn.layout import Level
from hilander_dist.tasks import Block, Ref, Tasks
from hilander_dist.training.level_graphs import ground_truth_density


def link_by_labels(merge_across_labels: bool) -> Linker:
    """Link each node to its most similar neighbour of higher ground-truth density.

    Args:
        merge_across_labels: also to one of another class, as the reference does; else never.
    """

    def link(tasks: Tasks, level: Level, graph: list[Ref], prefix: str) -> Links:
        S = level.shards
        halo = plan_halo(tasks, level, graph)
        classes = [tasks.call(_class_columns, nodes) for nodes in level.nodes]
        away = halo.tables(tasks, classes)
        density = [tasks.call(_density, classes[s], away[s], halo.local[s], graph[s]) for s in range(S)]
        density_away = halo.tables(tasks, density)
        linked = [
            tasks.call(
                _link_shard,
                classes[s],
                density[s],
                away[s],
                density_away[s],
                halo.local[s],
                graph[s],
                merge_across_labels,
                level.starts[s],
            )
            for s in range(S)
        ]
        saved = [
            tasks.call(_training_block, level.nodes[s], graph[s], density[s], save=training_path(prefix, s))
            for s in range(S)
        ]
        tasks.wait(saved, f"{prefix} training graph")
        return Links(linked, {})

    return link


def training_path(prefix: str, shard: int) -> str:
    """Where a shard of a level's training graph is saved, in the run's work area."""
    return f"{prefix}/train-{shard:05d}.safetensors"


def _class_columns(nodes: Block) -> Block:
    return {"class_N": nodes["class_N"], "id_N": nodes["id_N"]}


def _density(classes: Block, away: list[Block], local_NK: np.ndarray, graph: Block) -> Block:
    nbr_class_NK = neighbour_columns(classes, away, local_NK)("class_N")
    return {"density_N": ground_truth_density(graph["nbr_NK"], graph["sim_NK"], classes["class_N"], nbr_class_NK)}


def _link_shard(
    classes: Block,
    density: Block,
    away: list[Block],
    density_away: list[Block],
    local_NK: np.ndarray,
    graph: Block,
    merge_across_labels: bool,
    start: int,
) -> Block:
    at_neighbours = neighbour_columns(classes, away, local_NK)
    nbr_NK = graph["nbr_NK"]
    if not merge_across_labels:
        nbr_NK = np.where(at_neighbours("class_N") == classes["class_N"][:, None], nbr_NK, -1)
    rank_N = decode_links(
        -graph["sim_NK"],
        nbr_NK,
        density["density_N"],
        classes["id_N"],
        neighbour_columns(density, density_away, local_NK)("density_N"),
        at_neighbours("id_N"),
        limit=0.0,
        compat="default",
    )
    return {
        "parent_N": parent_positions(rank_N, graph["nbr_NK"], start),
        "density_N": density["density_N"],
        "confidence_N": np.where(rank_N < 0, np.float32(np.nan), np.float32(1)),
    }


def _training_block(nodes: Block, graph: Block, density: Block) -> Block:
    return {
        "x_ND": nodes["x_ND"].astype(np.float32, copy=False),
        "c_ND": cluster_means(nodes),
        "nbr_NK": graph["nbr_NK"],
        "sim_NK": graph["sim_NK"],
        "label_N": nodes["class_N"],
        "gt_density_N": density["density_N"],
    }
