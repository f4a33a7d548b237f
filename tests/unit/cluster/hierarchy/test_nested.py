"""Levels of clusters against loops over their rows."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilander_dist.cluster.hierarchy import features, nested
from hilander_dist.cluster.hierarchy.features import FIXED_POINT
from hilander_dist.cluster.hierarchy.levels import LevelOutput
from hilander_dist.cluster.hierarchy.nested import densest, describe, group_level, next_nodes
from hilander_dist.cluster.sharded.labels import Moves
from hilander_dist.errors import ClusterError
from hilander_dist.exchange import even_starts
from hilander_dist.local_tasks import LocalTasks, put, put_all
from hilander_dist.tasks import Block
from tests.points import random_rows
from tests.unit.cluster.small import joined, same_bytes

DIM = 5


def random_nodes(seed: int, n: int, clusters: int) -> Block:
    """Rows with ids in any order, few densities, and the labels of their clusters, positions below n."""
    rng = np.random.default_rng(seed)
    label_C = rng.permutation(n)[:clusters]
    return {
        "id_N": (id_N := 3 * rng.permutation(n)),
        "at_N": id_N,
        "x_ND": random_rows(seed, n, DIM),
        "density_N": rng.choice([0.0, -0.0, 0.5, 1.0], n).astype(np.float32),
        "confidence_N": rng.random(n).astype(np.float32),
        "margin_N": rng.random(n).astype(np.float32),
        "key_N": rng.permutation(np.r_[label_C, rng.choice(label_C, n - clusters)]),
    }


def grouped(tasks: LocalTasks, nodes: Block, shards: int) -> tuple[LevelOutput, list[Any]]:
    n = len(nodes["key_N"])
    starts = even_starts(n, shards)
    parts = [{name: column[a:b] for name, column in nodes.items()} for a, b in itertools.pairwise(starts)]
    return group_level(tasks, put_all(parts), None, len(np.unique(nodes["key_N"])), n, 3 * n, {"shift": 1.0})


def naive(nodes: Block) -> list[tuple[int, int, int, float]]:
    """Of each cluster, by rank: label, row of its peak, size, cohesion."""
    found = []
    for label in np.unique(nodes["key_N"]).tolist():
        members = np.flatnonzero(nodes["key_N"] == label)
        _, peak = min((-float(nodes["density_N"][m]), int(nodes["id_N"][m])) for m in members)
        mean_D = nodes["x_ND"][members].astype(np.float64).mean(0)
        found.append((label, peak, len(members), float(np.linalg.norm(mean_D))))
    return sorted(found, key=lambda cluster: cluster[1])


@given(st.integers(0, 10**6), st.integers(1, 40), st.floats(0, 1), st.integers(1, 4), st.sampled_from([1, 3, 65_536]))
@settings(max_examples=60, deadline=None)
def test_a_level_has_the_clusters_that_a_loop_over_its_rows_finds(
    seed: int, n: int, share: float, shards: int, in_range: int
) -> None:
    nodes, tasks = random_nodes(seed, n, max(1, round(share * n))), LocalTasks()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nested, "CLUSTERS_PER_RANGE", in_range)
        level, clusters = grouped(tasks, nodes, shards)
    expected = naive(nodes)
    assert level.clusters == len(expected)
    assert level.numbers == {"shift": 1.0}
    assert len(level.trees) == len(clusters) == min(-(-len(expected) // in_range), n)
    trees = joined(tasks, level.trees)
    order = np.argsort(trees["rank_N"])
    assert trees["rank_N"][order].tolist() == list(range(len(expected)))
    assert trees["id_N"][order].tolist() == [peak for _, peak, _, _ in expected]
    assert trees["count_N"][order].tolist() == [size for _, _, size, _ in expected]
    np.testing.assert_allclose(
        trees["cohesion_N"][order], [cohesion for *_, cohesion in expected], rtol=1e-5, atol=1e-6
    )
    rank_of = {label: rank for rank, (label, *_) in enumerate(expected)}
    members = joined(tasks, level.members)
    assert members["label_N"].tolist() == [rank_of[label] for label in nodes["key_N"].tolist()]
    for name in ("id_N", "at_N", "density_N", "confidence_N", "margin_N"):
        assert same_bytes(members[name], nodes[name])
    found = joined(tasks, clusters)
    assert found["label_N"].tolist() == sorted(rank_of)
    assert found["rank_N"].tolist() == [rank_of[label] for label in sorted(rank_of)]


def further(
    tasks: LocalTasks, clusters: list[Any], change: dict[int, int], n: int, shards: int, spread: bool
) -> list[Any]:
    """The clusters as nodes of the next level."""
    starts = even_starts(n, shards)
    if spread:
        pointer_N = np.array([change.get(position, position) for position in range(n)])
        moves = Moves(put_all([{"pointer_N": pointer_N[a:b]} for a, b in itertools.pairwise(starts)]), True)
    else:
        id_C = np.array(sorted(change), dtype=np.int64)
        moves = Moves([put({"id_C": id_C, "into_C": np.array([change[c] for c in id_C.tolist()])})], False)
    return next_nodes(tasks, clusters, [moves], starts)


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize(("shards", "in_range"), [(1, 65_536), (1, 3), (3, 3), (4, 1)])
def test_the_next_level_has_the_clusters_of_the_rows_under_their_new_labels(
    spread: bool, shards: int, in_range: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = 60
    nodes, tasks = random_nodes(4, n, 20), LocalTasks()
    labels = np.unique(nodes["key_N"])
    change = {int(label): int(labels[at % 5]) for at, label in enumerate(labels) if at % 3}
    moved = {**nodes, "key_N": np.array([change.get(label, label) for label in nodes["key_N"].tolist()])}
    direct, _ = grouped(tasks, moved, 1)

    monkeypatch.setattr(nested, "CLUSTERS_PER_RANGE", in_range)
    low, clusters = grouped(tasks, nodes, shards)
    upper = further(tasks, clusters, change, n, shards, spread)
    high, _ = group_level(tasks, upper, None, direct.clusters, n, 3 * n, {})
    trees, expected = joined(tasks, high.trees), joined(tasks, direct.trees)
    assert 1 < high.clusters < low.clusters
    for name, column in expected.items():
        assert same_bytes(trees[name], column), name
    members = joined(tasks, high.members)
    assert "confidence_N" not in members
    # Through both levels a row comes where it is at once.
    label_of = members["label_N"][np.argsort(members["at_N"])]
    assert label_of[joined(tasks, low.members)["label_N"]].tolist() == joined(tasks, direct.members)["label_N"].tolist()
    low_trees = joined(tasks, low.trees)
    peak_of = low_trees["id_N"][np.argsort(low_trees["rank_N"])]
    assert members["id_N"].tolist() == peak_of[members["at_N"]].tolist()


def test_the_densest_member_is_the_first_by_id_of_equally_dense_ones() -> None:
    group_N, id_N = np.array([1, 0, 1, 1, 0]), np.array([9, 4, 3, 7, 2])
    assert densest(group_N, np.array([1, 0, 1, 0.5, 0.5], dtype=np.float32), id_N).tolist() == [4, 2]
    assert densest(group_N, np.zeros(5, dtype=np.float32), id_N).tolist() == [4, 2]
    assert densest(group_N, np.array([2, 1, 1, 1, 0.5], dtype=np.float32), id_N).tolist() == [1, 0]


def test_cohesion_is_1_for_copies_and_one_over_the_root_of_the_size_for_orthogonal_members() -> None:
    unit = int(FIXED_POINT)
    clusters = {
        "rank_N": np.arange(2),
        "id_N": np.arange(2),
        "count_N": np.array([3, 4]),
        "sum_ND": np.array([[3 * unit, 0, 0, 0], [unit] * 4]),
        "label_N": np.arange(2),
    }
    found = describe(clusters)
    assert found.keys() == {"rank_N", "id_N", "count_N", "cohesion_N"}
    assert found["cohesion_N"].tolist() == [1, 0.5]


def test_a_cluster_too_large_for_its_sum_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "MAX_MEMBERS", 10)
    nodes = random_nodes(0, 30, 2)
    with pytest.raises(ClusterError, match="more than the 10 that its sum can hold"):
        grouped(LocalTasks(), nodes, 3)
