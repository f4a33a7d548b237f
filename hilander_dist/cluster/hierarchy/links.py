"""Which node links to which: by LANDER's scores, or by the labels when a training hierarchy is built.

Relational scores have their own way to links (``cluster.relational``).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

from hilander_dist.cluster.hierarchy.decode import Compat, decode_links, parent_positions
from hilander_dist.cluster.scoring.halo import make_table, plan_halo
from hilander_dist.cluster.scoring.raw import score_level
from hilander_dist.knn.layout import Level
from hilander_dist.lander.model import Lander
from hilander_dist.tasks import Block, Ref, Tasks


class Links(NamedTuple):
    """What was chosen for a level."""

    blocks: list[Ref]
    """Per shard a block of parent_N int64 (positions; a peak is its own parent), density_N float32 and confidence_N
    float32 (the probability of the link, NaN for a peak)."""
    numbers: dict[str, Any]
    """For the manifest."""


class Linker(Protocol):
    """Chooses every node's parent from a level's graph."""

    def __call__(self, tasks: Tasks, level: Level, graph: list[Ref], prefix: str) -> Links:
        """The links of a level."""


def link_by_model(model: Lander, model_ref: Ref, tau: float, compat: Compat) -> Linker:
    """Link by the predicted densities and probabilities (algorithm.md 1.8).

    Args:
        model: the network.
        model_ref: the network in the object store.
        tau: an edge needs a probability above this.
        compat: which nodes count as denser, see ``decode_links``.
    """

    def link(tasks: Tasks, level: Level, graph: list[Ref], prefix: str) -> Links:
        halo = plan_halo(tasks, level, graph)
        scores = score_level(tasks, model, model_ref, level, graph, halo, prefix)
        own = [tasks.call(density_columns, scores[s], level.nodes[s]) for s in range(level.shards)]
        away = halo.tables(tasks, own)
        links = [
            tasks.call(
                decode_shard, scores[s], graph[s], halo.local[s], own[s], away[s], 1 - tau, compat, level.starts[s]
            )
            for s in range(level.shards)
        ]
        return Links(links, {})

    return link


def link_nothing(tasks: Tasks, level: Level, graph: list[Ref], prefix: str) -> Links:
    """Every node is a peak: what the reference does where a level has no more than k nodes."""
    del graph, prefix
    return Links([tasks.call(_no_links, level.starts[s], level.starts[s + 1]) for s in range(level.shards)], {})


def neighbour_columns(columns: Block, halo: list[Block], local_NK: np.ndarray) -> Callable[[str], np.ndarray]:
    """A function from a column's name to its values at the neighbours [N, K]; what stands at pads means nothing."""
    table = make_table(columns, halo)
    return lambda name: table[name][np.maximum(local_NK, 0)]


def density_columns(scores: Block, nodes: Block) -> Block:
    """What the neighbours need of a node to be compared with it."""
    return {"density_N": scores["density_N"], "id_N": nodes["id_N"]}


def decode_shard(
    scores: Block,
    graph: Block,
    local_NK: np.ndarray,
    own: Block,
    away: list[Block],
    limit: float,
    compat: Compat,
    start: int,
) -> Block:
    """A shard's links by ``decode_links``, see ``Links``."""
    at_neighbours = neighbour_columns(own, away, local_NK)
    rank_N = decode_links(
        scores["p0_NK"],
        graph["nbr_NK"],
        own["density_N"],
        own["id_N"],
        at_neighbours("density_N"),
        at_neighbours("id_N"),
        limit,
        compat,
    )
    p1_N = np.take_along_axis(scores["p1_NK"], np.maximum(rank_N, 0)[:, None], axis=1)[:, 0]
    return {
        "parent_N": parent_positions(rank_N, graph["nbr_NK"], start),
        "density_N": own["density_N"],
        "confidence_N": np.where(rank_N < 0, np.float32(np.nan), p1_N),
    }


def _no_links(start: int, stop: int) -> Block:
    n = stop - start
    return {
        "parent_N": np.arange(start, stop),
        "density_N": np.zeros(n, dtype=np.float32),
        "confidence_N": np.full(n, np.nan, dtype=np.float32),
    }
