"""The level loop: graph, links, roots, collapse, and again on the supernodes (algorithm.md 1.9, 1.10).

A finished level leaves a marker with its numbers. A run that is started again loads the levels that have one and goes on
in the first that has none, where every shard's block that was saved is loaded and the rest is computed.
"""

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from hilander_dist.cluster.hierarchy.collapse import collapse
from hilander_dist.cluster.hierarchy.decode import Compat
from hilander_dist.cluster.hierarchy.features import FIXED_POINT
from hilander_dist.cluster.hierarchy.links import Linker, link_nothing
from hilander_dist.cluster.hierarchy.roots import find_roots
from hilander_dist.cluster.memory import task_bytes
from hilander_dist.exchange import Starts
from hilander_dist.knn.graph import GraphOptions, knn_graph
from hilander_dist.monitor.log import logger
from hilander_dist.run import Run
from hilander_dist.storage import Storage
from hilander_dist.tasks import Block, Loader, Ref, Tasks

ROWS_WORTH_A_SHARD = 16_384
"""Higher levels are not cut finer, unless level 0 is: tasks would take less time than to start them. Nor are they cut in
proportion to level 0 alone: of 1M nodes in 16 shards a level of 32,000 remains, in one shard 8 s of one core."""


@dataclass(frozen=True)
class LevelOptions:
    """What the loop needs to know; fields as in ``config.Config``."""

    k: int
    max_levels: int
    early_stop: bool
    compat: Compat
    target_recall: float
    seed: int
    shards: int
    """Shards of level 0; higher levels have fewer, see ROWS_WORTH_A_SHARD."""
    device: str = "cpu"
    quantizer: Storage | None = None
    """Of an earlier run, for level 0."""
    row_bytes: int = 0
    """Memory that a task takes for each row of its shard, see ``cluster.memory``."""


@dataclass(frozen=True)
class Nodes:
    """The nodes of a level before they are laid out."""

    parts: list[Loader]
    """Blocks of id_N and x_ND, above level 0 also sum_ND, count_N and rank_N, in source order."""
    n: int
    dim: int
    id_stop: int
    """Ids are below this."""


@dataclass(frozen=True)
class LevelOutput:
    """What a level leaves behind."""

    starts: Starts
    clusters: int
    """Number of trees."""
    members: list[Ref]
    """Per shard a block of the nodes: id_N, at_N (the node's label one level below; its id at the bottom), label_N (its
    tree's label), at the bottom density_N, confidence_N, and of a relational model margin_N."""
    trees: list[Ref]
    """Per shard a block of the trees: rank_N (label), id_N of the peak, count_N of samples, cohesion_N, and where means were
    joined similarity_N."""
    numbers: dict[str, Any]
    """For the manifest; ``shift`` of a level of the path."""


@dataclass(frozen=True)
class Hierarchy:
    """What a run found."""

    levels: list[LevelOutput]
    """Bottom first."""
    chosen: int
    """The level that is the answer, among ``levels``."""
    tree: Ref | None
    """The dendrogram above it (``hierarchy.linkage``); None where there is none."""
    numbers: dict[str, Any]
    """For the manifest."""


