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

_LEAST_GAIN = 1e-12
"""In bits. Less is rounding."""

_REFRESH = 0.8
"""See ``refresh_exit``."""


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
    width = int(second_E.max()) + 1
    assert int(first_E.max()) < 2**63 // width, f"keys {first_E.max()} and {width - 1} do not fit one int64"
    joint_E = first_E * width + second_E
    order = np.argsort(joint_E)
    joint_E = joint_E[order]
    new = np.flatnonzero(np.r_[True, joint_E[1:] != joint_E[:-1]])
    one = order[new]
    return first_E[one], second_E[one], *(np.add.reduceat(column[order], new) for column in columns)


def merge_by_map_equation(
    volume_C: np.ndarray,
    u_E: np.ndarray,
    v_E: np.ndarray,
    weight_E: np.ndarray,
    total_flow: int,
    stale_exit: int | None = None,
) -> np.ndarray:
    """Merge clusters until no merge of two shortens the description of the walk.

    A round that merges little changes little: the best partner of a cluster is looked for anew only after it merged, after
    its best partner merged and may no longer be the best, or when ``stale_exit`` is renewed. The partition is that of rounds over
    all pairs.

    Args:
        volume_C: int64 sum of the weights at the members' ends; an edge inside counts twice, at both.
        u_E: int64 first cluster of each pair; pairs are distinct.
        v_E: int64 second cluster of each pair.
        weight_E: int64 weight of the edges between both, above 0.
        total_flow: the volume of all clusters, also of those that have no edge to another one and are left out here.
        stale_exit: see ``refresh_exit``; of earlier rounds, None for none.

    Returns:
        ``group_C`` int64: the smallest cluster of each cluster's group.
    """
    C = len(volume_C)
    if len(u_E) == 0:
        return np.arange(C)
    own_R, other_R, weight_R = np.r_[u_E, v_E], np.r_[v_E, u_E], np.r_[weight_E, weight_E]
    order = np.argsort(own_R, kind="stable")
    own_R, other_R, weight_R = own_R[order], other_R[order], weight_R[order]
    first_C = np.searchsorted(own_R, np.arange(C + 1))
    exit_C = np.zeros(C, dtype=np.int64)
    np.add.at(exit_C, own_R, weight_R)
    into_C = np.arange(C)
    start = refresh_exit(stale_exit, int(exit_C.sum()))
    _merge_all(volume_C.copy(), exit_C, first_C, other_R, weight_R, into_C, float(total_flow), start)
    while True:
        further_C = into_C[into_C]
        if np.array_equal(further_C, into_C):
            return into_C
        into_C = further_C


def refresh_exit(stale_exit: int | None, all_exit: int) -> int:
    """The weight between clusters with which savings are computed: that at an earlier round, until it is a fifth less.

    What a merge saves depends on all other clusters by this one sum. If it changed in every round, every cluster would have
    to look at all its partners in every round, of which there are 1,200 for 45,000 trees. Before the end it is renewed too:
    the last rounds find no saving with the true sum.
    """
    return all_exit if stale_exit is None or all_exit < _REFRESH * stale_exit else stale_exit


