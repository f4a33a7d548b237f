import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilander_dist.cluster.hierarchy.collapse import Collapsed, collapse, merge_peaks, rank_ids, rank_peaks
from hilander_dist.cluster.hierarchy.features import FIXED_POINT, MAX_MEMBERS, cluster_means, member_sums
from hilander_dist.errors import ClusterError
from hilander_dist.knn.layout import Level
from hilander_dist.local_tasks import LocalTasks, put, put_all
from hilander_dist.tasks import Block
from tests.points import random_rows

N, DIM, ID_STOP = 40, 3, 100


def random_level(seed: int, above: bool, labelled: bool) -> tuple[Block, np.ndarray]:
    """A level's nodes and the root of each: every root is its own."""
    rng = np.random.default_rng(seed)
    nodes: Block = {
        "id_N": rng.choice(ID_STOP, N, replace=False),
        "x_ND": random_rows(seed, N, DIM),
    }
    if above:
        nodes["sum_ND"] = rng.integers(-(2**33), 2**33, (N, DIM))
        nodes["count_N"] = rng.integers(1, 9, N)
        nodes["rank_N"] = rng.permutation(N)
    if labelled:
        nodes["class_N"] = rng.integers(-1, 4, N)
    roots = rng.choice(N, int(rng.integers(1, N + 1)), replace=False)
    pointer_N = rng.choice(roots, N)
    pointer_N[roots] = roots
    return nodes, pointer_N


def collapsed(nodes: Block, pointer_N: np.ndarray, starts: tuple[int, ...]) -> tuple[Collapsed, Block, np.ndarray]:
    """What collapse returns, and the peaks and labels of all shards together."""
    tasks = LocalTasks()
    shards = list(itertools.pairwise(starts))
    level = Level(
        N,
        starts,
        put_all([{name: rows[a:b] for name, rows in nodes.items()} for a, b in shards]),
        put(np.zeros((1, DIM), np.float32)),
        put(np.array([0, N])),
    )
    pointers = put_all([{"pointer_N": pointer_N[a:b]} for a, b in shards])
    result = collapse(tasks, level, pointers, ID_STOP, "level-0")
    peaks, labels = tasks.get(result.peaks), tasks.get(result.labels)
    assert len(tasks.blocks) == 2 * len(shards)
    together = {name: np.concatenate([block[name] for block in peaks]) for name in peaks[0]}
    return result, together, np.concatenate([block["label_N"] for block in labels])


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), above=st.booleans(), labelled=st.booleans())
def test_one_shard_collapses_as_a_loop_over_trees_does(seed: int, above: bool, labelled: bool) -> None:
    nodes, pointer_N = random_level(seed, above, labelled)
    result, peaks, label_N = collapsed(nodes, pointer_N, (0, N))
    positions = np.unique(pointer_N)
    by_id = sorted(positions.tolist(), key=lambda position: int(nodes["id_N"][position]))
    assert result.n == len(positions)
    np.testing.assert_array_equal(peaks["position_N"], positions)
    np.testing.assert_array_equal(peaks["id_N"], nodes["id_N"][positions])
    np.testing.assert_array_equal(peaks["x_ND"], nodes["x_ND"][positions])
    assert ("class_N" in peaks) == labelled
    assert peaks["rank_N"].tolist() == [by_id.index(position) for position in positions]
    assert label_N.tolist() == [by_id.index(position) for position in pointer_N]
    for at, position in enumerate(positions):
        members = {name: rows[pointer_N == position] for name, rows in nodes.items()}
        sum_GD, count_G = member_sums(members, np.zeros(len(members["id_N"]), np.int64), 1)
        np.testing.assert_array_equal(peaks["sum_ND"][at], sum_GD[0])
        assert peaks["count_N"][at] == count_G[0]


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    above=st.booleans(),
    cuts=st.lists(st.integers(1, N - 1), min_size=1, max_size=4, unique=True),
)
def test_many_shards_collapse_to_the_same_bytes_as_one(seed: int, above: bool, cuts: list[int]) -> None:
    nodes, pointer_N = random_level(seed, above, labelled=True)
    one, many = collapsed(nodes, pointer_N, (0, N)), collapsed(nodes, pointer_N, (0, *sorted(cuts), N))
    assert many[0].n == one[0].n
    assert many[1].keys() == one[1].keys()
    for name, rows in one[1].items():
        assert many[1][name].dtype == rows.dtype
        np.testing.assert_array_equal(many[1][name], rows)
    np.testing.assert_array_equal(many[2], one[2])


