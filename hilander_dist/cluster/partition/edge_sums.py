"""Sums over the edges of a shard's rows by the clusters at both ends. One pass a level; nothing is sorted but the rows.

Shapes: N rows, K neighbours, T rows of the table that neighbours stand in, U clusters in the table, E pairs of clusters.
"""

from typing import NamedTuple

import numba
import numpy as np

from hilander_dist.cluster.partition.log_odds import MOST, ONE


class EdgeSums(NamedTuple):
    """What a shard's edges say of a partition and for the next merges."""

    row_4: np.ndarray
    """Rows with edges, int64: those with all neighbours in their own cluster; of the others those that have more there than
    their probabilities add up to, and those that have not; and edges inside clusters."""
    weight_U: np.ndarray
    """int64 weight of each cluster's edges inside."""
    edges_U: np.ndarray
    """int64 edges that each cluster's rows own."""
    exits_U: np.ndarray
    """int64, those of them that lead to other clusters."""
    u_E: np.ndarray
    """int64 cluster of the row, for each pair with a weight; pairs with both ends here come twice, as (u, v) and (v, u)."""
    v_E: np.ndarray
    weight_E: np.ndarray


def sum_edges(
    at_T: np.ndarray,
    clusters: int,
    local_NK: np.ndarray,
    step_NK: np.ndarray,
    expected_Q: np.ndarray,
    weight_Q: np.ndarray,
) -> EdgeSums:
    """Add up the edges.

    Args:
        at_T: int32 cluster of each row of the table, whose first N are the shard's own; 0 .. clusters - 1.
        clusters: U.
        local_NK: neighbours as rows of the table, -1 pads.
        step_NK: int16 log-odds (``log_odds``).
        expected_Q: probability at each step, int64, with the shift at which the clusters were made.
        weight_Q: weight at each step, int64, at the next shift.
    """
    order_N = np.argsort(at_T[: len(local_NK)], kind="stable")
    return EdgeSums(*_sum(order_N, at_T, clusters, local_NK, step_NK, expected_Q, weight_Q))


@numba.njit(cache=True)
def _sum(order_N, at_T, clusters, local_NK, step_NK, expected_Q, weight_Q):  # type: ignore[no-untyped-def]
    row_4 = np.zeros(4, dtype=np.int64)
    weight_U = np.zeros(clusters, dtype=np.int64)
    edges_U = np.zeros(clusters, dtype=np.int64)
    exits_U = np.zeros(clusters, dtype=np.int64)
    u_E, v_E, weight_E = np.empty(1024, np.int64), np.empty(1024, np.int64), np.empty(1024, np.int64)
    pairs = 0
    # Of the cluster at hand: the weight to each other one, and which those are.
    between_U = np.zeros(clusters, dtype=np.int64)
    touched = np.empty(clusters, dtype=np.int64)
    found = 0
    for place in range(len(order_N)):
        n = order_N[place]
        own = at_T[n]
        edges, inside, expected = 0, 0, 0
        for k in range(local_NK.shape[1]):
            t = local_NK[n, k]
            if t < 0:
                continue
            step = step_NK[n, k] + MOST
            edges += 1
            expected += expected_Q[step]
            weight = weight_Q[step]
            other = at_T[t]
            if other == own:
                inside += 1
                weight_U[own] += weight
            elif weight > 0:
                if between_U[other] == 0:
                    touched[found] = other
                    found += 1
                between_U[other] += weight
        if edges > 0:
            if inside == edges:
                row_4[0] += 1
            elif inside * ONE > expected:
                row_4[1] += 1
            else:
                row_4[2] += 1
            row_4[3] += inside
            edges_U[own] += edges
            exits_U[own] += edges - inside
        if place + 1 == len(order_N) or at_T[order_N[place + 1]] != own:
            if pairs + found > len(u_E):
                more = np.empty(max(len(u_E), found), np.int64)
                u_E, v_E = np.concatenate((u_E, more)), np.concatenate((v_E, more))
                weight_E = np.concatenate((weight_E, more))
            for f in range(found):
                u_E[pairs], v_E[pairs], weight_E[pairs] = own, touched[f], between_U[touched[f]]
                between_U[touched[f]] = 0
                pairs += 1
            found = 0
    return row_4, weight_U, edges_U, exits_U, u_E[:pairs].copy(), v_E[:pairs].copy(), weight_E[:pairs].copy()


@numba.njit(cache=True)
def companions(at_T, clusters, local_NK, step_NK, probability_Q):  # type: ignore[no-untyped-def]
    """How sure each row's cluster is: float32 (N) confidence, the share of its expected companions that are in its own
    cluster, and margin, that share less the largest of another cluster.

    Expected companions are the sum of its edges' probabilities; both numbers are 0 for a row without edges.

    Args: as of ``sum_edges``, and the probability at each step.
    """
    N = local_NK.shape[0]
    confidence_N = np.zeros(N, dtype=np.float32)
    margin_N = np.zeros(N, dtype=np.float32)
    expected_U = np.zeros(clusters, dtype=np.int64)
    for n in range(N):
        own = at_T[n]
        total, most = 0, 0
        for k in range(local_NK.shape[1]):
            t = local_NK[n, k]
            if t >= 0:
                other = at_T[t]
                p = probability_Q[step_NK[n, k] + MOST]
                total += p
                expected_U[other] += p
                if other != own:
                    most = max(most, expected_U[other])
        if total > 0:
            confidence_N[n] = expected_U[own] / total
            margin_N[n] = (expected_U[own] - most) / total
        for k in range(local_NK.shape[1]):
            if local_NK[n, k] >= 0:
                expected_U[at_T[local_NK[n, k]]] = 0
    return confidence_N, margin_N
