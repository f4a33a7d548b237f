import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hilander_dist.knn import quantizer as quantizer_module
from hilander_dist.knn.quantizer import (
    GROUPS_PROBED,
    MAX_SAMPLE,
    OVERSIZED,
    Quantizer,
    choose_nlist,
    nearest_cells,
    one_group,
    train_quantizer,
    training_sample_size,
)
from hilander_dist.knn.ranking import Float32


def clustered_rows(n: int, dim: int, seed: int) -> Float32:
    rng = np.random.default_rng(seed)
    centre_CD = rng.standard_normal((max(n // 30, 1), dim))
    rows = centre_CD[rng.integers(0, len(centre_CD), n)] + 0.2 * rng.standard_normal((n, dim))
    unit_ND: Float32 = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit_ND


GROUPED = pytest.mark.parametrize("nlist", [40, 300])
"""One group, and several (``small_groups``)."""


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups at a size that trains in milliseconds."""
    monkeypatch.setattr(quantizer_module, "CELLS_OF_ONE_GROUP", 100)
    monkeypatch.setattr(quantizer_module, "CELLS_AROUND", 32)


def probe_cells(q_MD: Float32, quantizer: Quantizer, nprobe: int) -> NDArray[np.int32]:
    return nearest_cells(q_MD, quantizer, nprobe)[0]


def assign_cells(x_ND: Float32, quantizer: Quantizer) -> NDArray[np.int32]:
    return nearest_cells(x_ND, quantizer, 1)[0][:, 0]


def ranked_cells(q_MD: Float32, centroids_CD: Float32) -> list[list[int]]:
    """All cells of each query by (similarity desc, cell asc), from the definition."""
    total_MC = np.zeros((len(q_MD), len(centroids_CD)))
    for d in range(q_MD.shape[1]):
        total_MC += q_MD[:, d, None].astype(np.float64) * centroids_CD[:, d].astype(np.float64)
    sim_MC = total_MC.astype(np.float32)
    return [sorted(range(len(sim_C)), key=lambda c: (-sim_C[c], c)) for sim_C in sim_MC]


@pytest.mark.parametrize(("n", "nlist"), [(1, 1), (8191, 1), (8192, 16), (200_000, 400)])
def test_choose_nlist(n: int, nlist: int) -> None:
    assert choose_nlist(n) == nlist


def test_training_sample_grows_with_the_cells_up_to_a_ceiling() -> None:
    assert training_sample_size(10) == 320
    assert training_sample_size(1_000_000) == MAX_SAMPLE


@GROUPED
def test_training_does_not_depend_on_the_order_of_the_sample_and_is_silent(
    nlist: int, capfd: pytest.CaptureFixture[str]
) -> None:
    sample_SD = clustered_rows(1200, 16, 0)
    once = train_quantizer(sample_SD, nlist, seed=7)
    again = train_quantizer(sample_SD[np.random.default_rng(1).permutation(1200)], nlist, seed=7)
    assert once.centroid_CD.tobytes() == again.centroid_CD.tobytes()
    assert once.group_GD.tobytes() == again.group_GD.tobytes()
    assert once.group_start_G1.tolist() == again.group_start_G1.tolist()
    assert not np.array_equal(once.centroid_CD, train_quantizer(sample_SD, nlist, seed=8).centroid_CD)
    assert capfd.readouterr() == ("", "")


@GROUPED
def test_centroids_are_distinct_unit_rows_and_every_cell_holds_sample_rows(nlist: int) -> None:
    sample_SD = clustered_rows(1000, 16, 2)
    quantizer = train_quantizer(sample_SD, nlist, seed=0)
    centroids_CD = quantizer.centroid_CD
    assert centroids_CD.dtype == np.float32
    assert nlist / 2 < len(centroids_CD) <= 1.1 * nlist
    assert (len(quantizer.group_GD) > 1) == (nlist > 50)
    assert quantizer.group_start_G1[[0, -1]].tolist() == [0, quantizer.cells]
    assert (np.diff(quantizer.group_start_G1) >= 0).all()
    assert len(np.unique(centroids_CD, axis=0)) == len(centroids_CD)
    np.testing.assert_allclose(np.linalg.norm(centroids_CD, axis=1), 1, atol=1e-6)
    assert set(assign_cells(sample_SD, one_group(centroids_CD)).tolist()) == set(range(len(centroids_CD)))


def test_cells_gather_similar_rows() -> None:
    sample_SD = clustered_rows(2000, 32, 3)
    quantizer = train_quantizer(sample_SD, 64, seed=0)
    own_S = np.einsum("sd,sd->s", sample_SD, quantizer.centroid_CD[assign_cells(sample_SD, quantizer)])
    random_CD = sample_SD[np.random.default_rng(0).choice(2000, 64, replace=False)]
    random_S = np.einsum("sd,sd->s", sample_SD, random_CD[assign_cells(sample_SD, one_group(random_CD))])
    assert own_S.mean() > random_S.mean() + 0.02


def test_consecutive_cells_are_close() -> None:
    # Cells on a circle: an order that keeps neighbours together crosses it a few times, a random order at every step.
    angle_S = np.random.default_rng(0).uniform(0, 2 * np.pi, 4000)
    sample_SD = np.stack([np.cos(angle_S), np.sin(angle_S)], axis=1).astype(np.float32)
    centroids_CD = train_quantizer(sample_SD, 64, seed=0).centroid_CD
    step_C = np.einsum("cd,cd->c", centroids_CD[:-1], centroids_CD[1:])
    assert (step_C > np.cos(2 * np.pi / 8)).mean() > 0.8


@pytest.mark.parametrize("n_distinct", [1, 2, 5, 8])
def test_fewer_distinct_rows_than_cells_give_one_cell_each(n_distinct: int, capfd: pytest.CaptureFixture[str]) -> None:
    distinct_SD = clustered_rows(n_distinct, 6, 4)
    sample_SD = np.repeat(distinct_SD, 50, axis=0)
    centroids_CD = train_quantizer(sample_SD, 8, seed=0).centroid_CD
    assert sorted(centroids_CD.tolist()) == sorted(distinct_SD.tolist())
    assert capfd.readouterr() == ("", "")


def test_a_sample_of_opposite_rows_trains() -> None:
    # One cell over opposite rows has a mean near zero.
    rows = clustered_rows(50, 4, 5)
    centroids_CD = train_quantizer(np.concatenate([rows, -rows]), 1, seed=0).centroid_CD
    np.testing.assert_allclose(np.linalg.norm(centroids_CD, axis=1), 1, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    dim=st.sampled_from([1, 2, 8, 33]),
    n_cells=st.integers(1, 30),
    equal=st.booleans(),
)
def test_cells_equal_the_definition_however_rows_are_grouped(seed: int, dim: int, n_cells: int, equal: bool) -> None:
    rng = np.random.default_rng(seed)
    centroids_CD = clustered_rows(n_cells, dim, seed)
    if equal:  # ties, and centroids apart by one rounding
        centroids_CD[rng.integers(0, n_cells, n_cells // 2)] = centroids_CD[0]
        centroids_CD[-1] = np.nextafter(centroids_CD[0], np.float32(2))
    quantizer = one_group(centroids_CD)
    x_ND = clustered_rows(40, dim, seed + 1)
    nprobe = int(rng.integers(1, n_cells + 1))
    expected = ranked_cells(x_ND, centroids_CD)

    cuts = np.sort(rng.integers(0, 41, 3))
    cells_N = np.concatenate([assign_cells(group, quantizer) for group in np.split(x_ND, cuts)])
    assert cells_N.dtype == np.int32
    assert cells_N.tolist() == [cells[0] for cells in expected]
    probe_NP = np.concatenate([probe_cells(group, quantizer, nprobe) for group in np.split(x_ND, cuts)])
    assert probe_NP.tolist() == [cells[:nprobe] for cells in expected]
    assert (np.sort(probe_cells(x_ND, quantizer, n_cells), axis=1) == np.arange(n_cells)).all()


def test_probes_by_group_are_nearly_those_of_all_cells_and_a_prefix_of_more() -> None:
    x_ND = clustered_rows(6000, 16, 6)
    quantizer = train_quantizer(x_ND, 400, seed=0)
    assert len(quantizer.group_GD) > GROUPS_PROBED[0]
    every = probe_cells(x_ND[:500], one_group(quantizer.centroid_CD), 8)
    near = probe_cells(x_ND[:500], quantizer, 8)
    assert (near[:, 0] == every[:, 0]).mean() > 0.97
    for fewer in (1, 5):
        assert np.array_equal(probe_cells(x_ND[:500], quantizer, fewer), near[:, :fewer])
    assert probe_cells(x_ND[:0], quantizer, 8).shape == (0, 8)
    every_17 = probe_cells(x_ND[:50], one_group(quantizer.centroid_CD), 17)
    assert np.array_equal(probe_cells(x_ND[:50], quantizer, 17), every_17)  # more than half of the cells listed
    assert (np.sort(probe_cells(x_ND[:9], quantizer, quantizer.cells), axis=1) == np.arange(quantizer.cells)).all()


def test_an_oversized_cell_is_split() -> None:
    # A third of all rows within a hair of one another, the others spread out: k-means alone gives them a cell or two.
    rng = np.random.default_rng(0)
    crowd = clustered_rows(1, 16, 1) + 1e-3 * rng.standard_normal((2000, 16))
    rows = np.concatenate([crowd / np.linalg.norm(crowd, axis=1, keepdims=True), clustered_rows(4000, 16, 2)])
    x_ND: Float32 = rows.astype(np.float32)
    quantizer = train_quantizer(x_ND, 60, seed=0)
    assert np.bincount(assign_cells(x_ND, quantizer)).max() <= OVERSIZED * len(x_ND) / 60


def test_a_crowd_of_near_duplicates_gets_one_centroid() -> None:
    rng = np.random.default_rng(0)
    x_SD = clustered_rows(1000, 16, 0)
    x_SD[:800] = x_SD[0] + 1e-5 * rng.standard_normal((800, 16)).astype(np.float32)
    x_SD /= np.linalg.norm(x_SD, axis=1, keepdims=True)
    centroid_CD = train_quantizer(x_SD, 30, 0).centroid_CD
    assert (centroid_CD @ x_SD[0] > 1 - 1e-6).sum() == 1
    assert len(centroid_CD) > 5
