"""The search of `kernel` with the products and the selection on a torch device, such as a GPU. The result is the same.

Q queries and T rows of a tile, L rows listed for a query; else as in `kernel`. Notable:

- For each query of a tile the device lists the K + MARGIN rows of the best scores. The host scores again, exactly,
  those that can be among the K best, as `kernel` does: the bits of the device's product never reach the result.
- A list that does not go down to its threshold may lack such a row: more than MARGIN rows tie with the K-th best within
  float32 rounding. That query's tile is searched on the host (many copies of a row thus cost what `kernel` costs).
- The host ranks the lists of one tile while the device works on the next ones.
"""

import warnings
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from hilander_dist.knn.kernel import BUFFER_ROWS, by_cell, scan_tile, tile_slices
from hilander_dist.knn.near_duplicates import offered_rows
from hilander_dist.knn.ranking import Candidates, Float32, Int64, rank_exactly, rounding_bound

# One tile of scores (4096 x 4096 float32) takes 64 MiB on the device.
TILE_QUERIES = 4096
TILE_ROWS = 4096
# Places of a list beyond K: for the query itself, and for rows that the product may have ranked in the wrong order.
MARGIN = 8
# Tiles queued on the device while the host ranks. The lists of one take 2.8 MiB at K = 79, in both memories.
AHEAD = 8


class _Lists(NamedTuple):
    """What the device found for one tile, best first; on the host once `copied` (None: at once) is done."""

    query_Q: Int64
    rows: slice
    score_QL: Tensor
    row_QL: Tensor
    copied: torch.cuda.Event | None


def search_part_on_device(
    queries_MD: NDArray[Any],
    query_id_M: Int64,
    probe_MP: NDArray[np.int32],
    part_RD: NDArray[Any],
    part_id_R: Int64,
    part_start: int,
    cell_start_C1: Int64,
    candidates: Candidates,
    crowd_CD: Float32 | None,
    device: str,
) -> None:
    """Improve `candidates`, in place, exactly as `kernel.search_part` does.

    Args:
        queries_MD: unit rows, float32 or rounded to float16.
        query_id_M: as in `kernel.search_part`, and so are all arguments not named here.
        probe_MP: see there.
        part_RD: unit rows as `queries_MD`, C-contiguous. Both fit the device as float32.
        part_id_R: see there.
        part_start: see there.
        cell_start_C1: see there.
        candidates: see there.
        crowd_CD: see there.
        device: torch name, such as "cuda".
    """
    tiles = _probed_tiles(probe_MP, part_RD, part_start, cell_start_C1, crowd_CD)
    n_listed = candidates.sim_MK.shape[1] + MARGIN
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # TF32 errs by more than `rounding_bound`.
    try:
        queue: deque[_Lists] = deque()
        for lists in _list_tiles(_on_device(queries_MD, device), _on_device(part_RD, device), tiles, n_listed):
            queue.append(lists)
            if len(queue) > AHEAD:
                _rank(queue.popleft(), queries_MD, query_id_M, part_RD, part_id_R, part_start, candidates)
        for lists in queue:
            _rank(lists, queries_MD, query_id_M, part_RD, part_id_R, part_start, candidates)
    finally:
        torch.set_float32_matmul_precision(precision)


def _probed_tiles(
    probe_MP: NDArray[np.int32],
    part_RD: NDArray[Any],
    part_start: int,
    cell_start_C1: Int64,
    crowd_CD: Float32 | None,
) -> Iterator[tuple[Int64, slice]]:
    """Yield numbers of queries, and rows of the part to compare them with; each query's own cell first."""
    for ranks in (slice(0, 1), slice(1, None)):
        for cell, query_G in by_cell(probe_MP[:, ranks], part_start, len(part_RD), cell_start_C1):
            for run in offered_rows(cell, part_RD, part_start, cell_start_C1, crowd_CD):
                for group in tile_slices(len(query_G), TILE_QUERIES):
                    for tile in tile_slices(run.stop - run.start, TILE_ROWS):
                        yield query_G[group], slice(run.start + tile.start, run.start + tile.stop)


