import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hilander_dist.knn import device as device_module
from hilander_dist.knn.device import MARGIN, search_part_on_device
from hilander_dist.knn.kernel import search_part
from hilander_dist.knn.ranking import Float32, Int64, empty_candidates, finish
from tests import points

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device on this machine")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]


def search(
    x_ND: points.Array,
    id_N: Int64,
    probe_NP: NDArray[np.int32],
    cell_start_C1: Int64,
    cuts: Int64,
    n_neighbours: int,
    device: str | None,
) -> tuple[Int64, Float32]:
    """The neighbours of all rows, part after part (cut at `cuts`); on no device: by `kernel.search_part`."""
    candidates = empty_candidates(len(x_ND), n_neighbours)
    for start, stop in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
        part = (x_ND[start:stop], id_N[start:stop], start, cell_start_C1, candidates)
        if device is None:
            search_part(x_ND, id_N, probe_NP, *part)
        else:
            search_part_on_device(x_ND, id_N, probe_NP, *part, None, device)
    return finish(candidates)


def random_layout(
    n: int, n_cells: int, n_parts: int, rng: np.random.Generator
) -> tuple[Int64, NDArray[np.int32], Int64, Int64]:
    """Ids, probes, cells of random sizes (some empty), and parts cut anywhere, also inside cells."""
    id_N = rng.choice(10 * n, n, replace=False).astype(np.int64)
    nprobe = int(rng.integers(1, n_cells + 1))
    probe_NP = np.argsort(rng.random((n, n_cells)), axis=1)[:, :nprobe].astype(np.int32)
    probe_NP[:, 1:][rng.random((n, nprobe - 1)) < 0.2] = -1  # fewer probes, as of adaptive probing
    cell_start_C1, cuts = (
        np.concatenate([[0], np.sort(rng.integers(0, n + 1, pieces - 1)), [n]]).astype(np.int64)
        for pieces in (n_cells, n_parts)
    )
    return id_N, probe_NP, cell_start_C1, cuts


