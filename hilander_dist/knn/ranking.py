"""The K best rows of each query so far, ranked in one order whatever came first.

M queries, K neighbours kept, D dimensions. Similarities are those of `exact_sim`, the order is (similarity desc, id asc), so
what is kept does not depend on the order in which rows are offered.
"""

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]
Rows = NDArray[np.float32] | NDArray[np.float16]
"""Unit rows as they are kept."""


class Candidates(NamedTuple):
    """The K best rows found so far for each of M queries: a heap, worst first.

    Free places have similarity 0, position -1 and id -1.
    """

    sim_MK: Float32
    position_MK: Int64
    id_MK: Int64


def empty_candidates(n_queries: int, n_neighbours: int) -> Candidates:
    """Return the candidates of `n_queries` queries (M) before any search, `n_neighbours` places each (K >= 1)."""
    shape = (n_queries, n_neighbours)
    return Candidates(np.zeros(shape, np.float32), np.full(shape, -1, np.int64), np.full(shape, -1, np.int64))


def finish(candidates: Candidates) -> tuple[Int64, Float32]:
    """Return the neighbours of each query by (similarity desc, id asc).

    Returns:
        `nbr_MK` int64 positions, -1 where there is no further neighbour, and `sim_MK` float32, 0 there.
    """
    sim_MK, position_MK = candidates.sim_MK.copy(), candidates.position_MK.copy()
    _sort_heaps(sim_MK, position_MK, candidates.id_MK.copy())
    return position_MK, sim_MK


def rounding_bound(dim: int) -> float:
    """Return how far the float32 inner product of two rows of norm <= 1.0005 can be from `exact_sim`.

    Whatever the order of the sum, and fused or not, D products err by at most D u / (1 - D u) times the product of the
    norms (u = 2**-24; Cauchy-Schwarz); rounding to float16 lengthens a row by at most 2**-11. Rounding `exact_sim` and
    the threshold of the scan to float32, and underflow, add less than 4 u.
    """
    unit = 2.0**-24
    return 1.0011 * dim * unit / (1 - dim * unit) + 4 * unit


@njit(cache=True, nogil=True)
def exact_sim(a_D: Float32, b_D: Float32) -> np.float32:
    """Return the similarity of two float32 rows: products and their sum over ascending d in float64, then float32."""
    total = 0.0
    for d in range(a_D.shape[0]):
        total += np.float64(a_D[d]) * np.float64(b_D[d])
    return np.float32(total)


@njit(cache=True, nogil=True)
def exact_sims(a_D: Float32, b_RD: Float32) -> Float32:
    """Return `exact_sim` of one row with each of R."""
    sim_R = np.empty(b_RD.shape[0], np.float32)
    for r in range(b_RD.shape[0]):
        sim_R[r] = exact_sim(a_D, b_RD[r])
    return sim_R


# "contract" fuses product and sum. That changes no bit: the float64 product of two float32 is exact.
@njit(cache=True, nogil=True, fastmath={"contract"})
def rank_exactly(
    q_D: Float32,
    tile_TD: Float32,
    tile_id_T: Int64,
    start: int,
    row_S: Int64,
    n: int,
    sim_K: Float32,
    position_K: Int64,
    id_K: Int64,
) -> None:
    """Score the first n buffered rows exactly; each that beats the worst neighbour of the query takes its place.

    Eight rows at a time: independent sums hide the latency of the additions. Each is in ascending d, as in `exact_sim`.
    """
    D = q_D.shape[0]
    sim_8 = np.empty(8, np.float32)
    for first in range(0, n, 8):
        last = n - 1
        r0, r1, r2, r3 = (
            row_S[first],
            row_S[min(first + 1, last)],
            row_S[min(first + 2, last)],
            row_S[min(first + 3, last)],
        )
        r4, r5, r6, r7 = (
            row_S[min(first + 4, last)],
            row_S[min(first + 5, last)],
            row_S[min(first + 6, last)],
            row_S[min(first + 7, last)],
        )
        s0, s1, s2, s3, s4, s5, s6, s7 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        for d in range(D):
            q = np.float64(q_D[d])
            s0 += q * np.float64(tile_TD[r0, d])
            s1 += q * np.float64(tile_TD[r1, d])
            s2 += q * np.float64(tile_TD[r2, d])
            s3 += q * np.float64(tile_TD[r3, d])
            s4 += q * np.float64(tile_TD[r4, d])
            s5 += q * np.float64(tile_TD[r5, d])
            s6 += q * np.float64(tile_TD[r6, d])
            s7 += q * np.float64(tile_TD[r7, d])
        sim_8[0], sim_8[1], sim_8[2], sim_8[3] = s0, s1, s2, s3
        sim_8[4], sim_8[5], sim_8[6], sim_8[7] = s4, s5, s6, s7
        for j in range(first, min(first + 8, n)):
            row = row_S[j]
            _offer(sim_8[j - first], start + row, tile_id_T[row], sim_K, position_K, id_K)


@njit(cache=True, nogil=True)
def _offer(sim: np.float32, position: int, id_: int, sim_K: Float32, position_K: Int64, id_K: Int64) -> None:
    """Put a row in the place of the worst neighbour (index 0 of the heap) if it is better by (sim desc, id asc)."""
    if sim > sim_K[0] or (sim == sim_K[0] and id_ < id_K[0]):
        _replace_worst(sim, position, id_, sim_K, position_K, id_K)


@njit(cache=True, nogil=True)
def _sort_heaps(sim_MK: Float32, position_MK: Int64, id_MK: Int64) -> None:
    """Sort each heap, best first."""
    M, K = sim_MK.shape
    for m in range(M):
        for last in range(K - 1, 0, -1):
            sim, position, id_ = sim_MK[m, 0], position_MK[m, 0], id_MK[m, 0]
            _replace_worst(
                sim_MK[m, last],
                position_MK[m, last],
                id_MK[m, last],
                sim_MK[m, :last],
                position_MK[m, :last],
                id_MK[m, :last],
            )
            sim_MK[m, last], position_MK[m, last], id_MK[m, last] = sim, position, id_


@njit(cache=True, nogil=True)
def _replace_worst(sim: np.float32, position: int, id_: int, sim_K: Float32, position_K: Int64, id_K: Int64) -> None:
    """Replace the worst of a heap, at index 0, and restore its order."""
    K = sim_K.shape[0]
    place = 0
    while True:
        child = 2 * place + 1
        if child >= K:
            break
        other = child + 1
        if other < K and (sim_K[other] < sim_K[child] or (sim_K[other] == sim_K[child] and id_K[other] > id_K[child])):
            child = other
        if sim_K[child] > sim or (sim_K[child] == sim and id_K[child] < id_):
            break
        sim_K[place], position_K[place], id_K[place] = sim_K[child], position_K[child], id_K[child]
        place = child
    sim_K[place], position_K[place], id_K[place] = sim, position, id_
