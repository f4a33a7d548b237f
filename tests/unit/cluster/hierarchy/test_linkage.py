"""What is joined above the path: nested, halving, and at the mean similarity of all pairs of members."""

from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster import hierarchy

from hilander_dist.cluster.hierarchy import linkage
from hilander_dist.cluster.hierarchy.features import FIXED_POINT, member_sums
from hilander_dist.cluster.hierarchy.levels import LevelOutput
from hilander_dist.cluster.hierarchy.linkage import Linkage, halved, link_means
from hilander_dist.cluster.memory import PROCESS
from hilander_dist.local_tasks import LocalTasks, put_all
from hilander_dist.tasks import Block
from tests.points import random_rows
from tests.unit.cluster.small import same_bytes

DIM = 6


class Answer(NamedTuple):
    clusters: Block
    mean_CD: np.ndarray
    above: list[np.ndarray]
    """Of each level of the path above it the cluster of each one of the level below."""


def random_answer(seed: int, clusters: int, above: tuple[int, ...] = ()) -> Answer:
    """Clusters of the answer, by their ranks, and levels of so many clusters above it."""
    rng = np.random.default_rng(seed)
    size_C = rng.integers(1, 5, clusters)
    of_row = np.repeat(np.arange(clusters), size_C)
    x_ND = random_rows(seed, clusters, DIM)[of_row] + 0.3 * random_rows(seed + 1, len(of_row), DIM)
    x_ND = (x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)).astype(np.float32)
    sum_CD, count_C = member_sums({"x_ND": x_ND}, of_row, clusters)
    found = {
        "rank_N": np.arange(clusters),
        "sum_ND": sum_CD,
        "count_N": count_C,
        "id_N": 5 + np.arange(clusters) * 7,  # Ranks are those of the peaks' rows.
        "density_N": rng.choice([0.0, 0.5, 1.0], clusters).astype(np.float32),
    }
    maps, below = [], clusters
    for count in above:
        maps.append(rng.permutation(np.r_[np.arange(count), rng.integers(0, count, below - count)]))
        below = count
    return Answer(found, sum_CD / (count_C[:, None] * FIXED_POINT), maps)


def joined_up(
    answer: Answer, below: int = 2, most: int = 99, parts: int = 1, tasks: LocalTasks | None = None
) -> tuple[LocalTasks, Linkage | None]:
    """``link_means``, where the answer is level ``below``; blocks in ``parts`` ranges, in any order."""
    tasks, rng = tasks or LocalTasks(), np.random.default_rng(parts)

    def cut(block: Block) -> list[Any]:
        order = rng.permutation(len(next(iter(block.values()))))
        return put_all(
            [{name: column[rows] for name, column in block.items()} for rows in np.array_split(order, parts)]
        )

    above = [
        LevelOutput((), int(label_N.max()) + 1, cut({"at_N": np.arange(len(label_N)), "label_N": label_N}), [], {})
        for label_N in answer.above
    ]
    clusters = len(answer.mean_CD)
    top = above[-1].clusters if above else clusters
    levels = below + 1 + len(above)
    return tasks, link_means(tasks, cut(answer.clusters), above, clusters, top, DIM, levels, most)


def labels_of(answer: Answer, tasks: LocalTasks, found: Linkage) -> list[np.ndarray]:
    """The cluster of each one of the answer, at the answer, at each level of the path above it, and at each one that was made."""
    label_C = np.arange(len(answer.mean_CD))
    labels = [label_C]
    for label_N in answer.above:
        labels.append(label_N[labels[-1]])
    for level in found.levels:
        (members,) = tasks.get(level.members)
        labels.append(members["label_N"][np.argsort(members["at_N"])][labels[-1]])
    return labels


def similarity(answer: Answer, one: list[int], other: list[int]) -> float:
    """Mean over all pairs of members."""
    count_C = answer.clusters["count_N"]
    means = [np.average(answer.mean_CD[at], axis=0, weights=count_C[at]) for at in (one, other)]
    return float(means[0] @ means[1])


def split_of(tree: Block, clusters: int) -> dict[frozenset[int], tuple[list[int], list[int]]]:
    """Of each cluster that a merge made, as clusters of the answer, which two merged."""
    members = [[c] for c in range(clusters)]
    found = {}
    for first, second in zip(tree["first_M"].tolist(), tree["second_M"].tolist(), strict=True):
        members.append(members[first] + members[second])
        found[frozenset(members[-1])] = members[first], members[second]
    return found


SHAPES = st.sampled_from([(1, ()), (2, ()), (9, ()), (23, ()), (9, (9,)), (23, (15, 6)), (23, (8, 1)), (12, (1,))])


