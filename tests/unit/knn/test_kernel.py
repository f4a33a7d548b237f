import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hilander_dist.knn.kernel import TILE_QUERIES, TILE_ROWS, count_near, search_part
from hilander_dist.knn.near_duplicates import offered_rows
from hilander_dist.knn.ranking import Float32, Int64, Rows, empty_candidates, exact_sim, finish, rounding_bound

KINDS = ["clustered", "duplicates", "all_equal", "grid", "collinear", "one_hot", "opposite", "within_rounding"]


def unit_rows(kind: str, n: int, dim: int, rng: np.random.Generator) -> Float32:
    """Rows that make a search of its kind hard, with float32 norms of 1 up to rounding."""
    noise_ND = rng.standard_normal((n, dim))
    few_ND = rng.standard_normal((max(n // 7, 1), dim))[rng.integers(0, max(n // 7, 1), n)]
    rows: NDArray[np.float64] = {
        "clustered": few_ND + 0.3 * noise_ND,
        "duplicates": few_ND,
        "all_equal": np.broadcast_to(noise_ND[0], (n, dim)),
        "grid": rng.integers(-1, 2, (n, dim))
        + np.eye(dim)[rng.integers(0, dim, n)] * 3,  # many equal similarities, many ids
        "collinear": few_ND * rng.uniform(0.1, 10, (n, 1)),  # equal up to the rounding of the normalisation
        "one_hot": np.eye(dim)[rng.integers(0, dim, n)],
        "opposite": few_ND * rng.choice([-1, 1], (n, 1)),
        "within_rounding": noise_ND[:1] + 1e-6 * noise_ND,  # the float32 product ranks these wrongly
    }[kind]
    unit_ND: Float32 = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit_ND


def all_sims(q_MD: Float32, x_ND: Float32) -> Float32:
    """The contract's similarity of all pairs, one dimension after the other."""
    total_MN = np.zeros((len(q_MD), len(x_ND)))
    for d in range(x_ND.shape[1]):
        total_MN += q_MD[:, d, None].astype(np.float64) * x_ND[None, :, d].astype(np.float64)
    return total_MN.astype(np.float32)


def brute_force(x_ND: Float32, id_N: Int64, allowed_NN: NDArray[np.bool_], n_neighbours: int) -> tuple[Int64, Float32]:
    sim_NN = all_sims(x_ND, x_ND)
    nbr_NK = np.full((len(x_ND), n_neighbours), -1, np.int64)
    sim_NK = np.zeros((len(x_ND), n_neighbours), np.float32)
    for i, sim_N in enumerate(sim_NN):
        good = np.flatnonzero(allowed_NN[i] & (id_N != id_N[i]) & (sim_N > 0))
        best = good[np.lexsort((id_N[good], -sim_N[good]))][:n_neighbours]
        nbr_NK[i, : len(best)] = best
        sim_NK[i, : len(best)] = sim_N[best]
    return nbr_NK, sim_NK


def search_flat(x_ND: Rows, id_N: Int64, n_neighbours: int) -> tuple[Int64, Float32]:
    """One cell, one part, one call."""
    N = len(x_ND)
    candidates = empty_candidates(N, n_neighbours)
    search_part(x_ND, id_N, np.zeros((N, 1), np.int32), x_ND, id_N, 0, np.array([0, N]), candidates)
    return finish(candidates)


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    n=st.integers(1, 120),
    dim=st.sampled_from([1, 2, 3, 8, 33]),
    n_neighbours=st.sampled_from([1, 2, 9, 40]),
    n_cells=st.integers(1, 6),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_cut_order_and_grouping_equals_brute_force(
    kind: str, n: int, dim: int, n_neighbours: int, n_cells: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x_ND = unit_rows(kind, n, dim, rng)
    id_N = rng.choice(10 * n, n, replace=False).astype(np.int64)
    # Cells of random sizes, some empty; parts cut anywhere, also inside cells.
    cell_start_C1 = np.concatenate([[0], np.sort(rng.integers(0, n + 1, n_cells - 1)), [n]]).astype(np.int64)
    nprobe = int(rng.integers(1, n_cells + 1))
    probe_NP = np.argsort(rng.random((n, n_cells)), axis=1)[:, :nprobe].astype(np.int32)
    cuts = np.concatenate([[0], np.sort(rng.integers(0, n + 1, int(rng.integers(0, 5)))), [n]])
    groups = np.array_split(rng.permutation(n), int(rng.integers(1, 4)))

    nbr_NK = np.empty((n, n_neighbours), np.int64)
    sim_NK = np.empty((n, n_neighbours), np.float32)
    for group in groups:
        candidates = empty_candidates(len(group), n_neighbours)
        for p in rng.permutation(len(cuts) - 1):
            part = slice(cuts[p], cuts[p + 1])
            search_part(
                x_ND[group],
                id_N[group],
                probe_NP[group],
                x_ND[part],
                id_N[part],
                int(cuts[p]),
                cell_start_C1,
                candidates,
            )
        nbr_NK[group], sim_NK[group] = finish(candidates)

    cell_N = np.searchsorted(cell_start_C1, np.arange(n), "right") - 1
    allowed_NN = (probe_NP[:, :, None] == cell_N).any(axis=1)
    expected_nbr_NK, expected_sim_NK = brute_force(x_ND, id_N, allowed_NN, n_neighbours)
    np.testing.assert_array_equal(nbr_NK, expected_nbr_NK)
    np.testing.assert_array_equal(sim_NK.view(np.int32), expected_sim_NK.view(np.int32))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_neighbours", [3, 79])
def test_several_tiles_equal_brute_force(kind: str, n_neighbours: int) -> None:
    rng = np.random.default_rng(3)
    N = TILE_ROWS + 76
    assert N > TILE_QUERIES
    x_ND = unit_rows(kind, N, 24, rng)
    id_N = rng.permutation(N).astype(np.int64)
    nbr_NK, sim_NK = search_flat(x_ND, id_N, n_neighbours)
    expected_nbr_NK, expected_sim_NK = brute_force(x_ND, id_N, np.ones((N, N), bool), n_neighbours)
    np.testing.assert_array_equal(nbr_NK, expected_nbr_NK)
    np.testing.assert_array_equal(sim_NK, expected_sim_NK)


def test_neighbours_are_right_where_the_float32_product_ranks_them_wrongly() -> None:
    rng = np.random.default_rng(0)
    x_ND = unit_rows("within_rounding", 200, 64, rng)
    product_NN = x_ND @ x_ND.T
    np.fill_diagonal(product_NN, -1)
    expected_nbr_NK, _ = brute_force(x_ND, np.arange(200), np.ones((200, 200), bool), 5)
    assert (np.argsort(-product_NN, axis=1, kind="stable")[:, :5] != expected_nbr_NK).any()
    np.testing.assert_array_equal(search_flat(x_ND, np.arange(200), 5)[0], expected_nbr_NK)


def test_equal_rows_come_in_the_order_of_their_ids() -> None:
    x_ND = np.full((300, 4), 0.5, np.float32)
    id_N = np.arange(300)[::-1].copy()
    nbr_NK, sim_NK = search_flat(x_ND, id_N, 3)
    assert nbr_NK[0].tolist() == [299, 298, 297]
    assert nbr_NK[299].tolist() == [298, 297, 296]
    assert (sim_NK == 1).all()


def test_a_single_row_has_no_neighbour() -> None:
    nbr_NK, sim_NK = search_flat(np.ones((1, 1), np.float32), np.array([5]), 4)
    assert nbr_NK.tolist() == [[-1] * 4]
    assert sim_NK.tolist() == [[0] * 4]


def test_zero_and_negative_similarities_are_left_out() -> None:
    x_ND = np.array([[1, 0], [0, 1], [-1, 0], [0.6, 0.8]], np.float32)
    nbr_NK, sim_NK = search_flat(x_ND, np.arange(4), 3)
    assert nbr_NK.tolist() == [[3, -1, -1], [3, -1, -1], [-1, -1, -1], [1, 0, -1]]
    np.testing.assert_array_equal(sim_NK[3], np.array([0.8, 0.6, 0], np.float32))


def test_read_only_arrays_of_an_object_store_are_searched() -> None:
    x_ND = unit_rows("clustered", 50, 8, np.random.default_rng(1))
    id_N = np.arange(50)
    expected_nbr_NK, _ = search_flat(x_ND, id_N, 3)
    x_ND.flags.writeable = False
    id_N.flags.writeable = False
    np.testing.assert_array_equal(search_flat(x_ND, id_N, 3)[0], expected_nbr_NK)


def test_exact_sim_adds_in_ascending_order() -> None:
    # In float64 the one is lost beside 2**53 unless the large terms cancel first.
    a_D = np.array([2.0**53, -(2.0**53), 1, 0], np.float32)
    assert exact_sim(a_D, np.ones(4, np.float32)) == 1
    assert exact_sim(a_D[[0, 2, 1, 3]], np.ones(4, np.float32)) == 0
    assert isinstance(exact_sim(a_D, a_D), float)


@pytest.mark.parametrize("dim", [1, 7, 256, 4096])
def test_rounding_bound_covers_the_worst_order_of_a_float32_sum(dim: int) -> None:
    rng = np.random.default_rng(dim)
    a_ND = np.abs(unit_rows("clustered", 200, dim, rng))  # one sign: nothing cancels, one running sum errs most
    running_N = np.zeros(200, np.float32)
    for d in range(dim):
        running_N += a_ND[:, d] * a_ND[:, d]
    exact_N = np.array([exact_sim(a_D, a_D) for a_D in a_ND])
    error = np.abs(running_N.astype(np.float64) - exact_N).max()
    assert error <= rounding_bound(dim) < 2e-7 + 1e-7 * dim


def test_memory_does_not_grow_with_the_product_of_queries_and_rows() -> None:
    rng = np.random.default_rng(0)
    N = 6000
    x_ND = unit_rows("clustered", N, 4, rng)
    search_flat(x_ND[:10], np.arange(10), 5)  # compiled before the count
    tracemalloc.start()
    try:
        search_flat(x_ND, np.arange(N), 5)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < N * N * 4 / 20  # 7 MB where the scores of all pairs are 144 MB


def near_copies(n: int, dim: int, noise: float, rng: np.random.Generator) -> np.ndarray:
    x_ND = unit_rows("clustered", 1, dim, rng) + noise * rng.standard_normal((n, dim))
    unit_ND: np.ndarray = (x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)).astype(np.float32)
    return unit_ND


def test_of_a_crowd_only_a_few_rows_are_offered_and_others_always(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"CROWD_LIMIT": 40, "CROWD_RUNS": 4, "CROWD_RUN": 3}.items():
        monkeypatch.setattr(f"hilander_dist.knn.near_duplicates.{name}", value)
    rng = np.random.default_rng(0)
    x_ND = near_copies(200, 8, 1e-5, rng)
    alone = np.array([3, 60, 61, 150])
    x_ND[alone] = unit_rows("clustered", 4, 8, rng)
    cell_start = np.array([0, 10, 200])
    centroid_CD = np.stack([x_ND[3], x_ND[10]])
    for cuts in ([0, 200], [0, 30, 60, 61, 155, 200]):
        offered = []
        for start, stop in itertools.pairwise(cuts):
            runs = offered_rows(1, x_ND[start:stop], start, cell_start, centroid_CD) if stop > 10 else []
            offered += [start + row for run in runs for row in range(run.start, run.stop)]
        assert offered == [10, 11, 12, 57, 58, 59, 60, 61, 104, 105, 106, 150, 151, 152, 153, 198, 199]
    assert list(offered_rows(0, x_ND, 0, cell_start, centroid_CD)) == [slice(0, 10)]
    assert list(offered_rows(1, x_ND, 0, cell_start, None)) == [slice(10, 200)]


def test_float16_rows_are_searched_as_what_they_are_in_float32() -> None:
    rng = np.random.default_rng(4)
    x_ND = unit_rows("clustered", TILE_ROWS + 30, 24, rng).astype(np.float16)
    ids = np.arange(len(x_ND))
    expected_nbr_NK, expected_sim_NK = search_flat(x_ND.astype(np.float32), ids, 7)
    nbr_NK, sim_NK = search_flat(x_ND, ids, 7)
    np.testing.assert_array_equal(nbr_NK, expected_nbr_NK)
    np.testing.assert_array_equal(sim_NK.view(np.int32), expected_sim_NK.view(np.int32))


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 90), cells=st.integers(1, 5), seed=st.integers(0, 2**32 - 1))
def test_near_rows_are_counted_as_brute_force_counts_them(n: int, cells: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x_ND = unit_rows("within_rounding", n, 6, rng)
    id_N = rng.permutation(n)
    cell_start = np.concatenate([[0], np.sort(rng.integers(0, n + 1, cells - 1)), [n]]).astype(np.int64)
    probe_NP = np.argsort(rng.random((n, cells)), axis=1)[:, : int(rng.integers(1, cells + 1))].astype(np.int32)
    sim_NN = np.array([[exact_sim(a, b) for b in x_ND] for a in x_ND])
    threshold_N = rng.permutation(sim_NN.ravel())[:n]  # each is met exactly by some pair
    cut = int(rng.integers(0, n + 1))
    near_NP = sum(
        count_near(
            x_ND,
            id_N,
            probe_NP,
            x_ND[part],
            id_N[part],
            part.start,
            cell_start,
            None,
            np.ascontiguousarray(threshold_N),
        )
        for part in (slice(0, cut), slice(cut, n))
    )
    reach_NN = (sim_NN >= threshold_N[:, None]) & ~np.eye(n, dtype=bool)
    expected = [[reach_NN[i, cell_start[c] : cell_start[c + 1]].sum() for c in probe_NP[i]] for i in range(n)]
    np.testing.assert_array_equal(near_NP, expected)
