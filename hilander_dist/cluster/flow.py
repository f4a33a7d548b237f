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

REST_TAU = 0.5
"""See ``rest_at``; the middle of those among which one is chosen (``pipeline.calibration``)."""

_RENEW = 0.8
"""See ``renewed``."""


def edge_weights(p1_NK: np.ndarray, tau: float) -> np.ndarray:
    """Fixed-point weights of edges: the part of the probability above tau, 1 for certain ones, 0 from tau down."""
    excess_NK = (p1_NK.astype(np.float64) - tau) / max(1 - tau, 1e-9)
    return np.rint(np.maximum(excess_NK, 0) * WEIGHT_ONE).astype(np.int64)


def rest_at(rest: float, weight: int, weight_at_rest_tau: int) -> float:
    """The weight with which the walk rests at each node, at another tau than REST_TAU.

    The lower tau is, the more all edges weigh; a rest that stays as it is would count for less, and a lower tau join twice over. So
    the walk rests for the same share of its way at any tau. A tau off by .1 cost .115, .073 and .050 of F on long-tailed omniglot by
    three networks with the same rest, and .079, .038 and .028 with this one.

    Args:
        rest: at REST_TAU.
        weight: of all edges at the tau in question.
        weight_at_rest_tau: of all edges at REST_TAU.
    """
    return rest * weight / weight_at_rest_tau if weight_at_rest_tau else rest


def sum_pairs(u_E: np.ndarray, v_E: np.ndarray, *columns: np.ndarray) -> tuple[np.ndarray, ...]:
    """Add up the columns of equal pairs, whichever of both comes first; pairs ascend by (u, v), u <= v."""
    return sum_keyed(np.minimum(u_E, v_E), np.maximum(u_E, v_E), *columns)


def sum_keyed(first_E: np.ndarray, second_E: np.ndarray, *columns: np.ndarray) -> tuple[np.ndarray, ...]:
    """Add up the columns where both keys are equal; keys (int64, 0 to 3e9) ascend by (first, second).

    Sorting one joint key takes less than half the time of sorting by two (4 million rows .76 s, 1.84 s). It keeps no order of
    equal keys, which sums of integers do not need.
    """
    if len(first_E) == 0:
        return first_E, second_E, *columns
    joint_E = first_E * (int(second_E.max()) + 1) + second_E
    order = np.argsort(joint_E)
    joint_E = joint_E[order]
    new = np.flatnonzero(np.r_[True, joint_E[1:] != joint_E[:-1]])
    one = order[new]
    return first_E[one], second_E[one], *(np.add.reduceat(column[order], new) for column in columns)


def merge_flow(
    total_C: np.ndarray, u_E: np.ndarray, v_E: np.ndarray, weight_E: np.ndarray, held: int | None = None
) -> np.ndarray:
    """Merge clusters until no merge of two shortens the description of the walk.

    A round that merges little changes little: the best partner of a cluster is looked for anew only after it merged, after
    its best partner merged and may no longer be the best, or when ``held`` is renewed. The partition is that of rounds over
    all pairs.

    Args:
        total_C: int64 sum of the weights at the members' ends; an edge inside counts twice, at both.
        u_E: int64 first cluster of each pair; pairs are distinct.
        v_E: int64 second cluster of each pair.
        weight_E: int64 weight of the edges between both, above 0.
        held: see ``renewed``; of earlier rounds, None for none.

    Returns:
        ``group_C`` int64: the smallest cluster of each cluster's group.
    """
    C = len(total_C)
    if len(u_E) == 0:
        return np.arange(C)
    own_R, other_R, weight_R = np.r_[u_E, v_E], np.r_[v_E, u_E], np.r_[weight_E, weight_E]
    order = np.argsort(own_R, kind="stable")
    own_R, other_R, weight_R = own_R[order], other_R[order], weight_R[order]
    first_C = np.searchsorted(own_R, np.arange(C + 1))
    exit_C = np.zeros(C, dtype=np.int64)
    np.add.at(exit_C, own_R, weight_R)
    into_C = np.arange(C)
    start = renewed(held, int(exit_C.sum()))
    _merge_all(total_C.copy(), exit_C, first_C, other_R, weight_R, into_C, float(total_C.sum()), start)
    while True:
        further_C = into_C[into_C]
        if np.array_equal(further_C, into_C):
            return into_C
        into_C = further_C


