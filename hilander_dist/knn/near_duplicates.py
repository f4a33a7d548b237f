"""Crowds: near-duplicates that fill a cell, and of which a few are offered as neighbours."""

from collections.abc import Iterator

import numpy as np

from hilander_dist.knn.ranking import Float32, Int64, Rows, exact_sims

# A cell has some 500 to 1,000 rows, four times as many where the sample missed a crowd. Of a crowd of near-duplicates,
# which no partition can divide, any K rows are as good as any others: of the rows of a cell with more than CROWD_LIMIT
# that are as similar to its centroid as CROWD_SIM, only CROWD_RUNS runs of CROWD_RUN, evenly spaced over the cell, are
# offered to queries. Else comparisons grow with the square of the copies, and none can be filtered: all scores lie within
# rounding of each other (LOG 2026-11-24, crowds).
CROWD_LIMIT = 4096
CROWD_RUNS, CROWD_RUN = 16, 16
CROWD_SIM = np.float32(1 - 1e-6)


def offered_rows(
    cell: int, part_RD: Rows, part_start: int, cell_start_C1: Int64, crowd_CD: Float32 | None
) -> Iterator[slice]:
    """Yield the runs of the part's rows that a cell offers to its queries: all of them but most of a crowd."""
    first = max(int(cell_start_C1[cell]) - part_start, 0)
    stop = min(int(cell_start_C1[cell + 1]) - part_start, len(part_RD))
    if crowd_CD is None or cell_start_C1[cell + 1] - cell_start_C1[cell] <= CROWD_LIMIT:
        yield slice(first, stop)
        return
    place_R = np.arange(first, stop) + (part_start - cell_start_C1[cell])
    stride = (cell_start_C1[cell + 1] - cell_start_C1[cell]) // CROWD_RUNS
    offered_R = place_R % stride < CROWD_RUN
    offered_R |= exact_sims(crowd_CD[cell], part_RD[first:stop].astype(np.float32, copy=False)) < CROWD_SIM
    edges = np.flatnonzero(np.diff(offered_R, prepend=False, append=False))
    for lo, hi in edges.reshape(-1, 2).tolist():
        yield slice(first + lo, first + hi)