def _list_tiles(
    queries_MD: Tensor, part_RD: Tensor, tiles: Iterator[tuple[Int64, slice]], n_listed: int
) -> Iterator[_Lists]:
    """Queue the work on each tile and the copy of its lists to the host, without waiting for either."""
    for query_Q, rows in tiles:
        q_QD = queries_MD[torch.from_numpy(query_Q).to(queries_MD.device, non_blocking=True)]
        tile_TD = part_RD[rows]
        score_QL, row_QL = torch.topk(q_QD @ tile_TD.T, min(n_listed, len(tile_TD)))
        score_QL = score_QL.to("cpu", non_blocking=True)
        row_QL = row_QL.int().to("cpu", non_blocking=True)
        # An event of its own: a copy asked for later would wait for all tiles queued by then.
        yield _Lists(
            query_Q,
            rows,
            score_QL,
            row_QL,
            torch.cuda.current_stream(q_QD.device).record_event() if q_QD.is_cuda else None,
        )


def _rank(
    lists: _Lists,
    queries_MD: NDArray[Any],
    query_id_M: Int64,
    part_RD: NDArray[Any],
    part_id_R: Int64,
    part_start: int,
    candidates: Candidates,
) -> None:
    """Improve `candidates` by the rows of one tile, once its lists are there."""
    query_Q, rows = lists.query_Q, lists.rows
    # Numba knows no float16.
    q_QD = queries_MD[query_Q].astype(np.float32, copy=False)
    tile_TD = part_RD[rows].astype(np.float32, copy=False)
    tile_id_T, start, bound = part_id_R[rows], part_start + rows.start, rounding_bound(part_RD.shape[1])
    if lists.copied is not None:
        lists.copied.synchronize()
    short_Q = _rank_lists(
        lists.score_QL.numpy(),
        lists.row_QL.numpy(),
        q_QD,
        query_Q,
        query_id_M,
        tile_TD,
        tile_id_T,
        start,
        bound,
        *candidates,
    )
    if short_Q.any():
        q_SD = q_QD[short_Q]
        n_buffer = 2 * candidates.sim_MK.shape[1] + BUFFER_ROWS
        scan_tile(
            q_SD @ tile_TD.T,
            q_SD,
            query_Q[short_Q],
            query_id_M,
            tile_TD,
            tile_id_T,
            start,
            bound,
            n_buffer,
            *candidates,
        )


@njit(cache=True, nogil=True)
def _rank_lists(
    score_QL: Float32,
    row_QL: NDArray[np.int32],
    q_QD: Float32,
    query_Q: Int64,
    query_id_M: Int64,
    tile_TD: Float32,
    tile_id_T: Int64,
    start: int,
    bound: float,
    sim_MK: Float32,
    position_MK: Int64,
    id_MK: Int64,
) -> NDArray[np.bool_]:
    """Rank the listed rows that reach their query's threshold, which is that of `kernel.scan_tile`.

    Returns:
        Which queries' lists may be too short. Nothing of theirs has been ranked.
    """
    Q, L = score_QL.shape
    K = sim_MK.shape[1]
    short_Q = np.zeros(Q, np.bool_)
    row_L = np.empty(L, np.int64)
    for i in range(Q):
        m = query_Q[i]
        n = 0
        threshold = np.float32(sim_MK[m, 0] - bound)
        for place in range(L):
            if score_QL[i, place] < threshold:
                break
            row = row_QL[i, place]
            if tile_id_T[row] != query_id_M[m]:
                row_L[n] = row
                n += 1
                if n == K:
                    threshold = max(threshold, np.float32(score_QL[i, place] - 2 * bound))
        else:
            short_Q[i] = len(tile_TD) > L
        if n > 0 and not short_Q[i]:
            rank_exactly(q_QD[i], tile_TD, tile_id_T, start, row_L, n, sim_MK[m], position_MK[m], id_MK[m])
    return short_Q


def _on_device(rows_ND: NDArray[Any], device: str) -> Tensor:
    """Move the rows, then convert them to float32: half the bytes travel if they are float16."""
    with warnings.catch_warnings():
        # Arrays from the object store are read-only, which torch mentions; nothing here writes to one.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(rows_ND).to(device).float()
