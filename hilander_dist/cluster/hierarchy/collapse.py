"""Each tree becomes a supernode of the next level (algorithm.md 1.2, 1.9).

The supernode lives where its peak lives and takes the peak's row; its member sums arrive as one partial sum per shard and
tree. Labels are dense, 0 .. P-1 by ascending id of the peak: peaks are counted per range of ids, and an exclusive scan
over the ranges gives each range its first label.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hilander_dist.cluster.hierarchy.features import check_members, member_sums
from hilander_dist.exchange import Starts, as_list, even_starts, fetch_rows, look_up, partition_rows, shuffle, unpack
from hilander_dist.knn.layout import Level
from hilander_dist.tasks import Block, Ref, Tasks


@dataclass(frozen=True)
class Collapsed:
    """What a level collapsed into."""

    peaks: list[Ref]
    """Per shard a block of its peaks in canonical order: id_N, x_ND, sum_ND, count_N, rank_N (their label),
    position_N, and class_N of labelled input."""
    labels: list[Ref]
    """Per shard a block of label_N int64: the label of each node's tree."""
    n: int
    """Number of peaks P: nodes of the next level."""


def collapse(tasks: Tasks, level: Level, pointers: Sequence[Ref], id_stop: int, prefix: str) -> Collapsed:
    """Merge each tree into its peak.

    Args:
        tasks: where to run.
        level: the nodes.
        pointers: per shard a block with pointer_N int64: the position of each node's root.
        id_stop: ids are below this.
        prefix: where the level's blocks are saved.
    """
    S, starts = level.shards, level.starts
    partial = [tasks.call(_send_sums, level.nodes[s], pointers[s], starts, returns=S) for s in range(S)]
    merged = [
        tasks.call(merge_peaks, level.nodes[s], pointers[s], starts[s], inbox)
        for s, inbox in enumerate(shuffle(partial, S))
    ]
    ranked = rank_peaks(tasks, merged, id_stop)
    peaks = [tasks.call(add_rank, merged[s], ranked[s], save=f"{prefix}/peaks-{s:05d}.safetensors") for s in range(S)]
    tables = [tasks.call(_label_table, peaks[s], starts[s], starts[s + 1]) for s in range(S)]
    keys = [tasks.call(_root_keys, pointer) for pointer in pointers]
    needs, answers = fetch_rows(tasks, keys, tables, starts, _serve_labels)
    labels = [
        tasks.call(_label_nodes, keys[s], needs[s], answers[s], save=f"{prefix}/labels-{s:05d}.safetensors")
        for s in range(S)
    ]
    tasks.wait([*peaks, *labels], f"{prefix} collapse")
    n = sum(tasks.get([tasks.call(_count_rows, block) for block in peaks]))
    return Collapsed(peaks, labels, n)


def rank_peaks(tasks: Tasks, merged: Sequence[Ref], id_stop: int) -> list[list[Ref]]:
    """Rank all peaks by id. Per shard: the ranks of its peaks, cut by range of ids, ascending in id within a range."""
    ranges = even_starts(id_stop, len(merged))
    R = len(ranges) - 1
    sent = [tasks.call(_send_ids, block, ranges, returns=R) for block in merged]
    counted = [tasks.call(_count_ids, inbox) for inbox in shuffle(sent, R)]
    first = tasks.call(_scan, counted)
    ranked = [
        as_list(tasks.call(rank_ids, inbox, first, r, returns=len(merged)), len(merged))
        for r, inbox in enumerate(shuffle(sent, R))
    ]
    return [[ranked[r][s] for r in range(R)] for s in range(len(merged))]


def rank_ids(inbox: list[Block], first_R: np.ndarray, r: int) -> Any:
    """Ranks of the ids of one range, per sender in the order of its ids."""
    every = np.sort(np.concatenate([block["id_N"] for block in inbox]))
    return unpack([first_R[r] + np.searchsorted(every, block["id_N"]) for block in inbox])


def merge_peaks(nodes: Block, pointers: Block, start: int, inbox: list[Block]) -> Block:
    """A shard's peaks with the sums of all their members.

    Args:
        nodes: the shard's block.
        pointers: pointer_N int64, positions of roots.
        start: position of the shard's first node.
        inbox: per sender a block of root_N (positions in this shard), sum_ND and count_N.

    Raises:
        ClusterError: a cluster has more than MAX_MEMBERS samples.
    """
    position_P = np.flatnonzero(pointers["pointer_N"] == start + np.arange(len(pointers["pointer_N"])))
    peaks: Block = {name: nodes[name][position_P] for name in ("id_N", "x_ND", "class_N") if name in nodes}
    peaks["position_N"] = start + position_P
    sum_PD = np.zeros(peaks["x_ND"].shape, dtype=np.int64)
    count_P = np.zeros(len(position_P), dtype=np.int64)
    for block in inbox:
        # A sender names a root once, so plain indexing adds every row.
        at = np.searchsorted(peaks["position_N"], block["root_N"])
        sum_PD[at] += block["sum_ND"]
        count_P[at] += block["count_N"]
    check_members(count_P, peaks["id_N"])
    return {**peaks, "sum_ND": sum_PD, "count_N": count_P}


def _send_sums(nodes: Block, pointers: Block, starts: Starts) -> Any:
    root_G, group_N = np.unique(pointers["pointer_N"], return_inverse=True)
    sum_GD, count_G = member_sums(nodes, group_N.astype(np.int64), len(root_G))
    return partition_rows({"root_N": root_G, "sum_ND": sum_GD, "count_N": count_G}, root_G, starts)


def _send_ids(merged: Block, ranges: Starts) -> Any:
    id_N = np.sort(merged["id_N"])
    return partition_rows({"id_N": id_N}, id_N, ranges)


def _count_ids(inbox: list[Block]) -> int:
    return sum(len(block["id_N"]) for block in inbox)


def _scan(counts: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.asarray(counts, dtype=np.int64))])[:-1]


def add_rank(merged: Block, ranked: list[np.ndarray]) -> Block:
    """The clusters of a shard with rank_N; ``ranked`` as of ``rank_peaks``."""
    rank_N = np.empty(len(merged["id_N"]), dtype=np.int64)
    rank_N[np.argsort(merged["id_N"])] = np.concatenate(ranked)
    return {**merged, "rank_N": rank_N}


def _label_table(peaks: Block, start: int, stop: int) -> Block:
    label_N = np.full(stop - start, -1, dtype=np.int64)
    label_N[peaks["position_N"] - start] = peaks["rank_N"]
    return {"label_N": label_N}


def _root_keys(pointers: Block) -> np.ndarray:
    return pointers["pointer_N"]


def _serve_labels(table: Block, rows: np.ndarray) -> np.ndarray:
    return np.asarray(table["label_N"][rows])


def _label_nodes(keys: np.ndarray, needs: list[np.ndarray], answers: list[np.ndarray]) -> Block:
    return {"label_N": look_up(keys, needs, answers)}


def _count_rows(block: Block) -> int:
    return len(block["id_N"])
