"""Merging clusters by the map equation: a random walk over the probable edges stays long in what belongs together
(Rosvall and Bergstrom, PNAS 2008; its sums and its optimum are those of Infomap's two-level search). Pure functions.

Of each cluster two sums are known, of each pair of clusters one: the weight at its members' ends, the weight of its edges
to other clusters, and the weight of the edges between the two. What a merge of two clusters saves of the description of
the walk follows from these. In a round every cluster names the partner with which it saves most, and pairs that name each
other merge; rounds go on until no merge saves anything. Weights are int64 fixed point, so that no sum depends on its order.

Shapes: C clusters, E pairs of clusters (u < v) with edges between them.
"""

import math

import numba
import numpy as np

WEIGHT_ONE = 2.0**20
"""Fixed-point weight of an edge that is certain: sums stay below 2**63 for 2**43 edges."""

_LEAST_SAVING = 1e-12
"""In bits. Less is rounding."""


def edge_weights(p1_NK: np.ndarray, tau: float) -> np.ndarray:
    """Fixed-point weights of edges: the part of the probability above tau, 1 for certain ones, 0 from tau down."""
    excess_NK = (p1_NK.astype(np.float64) - tau) / max(1 - tau, 1e-9)
    return np.rint(np.maximum(excess_NK, 0) * WEIGHT_ONE).astype(np.int64)


def sum_pairs(u_E: np.ndarray, v_E: np.ndarray, *columns: np.ndarray) -> tuple[np.ndarray, ...]:
    """Add up the columns of equal pairs, whichever of both comes first; pairs ascend by (u, v), u <= v."""
    return sum_keyed(np.minimum(u_E, v_E), np.maximum(u_E, v_E), *columns)


def sum_keyed(first_E: np.ndarray, second_E: np.ndarray, *columns: np.ndarray) -> tuple[np.ndarray, ...]:
    """Add up the columns where both keys are equal; keys ascend by (first, second)."""
    order = np.lexsort((second_E, first_E))
    first_E, second_E = first_E[order], second_E[order]
    if len(order) == 0:
        return first_E, second_E, *columns
    new = np.flatnonzero(np.r_[True, (first_E[1:] != first_E[:-1]) | (second_E[1:] != second_E[:-1])])
    return first_E[new], second_E[new], *(np.add.reduceat(column[order], new) for column in columns)


def merge_flow(total_C: np.ndarray, u_E: np.ndarray, v_E: np.ndarray, weight_E: np.ndarray) -> np.ndarray:
    """Merge clusters until no merge of two shortens the description of the walk.

    Args:
        total_C: int64 sum of the weights at the members' ends; an edge inside counts twice, at both.
        u_E: int64 first cluster of each pair, pairs in the order of ``sum_pairs``.
        v_E: int64 second cluster of each pair, above ``u_E``.
        weight_E: int64 weight of the edges between both.

    Returns:
        ``group_C`` int64: the smallest cluster of each cluster's group.
    """
    group_C = np.arange(len(total_C))
    both = float(total_C.sum())
    total_C = total_C.copy()
    while len(u_E):
        exit_C = np.zeros(len(total_C), dtype=np.int64)
        np.add.at(exit_C, u_E, weight_E)
        np.add.at(exit_C, v_E, weight_E)
        partner_C = best_partners(total_C, exit_C, u_E, v_E, weight_E, both)
        into_C = np.arange(len(total_C))
        named = np.flatnonzero(partner_C >= 0)
        mutual = named[partner_C[partner_C[named]] == named]
        into_C[mutual] = np.minimum(mutual, partner_C[mutual])
        if len(mutual) == 0:
            break
        gone = mutual[into_C[mutual] != mutual]
        total_C[into_C[gone]] += total_C[gone]
        group_C = into_C[group_C]
        u_E, v_E = into_C[u_E], into_C[v_E]
        apart = u_E != v_E
        u_E, v_E, weight_E = sum_pairs(u_E[apart], v_E[apart], weight_E[apart])
    return group_C


@numba.njit(cache=True)
def best_partners(total_C, exit_C, u_E, v_E, weight_E, both):  # type: ignore[no-untyped-def]
    """The partner with which each cluster saves most, -1 where it saves nothing; of equal ones the pair first in order.

    ``both`` is twice the weight of all edges; other arguments as in ``merge_flow``, with the weight that leaves each cluster.
    """
    partner_C = np.full(len(total_C), -1, dtype=np.int64)
    saving_C = np.full(len(total_C), _LEAST_SAVING)
    all_exit = exit_C.sum()
    for e in range(len(u_E)):
        u, v = u_E[e], v_E[e]
        saving = _saving(total_C[u], exit_C[u], total_C[v], exit_C[v], weight_E[e], both, all_exit)
        if saving > saving_C[u]:
            saving_C[u], partner_C[u] = saving, v
        if saving > saving_C[v]:
            saving_C[v], partner_C[v] = saving, u
    return partner_C


@numba.njit(cache=True)
def best_of_rows(total_C, exit_C, own_E, other_total_E, other_exit_E, weight_E, both, all_exit):  # type: ignore[no-untyped-def]
    """The same from a row for each partner: the row with which each cluster saves most, -1 for none; of equal ones the first.

    Args: sums of the clusters; of each row its cluster, the partner's sums and the weight between both; the sum of total_C
    and of exit_C over all clusters there are.
    """
    row_C = np.full(len(total_C), -1, dtype=np.int64)
    saving_C = np.full(len(total_C), _LEAST_SAVING)
    for e in range(len(own_E)):
        if weight_E[e] > 0:
            u = own_E[e]
            saving = _saving(total_C[u], exit_C[u], other_total_E[e], other_exit_E[e], weight_E[e], both, all_exit)
            if saving > saving_C[u]:
                saving_C[u], row_C[u] = saving, e
    return row_C


@numba.njit(cache=True)
def _saving(total_u, exit_u, total_v, exit_v, weight, both, all_exit):  # type: ignore[no-untyped-def]
    """Bits that a merge of u and v saves; the same bits of a double for v and u."""
    joint_exit = (exit_u + exit_v - 2 * weight) / both
    joint_total = (total_u + total_v) / both
    saving = _plogp(all_exit / both) - _plogp((all_exit - 2 * weight) / both)
    saving += 2 * (_plogp(joint_exit) - (_plogp(exit_u / both) + _plogp(exit_v / both)))
    saving += _plogp(exit_u / both + total_u / both) + _plogp(exit_v / both + total_v / both)
    saving -= _plogp(joint_exit + joint_total)
    return saving


@numba.njit(cache=True)
def _plogp(p):  # type: ignore[no-untyped-def]
    return p * math.log2(p) if p > 0 else 0.0
