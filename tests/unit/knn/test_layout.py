import itertools
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilander_dist.knn import layout
from hilander_dist.knn.layout import (
    CHUNK,
    Level,
    assign_cells,
    hash_ids,
    move_rows,
    place_cells,
    positions_in_cells,
    sample_rows,
)
from hilander_dist.knn.quantizer import nearest_cells
from hilander_dist.local_tasks import LocalTasks, held, put_all
from hilander_dist.tasks import Block
from tests.points import clustered

CELLS = st.lists(st.integers(0, 5), max_size=60).map(lambda cells: np.array(cells, dtype=np.int32))
CUTS = st.lists(st.integers(0, 60), max_size=4)


def parts_of(block: Block, cuts: Iterable[int]) -> list[Block]:
    """A block cut into parts, in source order."""
    edges = [0, *sorted(cuts), len(block["id_N"])]
    return [{name: rows[a:b] for name, rows in block.items()} for a, b in itertools.pairwise(edges)]


def splitmix64(value: int) -> int:
    """The finaliser in Python's integers."""
    mask = 2**64 - 1
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & mask
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & mask
    return value ^ (value >> 31)


@given(cell_N=CELLS, cuts=CUTS)
def test_positions_group_rows_by_cell_in_source_order_however_parts_are_cut(
    cell_N: np.ndarray, cuts: list[int]
) -> None:
    parts = np.split(cell_N, [min(cut, len(cell_N)) for cut in sorted(cuts)])
    counts = [np.bincount(part, minlength=6).astype(np.int64) for part in parts]
    cell_start, *offsets = place_cells(counts)
    position_N = np.concatenate([positions_in_cells(part, offset) for part, offset in zip(parts, offsets, strict=True)])
    by_cell = sorted(range(len(cell_N)), key=lambda row: (cell_N[row], row))
    assert np.argsort(position_N).tolist() == by_cell
    assert sorted(position_N.tolist()) == list(range(len(cell_N)))
    assert cell_start.tolist() == [int((cell_N < cell).sum()) for cell in range(7)]
    assert cell_start.dtype == position_N.dtype == np.int64


@given(
    ids=st.lists(st.integers(0, 2**63 - 1), max_size=20), salt=st.sampled_from([0, 1, 0x5EED, 2**32, 2**64 - 1, 10**30])
)
def test_hash_ids_is_splitmix64_of_the_salted_id(ids: list[int], salt: int) -> None:
    id_N = np.array(ids, dtype=np.int64)
    expected = [splitmix64((value + (salt + 1) * 0x9E3779B97F4A7C15) % 2**64) for value in ids]
    assert hash_ids(id_N, salt).tolist() == expected


def test_a_sample_is_the_same_rows_however_the_level_is_cut() -> None:
    id_N = np.random.default_rng(0).permutation(4000)
    block: Block = {"id_N": id_N, "x_ND": id_N[:, None].astype(np.float32)}
    whole = sample_rows(block, 0.1, salt=3)
    pieces = [sample_rows(part, 0.1, salt=3) for part in parts_of(block, [0, 7, 7, 2500])]
    np.testing.assert_array_equal(np.concatenate([piece["id_N"] for piece in pieces]), whole["id_N"])
    np.testing.assert_array_equal(whole["x_ND"][:, 0], whole["id_N"])
    assert 330 < len(whole["id_N"]) < 470
    assert not np.array_equal(sample_rows(block, 0.1, salt=4)["id_N"], whole["id_N"])
    assert set(whole["id_N"]) <= set(sample_rows(block, 0.3, salt=3)["id_N"])


@pytest.mark.parametrize("share", [1.0, 7.5])
def test_a_share_of_one_or_more_samples_every_row(share: float) -> None:
    block: Block = {"id_N": np.arange(1000), "x_ND": np.zeros((1000, 2), dtype=np.float32)}
    assert sample_rows(block, share, salt=0)["id_N"].tolist() == list(range(1000))


def lay_out(tasks: LocalTasks, parts: list[Block], n: int, dim: int, shards: int, seed: int, prefix: str) -> Level:
    """Both steps, on blocks in memory."""
    assignment = assign_cells(tasks, put_all(parts), n, dim, seed, prefix)
    return move_rows(tasks, held(parts), assignment, n, shards, prefix)


