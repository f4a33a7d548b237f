"""The k-nearest-neighbour search of queries over one part of the data: pure functions, exact within the probed cells.

M queries, R rows of the part, C cells, P probes a query, K neighbours kept, D dimensions. Notable:

- The matrix product only *filters*. A row whose approximate similarity lies further below the K-th best than float32
  rounding can explain is dropped; every other row is scored again in the fixed order of `exact_sim` before it is
  ranked. So the bits of the product (which change with the tile, the grouping of the queries and the cut into parts)
  never reach the result, and one pass is exact: there is nothing to certify or to search again.
- The K best so far are a heap under the total order (similarity desc, id asc), so any order of rows and parts ends in
  the same K neighbours.
- Queries that probe the same cell share one product. Each query's own cell goes first: it sets a K-th similarity that
  filters nearly everything the other cells hold.
- Memory beyond arguments and result: a tile of scores, one of gathered queries (1.25 MiB at D = 256), O(M P) integers.
"""

from collections.abc import Iterator

import numpy as np
from numba import njit
from numpy.typing import NDArray

from hilander_dist.knn.near_duplicates import offered_rows
from hilander_dist.knn.ranking import Candidates, Float32, Int64, Rows, exact_sim, rank_exactly, rounding_bound

# One tile of scores (1 MiB of float32) stays in the L2 cache between the product and the scan; a cell of the usual size is one
# tile wide. With fewer queries the product is slower.
TILE_QUERIES = 512
TILE_ROWS = 512
# The scan counts the scores that reach the threshold in runs of this length, with vector instructions, and takes whole
# runs into its buffer of 2 K + BUFFER_ROWS, without branches. Half and twice of both measure the same.
SCAN_RUN = 32
BUFFER_ROWS = 128


def search_part(
    queries_MD: Rows,
    query_id_M: Int64,
    probe_MP: NDArray[np.int32],
    part_RD: Rows,
    part_id_R: Int64,
    part_start: int,
    cell_start_C1: Int64,
    candidates: Candidates,
    crowd_CD: Float32 | None = None,
) -> None:
    """Improve `candidates`, in place, by those rows of a part that lie in cells the query probes (algorithm.md 1.3, 4).

    After all parts, in any order, each query holds exactly the K best rows of its probed cells by (similarity desc,
    id asc), its own id excluded, similarity > 0 only. The result does not depend on how the rows are cut into parts or
    the queries grouped into calls.

    Args:
        queries_MD: float32 unit rows, or float16 ones. No zero rows: each would be scored against every row it probes, at full cost.
        query_id_M: int64 ids of the queries; rows with the same id are skipped.
        probe_MP: int32 cells that each query probes, without repeats, nearest first (the order matters for speed only).
        part_RD: float32 or float16 unit rows, C-contiguous: positions `part_start` to `part_start` + R - 1 of the canonical order.
        part_id_R: int64 ids of the rows, >= 0.
        part_start: position of the part's first row.
        cell_start_C1: int64, first position of each cell, then N; a cell may straddle parts.
        candidates: those of `queries_MD`, from `empty_candidates` or from earlier parts.
        crowd_CD: centroids, to leave out most of a crowd of near-duplicates (see CROWD_LIMIT); None offers every row.
    """
    # The own cell first, for a high K-th similarity; the other ranks together, as larger groups make faster products.
    for ranks in (slice(0, 1), slice(1, None)):
        for cell, query_G in by_cell(probe_MP[:, ranks], part_start, len(part_RD), cell_start_C1):
            for run in offered_rows(cell, part_RD, part_start, cell_start_C1, crowd_CD):
                start = part_start + run.start
                search_rows(queries_MD, query_id_M, query_G, part_RD[run], part_id_R[run], start, candidates)


