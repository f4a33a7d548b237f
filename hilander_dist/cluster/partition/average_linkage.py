"""Average linkage above given clusters: which two merge, one after the other, until one is left. Pure functions.

A cluster is known by the sum of its members' unit rows and their number. The mean similarity over all pairs of members of two
clusters is the inner product of their means, so that average linkage of all members above the given clusters is average
linkage of these means. In a round every two clusters that are each other's nearest merge: a similarity to what merged lies
between those to both, so that the tree is that of one merge at a time, of the nearest two. A cluster's number is the smallest
given cluster in it; similarities are rounded to a grid, and of equally near clusters the nearest has the smallest number.

Shapes: C given clusters, M = C - 1 merges, A = C + M given and made ones; N clusters of one of G groups, D dimensions, Q of
them that look at all, T of those they look at, K candidates.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numba
import numpy as np

from hilander_dist.cluster.hierarchy.features import FIXED_POINT

_GRID = 2.0**40
"""Steps per 1 of similarity. A product of unit rows of 1,024 dimensions in float64 is off by 2**-43 at most."""

_SMALL = 64
"""Clusters up to which a group's similarities are held. 30,000 groups of 100,000 clusters merge in .3 s."""

_CANDIDATES = 8
"""With 4, 8, 16 of them 20,000 random rows of 256 dimensions look at all others 64,110, 54,157, 47,226 times."""

_QUERIES, _OTHERS = 1024, 4096
"""Rows and columns of similarities held at a time: 32 MiB."""


class Merges(NamedTuple):
    """Children come before parents, stages one after the other, and in a stage heights ascend (``heights``)."""

    first_M: np.ndarray
    """int64 clusters that merge: 0 .. C - 1 are the given ones, C + m is what merge m made."""
    second_M: np.ndarray
    """int64, above first_M."""
    similarity_M: np.ndarray
    """float64 mean similarity of the pairs of members across both."""
    count_M: np.ndarray
    """int64 members of what was made."""


class _Search(NamedTuple):
    """Who is nearest of N clusters. What merged goes on at the smaller of both."""

    x_ND: np.ndarray  # float64 means
    into_N: np.ndarray  # int64 cluster that each merged into, or itself
    near_NK: np.ndarray  # int64 candidates, -1 for none; one that merged stands for what it merged into
    rest_N: np.ndarray  # float64: none but the candidates is nearer,
    rest_number_N: np.ndarray  # int64: nor as near with a smaller number
    nearest_N: np.ndarray  # int64


def average_linkage(sum_CD: np.ndarray, count_C: np.ndarray, groups: Sequence[np.ndarray] = ()) -> Merges:
    """Merge given clusters until one is left.

    Args:
        sum_CD: int64 fixed-point sums of the members' unit rows.
        count_C: int64 numbers of members, above 0.
        groups: int64 group_C of each stage, nested from fine to coarse: only clusters of the same group merge, until each group is
            one cluster. In a last stage all merge.

    Returns:
        C - 1 merges, a function of the input alone: blocks and threads count only where they round differently. Of merges of the
        same height the one with fewer such below it comes first, then the one with the smaller numbers.
    """
    C = len(count_C)
    sum_CD, left_C, alive = sum_CD.copy(), count_C.copy(), np.arange(C)
    stages = []
    for group_C in (*groups, np.zeros(C, dtype=np.int64)):
        alive = alive[np.argsort(group_C[alive], kind="stable")]
        start_G = np.unique(group_C[alive], return_index=True)[1]
        stages.append(_merge_groups(alive, np.append(start_G, len(alive)), sum_CD, left_C))
        alive = np.sort(alive[start_G])
    a_M, b_M, similarity_M = _concatenate(stages)
    node_C, pairs = list(range(C)), []
    for m, (a, b) in enumerate(zip(a_M.tolist(), b_M.tolist(), strict=True)):
        pairs.append((node_C[a], node_C[b]))
        node_C[a] = C + m
    first_M, second_M = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    height_M, level_M, count_M = _climb(first_M, second_M, similarity_M, count_C)
    stage_M = np.repeat(np.arange(len(stages)), [len(stage[0]) for stage in stages])
    order_M = np.lexsort((b_M, a_M, level_M, height_M, stage_M))
    return _reorder(Merges(first_M, second_M, similarity_M, count_M), C, order_M)


