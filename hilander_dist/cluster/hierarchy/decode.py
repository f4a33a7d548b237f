"""From scores to a forest: each node links to at most one denser neighbour (algorithm.md 1.8). Pure functions.

The total order of nodes is (density descending, id ascending); of a node's candidate links (p0 ascending, id ascending).
p0 ranks like p1 = 1 - p0 but keeps its digits where p1 rounds to 1.
"""

from typing import Literal

import numpy as np

from hilander_dist.exchange import take_rows
from hilander_dist.tasks import Block

Compat = Literal["default", "reference"]


def decode_links(
    p0_NK: np.ndarray,
    nbr_NK: np.ndarray,
    density_N: np.ndarray,
    id_N: np.ndarray,
    nbr_density_NK: np.ndarray,
    nbr_id_NK: np.ndarray,
    limit: float,
    compat: Compat,
) -> np.ndarray:
    """Choose each node's parent.

    Args:
        p0_NK: float32 distance of each edge, lower is better: the probability that its ends differ, or any other.
        nbr_NK: int64 neighbours, -1 pads.
        density_N: float32 density of the nodes.
        id_N: int64 ids of the nodes.
        nbr_density_NK: float32 density of the neighbours.
        nbr_id_NK: int64 ids of the neighbours.
        limit: an edge needs a distance below this; for probabilities 1 - tau.
        compat: ``reference`` links to strictly denser nodes only; ``default`` also to an equally dense one of smaller
            id, so that exact duplicates join.

    Returns:
        ``rank_N`` int64: the neighbour rank 0 .. K-1 of each node's parent, -1 for a peak.
    """
    better_NK = nbr_density_NK > density_N[:, None]
    if compat == "default":
        better_NK |= (nbr_density_NK == density_N[:, None]) & (nbr_id_NK < id_N[:, None])
    kept_NK = better_NK & (nbr_NK >= 0) & (p0_NK < np.float32(limit))
    distance_NK = np.where(kept_NK, p0_NK, np.float32(np.inf))
    nearest_NK = kept_NK & (distance_NK == distance_NK.min(axis=1, keepdims=True, initial=np.inf))
    tied_id_NK = np.where(nearest_NK, nbr_id_NK, np.iinfo(np.int64).max)
    return np.where(kept_NK.any(axis=1), tied_id_NK.argmin(axis=1), -1)


def parent_positions(rank_N: np.ndarray, nbr_NK: np.ndarray, start: int) -> np.ndarray:
    """Position of each node's parent; a peak is its own parent."""
    chosen_N = np.take_along_axis(nbr_NK, np.maximum(rank_N, 0)[:, None], axis=1)[:, 0]
    return np.where(rank_N < 0, start + np.arange(len(rank_N)), chosen_N)


def densest_of_groups(nodes: Block) -> Block:
    """The densest node of each group, of equally dense ones that of the smallest id; groups ascend.

    Args:
        nodes: group_R int64, density_R float32, id_R int64, position_R int64.
    """
    order = np.lexsort((nodes["id_R"], -nodes["density_R"], nodes["group_R"]))
    group_R = nodes["group_R"][order]
    return take_rows(nodes, order[np.flatnonzero(np.r_[True, group_R[1:] != group_R[:-1]][: len(order)])])
