"""Cluster features: member sums in fixed point, so that their bits do not depend on who adds what first (algorithm.md 4)."""

import numba
import numpy as np

from hilander_dist.errors import ClusterError
from hilander_dist.tasks import Block

FIXED_POINT = float(2**32)
"""Scale of the int64 sums: unit rows to 2**-33. Of rows of 64 to 1,024 dimensions that is at most 1/64 of a float32 ulp of a
mean's largest coordinate, so that with its own rounding a mean is off by .516 ulp at most, in clusters of 1 to 10,000."""

MAX_MEMBERS = 2**31 - 2**9
"""Samples of one cluster whose sum cannot overflow, even where they are all one axis and as long as a unit row may be
(``ingest.UNIT_TOLERANCE``): 2**63 / (2**32 + 2**10)."""


def cluster_means(nodes: Block) -> np.ndarray:
    """Cluster features c_ND float32: members' sums over counts, divided in float64; x itself at level 0."""
    if "sum_ND" not in nodes:
        return nodes["x_ND"].astype(np.float32, copy=False)
    return (nodes["sum_ND"] / (nodes["count_N"][:, None] * FIXED_POINT)).astype(np.float32)


def member_sums(nodes: Block, group_N: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Sum the members of nodes by group.

    Args:
        nodes: a level's block: x_ND at level 0, sum_ND and count_N above.
        group_N: int64 group of each node, 0 .. groups - 1.
        groups: number of groups G.

    Returns:
        ``sum_GD`` int64 fixed point and ``count_G`` int64, over original samples.
    """
    count_G = np.zeros(groups, dtype=np.int64)
    sum_GD = np.zeros((groups, nodes["sum_ND" if "sum_ND" in nodes else "x_ND"].shape[1]), dtype=np.int64)
    if "sum_ND" in nodes:
        np.add.at(count_G, group_N, nodes["count_N"])
        _add_sums(nodes["sum_ND"], group_N, sum_GD)
    else:
        np.add.at(count_G, group_N, 1)
        _add_rows(nodes["x_ND"].astype(np.float32, copy=False), group_N, sum_GD)
    return sum_GD, count_G


def check_members(count_N: np.ndarray, id_N: np.ndarray) -> None:
    """Refuse clusters whose sums may have overflowed.

    Args:
        count_N: samples of each.
        id_N: row of each one's peak.

    Raises:
        ClusterError: one has more than MAX_MEMBERS samples.
    """
    if len(count_N) and count_N.max() > MAX_MEMBERS:
        largest = int(count_N.argmax())
        raise ClusterError(
            f"the cluster of row {id_N[largest]} has {count_N[largest]} samples, more than the {MAX_MEMBERS} that its sum can"
            " hold: if they are copies, leave most of them out of the input; else cluster fewer rows in a run"
        )


@numba.njit(cache=True)
def _add_rows(x_ND, group_N, sum_GD):  # type: ignore[no-untyped-def]
    for n in range(len(group_N)):
        g = group_N[n]
        for d in range(x_ND.shape[1]):
            sum_GD[g, d] += np.int64(np.rint(np.float64(x_ND[n, d]) * FIXED_POINT))


@numba.njit(cache=True)
def _add_sums(part_ND, group_N, sum_GD):  # type: ignore[no-untyped-def]
    for n in range(len(group_N)):
        g = group_N[n]
        for d in range(part_ND.shape[1]):
            sum_GD[g, d] += part_ND[n, d]