@settings(max_examples=40)
@given(
    ids=st.lists(st.integers(0, 99), unique=True, max_size=30),
    owners=st.lists(st.integers(0, 3), min_size=30, max_size=30),
    shards=st.integers(1, 4),
)
def test_ranks_count_all_peaks_of_smaller_id(ids: list[int], owners: list[int], shards: int) -> None:
    tasks = LocalTasks()
    owned = [
        np.array([i for i, o in zip(ids, owners, strict=False) if o % shards == s], np.int64) for s in range(shards)
    ]
    ranked = rank_peaks(tasks, put_all([{"id_N": id_N} for id_N in owned]), 100)
    for id_N, ranges in zip(owned, ranked, strict=True):
        ranks = np.concatenate(tasks.get(ranges)).tolist()
        assert ranks == [sorted(ids).index(i) for i in sorted(id_N.tolist())]


def test_rank_ids_starts_at_the_first_rank_of_its_range() -> None:
    inbox = [{"id_N": np.array([52, 60])}, {"id_N": np.array([51])}]
    ranks = rank_ids(inbox, np.array([0, 7, 9]), 1)
    assert [rank.tolist() for rank in ranks] == [[8, 9], [7]]


def test_a_shard_without_peaks_keeps_its_columns() -> None:
    nodes = {"id_N": np.array([5]), "x_ND": random_rows(0, 1, DIM), "class_N": np.array([1])}
    peaks = merge_peaks(nodes, {"pointer_N": np.array([0])}, 10, [])
    assert {name: len(rows) for name, rows in peaks.items()} == dict.fromkeys(peaks, 0)
    assert peaks["x_ND"].shape == peaks["sum_ND"].shape == (0, DIM)


def merged(row_D: list[float], counts: list[int]) -> Block:
    """The peak of one cluster: of copies of one row, so many from each sender."""
    nodes: Block = {"id_N": np.array([7]), "x_ND": np.array([row_D], dtype=np.float32)}
    fixed_D = member_sums(nodes, np.zeros(1, np.int64), 1)[0][0]
    inbox = [
        {"root_N": np.array([20]), "sum_ND": count * fixed_D[None], "count_N": np.array([count])} for count in counts
    ]
    return merge_peaks(nodes, {"pointer_N": np.array([20])}, 20, inbox)


@pytest.mark.parametrize("row_D", [[1.0, 0.0], [0.0, -1.0], [0.75, 0.5]])
@pytest.mark.parametrize(
    "counts", [[3_000_000, 6_999_999, 1], [2**30, 2**29, MAX_MEMBERS - 2**30 - 2**29 - 5, 5], [MAX_MEMBERS]]
)
def test_millions_of_copies_of_one_image_have_its_mean(row_D: list[float], counts: list[int]) -> None:
    peaks = merged(row_D, counts)
    assert peaks["count_N"].tolist() == [sum(counts)]
    assert cluster_means(peaks).tolist() == [row_D]


def test_a_cluster_too_large_for_its_sum_is_refused_in_a_line_that_says_what_helps() -> None:
    with pytest.raises(
        ClusterError, match=r"^the cluster of row 7 has 2147483137 samples.*: if they are copies"
    ) as caught:
        merged([1.0, 0.0], [MAX_MEMBERS - 1, 2])
    assert "\n" not in str(caught.value)


@settings(max_examples=40)
@given(
    row=st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=3),
    total=st.integers(1, MAX_MEMBERS),
    cuts=st.lists(st.integers(1, MAX_MEMBERS), max_size=5),
)
def test_the_sum_of_a_huge_cluster_does_not_depend_on_how_its_members_are_cut(
    row: list[float], total: int, cuts: list[int]
) -> None:
    edges = [0, *sorted(min(cut, total) for cut in cuts), total]
    peaks = merged(row, [stop - start for start, stop in itertools.pairwise(edges)])
    assert peaks["sum_ND"].tolist() == [[total * round(x * FIXED_POINT) for x in row]]
    assert peaks["count_N"].tolist() == [total]
