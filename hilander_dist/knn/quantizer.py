"""The coarse quantizer: one partition of the whole set into cells, and the cells that each query probes.

S sample rows, N rows, M queries, C cells, G groups, P probes a query, D dimensions. Notable:

- Above some thousands of cells a comparison with all centroids costs more than the search itself. So cells belong to
  about sqrt(C) groups: a query's nearest groups lead to a cell nearly as near as any, and the cells around that one, listed
  beforehand, are compared exactly. That makes an assignment approximate, not undetermined: it is a function of the row
  and the quantizer, and recall is measured afterwards.
- Cells are numbered group by group, and so that consecutive ones lie close together. Shards are runs of cells, so most of
  what a shard's queries probe is in the same shard or near it.
- Comparisons are those of the search kernel: exact inner products, ties to the smaller cell. They depend on the row and
  the quantizer only, never on the other rows of the call.
"""

import math
from typing import Any, NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from hilander_dist.knn.kernel import search_part, search_rows
from hilander_dist.knn.near_duplicates import CROWD_SIM
from hilander_dist.knn.ranking import Candidates, Float32, Int64, finish

# Below this one flat cell, searched exactly, costs less than training and probing a partition.
FLAT_BELOW = 8192
# Cells of about a tile of rows cost the least CPU in all (LOG 2026-11-24, cells). Above so many cells the comparison with all
# of them costs as much as the search, and cells grow with the square root of n, up to MOST_ROWS_PER_CELL.
ROWS_PER_CELL = 500
CELLS_BEFORE_GROWTH = 1000
MOST_ROWS_PER_CELL = 1000
# Sample rows and iterations of k-means: about half of what is usual, which costs nothing in recall (LOG 2026-11-23, probing).
SAMPLE_PER_CELL = 32
# Training compares every sample row with every centroid of its group, ITERATIONS times: the ceiling bounds it.
MAX_SAMPLE = 262_144
ITERATIONS = 6
# Up to this many cells one group holds them all, in training and afterwards: a comparison with all takes no longer than the way
# through groups, which misses the own cell of some rows and so needs far more probes (LOG 2026-11-25, cell-groups).
CELLS_OF_ONE_GROUP = 4500
# Share of the groups looked at for each query, and how many at least and at most; and cells listed around each cell. With fewer
# groups neighbours are lost that no further probe finds, with more the assignment takes longer (LOG 2026-11-24, cells).
GROUPS_SHARE = 1 / 4
GROUPS_PROBED = (6, 32)
CELLS_AROUND = 128
# A cell with more than this many times the mean share of the sample is split.
OVERSIZED = 4
SPLIT_ROUNDS = 4


class Quantizer(NamedTuple):
    """A trained partition. Cells ``group_start_G1[g]`` to ``group_start_G1[g + 1] - 1`` belong to group g."""

    centroid_CD: Float32
    """Unit rows, all distinct."""
    group_GD: Float32
    """Unit rows."""
    group_start_G1: Int64
    around_CB: Int64
    """The cells nearest to each cell, itself included, ascending; no columns where there is one group."""

    @property
    def cells(self) -> int:
        """Number of cells."""
        return len(self.centroid_CD)

    def as_block(self) -> dict[str, NDArray[Any]]:
        """As named arrays, to be saved."""
        return self._asdict()


def quantizer_of_block(block: dict[str, NDArray[Any]]) -> Quantizer:
    """Return what `Quantizer.as_block` made a block of."""
    return Quantizer(**block)


def choose_nlist(n: int) -> int:
    """Return the number of cells for `n` rows: 1 (flat, exact) for few rows, else cells of about 500 to 1,000 rows."""
    if n < FLAT_BELOW:
        return 1
    grown = math.sqrt(CELLS_BEFORE_GROWTH * n / ROWS_PER_CELL)
    return round(max(min(n / ROWS_PER_CELL, grown), n / MOST_ROWS_PER_CELL))


