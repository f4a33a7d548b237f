"""Whitening: shortened where clusters spread, the same bytes for any parts and shards, from whole regions."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilander_dist.cluster import whitening
from hilander_dist.cluster.hierarchy.features import FIXED_POINT
from hilander_dist.cluster.hierarchy.label_links import link_by_labels
from hilander_dist.cluster.hierarchy.levels import Nodes
from hilander_dist.cluster.hierarchy.roots import find_roots
from hilander_dist.cluster.whitening import (
    MAP,
    MOST_LOST,
    choose_regions,
    fit_map,
    pick_regions,
    same_share,
    sum_products,
    whiten,
    whitening_map,
)
from hilander_dist.errors import ClusterError
from hilander_dist.ingest import normalise_rows
from hilander_dist.knn.graph import GraphOptions, knn_graph
from hilander_dist.knn.layout import CHUNK, Level, load_quantizer, load_space, save_quantizer
from hilander_dist.knn.quantizer import flat_quantizer
from hilander_dist.local_tasks import LocalTasks, held
from hilander_dist.run import Run
from hilander_dist.storage import Storage
from hilander_dist.tasks import Block, Loader, Ref, Tasks
from hilander_dist.training.episodes import exact_neighbours
from tests.unit.cluster.small import same_bytes

DIM, CLASSES, N = 12, 40, 3 * CHUNK + 70


@pytest.fixture(scope="module")
def rows() -> Block:
    """Classes that differ in all dimensions, and spread in the first three alone, by more than they differ."""
    rng = np.random.default_rng(0)
    class_N = rng.integers(CLASSES, size=N)
    x_ND = (
        rng.normal(size=(CLASSES, DIM))[class_N] + rng.normal(size=(N, DIM)) * np.r_[np.full(3, 3.0), np.full(9, 0.3)]
    )
    unit_ND = (x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)).astype(np.float32)
    return {"id_N": np.arange(N), "x_ND": unit_ND, "class_N": class_N}


def cut(rows: Block, parts: int) -> Nodes:
    cuts = [N * p // parts for p in range(parts + 1)]
    blocks = [{name: column[a:b] for name, column in rows.items()} for a, b in itertools.pairwise(cuts)]
    return Nodes(held(blocks), N, DIM, N)


def by_labels(tasks: Tasks, nodes: Nodes, shards: int, search: GraphOptions, prefix: str) -> tuple[Level, list[Ref]]:
    """Clusters within classes alone: trees of links to denser neighbours of the own class."""
    level, graph, _ = knn_graph(tasks, nodes.parts, nodes.n, nodes.dim, shards, search, prefix)
    links = link_by_labels(merge_across_labels=False)(tasks, level, graph, prefix).blocks
    return level, [tasks.call(root_labels, block) for block in find_roots(tasks, links, level.starts)]


def root_labels(pointers: Block) -> Block:
    return {"label_N": pointers["pointer_N"]}


def whitened(
    rows: Block, path: Path, shards: int, parts: int, **search: Any
) -> tuple[Block, dict[str, Any], LocalTasks]:
    tasks = LocalTasks()
    found, numbers = whiten(
        tasks,
        Run(Storage(str(path)), {"job": "test"}),
        cut(rows, parts),
        shards,
        GraphOptions(20, 1.0, 0, **search),
        0,
        by_labels,
    )
    return joined(found), numbers, tasks


def joined(parts: list[Loader]) -> Block:
    blocks = [part() for part in parts]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def test_neighbours_of_one_class_come_nearer(rows: Block, tmp_path: Path) -> None:
    found, numbers, _ = whitened(rows, tmp_path, 1, 2)
    assert numbers["rows"] == N
    assert numbers["kept"]
    assert 1 < numbers["clusters"] < numbers["rows"]
    np.testing.assert_allclose(np.linalg.norm(found["x_ND"], axis=1), 1, atol=1e-6)
    assert same_share(found["x_ND"], rows["class_N"]) > same_share(rows["x_ND"], rows["class_N"]) + 0.1
    for name in ("id_N", "class_N"):
        np.testing.assert_array_equal(found[name], rows[name])


def test_the_same_map_for_any_shards_and_parts(rows: Block, tmp_path: Path) -> None:
    maps = []
    for number, (shards, parts) in enumerate(((1, 1), (3, 1), (2, 5))):
        _, _, tasks = whitened(rows, tmp_path / str(number), shards, parts)
        maps.append(tasks.blocks[MAP]["map_DD"])
    assert all(same_bytes(other, maps[0]) for other in maps[1:])


def test_vectors_are_left_where_members_of_clusters_would_part(tmp_path: Path) -> None:
    """Half of the classes spread by what the other half differ by."""
    rng = np.random.default_rng(0)
    class_N = rng.integers(CLASSES, size=N)
    wide_N = class_N < CLASSES // 2
    centre_CD = rng.normal(size=(CLASSES, DIM)) * np.where(np.arange(DIM) < 3, 0, 3)
    centre_CD[CLASSES // 2 :] = 0
    centre_CD[CLASSES // 2 :, :3] = 3 * rng.normal(size=(CLASSES - CLASSES // 2, 3))
    spread_ND = np.where(wide_N[:, None] & (np.arange(DIM) < 3), 2.0, 0.3)
    x_ND = centre_CD[class_N] + rng.normal(size=(N, DIM)) * spread_ND
    rows = {"id_N": np.arange(N), "x_ND": normalise_rows(x_ND), "class_N": class_N}
    found, numbers, _ = whitened(rows, tmp_path, 2, 2)
    assert not numbers["kept"]
    assert 1 - numbers["same_cluster_whitened"] > MOST_LOST * (1 - numbers["same_cluster_plain"])
    np.testing.assert_array_equal(found["x_ND"], rows["x_ND"])


def test_the_share_of_neighbours_with_the_same_label(rows: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    x_ND, class_N = rows["x_ND"], rows["class_N"]
    nbr_NK, _ = exact_neighbours(x_ND, whitening.NEIGHBOURS)
    same_NK = class_N[nbr_NK] == class_N[:, None]
    assert same_share(x_ND, class_N) == pytest.approx(same_NK.mean(), abs=1e-9)
    monkeypatch.setattr(whitening, "QUERIES", 400)
    assert same_share(x_ND, class_N) == pytest.approx(same_NK.mean(), abs=0.05)
    # Copies that do not find themselves, and no other row at all.
    assert same_share(np.ones((50, 4), np.float32), np.zeros(50)) == 1
    assert same_share(np.ones((1, 4), np.float32), np.zeros(1)) == 0


def test_a_cluster_without_the_memory_is_told_so(rows: Block, tmp_path: Path) -> None:
    tasks = LocalTasks()
    tasks.memory_offered = 4 * 10**8
    run = Run(Storage(str(tmp_path)), {"job": "test"})
    with pytest.raises(
        ClusterError, match=r"whitening of 1606 rows of 12 dimensions takes up to 0\.4 GB, .* offers 0\.4 GB"
    ):
        whiten(tasks, run, cut(rows, 1), 1, GraphOptions(20, 1.0, 0), 0, by_labels)
    assert not tasks.calls


def test_vectors_keep_their_dtype(rows: Block, tmp_path: Path) -> None:
    half = {**rows, "x_ND": rows["x_ND"].astype(np.float16)}
    assert whitened(half, tmp_path, 1, 2)[0]["x_ND"].dtype == np.float16


def test_a_later_run_takes_the_map_of_an_earlier_one(rows: Block, tmp_path: Path) -> None:
    file = Storage(str(tmp_path / "quantizer.safetensors"))
    swap_DD = np.eye(DIM, dtype=np.float32)[::-1]
    save_quantizer(file, flat_quantizer(DIM).as_block(), "whitened", swap_DD)
    found, numbers, _ = whitened(rows, tmp_path / "run", 1, 2, quantizer=file)
    assert numbers == {"learned_from": "earlier run", "kept": True}
    np.testing.assert_allclose(found["x_ND"], rows["x_ND"][:, ::-1], atol=1e-6)
    assert "map_DD" not in load_quantizer(file, DIM)
    # That run found that whitening does not pay: nor is it tried again.
    save_quantizer(file, flat_quantizer(DIM).as_block(), "declined")
    assert load_space(file) == ("declined", {})
    found, numbers, _ = whitened(rows, tmp_path / "other", 1, 2, quantizer=file)
    assert numbers == {"learned_from": "earlier run", "kept": False}
    np.testing.assert_array_equal(found["x_ND"], rows["x_ND"])
    save_quantizer(file, flat_quantizer(DIM).as_block(), "plain")
    assert load_space(file) == ("plain", {})
    assert set(load_quantizer(file, DIM)) == set(flat_quantizer(DIM).as_block())


def test_regions_are_whole_and_the_same_for_any_parts(rows: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whitening, "ROWS", 300)
    tasks = LocalTasks()
    found = []
    for parts in (1, 4):
        loaders, n = pick_regions(tasks, cut(rows, parts), 0)
        found.append(joined(loaders)["id_N"])
        assert 300 <= n == len(found[-1]) <= 600
        tasks.blocks.clear()
    np.testing.assert_array_equal(found[0], found[1])
    # Whole regions: of the nearest neighbours of what was taken more were taken than by chance.
    taken_N = np.isin(rows["id_N"], found[0])
    nbr_NK, _ = exact_neighbours(rows["x_ND"], 5)
    assert taken_N[nbr_NK[taken_N]].mean() > 2 * taken_N.mean()


@pytest.mark.parametrize(
    ("counts", "chosen"),
    [
        ([5, 5, 5, 5], [0, 1]),
        ([50, 6, 50, 7, 3], [1, 3]),  # the large ones would be too much
        ([50, 0, 40], [2]),  # all are: the smallest
    ],
)
def test_regions_until_there_are_enough_rows(
    counts: list[int], chosen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whitening, "ROWS", 10)
    assert np.flatnonzero(choose_regions(np.array(counts))).tolist() == chosen


def test_the_scatter_is_that_within_clusters(rows: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    x_ND, class_N = rows["x_ND"], rows["class_N"]
    sum_PD = np.zeros((CLASSES, DIM), dtype=np.int64)
    np.add.at(sum_PD, class_N, np.rint(x_ND.astype(np.float64) * FIXED_POINT).astype(np.int64))
    count_P = np.bincount(class_N)
    cuts = np.array_split(np.arange(N), 3)
    found = fit_map([sum_products({"x_ND": x_ND[at]}) for at in cuts], sum_PD, count_P)
    mean_CD = np.stack([x_ND[class_N == c].mean(0) for c in range(CLASSES)])
    apart_ND = (x_ND - mean_CD[class_N]).astype(np.float64)
    np.testing.assert_allclose(found, whitening_map(apart_ND.T @ apart_ND, N - CLASSES), rtol=1e-3, atol=1e-4)
    assert same_bytes(fit_map([sum_products({"x_ND": x_ND})], sum_PD, count_P), found)
    monkeypatch.setattr(whitening, "_ROWS_AT_ONCE", 7)
    np.testing.assert_allclose(fit_map([sum_products({"x_ND": x_ND})], sum_PD, count_P), found, rtol=1e-5, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(0.01, 100), min_size=2, max_size=6),
    st.integers(1, 10**6),
    st.floats(1e-3, 1e3),
    st.randoms(use_true_random=False),
)
def test_what_varies_more_is_shortened_more(variance: list[float], freedom: int, scale: float, random: Any) -> None:
    D = len(variance)
    basis_DD = np.linalg.qr(np.random.default_rng(random.getrandbits(32)).normal(size=(D, D)))[0]
    scatter_DD = (basis_DD * variance) @ basis_DD.T
    map_DD = whitening_map(scatter_DD * scale * freedom, freedom)
    np.testing.assert_allclose(map_DD, map_DD.T, atol=1e-6)
    length_D = np.linalg.norm(map_DD @ basis_DD, axis=0)
    order = np.argsort(variance)
    assert (np.diff(length_D[order]) <= 1e-4 * length_D.max()).all()
    # By less than whitening would: what varies more does so still.
    assert (np.diff((length_D * np.sqrt(variance))[order]) >= -1e-4 * np.sqrt(max(variance))).all()
    # In other units, and in more of all rows, it is the same.
    np.testing.assert_allclose(whitening_map(scatter_DD * freedom, freedom), map_DD, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("freedom", [0, 50])
def test_clusters_of_copies_leave_vectors_as_they_are(freedom: int) -> None:
    np.testing.assert_array_equal(whitening_map(np.full((4, 4), 1e-9), freedom), np.eye(4, dtype=np.float32))
