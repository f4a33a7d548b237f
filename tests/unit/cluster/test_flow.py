"""The map equation's merges against its definition, computed from scratch for whole partitions."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilander_dist.cluster.flow import WEIGHT_ONE, best_of_rows, edge_weights, merge_flow, renewed, sum_keyed, sum_pairs


def plogp(p: float) -> float:
    return p * math.log2(p) if p > 0 else 0.0


def code_length(group: list[int], edges: list[tuple[int, int, int]], total: list[int]) -> float:
    """Bits per step of the walk, without the constant term of the nodes (Rosvall and Bergstrom 2008, eq. 4)."""
    both = sum(total)
    flow: dict[int, float] = {}
    leave: dict[int, float] = {}
    for node, g in enumerate(group):
        flow[g] = flow.get(g, 0.0) + total[node] / both
    for u, v, w in edges:
        if group[u] != group[v]:
            for g in (group[u], group[v]):
                leave[g] = leave.get(g, 0.0) + w / both
    length = plogp(sum(leave.values()))
    for g in flow:
        q = leave.get(g, 0.0)
        length += plogp(q + flow[g]) - 2 * plogp(q)
    return length


@st.composite
def graphs(draw: Any) -> tuple[list[tuple[int, int, int]], list[int]]:
    """Pairs of nodes with weights, and the weight at each node's ends; some weight inside nodes."""
    n = draw(st.integers(2, 9))
    pairs = [(u, v) for u in range(n) for v in range(u + 1, n)]
    chosen = draw(st.lists(st.sampled_from(pairs), min_size=1, unique=True))
    edges = [(u, v, draw(st.integers(1, 1000))) for u, v in sorted(chosen)]
    total = [2 * draw(st.integers(0, 500)) for _ in range(n)]
    for u, v, w in edges:
        total[u] += w
        total[v] += w
    return edges, total


