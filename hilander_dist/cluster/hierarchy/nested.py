"""From the labels of some levels to nested clusters: who is in which, their peaks, sizes and sums.

Clusters of a level live in ranges of their labels, fewer ranges the fewer clusters there are. A cluster's peak is the densest of its
members, its rank, 0 .. C-1, its place among the clusters of its level by the row of its peak.

Shapes: N nodes, C clusters, D dimensions.
"""

from typing import Any

import numpy as np

from hilander_dist.cluster.hierarchy.collapse import add_rank, rank_peaks
from hilander_dist.cluster.hierarchy.decode import densest_of_groups
from hilander_dist.cluster.hierarchy.features import FIXED_POINT, check_members, member_sums
from hilander_dist.cluster.hierarchy.levels import LevelOutput
from hilander_dist.cluster.sharded.labels import Moves, relabel
from hilander_dist.exchange import Starts, concat_blocks, even_starts, fetch_rows, look_up, partition_rows, shuffle
from hilander_dist.tasks import Block, Ref, Tasks

CLUSTERS_PER_RANGE = 65_536
"""Of 256 dimensions their sums are 134 MB."""


def group_level(
    tasks: Tasks,
    nodes: list[Ref],
    vectors: list[Ref] | None,
    clusters: int,
    positions: int,
    id_stop: int,
    numbers: dict[str, Any],
) -> tuple[LevelOutput, list[Ref]]:
    """Put the nodes of a level into its clusters.

    Args:
        tasks: where to run.
        nodes: blocks of key_N int64 (the label of each node's cluster), at_N (the node's rank one level below; its row at the
            bottom), id_N (row of its peak), density_N, and above the bottom sum_ND and count_N; of rows also confidence_N and
            margin_N.
        vectors: blocks with x_ND of the rows, at the bottom.
        clusters: number of them.
        positions: labels are below this.
        id_stop: rows are below this.
        numbers: of the level, for the manifest.

    Returns:
        The level, and its clusters as the nodes of the next one, without key_N: label_N is what becomes of it.
    """
    starts = even_starts(positions, -(-clusters // CLUSTERS_PER_RANGE))
    R = len(starts) - 1
    rows = vectors or [None] * len(nodes)
    sent = [tasks.call(_send_groups, block, rows[s], starts, returns=R) for s, block in enumerate(nodes)]
    owned = [tasks.call(_own_groups, inbox) for inbox in shuffle(sent, R)]
    ranked = rank_peaks(tasks, owned, id_stop)
    owned = [tasks.call(add_rank, block, ranks) for block, ranks in zip(owned, ranked, strict=True)]
    tables = [tasks.call(_rank_table, block, starts[r]) for r, block in enumerate(owned)]
    needs, answers = fetch_rows(tasks, [tasks.call(_keys, block) for block in nodes], tables, starts, _serve_rank)
    members = [tasks.call(_members, block, needs[s], answers[s]) for s, block in enumerate(nodes)]
    trees = [tasks.call(describe, block) for block in owned]
    return LevelOutput(starts, clusters, members, trees, numbers), owned


def next_nodes(tasks: Tasks, clusters: list[Ref], moves: list[Moves], starts: Starts) -> list[Ref]:
    """Clusters of ``group_level`` as the nodes of the level that these moves lead to."""
    labels = [tasks.call(_as_labels, block) for block in clusters]
    labels = relabel(tasks, labels, moves, starts)
    return [tasks.call(_as_nodes, block, label) for block, label in zip(clusters, labels, strict=True)]


def describe(clusters: Block) -> Block:
    """rank_N, id_N of the peak, count_N and cohesion_N, the length of the members' mean: 1 where all are equal, 1 / sqrt(size)
    where all are orthogonal."""
    mean_ND = clusters["sum_ND"] / (clusters["count_N"][:, None] * FIXED_POINT)
    cohesion_N = np.sqrt(np.einsum("nd,nd->n", mean_ND, mean_ND)).astype(np.float32)
    return {**{name: clusters[name] for name in ("rank_N", "id_N", "count_N")}, "cohesion_N": cohesion_N}


def densest(group_N: np.ndarray, density_N: np.ndarray, id_N: np.ndarray) -> np.ndarray:
    """The node of each group that is its densest, of equally dense ones that of the smallest id; groups ascend from 0."""
    nodes = {"group_R": group_N, "density_R": density_N, "id_R": id_N, "position_R": np.arange(len(group_N))}
    return densest_of_groups(nodes)["position_R"]


def _send_groups(nodes: Block, rows: Block | None, starts: Starts) -> Any:
    if rows is not None:
        nodes = {**nodes, "x_ND": rows["x_ND"]}
    label_G, group_N = np.unique(nodes["key_N"], return_inverse=True)
    return partition_rows(_grouped(nodes, label_G, group_N), label_G, starts)


def _own_groups(inbox: list[Block]) -> Block:
    every = concat_blocks(inbox)
    label_G, group_N = np.unique(every["label_N"], return_inverse=True)
    groups = _grouped(every, label_G, group_N)
    check_members(groups["count_N"], groups["id_N"])
    return groups


def _grouped(nodes: Block, label_G: np.ndarray, group_N: np.ndarray) -> Block:
    sum_GD, count_G = member_sums(nodes, group_N, len(label_G))
    peak_G = densest(group_N, nodes["density_N"], nodes["id_N"])
    peaks = {name: nodes[name][peak_G] for name in ("id_N", "density_N")}
    return {"label_N": label_G, "sum_ND": sum_GD, "count_N": count_G, **peaks}


def _rank_table(clusters: Block, start: int) -> Block:
    return {"place_N": clusters["label_N"] - start, "rank_N": clusters["rank_N"]}


def _serve_rank(table: Block, places: np.ndarray) -> np.ndarray:
    return np.asarray(table["rank_N"][np.searchsorted(table["place_N"], places)])


def _keys(nodes: Block) -> np.ndarray:
    return nodes["key_N"]


def _members(nodes: Block, needs: list[np.ndarray], answers: list[np.ndarray]) -> Block:
    names = ("id_N", "at_N", "density_N", "confidence_N", "margin_N")
    return {
        **{name: nodes[name] for name in names if name in nodes},
        "label_N": look_up(nodes["key_N"], needs, answers),
    }


def _as_labels(clusters: Block) -> Block:
    return {"label_U": clusters["label_N"], "at_T": np.arange(len(clusters["label_N"]), dtype=np.int32)}


def _as_nodes(clusters: Block, labels: Block) -> Block:
    kept = {name: clusters[name] for name in ("id_N", "density_N", "sum_ND", "count_N")}
    return {**kept, "at_N": clusters["rank_N"], "key_N": labels["label_U"][labels["at_T"]]}
