"""LANDER on relational inputs over the shards of a level (``lander.relational``).

What travels: once the vectors, and for each depth the local means; once the neighbour lists, with which the overlaps are
counted, and the mean similarity of each node; then, once a round, its state of ``hidden`` numbers. Edge inputs are made anew
in each round from the graph, the counts (one byte a depth and edge) and the cosines (two). The statistics of the level are
int64 sums over shards. Rows are worked on in full chunks, as in ``cluster.scoring.raw``.

Shapes: N nodes of a shard, K neighbours, T rows of a shard's table, Q depths of lists, M of means, W width, F edge inputs.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hilander_dist.cluster.partition.log_odds import quantise
from hilander_dist.cluster.scoring.halo import Halo, in_chunks, make_table, to_tensor
from hilander_dist.knn.layout import Level
from hilander_dist.knn.local_means import edge_cosines, local_means
from hilander_dist.knn.neighbour_overlap import count_shared
from hilander_dist.lander.relational import (
    EdgeStats,
    RelationalLander,
    edge_density,
    edge_inputs,
    list_depths,
    mean_depths,
    mean_similarity,
    merge_moments,
    moments,
)
from hilander_dist.tasks import Block, Ref, Tasks

_NODES_AT_ONCE = 64
"""64 nodes of 79 edges and 71 numbers are 1.4 MB, which stay in the cache."""


def score_relations(
    tasks: Tasks,
    model: RelationalLander,
    model_ref: Ref,
    level: Level,
    graph: list[Ref],
    halo: Halo,
    k: int,
    prefix: str,
) -> list[Ref]:
    """Run the network over a level.

    Returns:
        Per shard a block of step_NK int16, the log-odds of the edges (``partition.log_odds``; 0 at pads), and density_N float32.
    """
    S = level.shards
    paths = [f"{prefix}/scores-{s:05d}.safetensors" for s in range(S)]
    if tasks.saved.issuperset(paths):
        return [tasks.load(path) for path in paths]
    edges = _relate(tasks, level, graph, halo, k, prefix)
    stats = merge_moments(tasks.get([tasks.call(_moments, graph[s], edges[s]) for s in range(S)]))
    states: list[Ref] = []
    away: list[list[Ref]] = [[] for _ in range(S)]
    for layer in range(model.num_conv):
        states = [
            tasks.call(
                _next_states,
                model_ref,
                layer,
                k,
                stats,
                graph[s],
                edges[s],
                halo.local[s],
                states[s] if layer else None,
                away[s],
                save=f"{prefix}/states-{layer}-{s:05d}.safetensors",
            )
            for s in range(S)
        ]
        away = halo.tables(tasks, states)
    scores = [
        tasks.call(_score, model_ref, k, stats, graph[s], edges[s], halo.local[s], states[s], away[s], save=paths[s])
        for s in range(S)
    ]
    del states, away, edges
    tasks.wait(scores, f"{prefix} forward")
    return scores


def _relate(tasks: Tasks, level: Level, graph: list[Ref], halo: Halo, k: int, prefix: str) -> list[Ref]:
    """Per shard what no round changes of its edges, see ``_edge_columns``."""
    S = level.shards
    paths = [f"{prefix}/relations-{s:05d}.safetensors" for s in range(S)]
    if tasks.saved.issuperset(paths):
        return [tasks.load(path) for path in paths]
    cosines: list[list[Ref]] = [[] for _ in range(S)]
    for depth in mean_depths(k):
        # Vectors of other shards are sent anew for each depth, and means are made one depth at a time: else the store would hold five
        # times the vectors.
        away = halo.tables(tasks, level.nodes, _serve_vectors)
        means = [tasks.call(_means, level.nodes[s], away[s], halo.local[s], depth) for s in range(S)]
        tasks.wait(means, f"{prefix} local means")
        del away
        away = halo.tables(tasks, means)
        found = [tasks.call(_cosines, means[s], away[s], halo.local[s]) for s in range(S)]
        del means, away
        tasks.wait(found, f"{prefix} local means")
        for s in range(S):
            cosines[s].append(found[s])
    lists = [tasks.call(_lists, block) for block in graph]
    lists_away = halo.tables(tasks, lists)
    return [
        tasks.call(_edge_columns, lists[s], lists_away[s], halo.local[s], level.starts[s], k, cosines[s], save=paths[s])
        for s in range(S)
    ]


def _serve_vectors(nodes: Block, rows: np.ndarray) -> Block:
    return {"x_ND": nodes["x_ND"][rows].astype(np.float32, copy=False)}


def _means(nodes: Block, away: list[Block], local_NK: np.ndarray, depth: int) -> Block:
    own = {"x_ND": nodes["x_ND"].astype(np.float32, copy=False)}
    return {"x_ND": local_means(make_table(own, away)["x_ND"], local_NK, depth)}


def _cosines(means: Block, away: list[Block], local_NK: np.ndarray) -> np.ndarray:
    return edge_cosines(make_table(means, away)["x_ND"], local_NK)


def _moments(graph: Block, edges: Block) -> np.ndarray:
    return moments(graph["nbr_NK"], graph["sim_NK"], edges["cos_NKM"])


def _lists(graph: Block) -> Block:
    return {"nbr_NK": graph["nbr_NK"], "mean_N": mean_similarity(graph["sim_NK"], graph["nbr_NK"])}


def _edge_columns(
    lists: Block, away: list[Block], local_NK: np.ndarray, start: int, k: int, cosines: list[np.ndarray]
) -> Block:
    """What no round changes of a shard's edges: shared neighbours, cosines of local means, the neighbours' mean
    similarity."""
    table = make_table(lists, away)
    position_N = start + np.arange(len(local_NK))
    return {
        "shared_NKQ": count_shared(lists["nbr_NK"], position_N, table["nbr_NK"], local_NK, list_depths(k)),
        "cos_NKM": np.stack(cosines, 2),
        "nbr_mean_NK": table["mean_N"][np.maximum(local_NK, 0)],
        "mean_N": lists["mean_N"],
    }


def _inputs(
    k: int, stats: EdgeStats, nbr: Tensor, sim: Tensor, shared: Tensor, cos: Tensor, mean: Tensor, nbr_mean: Tensor
) -> Tensor:
    return edge_inputs(sim, shared, cos, mean, nbr_mean, nbr >= 0, k, stats)


def _edge_arrays(graph: Block, edges: Block, local_NK: np.ndarray) -> list[np.ndarray]:
    columns = [edges[name] for name in ("shared_NKQ", "cos_NKM", "mean_N", "nbr_mean_NK")]
    return [local_NK, graph["sim_NK"], *columns]


def _next_states(
    model: RelationalLander,
    layer: int,
    k: int,
    stats: EdgeStats,
    graph: Block,
    edges: Block,
    local_NK: np.ndarray,
    states: Block | None,
    away: list[Block],
) -> Block:
    table, own = _state_table(model, states, away, len(local_NK))

    def step(own_BW: Tensor, nbr_BK: Tensor, *rest: Tensor) -> Tensor:
        return model.node_state(layer, _inputs(k, stats, nbr_BK, *rest), table, own_BW, nbr_BK)

    (state_NW,) = in_chunks(_by_pieces(step), own, *_edge_arrays(graph, edges, local_NK))
    return {"state_NW": state_NW}


def _score(
    model: RelationalLander,
    k: int,
    stats: EdgeStats,
    graph: Block,
    edges: Block,
    local_NK: np.ndarray,
    states: Block,
    away: list[Block],
) -> Block:
    table, own = _state_table(model, states, away, len(local_NK))

    def step(own_BW: Tensor, nbr_BK: Tensor, sim_BK: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        logit_BK = model.edge_logits(_inputs(k, stats, nbr_BK, sim_BK, *rest), table, own_BW, nbr_BK)
        return logit_BK, edge_density(logit_BK.sigmoid(), sim_BK, nbr_BK)

    logit_NK, density_N = in_chunks(_by_pieces(step), own, *_edge_arrays(graph, edges, local_NK))
    return {"step_NK": quantise(logit_NK), "density_N": density_N}


def _state_table(
    model: RelationalLander, states: Block | None, away: list[Block], rows: int
) -> tuple[Tensor, np.ndarray]:
    """The states of a shard's table, and its own rows of them; before the first round nothing, in the right shapes."""
    if states is None:
        return torch.zeros((1, model.config.hidden)), np.zeros((rows, model.config.hidden), dtype=np.float32)
    return to_tensor(make_table(states, away)["state_NW"]), states["state_NW"]


def _by_pieces(step: Any) -> Any:
    """The step on a few nodes of a chunk at a time."""

    def all_pieces(*columns: Tensor) -> tuple[Tensor, ...]:
        results = [
            step(*piece) for piece in zip(*(torch.split(column, _NODES_AT_ONCE) for column in columns), strict=True)
        ]
        if isinstance(results[0], Tensor):
            return (torch.cat(results),)
        return tuple(torch.cat(parts) for parts in zip(*results, strict=True))

    return all_pieces
