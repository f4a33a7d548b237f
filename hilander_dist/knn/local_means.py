"""How similar the surroundings of both ends of an edge are: the cosine of their local means. Pure functions on arrays.

A node's local mean is that of itself and its nearest neighbours, so noise of single samples averages out: their cosine ranks
same-class edges higher than the similarity of both ends does (LOG 2026-11-25, local-means).

Shapes: N nodes, D dimensions, K neighbours of a node, T rows of a table of vectors, its first N the nodes' own.
"""

import numba
import numpy as np

COSINE_ONE = 2.0**14
"""Fixed-point cosine of 1 in int16: sums over edges are exact, and a cosine takes two bytes."""


def local_means(table_TD: np.ndarray, local_NK: np.ndarray, depth: int) -> np.ndarray:
    """Direction of the mean of each node and its nearest neighbours, float32 unit rows (N, D); 0 where they cancel.

    Args:
        table_TD: float32 vectors.
        local_NK: int64 rows of the table for each neighbour, nearest first, -1 pads.
        depth: how many are averaged, the node itself included.
    """
    mean_ND = np.empty((len(local_NK), table_TD.shape[1]), dtype=np.float32)
    _average(table_TD, local_NK[:, : depth - 1], mean_ND)
    return mean_ND


def edge_cosines(table_TD: np.ndarray, local_NK: np.ndarray) -> np.ndarray:
    """Cosine of both ends' unit rows for each edge, int16 in units of 2**-14 (N, K); 0 at pads. Arguments as above."""
    cos_NK = np.zeros(local_NK.shape, dtype=np.int16)
    _multiply(table_TD, local_NK, cos_NK)
    return cos_NK


@numba.njit(cache=True)
def _average(table_TD, local_NK, mean_ND):  # type: ignore[no-untyped-def]
    N, K = local_NK.shape
    D = table_TD.shape[1]
    for n in range(N):
        mean_ND[n] = table_TD[n]
        for a in range(K):
            row = local_NK[n, a]
            if row >= 0:
                for d in range(D):
                    mean_ND[n, d] += table_TD[row, d]
        square = 0.0
        for d in range(D):
            square += np.float64(mean_ND[n, d]) ** 2
        scale = np.float32(1 / np.sqrt(square) if square > 0 else 0.0)
        for d in range(D):
            mean_ND[n, d] *= scale


# Sums of products in whatever order fits the vector units, the same for every edge: 4 to 8 times faster than one by one.
@numba.njit(cache=True, fastmath={"reassoc", "contract", "nsz"})
def _multiply(table_TD, local_NK, cos_NK):  # type: ignore[no-untyped-def]
    N, K = local_NK.shape
    D = table_TD.shape[1]
    for n in range(N):
        for a in range(K):
            row = local_NK[n, a]
            if row >= 0:
                total = np.float32(0)
                for d in range(D):
                    total += table_TD[n, d] * table_TD[row, d]
                cos_NK[n, a] = np.int16(np.rint(total * np.float32(COSINE_ONE)))