def level_nodes(level: Level) -> list[Block]:
    return LocalTasks().get(level.nodes)  # type: ignore[no-any-return]


@pytest.fixture
def rows() -> Block:
    x_ND, _ = clustered(0, 4 * CHUNK + 100, 8, 30)
    n = len(x_ND)
    return {"id_N": np.arange(n) * 3 + 1, "x_ND": x_ND, "sum_ND": np.arange(2 * n).reshape(n, 2)}


def test_nodes_lie_in_the_order_of_cell_and_source(rows: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "choose_nlist", lambda n: 12)
    n = len(rows["id_N"])
    tasks = LocalTasks()
    level = lay_out(tasks, [rows], n, 8, 1, seed=0, prefix="level-0")
    (nodes,) = level_nodes(level)
    cell_N = nearest_cells(rows["x_ND"], tasks.get(level.quantizer), 1)[0][:, 0]
    assert 6 < len(set(cell_N.tolist())) <= 12
    order = np.argsort(cell_N, kind="stable")
    for name, array in rows.items():
        np.testing.assert_array_equal(nodes[name], array[order])
    cell_start = tasks.get(level.cell_start)
    assert cell_start.tolist() == [int((cell_N < cell).sum()) for cell in range(len(cell_start))]
    assert (level.n, cell_start[-1]) == (n, n)


@pytest.mark.parametrize("nlist", [1, 12])
@pytest.mark.parametrize("shards", [2, 3, 5, 99])
def test_the_layout_does_not_depend_on_parts_and_shards(
    rows: Block, nlist: int, shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "choose_nlist", lambda n: nlist)
    n = len(rows["id_N"])
    one = lay_out(LocalTasks(), [rows], n, 8, 1, seed=4, prefix="level-0")
    parts = parts_of(rows, [5, 900, 900, 1700])
    tasks = LocalTasks()
    many = lay_out(tasks, parts, n, 8, shards, seed=4, prefix="level-0")
    np.testing.assert_array_equal(tasks.get(many.quantizer).centroid_CD, tasks.get(one.quantizer).centroid_CD)
    np.testing.assert_array_equal(tasks.get(many.cell_start), tasks.get(one.cell_start))
    (whole,) = level_nodes(one)
    for name, array in whole.items():
        np.testing.assert_array_equal(np.concatenate([nodes[name] for nodes in level_nodes(many)]), array)
    assert many.shards == min(shards, 5)
    assert all(start % CHUNK == 0 for start in many.starts[:-1])
    assert [len(nodes["id_N"]) for nodes in level_nodes(many)] == np.diff(many.starts).tolist()
    nodes = [f"level-0/nodes-{s:05d}.safetensors" for s in range(many.shards)]
    probes = [f"level-0/probes-{part:05d}.safetensors" for part in range(len(parts))]
    assert sorted(tasks.blocks) == [*nodes, *probes, "level-0/quantizer.safetensors"]


@pytest.mark.parametrize("shards", [2, 3, 5])
def test_rows_that_move_in_waves_end_in_the_same_places(
    rows: Block, shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "choose_nlist", lambda n: 12)
    n = len(rows["id_N"])
    (whole,) = level_nodes(lay_out(LocalTasks(), [rows], n, 8, 1, seed=4, prefix="level-0"))
    monkeypatch.setattr(layout, "ONE_WAVE_BELOW", 2)
    tasks = LocalTasks()
    parts = parts_of(rows, [5, 900, 1700])
    level = lay_out(tasks, parts, n, 8, shards, seed=4, prefix="level-0")
    assert tasks.calls.count("_send_to_shards") == 2 * len(parts)
    for name, array in whole.items():
        np.testing.assert_array_equal(np.concatenate([nodes[name] for nodes in level_nodes(level)]), array)


def test_one_row_makes_one_shard() -> None:
    block = {"id_N": np.array([7]), "x_ND": np.ones((1, 1), dtype=np.float32)}
    level = lay_out(LocalTasks(), [block], 1, 1, 4, seed=0, prefix="x")
    assert level.starts == (0, 1)
    assert level_nodes(level)[0]["id_N"].tolist() == [7]
