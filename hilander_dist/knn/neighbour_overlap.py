"""How many neighbours both ends of each edge share, at several depths of their lists: a relation that transfers to
embeddings never seen (LOG 2026-11-25, local-means). Pure functions on arrays.

Shapes: N nodes, K neighbours of a node, T rows of a table of neighbour lists, Q depths.
"""

from collections.abc import Sequence

import numba
import numpy as np

MOST_NEIGHBOURS = 254
"""Counts are kept in one byte, and a list holds its own node besides."""

_SLOTS = 1024
"""Of the hash table of one list: four times the longest one, so that a probe meets few others."""


def count_shared(
    nbr_NK: np.ndarray, position_N: np.ndarray, list_TK: np.ndarray, local_NK: np.ndarray, depth_Q: Sequence[int]
) -> np.ndarray:
    """Count the common members of both ends' lists, each list being the node itself and its first neighbours.

    Args:
        nbr_NK: int64 positions of the neighbours, nearest first, -1 pads.
        position_N: int64 positions of the nodes.
        list_TK: neighbours as in ``nbr_NK``, of all nodes that are anyone's neighbour here.
        local_NK: int64 rows of ``list_TK`` for each neighbour, -1 pads.
        depth_Q: ascending lengths at which both lists are cut, the node itself included.

    Returns:
        ``shared_NKQ`` uint8; 0 at pads.
    """
    if nbr_NK.shape[1] > MOST_NEIGHBOURS:
        raise ValueError(f"{nbr_NK.shape[1]} neighbours, more than {MOST_NEIGHBOURS}")
    shared_NKQ = np.zeros((*nbr_NK.shape, len(depth_Q)), dtype=np.uint8)
    _count(nbr_NK, position_N, list_TK, local_NK, np.asarray(depth_Q, dtype=np.int64), shared_NKQ)
    return shared_NKQ


@numba.njit(cache=True)
def _count(nbr_NK, position_N, list_TK, local_NK, depth_Q, shared_NKQ):  # type: ignore[no-untyped-def]
    N, K = nbr_NK.shape
    Q = len(depth_Q)
    mask = _SLOTS - 1
    key = np.full(_SLOTS, -1, dtype=np.int64)
    rank = np.zeros(_SLOTS, dtype=np.int64)
    level = np.full(K + 2, Q, dtype=np.int64)  # Of a rank: the first depth that reaches it.
    for r in range(K + 1):
        for q in range(Q - 1, -1, -1):
            if r < depth_Q[q]:
                level[r] = q
    used = np.empty(K + 1, dtype=np.int64)
    found = np.zeros(Q + 1, dtype=np.int64)
    for n in range(N):
        filled = 0
        for a in range(-1, K):
            position = position_N[n] if a < 0 else nbr_NK[n, a]
            if position < 0:
                continue
            slot = (position * 0x9E3779B1 >> 7) & mask
            while key[slot] >= 0:
                slot = (slot + 1) & mask
            key[slot] = position
            rank[slot] = a + 1
            used[filled] = slot
            filled += 1
        for a in range(K):
            j = nbr_NK[n, a]
            if j < 0:
                continue
            found[:] = 0
            row = local_NK[n, a]
            for b in range(-1, K):
                position = j if b < 0 else list_TK[row, b]
                if position < 0:
                    continue
                slot = (position * 0x9E3779B1 >> 7) & mask
                while key[slot] >= 0 and key[slot] != position:
                    slot = (slot + 1) & mask
                if key[slot] == position:
                    found[level[max(rank[slot], b + 1)]] += 1
            total = 0
            for q in range(Q):
                total += found[q]
                shared_NKQ[n, a, q] = total
        for f in range(filled):
            key[used[f]] = -1
