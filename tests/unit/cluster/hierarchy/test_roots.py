import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilander_dist.cluster.hierarchy.roots import advance, find_roots, jump_inside, open_pointers
from hilander_dist.local_tasks import LocalTasks, put_all


def random_forest(seed: int, n: int, roots: float, near: bool) -> np.ndarray:
    """Parents of a forest whose order of nodes is random; with ``near`` the trees are deep chains."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(n)
    parent_N = np.arange(n)
    for place in range(1, n):
        if rng.random() >= roots:
            above = place - 1 if near else int(rng.integers(0, place))
            parent_N[order[place]] = order[above]
    return parent_N


def roots_of(parent_N: np.ndarray) -> list[int]:
    roots = []
    for node in range(len(parent_N)):
        while parent_N[node] != node:
            node = int(parent_N[node])
        roots.append(node)
    return roots


def cut(array: np.ndarray, starts: tuple[int, ...]) -> list[np.ndarray]:
    return [array[a:b] for a, b in itertools.pairwise(starts)]


def found_roots(parent_N: np.ndarray, starts: tuple[int, ...]) -> tuple[np.ndarray, int]:
    """Roots, and the number of rounds."""
    tasks = LocalTasks()
    blocks = tasks.get(find_roots(tasks, put_all([{"parent_N": part} for part in cut(parent_N, starts)]), starts))
    assert not any(block["open_N"].any() for block in blocks if len(blocks) > 1)
    return np.concatenate([block["pointer_N"] for block in blocks]), tasks.calls.count("_go_on") // len(blocks)


@settings(max_examples=80)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 90),
    roots=st.sampled_from([0.0, 0.05, 0.5]),
    near=st.booleans(),
    cuts=st.lists(st.integers(0, 90), max_size=4),
)
def test_roots_are_those_of_following_every_parent(
    seed: int, n: int, roots: float, near: bool, cuts: list[int]
) -> None:
    parent_N = random_forest(seed, n, roots, near)
    starts = (0, *sorted(min(c, n) for c in cuts), n)
    assert found_roots(parent_N, starts)[0].tolist() == roots_of(parent_N)


@pytest.mark.parametrize("shards", [2, 3, 5])
def test_rounds_grow_with_the_logarithm_of_the_borders_that_a_path_crosses(shards: int) -> None:
    n = 1000
    parent_N = np.arange(n)
    # One chain, each step of which crosses a border.
    order = np.argsort(np.arange(n) % (n // shards), kind="stable")
    parent_N[order[1:]] = order[:-1]
    starts = tuple(n * s // shards for s in range(shards + 1))
    root_N, rounds = found_roots(parent_N, starts)
    assert (root_N == order[0]).all()
    assert rounds <= np.ceil(np.log2(n)) + 1


def test_one_shard_needs_no_round() -> None:
    root_N, rounds = found_roots(np.array([1, 2, 2, 0]), (0, 4))
    assert root_N.tolist() == [2, 2, 2, 2]
    assert rounds == 0


def test_jump_inside_stops_at_roots_and_outside_and_leaves_its_input_alone() -> None:
    # Positions 10 to 14: 10 -> 11 -> 3 (outside), 12 is a root, 13 -> 12, 14 -> 20 (outside).
    pointer_N = np.array([11, 3, 12, 12, 20])
    pointer_N.flags.writeable = False
    state = jump_inside(pointer_N, 10)
    assert state["pointer_N"].tolist() == [3, 3, 12, 12, 20]
    assert state["open_N"].tolist() == [True, True, False, False, True]
    assert open_pointers(state).tolist() == [3, 20]


def test_an_answer_that_leads_back_into_the_shard_is_followed_on() -> None:
    # 10 -> 3, and 3's shard says 3 -> 11; 11 -> 20, which says that it is a root.
    state = jump_inside(np.array([3, 20]), 10)
    state = advance(state, 10, [np.array([3]), np.array([20])], [np.array([11]), np.array([20])])
    assert state["pointer_N"].tolist() == [20, 20]
    # 11 knows that 20 is a root; 10 came there only now.
    assert state["open_N"].tolist() == [True, False]
    state = advance(state, 10, [np.empty(0, np.int64), np.array([20])], [np.empty(0, np.int64), np.array([20])])
    assert not state["open_N"].any()