def search_rows(
    queries_MD: Rows,
    query_id_M: Int64,
    query_G: Int64,
    rows_RD: Rows,
    row_id_R: Int64,
    start: int,
    candidates: Candidates,
) -> None:
    """Improve `candidates` (in place) of the queries numbered `query_G` by all `rows_RD`.

    `start` is the position of the first row; else as `search_part`.
    """
    K = candidates.sim_MK.shape[1]
    bound = rounding_bound(rows_RD.shape[1])
    score = np.empty(TILE_QUERIES * TILE_ROWS, np.float32)
    for group in tile_slices(len(query_G), TILE_QUERIES):
        query_Q = query_G[group]
        q_QD = _wide(queries_MD[query_Q])
        for tile in tile_slices(len(rows_RD), TILE_ROWS):
            tile_TD = _wide(rows_RD[tile])
            score_QT = score[: len(q_QD) * len(tile_TD)].reshape(len(q_QD), len(tile_TD))
            np.dot(q_QD, tile_TD.T, out=score_QT)
            scan_tile(
                score_QT,
                q_QD,
                query_Q,
                query_id_M,
                tile_TD,
                row_id_R[tile],
                start + tile.start,
                bound,
                2 * K + BUFFER_ROWS,
                *candidates,
            )


def count_near(
    queries_MD: Rows,
    query_id_M: Int64,
    probe_MP: NDArray[np.int32],
    part_RD: Rows,
    part_id_R: Int64,
    part_start: int,
    cell_start_C1: Int64,
    crowd_CD: Float32 | None,
    threshold_M: Float32,
) -> Int64:
    """Count, for each query and each cell that it probes, the part's rows with an exact similarity >= `threshold_M`.

    Arguments as of `search_part`; the query's own id does not count. Returns int64 [M, P].
    """
    near_MP = np.zeros(probe_MP.shape, np.int64)
    bound = rounding_bound(part_RD.shape[1])
    for rank in range(probe_MP.shape[1]):
        for cell, query_G in by_cell(probe_MP[:, rank : rank + 1], part_start, len(part_RD), cell_start_C1):
            q_GD = _wide(queries_MD[query_G])
            for run in offered_rows(cell, part_RD, part_start, cell_start_C1, crowd_CD):
                for tile in tile_slices(run.stop - run.start, TILE_ROWS):
                    rows = slice(run.start + tile.start, run.start + tile.stop)
                    tile_TD = _wide(part_RD[rows])
                    score_GT = q_GD @ tile_TD.T
                    near_MP[query_G, rank] += _count_tile(
                        score_GT, q_GD, query_id_M[query_G], tile_TD, part_id_R[rows], threshold_M[query_G], bound
                    )
    return near_MP


@njit(cache=True, nogil=True)
def _count_tile(
    score_QT: Float32,
    q_QD: Float32,
    query_id_Q: Int64,
    tile_TD: Float32,
    tile_id_T: Int64,
    threshold_Q: Float32,
    bound: float,
) -> Int64:
    """Count each query's rows at or above its threshold; only scores within rounding of it are computed exactly."""
    near_Q = np.zeros(score_QT.shape[0], np.int64)
    for i in range(score_QT.shape[0]):
        for t in range(score_QT.shape[1]):
            if score_QT[i, t] < threshold_Q[i] - bound or tile_id_T[t] == query_id_Q[i]:
                continue
            if score_QT[i, t] > threshold_Q[i] + bound or exact_sim(q_QD[i], tile_TD[t]) >= threshold_Q[i]:
                near_Q[i] += 1
    return near_Q


def _wide(x_ND: Rows) -> Float32:
    """The rows in float32: those kept in float16 are widened a tile at a time."""
    return x_ND.astype(np.float32, copy=False)


def tile_slices(n: int, size: int) -> Iterator[slice]:
    """Cut n rows into runs of `size`, the last one shorter."""
    return (slice(first, min(first + size, n)) for first in range(0, n, size))


def by_cell(
    probe_MP: NDArray[np.int32], part_start: int, n_rows: int, cell_start_C1: Int64
) -> Iterator[tuple[int, Int64]]:
    """Yield each cell that has rows in the part, with the ascending numbers of the queries that probe it."""
    first = int(np.searchsorted(cell_start_C1, part_start, "right")) - 1
    stop = int(np.searchsorted(cell_start_C1, part_start + n_rows, "left"))
    query_E, rank_E = np.nonzero((probe_MP >= first) & (probe_MP < stop))
    cell_E = probe_MP[query_E, rank_E]
    order_E = np.argsort(cell_E, kind="stable")
    cell_E, query_E = cell_E[order_E], query_E[order_E]
    bounds = np.flatnonzero(np.diff(cell_E, prepend=-1, append=stop))
    for lo, hi in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        cell = int(cell_E[lo])
        if cell_start_C1[cell] < cell_start_C1[cell + 1]:
            yield cell, query_E[lo:hi]


