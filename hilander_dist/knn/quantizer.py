"""The coarse quantizer: one partition of the whole set into cells, and the cells that each query probes.

S sample rows, N rows, M queries, C cells, P probes a query, D dimensions. Notable:

- Cells are numbered so that consecutive ones lie close together. Shards are runs of cells, so most of what a shard's
  queries probe is in the same shard or near it.
- Assignment and probes come from the search kernel: exact inner products, ties to the smaller cell. They depend on the
  row and the centroids only, never on the other rows of the call.
"""

import faiss
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from hilander_dist.knn.kernel import Candidates, Float32, finish, search_rows

# Below this one flat cell, searched exactly, costs less than training and probing a partition.
FLAT_BELOW = 8192
# Cells of about this many rows measured best: dense products, and one tile of scores stays in the L2 cache.
ROWS_PER_CELL = 400
SAMPLE_PER_CELL = 64
# Training compares every sample row with every centroid, ITERATIONS times: the ceiling keeps that linear in the cells.
MAX_SAMPLE = 262_144
ITERATIONS = 10


def choose_nlist(n: int) -> int:
    """Return the number of cells for `n` rows: 1 (flat, exact) for few rows, else cells of about 400 rows."""
    return 1 if n < FLAT_BELOW else round(n / ROWS_PER_CELL)


def training_sample_size(nlist: int) -> int:
    """Return how many rows `train_quantizer` should be given for `nlist` cells."""
    return min(SAMPLE_PER_CELL * nlist, MAX_SAMPLE)


def train_quantizer(sample_SD: Float32, nlist: int, seed: int) -> Float32:
    """Return the centroids of at most `nlist` cells by spherical k-means on a sample (algorithm.md 4, kNN).

    The result depends on the set of distinct sample rows, `nlist` and `seed` only. It has fewer than `nlist` cells
    where the sample has fewer distinct rows, or where k-means leaves cells without a sample row.

    Args:
        sample_SD: float32 unit rows, S >= 1.
        nlist: cells wanted, >= 1.
        seed: of the first centroids.

    Returns:
        float32 unit rows, all distinct, in the order of `_order_by_bisection`.
    """
    distinct_SD = np.unique(sample_SD, axis=0)
    # One thread: the sums of k-means, and so the cells, must not depend on the machine's cores.
    with threadpool_limits(1):
        if len(distinct_SD) <= nlist:
            centroid_CD = distinct_SD
        else:
            centroid_CD = np.unique(_kmeans(distinct_SD, nlist, seed), axis=0)
            centroid_CD = centroid_CD[np.unique(assign_cells(distinct_SD, centroid_CD))]
        return centroid_CD[_order_by_bisection(centroid_CD.astype(np.float64))]


def assign_cells(x_ND: Float32, centroids_CD: Float32) -> NDArray[np.int32]:
    """Return each row's cell (int32): the centroid with the largest `kernel.exact_sim`, ties to the smaller cell.

    Args:
        x_ND: float32 unit rows.
        centroids_CD: float32 unit rows of `train_quantizer`.
    """
    return probe_cells(x_ND, centroids_CD, 1)[:, 0]


def probe_cells(q_MD: Float32, centroids_CD: Float32, nprobe: int) -> NDArray[np.int32]:
    """Return the `nprobe` (P) best cells of each query (int32), by (`kernel.exact_sim` desc, cell asc).

    Args:
        q_MD: float32 unit rows.
        centroids_CD: float32 unit rows of `train_quantizer`.
        nprobe: 1 to C; C gives all cells.
    """
    assert 1 <= nprobe <= len(centroids_CD), f"nprobe {nprobe} with {len(centroids_CD)} cells"
    M, C = len(q_MD), len(centroids_CD)
    # Free places start at similarity -2, below any cosine, because cells with a negative similarity count here.
    shape = (M, nprobe)
    candidates = Candidates(np.full(shape, -2, np.float32), np.full(shape, -1, np.int64), np.full(shape, -1, np.int64))
    cells = np.arange(C, dtype=np.int64)
    search_rows(q_MD, np.full(M, -1, np.int64), np.arange(M, dtype=np.int64), centroids_CD, cells, 0, candidates)
    return finish(candidates)[0].astype(np.int32)


def _kmeans(x_SD: Float32, nlist: int, seed: int) -> Float32:
    kmeans = faiss.Kmeans(
        x_SD.shape[1],
        nlist,
        niter=ITERATIONS,
        seed=seed,
        spherical=True,
        # No warning and no subsampling inside faiss: the caller's sample is the sample.
        min_points_per_centroid=1,
        max_points_per_centroid=len(x_SD),
    )
    kmeans.train(x_SD)
    assert kmeans.centroids is not None
    centroid_CD = kmeans.centroids.astype(np.float64)
    norm_C = np.linalg.norm(centroid_CD, axis=1)
    kept: Float32 = (centroid_CD[norm_C > 0] / norm_C[norm_C > 0, None]).astype(np.float32)
    return kept


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
