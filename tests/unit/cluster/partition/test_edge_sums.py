"""Sums over edges against plain loops."""

from typing import Any, NamedTuple

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hilander_dist.cluster.partition.edge_sums import companions, sum_edges
from hilander_dist.cluster.partition.log_odds import MOST, ONE, probabilities, weights


class Table(NamedTuple):
    at_T: np.ndarray
    clusters: int
    local_NK: np.ndarray
    step_NK: np.ndarray
    shift: float


@st.composite
def tables(draw: Any) -> Table:
    """Rows of a shard with neighbours among themselves and in a halo, and with pads; some clusters without a row."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    N, K, halo, clusters = (
        draw(st.integers(0, 25)),
        draw(st.integers(1, 6)),
        draw(st.integers(0, 9)),
        draw(st.integers(1, 8)),
    )
    local_NK = rng.integers(-2, max(N + halo, 1), (N, K)).clip(-1)
    if draw(st.booleans()) and N:
        local_NK[rng.integers(N, size=N // 2)] = -1
    # Few steps, so that sums of probabilities come out equal to whole numbers.
    few = draw(st.booleans())
    step_NK = rng.choice([-MOST, 0, 64, MOST], (N, K)) if few else rng.integers(-MOST, MOST + 1, (N, K))
    at_T = rng.integers(clusters, size=N + halo).astype(np.int32)
    return Table(at_T, clusters, local_NK, step_NK.astype(np.int16), draw(st.sampled_from([-3.0, -0.5, 0.0, 2.0])))


@given(tables())
@settings(max_examples=200, deadline=None)
def test_sums_are_those_of_a_loop_over_the_edges(table: Table) -> None:
    expected_Q, weight_Q = probabilities(table.shift), weights(table.shift + 0.5)
    found = sum_edges(table.at_T, table.clusters, table.local_NK, table.step_NK, expected_Q, weight_Q)
    rows, inside_edges = [0, 0, 0], 0
    weight, edges, exits = ([0] * table.clusters for _ in range(3))
    between: dict[tuple[int, int], int] = {}
    for n, neighbours in enumerate(table.local_NK.tolist()):
        own = int(table.at_T[n])
        steps = [
            (int(table.at_T[t]), int(step)) for t, step in zip(neighbours, table.step_NK[n], strict=True) if t >= 0
        ]
        inside = sum(other == own for other, _ in steps)
        expected = sum(int(expected_Q[step + MOST]) for _, step in steps)
        inside_edges += inside
        edges[own] += len(steps)
        exits[own] += len(steps) - inside
        if steps:
            rows[0 if inside == len(steps) else 1 if inside * ONE > expected else 2] += 1
        for other, step in steps:
            w = int(weight_Q[step + MOST])
            if other == own:
                weight[own] += w
            elif w:
                between[own, other] = between.get((own, other), 0) + w
    assert found.row_4.tolist() == [*rows, inside_edges]
    assert found.weight_U.tolist() == weight
    assert found.edges_U.tolist() == edges
    assert found.exits_U.tolist() == exits
    pairs = list(zip(found.u_E.tolist(), found.v_E.tolist(), strict=True))
    assert dict(zip(pairs, found.weight_E.tolist(), strict=True)) == between
    assert len(pairs) == len(between)
    assert {column.dtype for column in found} == {np.dtype(np.int64)}


def test_a_row_with_exactly_as_many_companions_as_expected_is_not_above() -> None:
    # Two neighbours, one in the own cluster; probabilities of one half add up to 1.
    at_T, local_NK = np.array([0, 0, 1], dtype=np.int32), np.array([[1, 2]])
    for step, row_4 in ((0, [0, 0, 1, 1]), (-1, [0, 1, 0, 1])):
        step_NK = np.full((1, 2), step, dtype=np.int16)
        found = sum_edges(at_T, 2, local_NK, step_NK, probabilities(0.0), weights(0.0))
        assert found.row_4.tolist() == row_4


def test_more_pairs_than_there_is_room_for_at_first() -> None:
    n = 70
    local_NK = np.array([[m for m in range(n) if m != node] for node in range(n)])
    step_NK = np.full((n, n - 1), MOST, dtype=np.int16)
    found = sum_edges(np.arange(n, dtype=np.int32), n, local_NK, step_NK, probabilities(0.0), weights(0.0))
    assert set(zip(found.u_E.tolist(), found.v_E.tolist(), strict=True)) == {
        (u, v) for u in range(n) for v in range(n) if u != v
    }
    assert set(found.weight_E.tolist()) == {int(weights(0.0)[-1])}


@given(tables())
@settings(max_examples=200, deadline=None)
def test_companions_are_those_of_a_loop_over_the_edges(table: Table) -> None:
    chance_Q = probabilities(table.shift)
    confidence_N, margin_N = companions(table.at_T, table.clusters, table.local_NK, table.step_NK, chance_Q)
    assert confidence_N.dtype == margin_N.dtype == np.float32
    for n, neighbours in enumerate(table.local_NK.tolist()):
        own = int(table.at_T[n])
        by_cluster = dict.fromkeys(range(table.clusters), 0)
        for t, step in zip(neighbours, table.step_NK[n].tolist(), strict=True):
            if t >= 0:
                by_cluster[int(table.at_T[t])] += int(chance_Q[step + MOST])
        inside, total = by_cluster.pop(own), sum(by_cluster.values())
        total += inside
        if total == 0:
            assert confidence_N[n] == margin_N[n] == 0
        else:
            assert confidence_N[n] == np.float32(inside / total)
            assert margin_N[n] == np.float32((inside - max(by_cluster.values(), default=0)) / total)


def test_a_row_without_edges_is_sure_of_nothing() -> None:
    nothing_NK = np.full((1, 3), -1)
    found = companions(np.zeros(1, np.int32), 1, nothing_NK, nothing_NK.astype(np.int16), probabilities(0.0))
    np.testing.assert_array_equal(found, [[0.0], [0.0]])