@njit(cache=True, nogil=True)
def scan_tile(
    score_QT: Float32,
    q_QD: Float32,
    query_Q: Int64,
    query_id_M: Int64,
    tile_TD: Float32,
    tile_id_T: Int64,
    start: int,
    bound: float,
    n_buffer: int,
    sim_MK: Float32,
    position_MK: Int64,
    id_MK: Int64,
) -> None:
    """Filter one tile of approximate similarities and rank what passes.

    A row can be among the K best only if its score reaches `threshold`, the larger of (K-th exact similarity - bound) and
    (K-th best score of the buffer - 2 bound): K rows have an exact similarity of at least that score - bound.
    """
    Q, T = score_QT.shape
    K = sim_MK.shape[1]
    score_S = np.empty(n_buffer, np.float32)
    row_S = np.empty(n_buffer, np.int64)
    spare_2S = np.empty((2, n_buffer), np.float32)
    for i in range(Q):
        m = query_Q[i]
        n = 0
        threshold = np.float32(sim_MK[m, 0] - bound)
        for first in range(0, T, SCAN_RUN):
            stop = min(first + SCAN_RUN, T)
            if _count_reaching(score_QT[i, first:stop], threshold) == 0:
                continue
            if n + SCAN_RUN > n_buffer:
                n, threshold = _thin_out(score_S, row_S, n, K, threshold, bound, spare_2S)
                if n + SCAN_RUN > n_buffer:  # Many ties: only exact similarities and ids can thin them out.
                    rank_exactly(q_QD[i], tile_TD, tile_id_T, start, row_S, n, sim_MK[m], position_MK[m], id_MK[m])
                    n = 0
                    threshold = np.float32(sim_MK[m, 0] - bound)
            for t in range(first, stop):
                score_S[n] = score_QT[i, t]
                row_S[n] = t
                n += (score_QT[i, t] >= threshold) & (tile_id_T[t] != query_id_M[m])
        if n > 0:
            n, threshold = _thin_out(score_S, row_S, n, K, threshold, bound, spare_2S)
            rank_exactly(q_QD[i], tile_TD, tile_id_T, start, row_S, n, sim_MK[m], position_MK[m], id_MK[m])


@njit(cache=True, nogil=True)
def _count_reaching(score_T: Float32, threshold: np.float32) -> int:
    """Count the scores that reach the threshold: without a branch, so that it compiles to vector instructions."""
    count = 0
    for t in range(score_T.shape[0]):
        count += score_T[t] >= threshold
    return count


@njit(cache=True, nogil=True)
def _thin_out(
    score_S: Float32, row_S: Int64, n: int, K: int, threshold: np.float32, bound: float, spare_2S: Float32
) -> tuple[int, np.float32]:
    """Raise the threshold by the K-th best of the first n buffered scores, drop what is below; return both anew."""
    if n > K:
        threshold = max(threshold, np.float32(_kth_largest(score_S, n, K, spare_2S) - 2 * bound))
    kept = 0
    for j in range(n):
        score_S[kept] = score_S[j]
        row_S[kept] = row_S[j]
        kept += score_S[j] >= threshold
    return kept, threshold


@njit(cache=True, nogil=True)
def _kth_largest(value_S: Float32, n: int, k: int, spare_2S: Float32) -> np.float32:
    """Return the k-th largest of the first n values (1 <= k <= n, none NaN) by quickselect, twice as fast as a heap.

    Each round writes every value to both sides and advances only the side it belongs to: no branch to mispredict.
    """
    higher, lower = spare_2S[0], spare_2S[1]
    now = value_S
    while True:
        a, b, c = now[0], now[n // 2], now[n - 1]
        pivot = max(min(a, b), min(max(a, b), c))
        n_higher = 0
        n_lower = 0
        for j in range(n):  # Writes where `now` has been read already: n_higher, n_lower <= j.
            value = now[j]
            higher[n_higher] = value
            lower[n_lower] = value
            n_higher += value > pivot
            n_lower += value < pivot
        if k <= n_higher:
            now, n = higher, n_higher
        elif k > n - n_lower:
            now, n, k = lower, n_lower, k - (n - n_lower)
        else:
            return np.float32(pivot)
