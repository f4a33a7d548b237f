"""The default method, on one page: a relational network scores every edge of one k-NN graph, and clusters merge level by level.

1. The k-NN graph of all rows (``knn``).
2. LANDER scores each edge, the log-odds that both ends belong together, and each row's density (``scoring.relational``).
3. Seeds: every row links to its most probable denser neighbour above .95; trees of links are the first clusters (``sharded.seeds``).
4. The path: a shift is added to all log-odds and rises from level to level. At each, clusters merge by the map equation on the sums of
   the edges between them (``sharded.path``).
5. The answer is the level at which rows have as many companions as their scores say (``partition.level_choice``).
6. Above the path, clusters are joined by average linkage of their means, up to one root (``hierarchy.linkage``).

Levels are nested: each merges whole clusters of the one below. No byte depends on the number of shards.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from hilander_dist.cluster.doubts import doubts
from hilander_dist.cluster.hierarchy.levels import Hierarchy, LevelOutput, Nodes
from hilander_dist.cluster.hierarchy.linkage import link_means
from hilander_dist.cluster.hierarchy.nested import group_level, next_nodes
from hilander_dist.cluster.memory import bytes_per_row
from hilander_dist.cluster.partition.edge_sums import companions
from hilander_dist.cluster.partition.level_choice import choose_level
from hilander_dist.cluster.partition.log_odds import mean_probability, probabilities
from hilander_dist.cluster.scoring.halo import plan_halo
from hilander_dist.cluster.scoring.relational import score_relations
from hilander_dist.cluster.sharded.labels import own_labels
from hilander_dist.cluster.sharded.path import Path, ScoredGraph, labels_at, merge_path
from hilander_dist.cluster.sharded.seeds import scored_graph
from hilander_dist.cluster.whitening import whiten
from hilander_dist.knn.graph import GraphOptions, GraphStats, knn_graph
from hilander_dist.knn.layout import Level
from hilander_dist.lander.inference import Inference
from hilander_dist.lander.relational import RelationalLander
from hilander_dist.monitor.log import logger
from hilander_dist.run import Run
from hilander_dist.tasks import Block, Loader, Ref, Tasks


def cluster_rows(
    tasks: Tasks,
    run: Run | None,
    nodes: Nodes,
    shards: int,
    search: GraphOptions,
    model: RelationalLander,
    model_ref: Ref,
    max_levels: int,
) -> Hierarchy:
    """Cluster rows into nested levels.

    Args:
        tasks: where to run.
        run: the run directory, for markers; None where nothing is resumed.
        nodes: the rows.
        shards: how many to cut them into.
        search: of the k-NN graph.
        model: the network, with its ``Inference``.
        model_ref: the same in the object store.
        max_levels: levels that are written at most.
    """
    prefix = "level-0"
    level, scored, found = score_rows(tasks, nodes, shards, search, model, model_ref, prefix)
    path = merge_path(tasks, run, scored, model.inference, prefix)
    choice = choose_level(path.levels, scored.linked, model.inference)
    kept = kept_levels([stats.clusters for stats in path.levels], nodes.n, choice.level, model.inference)
    levels, answer = _nest(tasks, level, scored, path, choice.level, kept, nodes)
    chosen = kept.index(choice.level)
    top, made = path.levels[-1].clusters, len(kept)
    clusters = path.levels[choice.level].clusters
    linked = link_means(tasks, answer, levels[chosen + 1 :], clusters, top, nodes.dim, made, max(max_levels - made, 0))
    warnings = doubts(path.levels, choice, nodes.n, found.mean_probability, found.mean_similarity, model.inference)
    if linked is None:
        warnings.append(f"no levels above the path, no tree: {top} clusters are too many to join by their means")
    for warning in warnings:
        logger.warning(warning)
    numbers = {
        "graph": found.graph.as_dict(),
        "mean_probability": round(found.mean_probability, 6),
        "path": [stats._asdict() for stats in path.levels],
        "chosen_shift": path.levels[choice.level].shift,
        "chosen_because": choice.reason,
        "warnings": warnings,
    }
    every = levels + (linked.levels if linked else [])
    last = max(max_levels, chosen + 1)
    return Hierarchy(every[:last], chosen, linked and linked.tree, numbers)


def whitened_rows(
    tasks: Tasks,
    run: Run | None,
    nodes: Nodes,
    model: RelationalLander,
    model_ref: Ref,
    shards: int,
    search: GraphOptions,
) -> tuple[list[Loader], dict[str, Any] | None]:
    """The rows as they are, or whitened by the clusters that steps 1 to 5 find, with numbers of that."""
    if not model.inference.whiten:
        return nodes.parts, None

    def cluster(tasks: Tasks, nodes: Nodes, shards: int, search: GraphOptions, prefix: str) -> tuple[Level, list[Ref]]:
        level, scored, _ = score_rows(tasks, nodes, shards, search, model, model_ref, prefix)
        path = merge_path(tasks, run, scored, model.inference, prefix)
        chosen = choose_level(path.levels, scored.linked, model.inference).level
        labels = labels_at(tasks, scored, path, chosen)
        return level, [tasks.call(_label_column, labels[s], scored.local[s]) for s in range(level.shards)]

    return whiten(tasks, run, nodes, shards, search, bytes_per_row(nodes.dim, search.k, model), cluster)


def _label_column(labels: Block, local_NK: np.ndarray) -> Block:
    return {"label_N": own_labels(labels, len(local_NK))}


@dataclass(frozen=True)
class Scored:
    """What the scores of a level say as a whole."""

    graph: GraphStats
    mean_probability: float
    mean_similarity: float
    """Of neighbours."""


def score_rows(
    tasks: Tasks,
    nodes: Nodes,
    shards: int,
    search: GraphOptions,
    model: RelationalLander,
    model_ref: Ref,
    prefix: str,
) -> tuple[Level, ScoredGraph, Scored]:
    """The k-NN graph of rows, scored, with seeds: steps 1 to 3; arguments as of ``cluster_rows``."""
    level, graph, stats = knn_graph(tasks, nodes.parts, nodes.n, nodes.dim, shards, search, prefix)
    halo = plan_halo(tasks, level, graph)
    scores = score_relations(tasks, model, model_ref, level, graph, halo, search.k, prefix)
    scored = scored_graph(tasks, level, graph, halo, scores, model.inference)
    sums = np.sum(tasks.get([tasks.call(_similarity, block) for block in graph]), axis=0)
    similarity = float(sums[0]) / 2**20 / float(sums[1]) if sums[1] else 0.0
    return level, scored, Scored(stats, mean_probability(scored.edges_Q), similarity)


def kept_levels(clusters: list[int], rows: int, chosen: int, inference: Inference) -> list[int]:
    """Which levels of the path are written: those with clearly fewer clusters than the one below, the answer, and the last one."""
    kept: list[int] = []
    below = rows
    for at, count in enumerate(clusters):
        if count <= inference.kept_share * below or at == chosen:
            kept.append(at)
            below = count
    last = len(clusters) - 1
    if clusters[last] < below:
        kept.append(last)
    return kept


def _nest(
    tasks: Tasks, level: Level, graph: ScoredGraph, path: Path, chosen: int, kept: list[int], rows: Nodes
) -> tuple[list[LevelOutput], list[Ref]]:
    """The written levels of the path, and the clusters of the answer."""
    S = level.shards
    chance_Q = probabilities(path.levels[chosen].shift)
    answer_labels = labels_at(tasks, graph, path, chosen)
    surety = [tasks.call(_surety, answer_labels[s], graph.local[s], graph.scores[s], chance_Q) for s in range(S)]
    labels = labels_at(tasks, graph, path, kept[0])
    nodes = [tasks.call(_rows, level.nodes[s], labels[s], graph.scores[s], surety[s]) for s in range(S)]
    vectors: list[Ref] | None = level.nodes
    levels: list[LevelOutput] = []
    answer: list[Ref] = []
    for place, at in enumerate(kept):
        stats = path.levels[at]
        numbers = {"shift": stats.shift, "clusters": stats.clusters}
        output, clusters = group_level(tasks, nodes, vectors, stats.clusters, level.n, rows.id_stop, numbers)
        tasks.wait(clusters, f"level {place}")
        levels.append(output)
        vectors = None
        if at == chosen:
            answer = clusters
        if place + 1 < len(kept):
            nodes = next_nodes(tasks, clusters, path.moves[at + 1 : kept[place + 1] + 1], graph.starts)
    return levels, answer


def _surety(labels: Block, local_NK: np.ndarray, scores: Block, chance_Q: np.ndarray) -> Block:
    confidence_N, margin_N = companions(labels["at_T"], len(labels["label_U"]), local_NK, scores["step_NK"], chance_Q)
    return {"confidence_N": confidence_N, "margin_N": margin_N}


def _rows(nodes: Block, labels: Block, scores: Block, surety: Block) -> Block:
    id_N = nodes["id_N"]
    columns = {"id_N": id_N, "at_N": id_N, "density_N": scores["density_N"]}
    return {**columns, **surety, "key_N": own_labels(labels, len(id_N))}


def _similarity(graph: Block) -> np.ndarray:
    """Sum of the similarities in units of 2**-20, and the number of edges: int64 (2)."""
    real_NK = graph["nbr_NK"] >= 0
    return np.array([np.rint(graph["sim_NK"][real_NK] * 2.0**20).astype(np.int64).sum(), np.count_nonzero(real_NK)])