@given(st.integers(0, 10**6), SHAPES, st.sampled_from([0, 1, 2, 99]))
@settings(max_examples=80, deadline=None)
def test_levels_halve_and_are_nested(seed: int, shape: tuple[int, tuple[int, ...]], most: int) -> None:
    answer = random_answer(seed, *shape)
    tasks, found = joined_up(answer, most=most)
    assert found is not None
    top = shape[1][-1] if shape[1] else shape[0]
    counts = [level.clusters for level in found.levels]
    assert counts == halved(top)[:most]
    labels = labels_of(answer, tasks, found)
    below = top
    for level, label_C in zip(found.levels, labels[1 + len(shape[1]) :], strict=True):
        assert level.clusters == -(-below // 2) == len(set(label_C.tolist()))
        assert level.numbers == {"clusters": level.clusters}
        (members,) = tasks.get(level.members)
        assert sorted(members["at_N"].tolist()) == list(range(below))
        below = level.clusters


@given(st.integers(0, 10**6), SHAPES)
@settings(max_examples=60, deadline=None)
def test_clusters_that_were_joined_are_described_by_their_members(
    seed: int, shape: tuple[int, tuple[int, ...]]
) -> None:
    answer = random_answer(seed, *shape)
    tasks, found = joined_up(answer)
    assert found is not None
    split = split_of(tasks.get(found.tree), shape[0])
    columns = answer.clusters
    for level, label_C in zip(found.levels, labels_of(answer, tasks, found)[1 + len(shape[1]) :], strict=True):
        (trees,) = tasks.get(level.trees)
        assert trees["rank_N"].tolist() == list(range(level.clusters))
        assert (np.diff(trees["id_N"]) > 0).all()
        for rank in range(level.clusters):
            own = np.flatnonzero(label_C == rank)
            _, peak = min((-float(columns["density_N"][c]), int(columns["id_N"][c])) for c in own)
            assert trees["id_N"][rank] == peak
            assert trees["count_N"][rank] == columns["count_N"][own].sum()
            mean_D = np.average(answer.mean_CD[own], axis=0, weights=columns["count_N"][own])
            assert trees["cohesion_N"][rank] == pytest.approx(np.linalg.norm(mean_D), abs=1e-5)
            if len(own) == 1:
                assert np.isnan(trees["similarity_N"][rank])
            else:
                expected = similarity(answer, *split[frozenset(own.tolist())])
                assert trees["similarity_N"][rank] == pytest.approx(expected, abs=1e-5)


@given(st.integers(0, 10**6), SHAPES, st.sampled_from([0, 2, 99]))
@settings(max_examples=60, deadline=None)
def test_the_tree_is_one_of_scipy_and_knows_the_level_of_each_merge(
    seed: int, shape: tuple[int, tuple[int, ...]], most: int
) -> None:
    answer = random_answer(seed, *shape)
    tasks, found = joined_up(answer, below=2, most=most)
    assert found is not None
    tree = tasks.get(found.tree)
    clusters = shape[0]
    assert {len(column) for column in tree.values()} == {clusters - 1}
    if clusters > 1:
        columns = [tree[name].astype(float) for name in ("first_M", "second_M", "distance_M", "count_M")]
        table = np.stack(columns, 1)
        assert hierarchy.is_valid_linkage(table)
        assert hierarchy.is_monotonic(table)
        assert len(set(hierarchy.fcluster(table, 1, "maxclust").tolist())) == 1
    labels = labels_of(answer, tasks, found)
    for (one, other), level in zip(split_of(tree, clusters).values(), tree["level_M"].tolist(), strict=True):
        # The level at which both halves are one: not below it.
        at = level - 2
        assert len(set(labels[at - 1][one + other].tolist())) > 1
        assert at == len(labels) or len(set(labels[at][one + other].tolist())) == 1


def test_without_levels_of_the_path_above_the_tree_is_that_of_average_linkage_over_all_members() -> None:
    answer = random_answer(7, 20)
    tasks, found = joined_up(answer)
    assert found is not None
    tree = tasks.get(found.tree)
    # scipy links rows: of copies of each cluster's mean, as many as it has members, the first merges are of copies.
    x_ND = np.repeat(answer.mean_CD, answer.clusters["count_N"], axis=0)
    apart = 1 - x_ND @ x_ND.T
    of_row = np.repeat(np.arange(20), answer.clusters["count_N"])
    apart[of_row[:, None] == of_row] = 0
    table = hierarchy.linkage(apart[np.triu_indices(len(apart), 1)], "average")[-19:]
    np.testing.assert_allclose(tree["distance_M"], table[:, 2], atol=1e-6)
    for count in (2, 5, 11):
        rows = hierarchy.fcluster(
            hierarchy.linkage(apart[np.triu_indices(len(apart), 1)], "average"), count, "maxclust"
        )
        own = np.stack([tree["first_M"], tree["second_M"], tree["distance_M"], tree["count_M"]], 1).astype(float)
        cut_C = hierarchy.fcluster(own, count, "maxclust")
        assert len(set(zip(rows.tolist(), cut_C[of_row].tolist(), strict=True))) == count


@pytest.mark.parametrize("shape", [(23, ()), (23, (15, 6))])
def test_joined_clusters_are_the_same_bytes_for_any_ranges(shape: tuple[int, tuple[int, ...]]) -> None:
    answer = random_answer(1, *shape)
    found = []
    for parts in (1, 4):
        tasks, linked = joined_up(answer, parts=parts)
        assert linked is not None
        blocks = [level.members[0] for level in linked.levels] + [level.trees[0] for level in linked.levels]
        found.append(tasks.get([linked.tree, *blocks]))
    for one, other in zip(*found, strict=True):
        assert one.keys() == other.keys()
        assert all(same_bytes(one[name], other[name]) for name in one)


def test_too_many_clusters_are_not_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = random_answer(0, 9, (5,))
    monkeypatch.setattr(linkage, "MOST_CLUSTERS", 4)
    assert joined_up(answer)[1] is None
    monkeypatch.setattr(linkage, "MOST_CLUSTERS", 5)
    assert joined_up(answer)[1] is not None


def test_clusters_that_no_node_has_the_memory_for_are_not_joined() -> None:
    answer, tasks = random_answer(0, 9), LocalTasks()
    tasks.memory_offered = PROCESS + 9 * DIM * 40 - 1
    assert joined_up(answer, tasks=tasks)[1] is None
    assert tasks.calls == []
    tasks.memory_offered += 1
    assert joined_up(answer, tasks=tasks)[1] is not None


@pytest.mark.parametrize(("top", "counts"), [(1, []), (2, [1]), (9, [5, 3, 2, 1]), (16, [8, 4, 2, 1])])
def test_levels_halve_to_one_root(top: int, counts: list[int]) -> None:
    assert halved(top) == counts