def heights(merges: Merges, C: int) -> np.ndarray:
    """float64 (M): 1 - similarity, but no less than the heights of the two that merge; given clusters are at 0."""
    height_M: np.ndarray = _climb(merges.first_M, merges.second_M, merges.similarity_M, np.ones(C, dtype=np.int64))[0]
    return height_M


def scipy_linkage(merges: Merges, C: int) -> np.ndarray:
    """The tree as scipy.cluster.hierarchy has it, float64 (M, 4), heights ascend: both, height, number of given clusters."""
    height_M, _, given_M = _climb(merges.first_M, merges.second_M, merges.similarity_M, np.ones(C, dtype=np.int64))
    order_M = np.argsort(height_M, kind="stable")  # of equal heights the children stay first
    first_M, second_M, _, _ = _reorder(merges, C, order_M)
    return np.stack([first_M, second_M, height_M[order_M], given_M[order_M]], axis=1).astype(np.float64)


def cut(first_M: np.ndarray, second_M: np.ndarray, stage_M: np.ndarray, clusters: int) -> np.ndarray:
    """Make only the first merges, until so many clusters are left: int64 (C) label, by the smallest given cluster from 0.

    Args:
        first_M: int64, of ``scipy_linkage``, as are second_M.
        second_M: the other ones.
        stage_M: int64 stage of each merge: those of lower stages are made first, so that the cut is nested with them.
        clusters: 1 to C.
    """
    C = len(first_M) + 1
    made_M = np.argsort(stage_M, kind="stable")[: C - clusters]
    top_A = np.arange(2 * C - 1)
    for m in np.sort(made_M)[::-1].tolist():  # parents come after their children
        top_A[first_M[m]] = top_A[second_M[m]] = top_A[C + m]
    _, smallest, label_C = np.unique(top_A[:C], return_index=True, return_inverse=True)
    return np.argsort(np.argsort(smallest))[label_C]


def _reorder(merges: Merges, C: int, order_M: np.ndarray) -> Merges:
    number_A = np.arange(C + len(order_M))
    number_A[C + order_M] = C + np.arange(len(order_M))
    pair_2M = np.sort(number_A[np.stack([merges.first_M, merges.second_M])[:, order_M]], axis=0)
    return Merges(pair_2M[0], pair_2M[1], merges.similarity_M[order_M], merges.count_M[order_M])


def _concatenate(parts: Sequence[Any]) -> list[np.ndarray]:
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def _merge_groups(alive: np.ndarray, start_G: np.ndarray, sum_CD: np.ndarray, count_C: np.ndarray) -> list[np.ndarray]:
    """Merge each group, alive[start_G[g] : start_G[g + 1]], ascending, to one cluster. Its sum is then that at its first.

    Returns: of each merge, children first, the smaller number, the greater one, and the similarity.
    """
    parts = [_merge_small(alive, start_G, sum_CD, count_C)]
    for g in np.flatnonzero(np.diff(start_G) > _SMALL):
        own_N = alive[start_G[g] : start_G[g + 1]]
        sum_ND, count_N = sum_CD[own_N], count_C[own_N]
        a_M, b_M, similarity_M = _merge_large(sum_ND, count_N)
        sum_CD[own_N[0]], count_C[own_N[0]] = sum_ND[0], count_N[0]
        parts.append((own_N[a_M], own_N[b_M], similarity_M))
    return _concatenate(parts)


@numba.njit(cache=True)
def _merge_small(alive, start_G, sum_CD, count_C):  # type: ignore[no-untyped-def]
    """The groups of at most _SMALL clusters."""
    a_M, b_M, similarity_M = np.empty(len(alive), np.int64), np.empty(len(alive), np.int64), np.empty(len(alive))
    m = 0
    for g in range(len(start_G) - 1):
        N = start_G[g + 1] - start_G[g]
        if N < 2 or N > _SMALL:
            continue
        own_N = alive[start_G[g] : start_G[g + 1]]
        sum_ND, count_N = sum_CD[own_N], count_C[own_N]
        x_ND = sum_ND / (count_N.reshape(-1, 1) * FIXED_POINT)
        similarity_NN = np.full((N, N), -np.inf)  # below the diagonal and of what merged it stays so
        for i in range(N):
            for j in range(i + 1, N):
                similarity_NN[i, j] = _similarity(x_ND, i, j)
        for _ in range(N - 1):
            a, b = divmod(np.argmax(similarity_NN), N)
            a_M[m], b_M[m], similarity_M[m] = own_N[a], own_N[b], similarity_NN[a, b]
            m += 1
            _add(a, b, sum_ND, count_N, x_ND)
            similarity_NN[b, :] = similarity_NN[:, b] = -np.inf
            for o in range(N):
                if similarity_NN[min(a, o), max(a, o)] > -np.inf:
                    similarity_NN[min(a, o), max(a, o)] = _similarity(x_ND, a, o)
        sum_CD[own_N[0]], count_C[own_N[0]] = sum_ND[0], count_N[0]
    return a_M[:m], b_M[:m], similarity_M[:m]