def renewed(held: int | None, all_exit: int) -> int:
    """The weight between clusters with which savings are computed: that at an earlier round, until it is a fifth less.

    What a merge saves depends on all other clusters by this one sum. If it changed in every round, every cluster would have
    to look at all its partners in every round, of which there are 1,200 for 45,000 trees. Before the end it is renewed too:
    the last rounds find no saving with the true sum.
    """
    return all_exit if held is None or all_exit < _RENEW * held else held


@numba.njit(cache=True)
def _merge_all(total_C, exit_C, first_C, other_R, weight_R, into_C, both, held):  # type: ignore[no-untyped-def]
    """Merge in place: into_C[c] < c where c merged. A cluster's rows are a linked list, tidied when they are looked at."""
    C = len(total_C)
    next_R = np.arange(1, len(other_R) + 1)
    head_C = np.full(C, -1, dtype=np.int64)
    tail_C = np.full(C, -1, dtype=np.int64)
    for i in range(C):
        if first_C[i + 1] > first_C[i]:
            head_C[i], tail_C[i] = first_C[i], first_C[i + 1] - 1
            next_R[tail_C[i]] = -1
    partner_C = np.full(C, -1, dtype=np.int64)
    between_C = np.zeros(C, dtype=np.int64)
    saving_C, alone_C = np.zeros(C), np.zeros(C)
    # No other partner saves more than this. Without it 68,000 trees take 3.4 million looks, with it .3 million.
    second_C = np.zeros(C)
    for i in range(C):
        alone_C[i] = _alone(total_C[i], exit_C[i], both)
    seen_C = np.full(C, -1, dtype=np.int64)
    row_C = np.zeros(C, dtype=np.int64)
    look_C = np.ones(C, dtype=np.bool_)
    changed_C = np.zeros(C, dtype=np.bool_)
    joined = np.empty(C, dtype=np.int64)
    all_exit = exit_C.sum()
    looks = 0
    while True:
        for c in np.flatnonzero(look_C):
            look_C[c] = False
            if into_C[c] == c:
                looks += 1
                _tidy(c, looks, other_R, weight_R, next_R, head_C, tail_C, seen_C, row_C, into_C)
                partner_C[c], between_C[c], saving_C[c], second_C[c] = _best(
                    c, total_C, exit_C, alone_C, other_R, weight_R, next_R, head_C[c], both, held
                )
                changed_C[c] = True
        merged = 0
        for c in np.flatnonzero(changed_C):
            changed_C[c] = False
            p = partner_C[c]
            if p < 0 or into_C[c] != c or partner_C[p] != c:
                continue
            u = min(c, p)
            v = max(c, p)
            all_exit -= 2 * between_C[c]
            exit_C[u] += exit_C[v] - 2 * between_C[c]
            total_C[u] += total_C[v]
            alone_C[u] = _alone(total_C[u], exit_C[u], both)
            next_R[tail_C[u]] = head_C[v]
            tail_C[u] = tail_C[v]
            into_C[v] = u
            partner_C[u] = partner_C[v] = -1
            look_C[u] = True
            joined[merged] = u
            merged += 1
        if merged == 0 and held == all_exit:
            return
        if merged == 0 or all_exit < _RENEW * held:
            held = all_exit
            look_C[:] = True
            continue
        for u in joined[:merged]:
            looks += 1
            _tidy(u, looks, other_R, weight_R, next_R, head_C, tail_C, seen_C, row_C, into_C)
            r = head_C[u]
            while r >= 0:
                # Only its row to u changed: unless that was the best and another may be now, nothing is to be looked at.
                c, w, p = other_R[r], weight_R[r], partner_C[other_R[r]]
                if not look_C[c]:
                    saving = _saving(
                        total_C[c], exit_C[c], alone_C[c], total_C[u], exit_C[u], alone_C[u], w, both, held
                    )
                    was_best = p >= 0 and _find(into_C, p) == u
                    if was_best:
                        if saving > second_C[c]:
                            partner_C[c], between_C[c], saving_C[c] = u, w, saving
                            changed_C[c] = True
                        else:
                            look_C[c] = True
                    elif saving > saving_C[c] or (saving == saving_C[c] and p >= 0 and u < p):
                        second_C[c] = saving_C[c]
                        partner_C[c], between_C[c], saving_C[c] = u, w, saving
                        changed_C[c] = True
                    else:
                        second_C[c] = max(second_C[c], saving)
                r = next_R[r]