def training_sample_size(nlist: int) -> int:
    """Return how many rows `train_quantizer` should be given for `nlist` cells."""
    return min(SAMPLE_PER_CELL * nlist, MAX_SAMPLE)


def flat_quantizer(dim: int) -> Quantizer:
    """Return the quantizer of one cell that holds everything."""
    one = np.zeros((1, dim), np.float32)
    return one_group(one)


def one_group(centroid_CD: Float32) -> Quantizer:
    """Return the quantizer of these cells in one group: every comparison is with all of them."""
    C, D = centroid_CD.shape
    return Quantizer(centroid_CD, np.zeros((1, D), np.float32), np.array([0, C]), np.empty((C, 0), np.int64))


def train_quantizer(sample_SD: Float32, nlist: int, seed: int, use_gpu: bool = False) -> Quantizer:
    """Return a quantizer of about `nlist` cells by spherical k-means on a sample (algorithm.md 4, kNN).

    The result depends on the set of distinct sample rows, which of them are crowds, `nlist` and `seed` only. It has fewer
    cells where the sample has fewer distinct rows or k-means leaves cells without a sample row, and more where oversized
    cells were split. A row of which the sample has as many copies as fill an oversized cell is a centroid.

    Args:
        sample_SD: float32 unit rows, S >= 1.
        nlist: cells wanted, >= 1.
        seed: of the first centroids.
        use_gpu: run k-means on all GPUs that faiss sees. Its centroids differ from the CPU's in the last bits.
    """
    distinct_SD, copies_S = np.unique(sample_SD, axis=0, return_counts=True)
    crowd_SD = distinct_SD[copies_S > OVERSIZED * max(SAMPLE_PER_CELL, len(sample_SD) / nlist)]
    # One thread: the sums of k-means, and so the cells, must not depend on the machine's cores.
    with threadpool_limits(1):
        if nlist <= CELLS_OF_ONE_GROUP:
            return one_group(_train_group(distinct_SD, crowd_SD, nlist, len(distinct_SD) / nlist, seed, use_gpu))
        sparse_SD = distinct_SD[:: max(1, len(distinct_SD) // 65_536)]
        group_GD = _kmeans(sparse_SD, round(math.sqrt(nlist)), seed, use_gpu)
        group_GD = group_GD[_order_by_bisection(group_GD.astype(np.float64))]
        member_S, member_crowd_S = _nearest(distinct_SD, group_GD), _nearest(crowd_SD, group_GD)
        parts = []
        for g in range(len(group_GD)):
            rows_RD = distinct_SD[member_S == g]
            wanted = round(nlist * len(rows_RD) / len(distinct_SD))
            crowd_RD = crowd_SD[member_crowd_S == g]
            parts.append(_train_group(rows_RD, crowd_RD, max(1, wanted), len(distinct_SD) / nlist, seed, use_gpu))
        centroid_CD = np.concatenate(parts)
        start_G1 = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
        around_CB = _nearest_rows(centroid_CD, centroid_CD, min(CELLS_AROUND, len(centroid_CD))).astype(np.int64)
        return Quantizer(centroid_CD, group_GD, start_G1, np.sort(around_CB, axis=1))


def nearest_cells(q_MD: Float32, quantizer: Quantizer, count: int) -> tuple[NDArray[np.int32], Float32]:
    """Return each query's `count` (P) nearest cells, and how much less similar each is than the nearest.

    With several groups and up to half of CELLS_AROUND, they come from the cells around the best one of the nearest
    groups; else from all cells. Within either case fewer cells are a prefix of more.

    Args:
        q_MD: float32 unit rows.
        quantizer: from `train_quantizer`.
        count: 1 to C; C gives all cells.

    Returns:
        cells_MP int32 by (`kernel.exact_sim` desc, cell asc), and gap_MP float32, 0 in the first column.
    """
    C, B = quantizer.cells, quantizer.around_CB.shape[1]
    assert 1 <= count <= C, f"{count} of {C} cells"
    candidates = _free_places(len(q_MD), count)
    everyone, cells = np.full(len(q_MD), -1, np.int64), np.arange(C, dtype=np.int64)
    if 2 * count > B:
        search_rows(q_MD, everyone, np.arange(len(q_MD)), quantizer.centroid_CD, cells, 0, candidates)
        cell_MP, sim_MP = finish(candidates)
        return cell_MP.astype(np.int32), sim_MP[:, :1] - sim_MP
    best = _free_places(len(q_MD), 1)
    G = len(quantizer.group_GD)
    looked_at = min(G, max(GROUPS_PROBED[0], min(GROUPS_PROBED[1], math.ceil(GROUPS_SHARE * G))))
    group_MG = _nearest_rows(q_MD, quantizer.group_GD, looked_at)
    search_part(q_MD, everyone, group_MG, quantizer.centroid_CD, cells, 0, quantizer.group_start_G1, best)
    # One step up the hill: the best cell around the best one of the nearest groups.
    better = _free_places(len(q_MD), 1)
    _search_around(q_MD, quantizer, best.position_MK[:, 0], better)
    better_M = quantizer.around_CB.ravel()[better.position_MK[:, 0]]
    _search_around(q_MD, quantizer, better_M, candidates)
    place_MP, sim_MP = finish(candidates)
    return quantizer.around_CB.ravel()[place_MP].astype(np.int32), sim_MP[:, :1] - sim_MP


def _search_around(q_MD: Float32, quantizer: Quantizer, cell_M: Int64, candidates: Candidates) -> None:
    """Compare each query with the cells around its cell. Position c B + b stands for the b-th of the cells around c."""
    if not len(q_MD):
        return
    B = quantizer.around_CB.shape[1]
    everyone = np.full(len(q_MD), -1, np.int64)
    order_M = np.argsort(cell_M, kind="stable")
    for query_Q in np.split(order_M, np.flatnonzero(np.diff(cell_M[order_M])) + 1):
        cell = int(cell_M[query_Q[0]])
        around_B = quantizer.around_CB[cell]
        search_rows(q_MD, everyone, query_Q, quantizer.centroid_CD[around_B], around_B, cell * B, candidates)


def _train_group(
    rows_RD: Float32, crowd_RD: Float32, wanted: int, rows_per_cell: float, seed: int, use_gpu: bool
) -> Float32:
    """Centroids of one group's cells: k-means, then again inside each cell that got far too many rows; in spatial order."""
    if not len(rows_RD):
        return rows_RD
    centroid_CD = _kmeans(rows_RD, wanted, seed, use_gpu)
    for _ in range(SPLIT_ROUNDS):
        cell_R = _nearest(rows_RD, centroid_CD)
        count_C = np.bincount(cell_R, minlength=len(centroid_CD))
        large = np.flatnonzero(count_C > max(OVERSIZED * rows_per_cell, 1))
        kept = np.setdiff1d(np.flatnonzero(count_C), large)
        pieces = [_kmeans(rows_RD[cell_R == c], math.ceil(count_C[c] / rows_per_cell), seed, use_gpu) for c in large]
        centroid_CD = np.unique(np.concatenate([centroid_CD[kept], *pieces]), axis=0)
        if all(len(piece) == 1 for piece in pieces):  # Nothing was too large, or what was are crowds.
            break
    centroid_CD = _thinned(np.unique(np.concatenate([centroid_CD, crowd_RD]), axis=0))
    return centroid_CD[_order_by_bisection(centroid_CD.astype(np.float64))]


def _nearest(x_ND: Float32, centroid_CD: Float32) -> Int64:
    return _nearest_rows(x_ND, centroid_CD, 1)[:, 0].astype(np.int64)


def _nearest_rows(q_MD: Float32, centroid_CD: Float32, count: int) -> NDArray[np.int32]:
    """The `count` nearest centroids of each query, nearest first."""
    candidates = _free_places(len(q_MD), count)
    ids = np.arange(len(centroid_CD), dtype=np.int64)
    search_rows(q_MD, np.full(len(q_MD), -1, np.int64), np.arange(len(q_MD)), centroid_CD, ids, 0, candidates)
    return finish(candidates)[0].astype(np.int32)


def _free_places(M: int, P: int) -> Candidates:
    """Free places start at similarity -2, below any cosine, because cells with a negative similarity count here."""
    shape = (M, P)
    return Candidates(np.full(shape, -2, np.float32), np.full(shape, -1, np.int64), np.full(shape, -1, np.int64))


def _kmeans(x_SD: Float32, nlist: int, seed: int, use_gpu: bool) -> Float32:
    """At most `nlist` centroids, no two of one crowd; the rows themselves where there are no more rows."""
    if len(x_SD) <= nlist:
        return _thinned(x_SD)
    kmeans = faiss.Kmeans(
        x_SD.shape[1],
        nlist,
        niter=ITERATIONS,
        seed=seed,
        spherical=True,
        gpu=use_gpu,
        # No warning and no subsampling inside faiss: the caller's sample is the sample.
        min_points_per_centroid=1,
        max_points_per_centroid=len(x_SD),
    )
    kmeans.train(x_SD)
    assert kmeans.centroids is not None
    centroid_CD = kmeans.centroids.astype(np.float64)
    norm_C = np.linalg.norm(centroid_CD, axis=1)
    # Opposite rows can cancel; a zero centroid has no direction.
    kept_CD = (centroid_CD[norm_C > 0] / norm_C[norm_C > 0, None]).astype(np.float32)
    return _thinned(np.unique(kept_CD, axis=0)) if len(kept_CD) else x_SD[:1]


def _thinned(centroid_CD: Float32) -> Float32:
    """Without the centroids that are as good as equal to an earlier one: a crowd of near-duplicates gets one cell.

    k-means puts most of its centroids into a large crowd. Every row of it is then as near to all of them, and the assignment
    takes several times as long (LOG 2026-11-24, crowds).
    """
    dropped_C = np.zeros(len(centroid_CD), bool)
    for first in range(0, len(centroid_CD), 512):
        near_BC = centroid_CD[first : first + 512] @ centroid_CD.T >= CROWD_SIM
        for i in np.flatnonzero(near_BC.sum(axis=1) > 1):
            if not dropped_C[first + i]:
                dropped_C[first + i + 1 :] |= near_BC[i, first + i + 1 :]
    return centroid_CD[~dropped_C]


def _order_by_bisection(x_CD: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return an order in which consecutive rows are close: halves along the principal direction, and each half again.

    A direction has no sign of its own: the half on the side of the row placed last comes first.
    """
    placed: list[int] = []
    waiting = [np.arange(len(x_CD))]
    while waiting:
        part = waiting.pop()
        if len(part) == 1:
            placed.append(int(part[0]))
            continue
        mean = x_CD[part].mean(axis=0)
        direction = _principal_direction(x_CD[part] - mean)
        if placed and (x_CD[placed[-1]] - mean) @ direction > 0:
            direction = -direction
        order = np.argsort(x_CD[part] @ direction, kind="stable")
        half = len(part) // 2
        waiting += [part[np.sort(order[half:])], part[np.sort(order[:half])]]
    return np.array(placed, np.int64)


def _principal_direction(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return about the principal direction of centred rows: a short power iteration from the longest row."""
    direction: NDArray[np.float64] = rows[np.argmax(np.einsum("cd,cd->c", rows, rows))]
    for _ in range(10):
        direction = rows.T @ (rows @ direction)
        direction = direction / max(float(np.linalg.norm(direction)), np.finfo(np.float64).tiny)
    return direction
