"""How much memory a job takes, from its numbers alone: what tasks ask Ray for, and what is refused before any work.

N rows of D dimensions in S shards, k neighbours, F inputs and G = hidden / 2 of the network (README, memory).
"""

import ray

from hilander_dist.config import Config
from hilander_dist.errors import ClusterError
from hilander_dist.lander.checkpoint import AnyLander
from hilander_dist.lander.model import Lander
from hilander_dist.monitor.log import logger
from hilander_dist.tasks import largest_memory
from hilander_dist.waiting import wait_for

PROCESS = 400 * 2**20
"""A worker's own: Python, numpy, torch, Ray and faiss, measured 250 to 350 MB."""


_PAIR_BYTES = 240


def bytes_per_row(dim: int, k: int, model: AnyLander | None) -> int:
    """What a task holds at most for each row of its shard, where the shard's halo is no larger than the shard.

    In the order of the stages: the search (own rows, gathered queries, candidates), the forward (the table of inputs with
    the halo, the features that it is made of, both projections), the collapse (int64 sums of each tree, and what is sent of
    them).

    Args:
        dim: number of dimensions D.
        k: neighbours, the node itself included.
        model: the network; None where there is no forward.
    """
    graph = 12 * (k - 1)
    search = 8 * dim + 4 * graph
    collapse = 24 * dim
    forward = 0
    if isinstance(model, Lander):
        features, half = (2 if model.config.uses_cluster_features else 1) * dim, model.config.hidden // 2
        messages = features if model.sends_inputs else model.config.heads * (model.config.hidden + 1)
        forward = 8 * dim + 8 * max(features, messages) + 8 * half + 2 * graph
    elif model is not None:
        # Local means: vectors with a halo, means. Scores: the graph, what is told of each edge, log-odds. Merges: neighbours and
        # log-odds, and where every edge leads to another cluster a sum for each, twice while it grows.
        forward = max(12 * dim + (k - 1) * (8 + 2), (k - 1) * (12 + 8 + 14 + 4 + 2), (k - 1) * (8 + 2 + 72))
    return max(search, forward, collapse)


def stored_bytes(rows: int, dim: int, k: int, model: AnyLander | None, config: Config) -> int:
    """What the object store of the whole cluster holds at most at once, spilled or not."""
    vectors = (4 if config.vectors == "float32" else 2) * dim
    projections = 2 * model.config.hidden if isinstance(model, Lander) else 0
    if model is not None and not isinstance(model, Lander):
        # Relations and scores; before, means and either of both that travel.
        projections = max(26 * (k - 1), 8 * dim + 6 * (k - 1))
    return rows * (vectors + max(vectors // 2, projections) + 72 + 24 * (k - 1))


def task_bytes(rows: int, row_bytes: int) -> int:
    """What a task of a shard of so many rows asks Ray for: concurrency is bounded by it as by CPUs."""
    return PROCESS + rows * row_bytes


def check_memory(rows: int, dim: int, shards: int, model: AnyLander | None, config: Config) -> None:
    """Refuse a job of which a single task does not fit any node, nor one that comes in time; say how much will be spilled.

    Raises:
        ClusterError: the largest node has less memory than a task needs; the message has both, and the remedy.
    """
    row_bytes = bytes_per_row(dim, config.k, model)
    shard_rows = -(-rows // shards)
    needed = task_bytes(shard_rows, row_bytes)
    wait_for({"CPU": 1, "memory": needed}, config.cluster.wait_s)
    offered = largest_memory()
    if needed > offered:
        remedy = f"use nodes with at least {gigabytes(needed)}"
        if offered > task_bytes(512, row_bytes):
            remedy += f", or --num-shards {-(-rows // ((offered - PROCESS) // row_bytes))}"
        raise ClusterError(
            f"not enough memory: a task on one of {shards} shards ({shard_rows} rows of {dim} dimensions) takes up to "
            f"{gigabytes(needed)}, the largest node of the Ray cluster offers {gigabytes(offered)}: {remedy}"
        )
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    store = int(sum(resources.get("object_store_memory", 0) for resources in nodes))
    stored = stored_bytes(rows, dim, config.k, model, config)
    if stored > store:
        logger.warning("object store too small: Ray spills to disk", needed=gigabytes(stored), store=gigabytes(store))


def merge_bytes(pairs: int) -> int:
    """What the task that merges clusters takes (``sharded.path``): up to 80 bytes a pair arrive, and are sorted."""
    return PROCESS + _PAIR_BYTES * pairs


def mergeable_pairs(memory: int) -> int:
    """How many pairs of clusters a task of so much memory merges; below 0 for none."""
    return (memory - PROCESS) // _PAIR_BYTES


def gigabytes(count: int) -> str:
    """The number of bytes as people write it."""
    return f"{count / 1e9:.1f} GB"
