"""The map equation's merges against its definition, computed from scratch for whole partitions."""

import math
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hilander_dist.cluster.partition.map_equation import (
    best_of_rows,
    merge_by_map_equation,
    refresh_exit,
    sum_keyed,
    sum_pairs,
)


def plogp(p: float) -> float:
    return p * math.log2(p) if p > 0 else 0.0


def code_length(group: list[int], edges: list[tuple[int, int, int]], volume: list[int], total_flow: int) -> float:
    """Bits per step of the walk, without the constant terms of nodes and of what has no edge to these ones (Rosvall and Bergstrom
    2008, eq. 4)."""
    flow: dict[int, float] = {}
    leave: dict[int, float] = {}
    for node, g in enumerate(group):
        flow[g] = flow.get(g, 0.0) + volume[node] / total_flow
    for u, v, w in edges:
        if group[u] != group[v]:
            for g in (group[u], group[v]):
                leave[g] = leave.get(g, 0.0) + w / total_flow
    length = plogp(sum(leave.values()))
    for g in flow:
        q = leave.get(g, 0.0)
        length += plogp(q + flow[g]) - 2 * plogp(q)
    return length


@st.composite
def graphs(draw: Any) -> tuple[list[tuple[int, int, int]], list[int], int]:
    """Pairs of nodes with weights, the weight at each node's ends (some of it inside nodes), and the volume with what is elsewhere."""
    n = draw(st.integers(2, 9))
    pairs = [(u, v) for u in range(n) for v in range(u + 1, n)]
    chosen = draw(st.lists(st.sampled_from(pairs), min_size=1, unique=True))
    edges = [(u, v, draw(st.integers(1, 1000))) for u, v in sorted(chosen)]
    volume = [2 * draw(st.integers(0, 500)) for _ in range(n)]
    for u, v, w in edges:
        volume[u] += w
        volume[v] += w
    return edges, volume, sum(volume) + draw(st.sampled_from([0, 1000, 100_000]))


