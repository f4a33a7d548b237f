import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilander_dist.knn import recall as recall_module
from hilander_dist.knn.layout import assign_cells, move_rows, sample_rows
from hilander_dist.knn.near_duplicates import CROWD_LIMIT, CROWD_RUN, CROWD_RUNS
from hilander_dist.knn.recall import (
    CHOOSING,
    REPORTING,
    SAMPLE_SALT,
    TIE,
    choose_probing,
    found_share,
    least_probing,
    mean_interval,
    merge_truth,
    sample_truth,
    share_of,
)
from hilander_dist.local_tasks import LocalTasks, held, put_all
from hilander_dist.tasks import Block
from tests import oracle
from tests.points import clustered


@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_mean_interval_is_the_mean_and_its_lower_95_percent_bound(values: list[float]) -> None:
    mean, low = mean_interval(np.array(values))
    assert mean == pytest.approx(sum(values) / len(values))
    deviation = (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5
    assert low == pytest.approx(max(0.0, mean - 1.96 * deviation / len(values) ** 0.5), abs=1e-9)


def test_mean_interval_of_nothing_is_perfect() -> None:
    assert mean_interval(np.empty(0)) == (1.0, 1.0)


def random_counts(seed: int, n: int, K: int, P: int) -> tuple[Block, Block, np.ndarray, np.ndarray]:
    """A made-up sample with its probes, what the cells hold, and cells of uneven size, some of them empty."""
    rng = np.random.default_rng(seed)
    sim_NK = -np.sort(-rng.random((n, K), dtype=np.float32), axis=1)
    sim_NK[np.arange(K) >= rng.integers(0, K + 1, n)[:, None]] = 0
    gap_NP = np.sort(rng.random((n, P), dtype=np.float32), axis=1) - np.float32(0)
    gap_NP[:, 0] = 0
    cell_NP = np.argsort(rng.random((n, 9)), axis=1)[:, :P].astype(np.int32)
    near_NP = rng.integers(0, 3, (n, P))
    cell_start = np.array([0, *np.sort(rng.integers(0, 2 * CROWD_LIMIT, 8)), 2 * CROWD_LIMIT])
    return {"sim_NK": sim_NK}, {"cell_NP": cell_NP, "gap_NP": gap_NP}, near_NP, cell_start


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    P=st.integers(1, 9),
    target=st.sampled_from([0.1, 0.3, 0.6, 0.95]),
    crowds_cut=st.booleans(),
)
def test_the_smallest_gap_that_reaches_the_target_is_taken(seed: int, P: int, target: float, crowds_cut: bool) -> None:
    truth, probes, near_NP, cell_start = random_counts(seed, 30, 4, P)

    def low(gap: float) -> float:
        shares = [
            min(1, sum(count for count, g in zip(counts, gaps, strict=True) if g <= gap) / (sims > 0).sum())
            for counts, gaps, sims in zip(near_NP, probes["gap_NP"], truth["sim_NK"], strict=True)
            if (sims > 0).any()
        ]
        return mean_interval(np.array(shares))[1]

    halves = [near_NP // 2, near_NP - near_NP // 2]  # as if counted in two shards
    probing = least_probing(truth, probes, halves, cell_start, target, crowds_cut)
    if probing is None:
        assert low(math.inf) < target
        return
    assert probing.nprobe == P
    assert low(probing.gap) >= target
    some_N = (truth["sim_NK"] > 0).any(axis=1)
    gaps = probes["gap_NP"][some_N]
    smaller = gaps[gaps < probing.gap]
    assert not len(smaller) or low(smaller.max()) < target
    size_C = np.diff(cell_start)
    if crowds_cut:
        size_C = np.where(size_C > CROWD_LIMIT, CROWD_RUNS * CROWD_RUN, size_C)
    rows = (size_C[probes["cell_NP"]] * (probes["gap_NP"] <= probing.gap)).sum(1).mean()
    assert probing.rows == pytest.approx(rows)


def test_one_probe_does_where_no_node_has_a_neighbour() -> None:
    truth, probes, near_NP, cell_start = random_counts(0, 20, 4, 5)
    truth["sim_NK"][:] = 0
    probing = least_probing(truth, probes, [near_NP], cell_start, 1.0, crowds_cut=True)
    assert probing is not None
    assert probing.gap == 0


@pytest.mark.parametrize("cuts", [[], [300], [10, 10, 555]])
def test_the_truth_is_that_of_brute_force_however_the_level_is_cut(cuts: list[int]) -> None:
    x_ND, _ = clustered(0, 900, 8, 9)
    id_N = np.random.default_rng(0).permutation(900) * 2
    edges = [0, *cuts, 900]
    parts = [{"id_N": id_N[a:b], "x_ND": x_ND[a:b]} for a, b in itertools.pairwise(edges)]
    tasks = LocalTasks()
    truth = tasks.get(sample_truth(tasks, put_all(parts), 900, 6, 3, "level-0"))
    assert 650 < len(truth["id_N"]) < 850
    assert (np.diff(truth["id_N"]) > 0).all()
    sim_NK = oracle.knn(x_ND, id_N, 6)[1]
    row_M = np.argsort(id_N)[np.searchsorted(np.sort(id_N), truth["id_N"])]
    np.testing.assert_array_equal(truth["x_ND"], x_ND[row_M])
    np.testing.assert_array_equal(truth["sim_NK"].view(np.int32), sim_NK[row_M].view(np.int32))


def divided(id_N: np.ndarray, cuts: list[int], seed: int) -> Block:
    """The ids that are sampled of a level, and which of them choose."""
    edges = [0, *sorted(min(cut, len(id_N)) for cut in cuts), len(id_N)]
    parts = [
        {"id_N": id_N[start:stop], "x_ND": np.ones((stop - start, 1), np.float32)}
        for start, stop in itertools.pairwise(edges)
    ]
    tasks = LocalTasks()
    truth: Block = tasks.get(sample_truth(tasks, put_all(parts), len(id_N), 2, seed, "level-0"))
    return truth


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10**6),
    n=st.one_of(st.integers(1, 9), st.integers(700, 3000)),
    cuts=st.lists(st.integers(0, 3000), max_size=4),
)
def test_no_node_both_chooses_and_reports_and_a_cut_changes_neither(seed: int, n: int, cuts: list[int]) -> None:
    id_N = np.random.default_rng(seed).permutation(4 * n)[:n]
    truth, whole = divided(id_N, cuts, seed), divided(np.sort(id_N), [], seed)
    for name, column in whole.items():
        np.testing.assert_array_equal(truth[name], column)
    choosing, reporting = share_of(truth, True)["id_N"], share_of(truth, False)["id_N"]
    assert not set(choosing.tolist()) & set(reporting.tolist())
    assert sorted([*choosing.tolist(), *reporting.tolist()]) == truth["id_N"].tolist()
    if n <= CHOOSING + REPORTING:
        assert len(truth["id_N"]) == n
    else:  # Those that choose are who they would be if none reported.
        alone = sample_rows({"id_N": np.sort(id_N), "x_ND": np.ones((n, 1))}, CHOOSING / n, seed ^ SAMPLE_SALT)
        assert choosing.tolist() == alone["id_N"].tolist()