@numba.njit(cache=True)
def _merge_all(volume_C, exit_C, first_C, other_R, weight_R, into_C, total_flow, stale_exit):  # type: ignore[no-untyped-def]
    """Merge in place: into_C[c] < c where c merged. A cluster's rows are a linked list, tidied when they are looked at."""
    C = len(volume_C)
    next_R = np.arange(1, len(other_R) + 1)
    head_C = np.full(C, -1, dtype=np.int64)
    tail_C = np.full(C, -1, dtype=np.int64)
    for i in range(C):
        if first_C[i + 1] > first_C[i]:
            head_C[i], tail_C[i] = first_C[i], first_C[i + 1] - 1
            next_R[tail_C[i]] = -1
    partner_C = np.full(C, -1, dtype=np.int64)
    between_C = np.zeros(C, dtype=np.int64)
    gain_C, codelength_C = np.zeros(C), np.zeros(C)
    # No other partner saves more than this. Without it 68,000 trees take 3.4 million looks, with it .3 million.
    second_C = np.zeros(C)
    for i in range(C):
        codelength_C[i] = _codelength(volume_C[i], exit_C[i], total_flow)
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
                partner_C[c], between_C[c], gain_C[c], second_C[c] = _best(
                    c, volume_C, exit_C, codelength_C, other_R, weight_R, next_R, head_C[c], total_flow, stale_exit
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
            volume_C[u] += volume_C[v]
            codelength_C[u] = _codelength(volume_C[u], exit_C[u], total_flow)
            next_R[tail_C[u]] = head_C[v]
            tail_C[u] = tail_C[v]
            into_C[v] = u
            partner_C[u] = partner_C[v] = -1
            look_C[u] = True
            joined[merged] = u
            merged += 1
        if merged == 0 and stale_exit == all_exit:
            return
        if merged == 0 or all_exit < _REFRESH * stale_exit:
            stale_exit = all_exit
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
                    saving = _gain(
                        volume_C[c],
                        exit_C[c],
                        codelength_C[c],
                        volume_C[u],
                        exit_C[u],
                        codelength_C[u],
                        w,
                        total_flow,
                        stale_exit,
                    )
                    was_best = p >= 0 and _find(into_C, p) == u
                    if was_best:
                        if saving > second_C[c]:
                            partner_C[c], between_C[c], gain_C[c] = u, w, saving
                            changed_C[c] = True
                        else:
                            look_C[c] = True
                    elif saving > gain_C[c] or (saving == gain_C[c] and p >= 0 and u < p):
                        second_C[c] = gain_C[c]
                        partner_C[c], between_C[c], gain_C[c] = u, w, saving
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
def _best(c, volume_C, exit_C, codelength_C, other_R, weight_R, next_R, r, total_flow, stale_exit):  # type: ignore[no-untyped-def]
    """The partner with which a cluster saves most, -1 for none, the weight between them, what it saves, and the most that
    another one saves; of equal ones the smallest."""
    partner, between, most, second = -1, 0, _LEAST_GAIN, _LEAST_GAIN
    while r >= 0:
        o = other_R[r]
        saving = _gain(
            volume_C[c],
            exit_C[c],
            codelength_C[c],
            volume_C[o],
            exit_C[o],
            codelength_C[o],
            weight_R[r],
            total_flow,
            stale_exit,
        )
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
def best_of_rows(volume_C, exit_C, own_E, other_volume_E, other_exit_E, weight_E, total_flow, stale_exit):  # type: ignore[no-untyped-def]
    """The row with which each cluster saves most, -1 where it saves nothing; of equal ones the first.

    Args: sums of the clusters; of each row its cluster, the partner's sums and the weight between both; the sum of volume_C
    over all clusters there are; see ``refresh_exit``.
    """
    row_C = np.full(len(volume_C), -1, dtype=np.int64)
    gain_C = np.full(len(volume_C), _LEAST_GAIN)
    for e in range(len(own_E)):
        if weight_E[e] > 0:
            u = own_E[e]
            total, exit_ = other_volume_E[e], other_exit_E[e]
            alone, other_codelength = (
                _codelength(volume_C[u], exit_C[u], total_flow),
                _codelength(total, exit_, total_flow),
            )
            saving = _gain(
                volume_C[u], exit_C[u], alone, total, exit_, other_codelength, weight_E[e], total_flow, stale_exit
            )
            if saving > gain_C[u]:
                gain_C[u], row_C[u] = saving, e
    return row_C


@numba.njit(cache=True)
def _codelength(total, exit_, total_flow):  # type: ignore[no-untyped-def]
    """What a cluster costs of the description, in bits."""
    return _plogp(exit_ / total_flow + total / total_flow) - 2 * _plogp(exit_ / total_flow)


@numba.njit(cache=True)
def _gain(volume_u, exit_u, codelength_u, volume_v, exit_v, codelength_v, weight, total_flow, stale_exit):  # type: ignore[no-untyped-def]
    """Bits that a merge of u and v saves; the same bits of a double for v and u."""
    joint = _codelength(volume_u + volume_v, exit_u + exit_v - 2 * weight, total_flow)
    return (
        (codelength_u + codelength_v)
        - joint
        + (_plogp(stale_exit / total_flow) - _plogp((stale_exit - 2 * weight) / total_flow))
    )


@numba.njit(cache=True)
def _plogp(p):  # type: ignore[no-untyped-def]
    return p * math.log2(p) if p > 0 else 0.0