def columns(edges: list[tuple[int, int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    u_E, v_E, weight_E = np.array(edges, dtype=np.int64).reshape(-1, 3).T
    return u_E, v_E, weight_E


def both_ways(u_E: np.ndarray, v_E: np.ndarray, weight_E: np.ndarray) -> tuple[np.ndarray, ...]:
    """A row for each pair at either end."""
    return sum_keyed(np.r_[u_E, v_E], np.r_[v_E, u_E], np.r_[weight_E, weight_E])


def merge_by_rounds(
    volume_C: np.ndarray,
    u_E: np.ndarray,
    v_E: np.ndarray,
    weight_E: np.ndarray,
    total_flow: int,
    stale_exit: int | None,
) -> np.ndarray:
    """``merge_by_map_equation`` as it is defined: every round looks at all rows."""
    group_C, volume_C = np.arange(len(volume_C)), volume_C.copy()
    own_R, other_R, weight_R = both_ways(u_E, v_E, weight_E)
    while True:
        exit_C = np.zeros(len(volume_C), dtype=np.int64)
        np.add.at(exit_C, own_R, weight_R)
        stale_exit = refresh_exit(stale_exit, int(exit_C.sum()))
        row_C = best_of_rows(
            volume_C, exit_C, own_R, volume_C[other_R], exit_C[other_R], weight_R, float(total_flow), stale_exit
        )
        partner_C = np.where(row_C >= 0, other_R[row_C] if len(other_R) else -1, -1)
        into_C = np.arange(len(volume_C))
        named = np.flatnonzero(partner_C >= 0)
        mutual = named[partner_C[partner_C[named]] == named]
        into_C[mutual] = np.minimum(mutual, partner_C[mutual])
        if len(mutual) == 0:
            if stale_exit == exit_C.sum():
                return group_C
            stale_exit = int(exit_C.sum())
            continue
        gone = np.flatnonzero(into_C != np.arange(len(into_C)))
        np.add.at(volume_C, into_C[gone], volume_C[gone])
        volume_C[gone] = 0
        group_C = into_C[group_C]
        own_R, other_R = into_C[own_R], into_C[other_R]
        apart = own_R != other_R
        own_R, other_R, weight_R = sum_keyed(own_R[apart], other_R[apart], weight_R[apart])


@given(
    st.integers(0, 10_000),
    st.integers(2, 60),
    st.integers(1, 300),
    st.sampled_from([1, 3, 1000]),
    st.sampled_from([None, 1.0, 1.1, 2.0]),
)
@settings(max_examples=150, deadline=None)
def test_looking_only_where_something_changed_gives_the_groups_of_rounds_over_all_pairs(
    seed: int, n: int, edges: int, scale: int, before: float | None
) -> None:
    # Small weights make many equal savings; a sparse ring of blocks, chains of merges.
    rng = np.random.default_rng(seed)
    u_E, v_E = rng.integers(n, size=edges), rng.integers(n, size=edges)
    u_E, v_E, weight_E = sum_pairs(u_E, (u_E // 8 * 8 + v_E % 9) % n, rng.integers(1, scale + 1, edges))
    volume_C = np.zeros(n, dtype=np.int64)
    np.add.at(volume_C, u_E, weight_E)
    np.add.at(volume_C, v_E, weight_E)
    apart = u_E != v_E
    pairs = u_E[apart], v_E[apart], weight_E[apart]
    total_flow = int(volume_C.sum()) + int(rng.integers(100))
    stale_exit = None if before is None else round(2 * before * int(pairs[2].sum()))
    np.testing.assert_array_equal(
        merge_by_map_equation(volume_C, *pairs, total_flow, stale_exit),
        merge_by_rounds(volume_C, *pairs, total_flow, stale_exit),
    )


@given(graphs())
@settings(max_examples=150, deadline=None)
def test_a_cluster_names_the_partner_that_saves_most_by_definition(graph: Any) -> None:
    edges, volume, total_flow = graph
    n = len(volume)
    alone = list(range(n))
    before = code_length(alone, edges, volume, total_flow)
    saving: dict[tuple[int, int], float] = {}
    leave = np.zeros(n, dtype=np.int64)
    for u, v, w in edges:
        merged = [u if g == v else g for g in alone]
        saving[u, v] = saving[v, u] = before - code_length(merged, edges, volume, total_flow)
        leave[u] += w
        leave[v] += w
    own_R, other_R, weight_R = both_ways(*columns(edges))
    volume_C = np.array(volume)
    row_C = best_of_rows(
        volume_C, leave, own_R, volume_C[other_R], leave[other_R], weight_R, float(total_flow), int(leave.sum())
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
    edges, volume, total_flow = graph
    group = merge_by_map_equation(np.array(volume), *columns(edges), total_flow).tolist()
    assert all(group[g] == g <= node for node, g in enumerate(group))
    length = code_length(group, edges, volume, total_flow)
    assert length <= code_length(list(range(len(volume))), edges, volume, total_flow) + 1e-9
    for u, v, _ in edges:
        if group[u] != group[v]:
            merged = [group[u] if g == group[v] else g for g in group]
            assert code_length(merged, edges, volume, total_flow) > length - 1e-9


def test_two_cliques_and_a_weak_bridge() -> None:
    edges = [(u, v, 100) for side in (0, 5) for u in range(side, side + 5) for v in range(u + 1, side + 5)]
    edges = sorted([*edges, (4, 5, 1)])
    volume = [sum(w for u, v, w in edges if node in (u, v)) for node in range(10)]
    found = merge_by_map_equation(np.array(volume), *columns(edges), sum(volume))
    assert found.tolist() == [0] * 5 + [5] * 5


def test_nothing_to_merge() -> None:
    none = np.zeros(0, dtype=np.int64)
    assert merge_by_map_equation(np.array([4, 0, 2]), none, none, none, 6).tolist() == [0, 1, 2]


def test_sums_of_pairs_ignore_direction_and_order() -> None:
    u_E, v_E, weight_E = sum_pairs(np.array([3, 1, 2, 1, 2]), np.array([1, 3, 2, 0, 2]), np.array([5, 7, 1, 2, 4]))
    assert list(zip(u_E.tolist(), v_E.tolist(), weight_E.tolist(), strict=True)) == [(0, 1, 2), (1, 3, 12), (2, 2, 5)]


def test_keyed_sums_tell_the_order_of_both_keys_and_take_several_columns() -> None:
    first_E, second_E, a_E, b_E = sum_keyed(
        np.array([2, 1, 2, 2]), np.array([1, 2, 1, 3_000_000_000]), np.array([1, 2, 3, 4]), np.array([10, 20, 30, 40])
    )
    assert first_E.tolist() == [1, 2, 2]
    assert second_E.tolist() == [2, 1, 3_000_000_000]
    assert a_E.tolist() == [2, 4, 4]
    assert b_E.tolist() == [20, 40, 40]


def test_the_weight_between_clusters_is_renewed_once_it_is_a_fifth_less() -> None:
    assert refresh_exit(None, 70) == 70
    assert refresh_exit(100, 80) == 100
    assert refresh_exit(100, 79) == 79