def columns(edges: list[tuple[int, int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    u_E, v_E, weight_E = np.array(edges, dtype=np.int64).reshape(-1, 3).T
    return u_E, v_E, weight_E


def both_ways(u_E: np.ndarray, v_E: np.ndarray, weight_E: np.ndarray) -> tuple[np.ndarray, ...]:
    """A row for each pair at either end."""
    return sum_keyed(np.r_[u_E, v_E], np.r_[v_E, u_E], np.r_[weight_E, weight_E])


def merge_by_rounds(total_C: np.ndarray, u_E: np.ndarray, v_E: np.ndarray, weight_E: np.ndarray) -> np.ndarray:
    """``merge_flow`` as it is defined: every round looks at all rows."""
    group_C, total_C, held = np.arange(len(total_C)), total_C.copy(), None
    own_R, other_R, weight_R = both_ways(u_E, v_E, weight_E)
    while True:
        exit_C = np.zeros(len(total_C), dtype=np.int64)
        np.add.at(exit_C, own_R, weight_R)
        held = renewed(held, int(exit_C.sum()))
        both = float(total_C.sum())
        row_C = best_of_rows(total_C, exit_C, own_R, total_C[other_R], exit_C[other_R], weight_R, both, held)
        partner_C = np.where(row_C >= 0, other_R[row_C] if len(other_R) else -1, -1)
        into_C = np.arange(len(total_C))
        named = np.flatnonzero(partner_C >= 0)
        mutual = named[partner_C[partner_C[named]] == named]
        into_C[mutual] = np.minimum(mutual, partner_C[mutual])
        if len(mutual) == 0:
            if held == exit_C.sum():
                return group_C
            held = int(exit_C.sum())
            continue
        gone = np.flatnonzero(into_C != np.arange(len(into_C)))
        np.add.at(total_C, into_C[gone], total_C[gone])
        total_C[gone] = 0
        group_C = into_C[group_C]
        own_R, other_R = into_C[own_R], into_C[other_R]
        apart = own_R != other_R
        own_R, other_R, weight_R = sum_keyed(own_R[apart], other_R[apart], weight_R[apart])


@given(st.integers(0, 10_000), st.integers(2, 60), st.integers(1, 300), st.sampled_from([1, 3, 1000]))
@settings(max_examples=150, deadline=None)
def test_looking_only_where_something_changed_gives_the_same_groups(seed: int, n: int, edges: int, scale: int) -> None:
    # Small weights make many equal savings; a sparse ring of blocks, chains of merges.
    rng = np.random.default_rng(seed)
    u_E, v_E = rng.integers(n, size=edges), rng.integers(n, size=edges)
    u_E, v_E, weight_E = sum_pairs(u_E, (u_E // 8 * 8 + v_E % 9) % n, rng.integers(1, scale + 1, edges))
    total_C = np.zeros(n, dtype=np.int64)
    np.add.at(total_C, u_E, weight_E)
    np.add.at(total_C, v_E, weight_E)
    apart = u_E != v_E
    pairs = u_E[apart], v_E[apart], weight_E[apart]
    np.testing.assert_array_equal(merge_flow(total_C, *pairs), merge_by_rounds(total_C, *pairs))


@given(graphs())
@settings(max_examples=150, deadline=None)
def test_a_cluster_names_the_partner_that_saves_most_by_definition(graph: Any) -> None:
    edges, total = graph
    n = len(total)
    alone = list(range(n))
    before = code_length(alone, edges, total)
    saving: dict[tuple[int, int], float] = {}
    leave = np.zeros(n, dtype=np.int64)
    for u, v, w in edges:
        merged = [u if g == v else g for g in alone]
        saving[u, v] = saving[v, u] = before - code_length(merged, edges, total)
        leave[u] += w
        leave[v] += w
    own_R, other_R, weight_R = both_ways(*columns(edges))
    exit_R = leave[other_R]
    row_C = best_of_rows(
        np.array(total), leave, own_R, np.array(total)[other_R], exit_R, weight_R, float(sum(total)), int(leave.sum())
    )
    for node, row in enumerate(row_C.tolist()):
        partner = int(other_R[row]) if row >= 0 else -1
        best = max((gain for (u, _), gain in saving.items() if u == node), default=0.0)
        if partner < 0:
            assert best < 1e-9
        else:
            assert saving[node, partner] > best - 1e-9


@given(graphs())
@settings(max_examples=100, deadline=None)
def test_in_the_end_no_merge_of_two_groups_saves_anything(graph: Any) -> None:
    edges, total = graph
    group = merge_flow(np.array(total), *columns(edges)).tolist()
    assert all(group[g] == g <= node for node, g in enumerate(group))
    length = code_length(group, edges, total)
    assert length <= code_length(list(range(len(total))), edges, total) + 1e-9
    for u, v, _ in edges:
        if group[u] != group[v]:
            merged = [group[u] if g == group[v] else g for g in group]
            assert code_length(merged, edges, total) > length - 1e-9


def test_two_cliques_and_a_weak_bridge() -> None:
    edges = [(u, v, 100) for side in (0, 5) for u in range(side, side + 5) for v in range(u + 1, side + 5)]
    edges = sorted([*edges, (4, 5, 1)])
    total = [sum(w for u, v, w in edges if node in (u, v)) for node in range(10)]
    assert merge_flow(np.array(total), *columns(edges)).tolist() == [0] * 5 + [5] * 5


def test_nothing_to_merge() -> None:
    none = np.zeros(0, dtype=np.int64)
    assert merge_flow(np.array([4, 0, 2]), none, none, none).tolist() == [0, 1, 2]


def test_sum_pairs_ignores_direction_and_order() -> None:
    u_E, v_E, weight_E = sum_pairs(np.array([3, 1, 2, 1, 2]), np.array([1, 3, 2, 0, 2]), np.array([5, 7, 1, 2, 4]))
    assert list(zip(u_E.tolist(), v_E.tolist(), weight_E.tolist(), strict=True)) == [(0, 1, 2), (1, 3, 12), (2, 2, 5)]


def test_weights_are_the_excess_over_tau() -> None:
    weight = edge_weights(np.array([[1.0, 0.75, 0.5, 0.2]]), 0.5)
    assert weight.tolist() == [[WEIGHT_ONE, WEIGHT_ONE / 2, 0, 0]]


@pytest.mark.parametrize(("weight", "rest", "groups"), [(0.02, 0.0, 50), (0.02, 2.0, 100), (0.9, 2.0, 50)])
def test_who_rests_is_not_merged_by_weak_edges_alone(weight: float, rest: float, groups: int) -> None:
    # 50 pairs of nodes with one edge each.
    u_E, v_E = np.arange(0, 100, 2), np.arange(1, 100, 2)
    weight_E = np.full(50, round(weight * WEIGHT_ONE))
    total_C = np.full(100, round((weight + rest) * WEIGHT_ONE))
    assert len(np.unique(merge_flow(total_C, u_E, v_E, weight_E))) == groups
