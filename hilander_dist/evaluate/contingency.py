"""Contingency counts: all that the metrics need to know about a clustering (algorithm.md 2.7).

The counts of two disjoint sets of items add up, so they can be taken file by file and reduced in any order.
Names: N items, E non-empty (cluster, label) pairs.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]


class Contingency(NamedTuple):
    """How many items of each label are in each cluster: one entry per non-empty pair, ordered by (cluster, label)."""

    cluster_E: Int64
    label_E: Int64
    count_E: Int64


def contingency(cluster_N: Int64, label_N: Int64) -> Contingency:
    """Count the items of every (cluster, label) pair.

    Args:
        cluster_N: int64, any cluster ids.
        label_N: int64, any label codes; items without a label must have been left out.
    """
    assert cluster_N.shape == label_N.shape
    return _sum_by_pair(cluster_N, label_N, np.ones(len(cluster_N), np.int64))


def merge(parts: Iterable[Contingency]) -> Contingency:
    """Add up the counts of disjoint sets of items; the result does not depend on how the items were divided."""
    empty = Contingency(*(np.empty(0, np.int64) for _ in range(3)))
    return _sum_by_pair(*(np.concatenate(columns) for columns in zip(empty, *parts, strict=True)))


def _sum_by_pair(cluster: Int64, label: Int64, count: Int64) -> Contingency:
    order = np.lexsort((label, cluster))
    cluster, label, count = cluster[order], label[order], count[order]
    is_first = np.ones(len(order), bool)
    is_first[1:] = (cluster[1:] != cluster[:-1]) | (label[1:] != label[:-1])
    first = np.flatnonzero(is_first)
    return Contingency(cluster[first], label[first], np.add.reduceat(count, first) if len(first) else count)
