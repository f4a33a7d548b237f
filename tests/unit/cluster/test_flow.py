"""The map equation's merges against its definition, computed from scratch for whole partitions."""

import math
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hilander_dist.cluster.flow import WEIGHT_ONE, best_partners, edge_weights, merge_flow, sum_pairs


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
    partner_C = best_partners(np.array(total), leave, *columns(edges), float(sum(total)))
    for node, partner in enumerate(partner_C.tolist()):
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