def _merge_large(sum_ND: np.ndarray, count_N: np.ndarray) -> list[np.ndarray]:
    """All clusters of a group, in rounds."""
    N = len(count_N)
    near_NK, x_ND = np.full((N, 2 * _CANDIDATES), -1), sum_ND / (count_N[:, None] * FIXED_POINT)
    search = _Search(x_ND, np.arange(N), near_NK, np.zeros(N), np.zeros(N, dtype=np.int64), np.zeros(N, dtype=np.int64))
    alive, query_Q, parts = np.arange(N), np.arange(N), []
    while len(alive) > 1:
        if len(query_Q):
            _look(query_Q, alive, search)
        *merged, query_Q = _merge_nearest(alive, sum_ND, count_N, search)
        parts.append(merged)
        alive = alive[search.into_N[alive] == alive]
    return _concatenate(parts)


def _look(query_Q: np.ndarray, alive: np.ndarray, search: _Search) -> None:
    """Find the candidates and the nearest of some clusters among all that are left."""
    top_QK = np.full((len(query_Q), _CANDIDATES + 1), -np.inf)
    number_QK = np.full((len(query_Q), _CANDIDATES + 1), -1)
    for t in range(0, len(alive), _OTHERS):
        other_T = alive[t : t + _OTHERS]
        other_DT = search.x_ND[other_T].T
        for q in range(0, len(query_Q), _QUERIES):
            rows = slice(q, q + _QUERIES)
            similarity_QT = search.x_ND[query_Q[rows]] @ other_DT
            _keep_nearest(similarity_QT, query_Q[rows], other_T, top_QK[rows], number_QK[rows])
    search.near_NK[query_Q, :_CANDIDATES] = number_QK[:, :-1]
    search.rest_N[query_Q], search.rest_number_N[query_Q] = top_QK[:, -1], number_QK[:, -1]
    _choose(query_Q, search)


@numba.njit(cache=True)
def _keep_nearest(similarity_QT, query_Q, other_T, top_QK, number_QK):  # type: ignore[no-untyped-def]
    for q in range(len(query_Q)):
        for t in range(len(other_T)):
            similarity = np.rint(similarity_QT[q, t] * _GRID) / _GRID
            if similarity > top_QK[q, -1] and other_T[t] != query_Q[q]:  # as near ones have greater numbers
                _insert(similarity, other_T[t], top_QK[q], number_QK[q])


@numba.njit(cache=True)
def _insert(similarity, number, top_K, number_K):  # type: ignore[no-untyped-def]
    """Put a cluster in its place among the nearest, and drop the last of them."""
    k = (top_K > similarity).sum() + ((top_K == similarity) & (number_K < number)).sum()
    top_K[k + 1 :], number_K[k + 1 :] = top_K[k:-1].copy(), number_K[k:-1].copy()
    top_K[k : k + 1], number_K[k : k + 1] = similarity, number


@numba.njit(cache=True)
def _merge_nearest(alive, sum_ND, count_N, search):  # type: ignore[no-untyped-def]
    """Merge who are each other's nearest; return as ``_merge_groups``, and who must look at all to know the nearest."""
    nearest_N, into_N = search.nearest_N, search.into_N
    mutual = (nearest_N[nearest_N[alive]] == alive) & (alive < nearest_N[alive])
    if not mutual.any():  # rounding put what merged nearer than both were
        mutual[np.argmax(np.array([_similarity(search.x_ND, c, nearest_N[c]) for c in alive]))] = True
    first, second = alive[mutual], nearest_N[alive[mutual]]
    first, second = np.minimum(first, second), np.maximum(first, second)
    similarity, changed_N = np.empty(len(first)), np.zeros(len(into_N), dtype=np.bool_)
    changed_N[first] = changed_N[second] = True
    for m in range(len(first)):
        a, b = first[m], second[m]
        similarity[m] = _similarity(search.x_ND, a, b)
        _add(a, b, sum_ND, count_N, search.x_ND)
        # None but the candidates of both is nearer than the mean of both limits; 2**-8 is for rounding where these are equal.
        part = count_N[b] / count_N[a]
        rest = (1 - part) * search.rest_N[a] + part * search.rest_N[b]
        search.rest_N[a] = np.ceil(rest * _GRID - 2.0**-8) / _GRID
        search.rest_number_N[a] = max(search.rest_number_N[a], search.rest_number_N[b])
        search.near_NK[a, _CANDIDATES:] = search.near_NK[b, :_CANDIDATES]
        into_N[b] = a
    left = alive[into_N[alive] == alive]
    lost = left[changed_N[left] | changed_N[nearest_N[left]]]
    return first, second, similarity, lost[~_choose(lost, search)]


