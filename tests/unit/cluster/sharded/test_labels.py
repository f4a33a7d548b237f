"""What becomes of rows' clusters, against a dictionary."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilander_dist.cluster.sharded.labels import (
    NO_MOVES,
    Moves,
    apply_moves,
    make_labels,
    moved,
    own_labels,
    relabel,
    renamed,
)
from hilander_dist.exchange import even_starts
from hilander_dist.local_tasks import LocalTasks, put, put_all
from hilander_dist.tasks import Block

LevelOfMoves = tuple[dict[int, int], bool]


def as_moves(change: dict[int, int], spread: bool, starts: tuple[int, ...]) -> Moves:
    if spread:
        pointer_N = np.array([change.get(position, position) for position in range(starts[-1])], dtype=np.int64)
        return Moves(put_all([{"pointer_N": pointer_N[a:b]} for a, b in itertools.pairwise(starts)]), True)
    return Moves([put(as_block(change))] if change else [], False)


def as_block(change: dict[int, int]) -> Block:
    id_C = np.array(sorted(change), dtype=np.int64)
    return {"id_C": id_C, "into_C": np.array([change[c] for c in id_C.tolist()], dtype=np.int64)}


def labels_of(label_T: np.ndarray) -> Block:
    label_U, at_T = np.unique(label_T, return_inverse=True)
    return {"label_U": label_U, "at_T": at_T.astype(np.int32)}


def check(labels: Block, expected: list[int]) -> None:
    assert (np.diff(labels["label_U"]) > 0).all()
    assert labels["at_T"].dtype == np.int32
    assert labels["label_U"][labels["at_T"]].tolist() == expected
    # No cluster is there without a row.
    assert np.unique(labels["at_T"]).tolist() == list(range(len(labels["label_U"])))


@st.composite
def paths(draw: Any) -> tuple[int, list[np.ndarray], list[LevelOfMoves], tuple[int, ...]]:
    """Positions, the clusters of each shard's table, some levels' changes, and how positions are cut."""
    n = draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    starts = even_starts(n, draw(st.integers(1, 4)))
    tables = [rng.integers(n, size=int(rng.integers(1, 20))) for _ in starts[1:]]
    levels = []
    for _ in range(draw(st.integers(0, 5))):
        changed = rng.permutation(n)[: int(rng.integers(n + 1))]
        levels.append(({int(c): int(rng.integers(n)) for c in changed}, draw(st.booleans())))
    return n, tables, levels, starts


@given(paths())
@settings(max_examples=150, deadline=None)
def test_labels_after_some_levels_are_those_of_a_dictionary(path: Any) -> None:
    _, tables, levels, starts = path
    tasks = LocalTasks()
    labels = put_all([labels_of(label_T) for label_T in tables])
    found = relabel(tasks, labels, [as_moves(change, spread, starts) for change, spread in levels], starts)
    for block, label_T in zip(tasks.get(found), tables, strict=True):
        expected = label_T.tolist()
        for change, _ in levels:
            expected = [change.get(label, label) for label in expected]
        check(block, expected)


@given(paths())
@settings(max_examples=50, deadline=None)
def test_spread_pointers_change_what_one_block_changes(path: Any) -> None:
    _, tables, levels, starts = path
    tasks = LocalTasks()
    labels = put_all([labels_of(label_T) for label_T in tables])
    found = [
        tasks.get(relabel(tasks, labels, [as_moves(change, spread, starts) for change, _ in levels], starts))
        for spread in (False, True)
    ]
    for one, other in zip(*found, strict=True):
        assert all(one[name].tobytes() == other[name].tobytes() for name in one)


def test_moves_of_several_levels_are_taken_one_after_another() -> None:
    labels = labels_of(np.array([5, 3, 9, 3]))
    found = apply_moves(labels, [as_block({9: 5}), as_block({}), as_block({5: 3, 7: 1})])
    check(found, [3, 3, 3, 3])
    check(labels, [5, 3, 9, 3])
    check(apply_moves(labels, [as_block({3: 9, 9: 3})]), [5, 9, 3, 9])


def test_clusters_that_no_move_names_stay_even_beyond_the_last_one() -> None:
    assert moved(np.array([0, 4, 6, 9]), as_block({4: 1, 5: 2})).tolist() == [0, 1, 6, 9]


def test_no_moves_change_nothing() -> None:
    labels = [put(labels_of(np.array([1, 0])))]
    assert relabel(LocalTasks(), labels, [NO_MOVES, NO_MOVES], (0, 2)) is labels


def test_equal_names_become_one() -> None:
    check(renamed(labels_of(np.array([4, 8, 6, 4])), np.array([7, 2, 7])), [7, 7, 2, 7])


@pytest.mark.parametrize("halo", [[], [[4], [9, 1]]])
def test_labels_of_trees_have_the_own_rows_before_the_halo(halo: list[list[int]]) -> None:
    labels = make_labels({"pointer_N": np.array([3, 9, 3])}, [{"pointer_N": np.array(part)} for part in halo])
    check(labels, [3, 9, 3, *itertools.chain(*halo)])
    assert own_labels(labels, 3).tolist() == [3, 9, 3]
