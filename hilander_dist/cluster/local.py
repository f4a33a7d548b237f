"""Rows or a graph clustered in this process, by the code of the jobs on one shard: for validation, benchmarks and tests."""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from hilander_dist.cluster.hierarchy.levels import Nodes
from hilander_dist.cluster.partition.level_choice import choose_level
from hilander_dist.cluster.partition.log_odds import quantise
from hilander_dist.cluster.relational import cluster_rows, whitened_rows
from hilander_dist.cluster.scoring.halo import plan_halo
from hilander_dist.cluster.sharded.labels import own_labels
from hilander_dist.cluster.sharded.path import labels_by_level, merge_path
from hilander_dist.cluster.sharded.seeds import scored_graph
from hilander_dist.evaluate import contingency, scores
from hilander_dist.exchange import concat_blocks
from hilander_dist.knn.graph import GraphOptions
from hilander_dist.knn.layout import Level
from hilander_dist.lander.inference import Inference
from hilander_dist.lander.relational import RelationalLander
from hilander_dist.local_tasks import LocalTasks, held, put
from hilander_dist.tasks import Block


class LocalPath(NamedTuple):
    """The path of a graph."""

    label_LN: np.ndarray
    """int64, the cluster of each node at each level."""
    chosen: int
    """The level that is the answer."""


class LocalHierarchy(NamedTuple):
    """The written levels of some rows."""

    label_LN: np.ndarray
    """int64, the cluster of each row at each level."""
    chosen: int
    """The level that is the answer."""
    tree: Block | None
    """The dendrogram above it, see ``hierarchy.linkage``."""
    numbers: dict[str, Any]
    """As in a run's manifest."""


def cluster_points(x_ND: np.ndarray, model: RelationalLander, seed: int = 0) -> LocalHierarchy:
    """Cluster unit rows, float32, as `hilander cluster` does."""
    tasks, (N, D) = LocalTasks(), x_ND.shape
    search = GraphOptions(model.inference.k, 0.98, seed)
    nodes = Nodes(held([{"id_N": np.arange(N), "x_ND": x_ND}]), N, D, N)
    parts, _ = whitened_rows(tasks, None, nodes, model, put(model), 1, search)
    found = cluster_rows(tasks, None, replace(nodes, parts=parts), 1, search, model, put(model), N)
    label_LN = np.empty((len(found.levels), N), dtype=np.int64)
    for at, level in enumerate(found.levels):
        members = concat_blocks(tasks.get(level.members))
        rank_C = members["label_N"][np.argsort(members["at_N"])]
        label_LN[at] = rank_C[label_LN[at - 1]] if at else rank_C
    tree = tasks.get(found.tree) if found.tree is not None else None
    return LocalHierarchy(label_LN, found.chosen, tree, found.numbers)


def cluster_graph(nbr_NK: np.ndarray, logit_NK: np.ndarray, density_N: np.ndarray, inference: Inference) -> LocalPath:
    """The level path of a graph, and the answer.

    Args:
        nbr_NK: neighbours, -1 pads.
        logit_NK: log-odds of the edges.
        density_N: float32, of the nodes.
        inference: of the checkpoint.
    """
    tasks, N = LocalTasks(), len(nbr_NK)
    level = Level(N, (0, N), [put({"id_N": np.arange(N)})], None, None)
    graph = [put({"nbr_NK": nbr_NK.astype(np.int64)})]
    halo = plan_halo(tasks, level, graph)
    scored = [put({"step_NK": quantise(logit_NK), "density_N": density_N})]
    seeded = scored_graph(tasks, level, graph, halo, scored, inference)
    path = merge_path(tasks, None, seeded, inference, "graph")
    labels = [tasks.get(refs)[0] for refs in labels_by_level(tasks, seeded, path)]
    return LocalPath(
        np.stack([own_labels(block, N) for block in labels]),
        choose_level(path.levels, seeded.linked, inference).level,
    )


def f_scores(label_N: np.ndarray, class_N: np.ndarray) -> tuple[float, float]:
    """Pairwise and BCubed F; 0 where there is no pair."""
    found = scores(contingency(label_N, class_N))
    return (float(np.nan_to_num(found.pairwise.f)), float(np.nan_to_num(found.bcubed.f)))