@numba.njit(cache=True)
def _tidy(c, look, other_R, weight_R, next_R, head_C, tail_C, seen_C, row_C, into_C):  # type: ignore[no-untyped-def]
    """Add up a cluster's rows by what their clusters became, and drop those of what became itself."""
    last, r = -1, head_C[c]
    while r >= 0:
        o = _find(into_C, other_R[r])
        if o != c and seen_C[o] != look:
            seen_C[o], row_C[o], other_R[r] = look, r, o
            last = r
        else:
            if o != c:
                weight_R[row_C[o]] += weight_R[r]
            if last < 0:
                head_C[c] = next_R[r]
            else:
                next_R[last] = next_R[r]
        r = next_R[r]
    tail_C[c] = last


@numba.njit(cache=True)
def _best(c, total_C, exit_C, alone_C, other_R, weight_R, next_R, r, both, held):  # type: ignore[no-untyped-def]
    """The partner with which a cluster saves most, -1 for none, the weight between them, what it saves, and the most that
    another one saves; of equal ones the smallest."""
    partner, between, most, second = -1, 0, _LEAST_SAVING, _LEAST_SAVING
    while r >= 0:
        o = other_R[r]
        saving = _saving(total_C[c], exit_C[c], alone_C[c], total_C[o], exit_C[o], alone_C[o], weight_R[r], both, held)
        if saving > most or (saving == most and 0 <= o < partner):
            partner, between, most, second = o, weight_R[r], saving, most
        else:
            second = max(second, saving)
        r = next_R[r]
    return partner, between, most, second


@numba.njit(cache=True)
def _find(into_C, c):  # type: ignore[no-untyped-def]
    while into_C[c] != c:
        into_C[c] = into_C[into_C[c]]
        c = into_C[c]
    return c


@numba.njit(cache=True)
def best_of_rows(total_C, exit_C, own_E, other_total_E, other_exit_E, weight_E, both, held):  # type: ignore[no-untyped-def]
    """The row with which each cluster saves most, -1 where it saves nothing; of equal ones the first.

    Args: sums of the clusters; of each row its cluster, the partner's sums and the weight between both; the sum of total_C
    over all clusters there are; see ``renewed``.
    """
    row_C = np.full(len(total_C), -1, dtype=np.int64)
    saving_C = np.full(len(total_C), _LEAST_SAVING)
    for e in range(len(own_E)):
        if weight_E[e] > 0:
            u = own_E[e]
            total, exit_ = other_total_E[e], other_exit_E[e]
            alone, other_alone = _alone(total_C[u], exit_C[u], both), _alone(total, exit_, both)
            saving = _saving(total_C[u], exit_C[u], alone, total, exit_, other_alone, weight_E[e], both, held)
            if saving > saving_C[u]:
                saving_C[u], row_C[u] = saving, e
    return row_C


@numba.njit(cache=True)
def _alone(total, exit_, both):  # type: ignore[no-untyped-def]
    """What a cluster costs of the description, in bits."""
    return _plogp(exit_ / both + total / both) - 2 * _plogp(exit_ / both)


@numba.njit(cache=True)
def _saving(total_u, exit_u, alone_u, total_v, exit_v, alone_v, weight, both, held):  # type: ignore[no-untyped-def]
    """Bits that a merge of u and v saves; the same bits of a double for v and u."""
    joint = _alone(total_u + total_v, exit_u + exit_v - 2 * weight, both)
    return (alone_u + alone_v) - joint + (_plogp(held / both) - _plogp((held - 2 * weight) / both))


@numba.njit(cache=True)
def _plogp(p):  # type: ignore[no-untyped-def]
    return p * math.log2(p) if p > 0 else 0.0