def test_samples_are_as_large_as_they_should_be() -> None:
    truth = divided(np.arange(200_000), [], 0)
    for choosing, wanted in ((True, CHOOSING), (False, REPORTING)):
        assert len(share_of(truth, choosing)["id_N"]) == pytest.approx(wanted, abs=4 * wanted**0.5)


def test_merge_truth_keeps_the_highest_similarities_with_pads_last() -> None:
    left = np.array([[0.5, 0.25], [0, 0]], dtype=np.float32)
    right = np.array([[0.5, 0.125], [0.125, 0]], dtype=np.float32)
    merged = merge_truth({"id_N": np.array([1, 2])}, [left, right])
    assert merged["sim_NK"].tolist() == [[0.5, 0.5], [0.125, 0]]
    assert merged["id_N"].tolist() == [1, 2]


def test_a_neighbour_counts_where_it_is_as_similar_as_the_last_exact_one_to_a_tie() -> None:
    truth = {
        "id_N": np.array([3, 5, 8, 9]),
        "sim_NK": np.array([[0.9, 0.8], [0.9, 0.8], [0.9, 0], [0, 0]], dtype=np.float32),
    }
    sim_NK = np.array([[0.9, 0.8 - TIE / 2], [0.9, 0.8 - 3 * TIE], [0, 0], [0.5, 0.5], [0, 0]], dtype=np.float32)
    assert found_share(truth, np.array([3, 5, 8, 7, 9]), {"sim_NK": sim_NK}).tolist() == [1.0, 0.5, 0.0]


@pytest.mark.parametrize("shards", [1, 3])
def test_what_is_counted_beforehand_is_what_a_search_finds(shards: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recall that ``choose_probing`` foresees, against brute force over the cells that its probing admits."""
    monkeypatch.setattr("hilander_dist.knn.layout.choose_nlist", lambda n: 40)
    monkeypatch.setattr(recall_module, "CHOOSING", 5000)  # every node
    monkeypatch.setattr(recall_module, "REPORTING", 0)
    n, K = 1700, 5
    x_ND, _ = clustered(2, n, 8, 100)
    block = {"id_N": np.arange(n), "x_ND": x_ND}
    tasks = LocalTasks()
    assignment = assign_cells(tasks, put_all([block]), n, 8, 0, "l")
    truth = sample_truth(tasks, put_all([block]), n, K + 1, 0, "level-0")
    level = move_rows(tasks, held([block]), assignment, n, shards, "l")
    quantizer = tasks.get(level.quantizer)
    probing = choose_probing(tasks, level, truth, quantizer.cells, 0.9)
    nodes = {
        name: np.concatenate([part[name] for part in tasks.get(level.nodes)])
        for name in ("id_N", "x_ND", "probe_NP", "gap_NP")
    }
    cell_N = np.searchsorted(tasks.get(level.cell_start), np.arange(n), side="right") - 1
    admitted_NP = np.where(nodes["gap_NP"] <= probing.gap, nodes["probe_NP"], -1)
    allowed_NN = (admitted_NP[:, :, None] == cell_N).any(axis=1)
    exact_NK = oracle.knn(nodes["x_ND"], nodes["id_N"], K + 1)[0]
    share_N = [allowed_NN[i, row[row >= 0]].mean() for i, row in enumerate(exact_NK) if (row >= 0).any()]
    assert 0.9 <= mean_interval(np.array(share_N))[1] < 0.97
    assert probing.rows == pytest.approx(allowed_NN.sum(axis=1).mean())