@numba.njit(cache=True)
def _choose(query_Q, search):  # type: ignore[no-untyped-def]
    """Find the nearest among the candidates, and keep the nearest of these; False where another one may be nearer."""
    sure_Q = np.zeros(len(query_Q), dtype=np.bool_)
    for q, c in enumerate(query_Q):
        top_K, number_K = np.full(_CANDIDATES + 1, -np.inf), np.full(_CANDIDATES + 1, -1)
        seen_K = search.near_NK[c]
        for k in range(len(seen_K)):
            while seen_K[k] >= 0 and search.into_N[seen_K[k]] != seen_K[k]:
                seen_K[k] = search.into_N[seen_K[k]]
            if seen_K[k] >= 0 and seen_K[k] != c and not (seen_K[:k] == seen_K[k]).any():
                _insert(_similarity(search.x_ND, c, seen_K[k]), seen_K[k], top_K, number_K)
        seen_K[:_CANDIDATES], seen_K[_CANDIDATES:] = number_K[:-1], -1
        if (top_K[-1], -number_K[-1]) > (search.rest_N[c], -search.rest_number_N[c]):
            search.rest_N[c], search.rest_number_N[c] = top_K[-1], number_K[-1]
        search.nearest_N[c] = number_K[0]
        sure_Q[q] = (top_K[0], -number_K[0]) > (search.rest_N[c], -search.rest_number_N[c])
    return sure_Q


@numba.njit(cache=True)
def _similarity(x_ND, a, b):  # type: ignore[no-untyped-def]
    """Inner product of two rows on the grid: the same for b and a, whatever else is multiplied."""
    D = x_ND.shape[1]
    s0, s1, s2, s3 = 0.0, 0.0, 0.0, 0.0
    for d in range(0, D - 3, 4):
        s0 += x_ND[a, d] * x_ND[b, d]
        s1 += x_ND[a, d + 1] * x_ND[b, d + 1]
        s2 += x_ND[a, d + 2] * x_ND[b, d + 2]
        s3 += x_ND[a, d + 3] * x_ND[b, d + 3]
    for d in range(D - D % 4, D):
        s0 += x_ND[a, d] * x_ND[b, d]
    return np.rint(((s0 + s1) + (s2 + s3)) * _GRID) / _GRID


@numba.njit(cache=True)
def _add(a, b, sum_ND, count_N, x_ND):  # type: ignore[no-untyped-def]
    """Merge b into a."""
    count_N[a] += count_N[b]
    for d in range(sum_ND.shape[1]):
        sum_ND[a, d] += sum_ND[b, d]
        x_ND[a, d] = sum_ND[a, d] / (count_N[a] * FIXED_POINT)


@numba.njit(cache=True)
def _climb(first_M, second_M, similarity_M, count_C):  # type: ignore[no-untyped-def]
    """Of each merge its height, how many merges below it, one above the other, are as high, and the sum of counts."""
    C, A = len(count_C), len(count_C) + len(first_M)
    height_A, level_A, count_A = np.zeros(A), np.full(A, -1), np.append(count_C, np.zeros(A - C, np.int64))
    for m in range(len(first_M)):
        f, s = first_M[m], second_M[m]
        height = max(1 - similarity_M[m], height_A[f], height_A[s])
        level = max(level_A[f] if height_A[f] == height else -1, level_A[s] if height_A[s] == height else -1) + 1
        height_A[C + m], level_A[C + m], count_A[C + m] = height, level, count_A[f] + count_A[s]
    return height_A[C:], level_A[C:], count_A[C:]