def assert_same(found: tuple[Int64, Float32], expected: tuple[Int64, Float32]) -> None:
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1].view(np.int32), expected[1].view(np.int32))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n_neighbours", [9, 79])
def test_clustered_data_in_cells_and_parts_gives_the_bits_of_the_kernel(device: str, n_neighbours: int) -> None:
    x_ND, cell_N = points.clustered(1, 2000, 32, 6)
    order_N = np.argsort(cell_N, kind="stable")
    x_ND, cell_N = np.ascontiguousarray(x_ND[order_N]), cell_N[order_N]
    id_N = np.random.default_rng(1).permutation(2000).astype(np.int64)
    probe_NP = np.stack([cell_N, (cell_N + 1) % 6, (cell_N + 3) % 6], axis=1).astype(np.int32)
    cell_start_C1 = np.searchsorted(cell_N, np.arange(7)).astype(np.int64)
    layout = (id_N, probe_NP, cell_start_C1, np.array([0, 700, 701, 1900, 2000]), n_neighbours)
    expected = search(x_ND, *layout, None)
    assert (expected[0] >= 0).mean() > 0.9
    assert_same(search(x_ND, *layout, device), expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", points.SETS)
@pytest.mark.parametrize("n_neighbours", [3, 40])
def test_hard_sets_give_the_bits_of_the_kernel(device: str, name: str, n_neighbours: int) -> None:
    x_ND = points.SETS[name]()
    x_ND = x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)
    N = len(x_ND)
    id_N = np.random.default_rng(2).permutation(N).astype(np.int64)
    layout = (id_N, np.zeros((N, 1), np.int32), np.array([0, N]), np.array([0, N // 3, N]), n_neighbours)
    nbr_NK, sim_NK = search(x_ND, *layout, device)
    assert ((nbr_NK >= -1) & (nbr_NK < N)).all()
    assert (nbr_NK != np.arange(N)[:, None]).all()
    assert (np.diff(sim_NK, axis=1) <= 0).all()
    assert ((sim_NK > 0) == (nbr_NK >= 0)).all()
    assert_same((nbr_NK, sim_NK), search(x_ND, *layout, None))


@pytest.mark.parametrize("device", DEVICES)
def test_more_ties_than_a_list_holds_end_with_the_lowest_ids(device: str) -> None:
    N = 50 * MARGIN
    x_ND = np.full((N, 4), 0.5, np.float32)
    layout = (np.arange(N)[::-1].copy(), np.zeros((N, 1), np.int32), np.array([0, N]), np.array([0, N]), 3)
    nbr_NK, _ = search(x_ND, *layout, device)
    assert nbr_NK[0].tolist() == [N - 1, N - 2, N - 3]
    assert nbr_NK[-1].tolist() == [N - 2, N - 3, N - 4]


@pytest.mark.parametrize("device", DEVICES)
def test_ordinary_data_is_not_searched_on_the_host(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "scan_tile", None)
    x_ND = points.clustered(3, 1500, 64, 5)[0]
    layout = (np.arange(1500), np.zeros((1500, 1), np.int32), np.array([0, 1500]), np.array([0, 600, 1500]), 20)
    assert (search(x_ND, *layout, device)[0] >= 0).all()


@pytest.mark.parametrize("device", DEVICES)
def test_float16_rows_are_searched_as_the_same_rows_in_float32(device: str) -> None:
    rng = np.random.default_rng(4)
    x_ND = points.clustered(4, 600, 24, 8)[0].astype(np.float16)
    layout = (*random_layout(600, 3, 3, rng), 9)
    assert_same(search(x_ND, *layout, device), search(x_ND.astype(np.float32), *layout, None))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_read_only_arrays_of_an_object_store_are_searched(device: str, dtype: type[np.floating]) -> None:
    x_ND = points.with_duplicates(5, 200, 16)[0].astype(dtype)
    layout = random_layout(200, 3, 2, np.random.default_rng(5))
    expected = search(x_ND, *layout, 2, device)
    for array in (x_ND, *layout):
        array.flags.writeable = False
    assert_same(search(x_ND, *layout, 2, device), expected)


@pytest.mark.parametrize("device", DEVICES)
def test_the_product_is_in_full_float32_and_the_setting_is_restored(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    topk = torch.topk

    def spy(scores: torch.Tensor, k: int) -> object:
        seen.append(torch.get_float32_matmul_precision())
        return topk(scores, k)

    monkeypatch.setattr(torch, "topk", spy)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        layout = (np.arange(9), np.zeros((9, 1), np.int32), np.array([0, 9]), np.array([0, 9]), 2)
        search(points.random_rows(6, 9, 4), *layout, device)
        assert seen == ["highest"]
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=100, deadline=None)
@given(
    kind=st.sampled_from(["random", "clustered", "copies", "all equal"]),
    n=st.integers(1, 120),
    dim=st.sampled_from([1, 2, 8, 33]),
    n_neighbours=st.sampled_from([1, 2, 9, 40]),
    n_cells=st.integers(1, 6),
    n_parts=st.integers(1, 5),
    tile=st.sampled_from([(4096, 4096), (3, 4096), (4096, 5), (7, 11), (50, 30)]),
    ahead=st.integers(0, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape_and_tiling_gives_the_bits_of_the_kernel(
    device: str,
    kind: str,
    n: int,
    dim: int,
    n_neighbours: int,
    n_cells: int,
    n_parts: int,
    tile: tuple[int, int],
    ahead: int,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    x_ND = {
        "random": lambda: points.random_rows(seed, n, dim),
        "clustered": lambda: points.clustered(seed, n, dim, max(n // 9, 1))[0],
        "copies": lambda: points.random_rows(seed, max(n // 20, 1), dim)[rng.integers(0, max(n // 20, 1), n)],
        "all equal": lambda: points.all_equal(n, dim),
    }[kind]()
    layout = (*random_layout(n, n_cells, n_parts, rng), n_neighbours)
    expected = search(x_ND, *layout, None)
    with pytest.MonkeyPatch.context() as patch:  # the fixture would not be undone between examples
        patch.setattr(device_module, "TILE_QUERIES", tile[0])
        patch.setattr(device_module, "TILE_ROWS", tile[1])
        patch.setattr(device_module, "AHEAD", ahead)
        assert_same(search(x_ND, *layout, device), expected)