def run_levels(
    tasks: Tasks, run: Run, nodes: Nodes, options: LevelOptions, link: Linker, prefix: str = ""
) -> list[LevelOutput]:
    """Cluster level by level until a stop rule holds.

    Args:
        tasks: where to run.
        run: the run directory, for the markers.
        nodes: the nodes of level 0.
        options: of the loop.
        link: chooses the parents.
        prefix: goes before the names of blocks and markers.

    Returns:
        Each level that added an edge, and level 0 in any case.
    """
    reference = options.compat == "reference"
    outputs: list[LevelOutput] = []
    edges_before = math.inf
    n0 = nodes.n
    for index in range(options.max_levels):
        flat = reference and nodes.n <= options.k
        if index > 0 and (nodes.n == 1 or flat):
            break
        name = f"{prefix}level-{index}"
        numbers = run.marker(name)
        if numbers is None:
            shards = max(-(-options.shards * nodes.n // n0), min(options.shards, -(-nodes.n // ROWS_WORTH_A_SHARD)))
            quantizer = options.quantizer if index == 0 else None
            search = GraphOptions(
                options.k, 1.0 if reference else options.target_recall, options.seed, options.device, quantizer
            )
            asking = tasks.asking(task_bytes(-(-nodes.n // shards), options.row_bytes))
            output = _run_level(asking, nodes, search, shards, link_nothing if flat else link, name)
            run.mark(name, output.numbers)
        else:
            output = _load_level(tasks, numbers, name)
        logger.info("level done", stage=name, **{key: output.numbers[key] for key in ("nodes", "edges", "clusters")})
        edges = nodes.n - output.clusters
        if edges or index == 0:
            outputs.append(output)
        if edges == 0 or (options.early_stop and edges_before / edges < options.k - 1):
            break
        edges_before = edges
        peaks = [tasks.loader(_path(name, "peaks", s)) for s in range(len(output.starts) - 1)]
        nodes = Nodes(peaks, output.clusters, nodes.dim, nodes.id_stop)
    return outputs


def _run_level(tasks: Tasks, nodes: Nodes, search: GraphOptions, shards: int, link: Linker, name: str) -> LevelOutput:
    began = time.monotonic()
    level, graph, stats = knn_graph(tasks, nodes.parts, nodes.n, nodes.dim, shards, search, name)
    links = link(tasks, level, graph, name)
    pointers = find_roots(tasks, links.blocks, level.starts)
    collapsed = collapse(tasks, level, pointers, nodes.id_stop, name)
    numbers = {
        "nodes": nodes.n,
        "edges": nodes.n - collapsed.n,
        "clusters": collapsed.n,
        "starts": list(level.starts),
        "graph": stats.as_dict(),
        **links.numbers,
        "seconds": round(time.monotonic() - began, 3),
    }
    members = [
        tasks.call(_members, level.nodes[s], links.blocks[s], collapsed.labels[s], save=_path(name, "members", s))
        for s in range(level.shards)
    ]
    trees = [tasks.call(_trees, peaks, save=_path(name, "trees", s)) for s, peaks in enumerate(collapsed.peaks)]
    tasks.wait([*members, *trees], f"{name} outputs")
    return LevelOutput(level.starts, collapsed.n, members, trees, numbers)


def _load_level(tasks: Tasks, numbers: dict[str, Any], name: str) -> LevelOutput:
    starts = tuple(numbers["starts"])
    members, trees = (
        [tasks.load(_path(name, kind, s)) for s in range(len(starts) - 1)] for kind in ("members", "trees")
    )
    return LevelOutput(starts, numbers["clusters"], members, trees, numbers)


def _path(name: str, kind: str, shard: int) -> str:
    return f"{name}/{kind}-{shard:05d}.safetensors"


def _members(nodes: Block, links: Block, labels: Block) -> Block:
    return {
        "id_N": nodes["id_N"],
        "at_N": nodes.get("rank_N", nodes["id_N"]),
        "label_N": labels["label_N"],
        "density_N": links["density_N"],
        "confidence_N": links["confidence_N"],
    }


def _trees(peaks: Block) -> Block:
    """A tree's cohesion is the length of its members' mean: 1 where all are equal, 1 / sqrt(size) where all are orthogonal."""
    mean_ND = peaks["sum_ND"] / (peaks["count_N"][:, None] * FIXED_POINT)
    return {
        "rank_N": peaks["rank_N"],
        "id_N": peaks["id_N"],
        "count_N": peaks["count_N"],
        "cohesion_N": np.sqrt(np.einsum("nd,nd->n", mean_ND, mean_ND)).astype(np.float32),
    }
