import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hilander_dist.cluster.hierarchy.features import FIXED_POINT
from hilander_dist.cluster.hierarchy.levels import LevelOutput, Nodes, run_levels
from hilander_dist.cluster.hierarchy.links import Linker, Links, link_by_model, link_nothing
from hilander_dist.knn.layout import CHUNK, Level
from hilander_dist.local_tasks import LocalTasks, held, put, put_all
from hilander_dist.run import Run
from hilander_dist.storage import Storage
from hilander_dist.tasks import Tasks
from tests import oracle
from tests.points import clustered, random_rows
from tests.unit.cluster.small import joined, options, random_model, same_bytes

DIM = 6


def new_run(path: Path) -> Run:
    return Run(Storage(str(path)), {"job": "test"})


def source_nodes(x_ND: np.ndarray, parts: int = 2) -> Nodes:
    cuts = [len(x_ND) * p // parts for p in range(parts + 1)]
    blocks = [{"id_N": np.arange(a, b), "x_ND": x_ND[a:b]} for a, b in itertools.pairwise(cuts)]
    return Nodes(held(blocks), len(x_ND), x_ND.shape[1], len(x_ND))


def halving(tasks: Tasks, level: Level, graph: list[Any], prefix: str) -> Links:
    """Each node of odd position links to the one before it."""
    blocks = []
    for start, stop in zip(level.starts[:-1], level.starts[1:], strict=True):
        position_N = np.arange(start, stop)
        blocks.append(
            {
                "parent_N": position_N - position_N % 2,
                "density_N": np.zeros(stop - start, np.float32),
                "confidence_N": np.where(position_N % 2, np.float32(1), np.float32(np.nan)),
            }
        )
    return Links(put_all(blocks), {})


def sizes(levels: list[LevelOutput]) -> list[tuple[int, int]]:
    return [(level.numbers["nodes"], level.clusters) for level in levels]


def run_halving(tmp_path: Path, n: int, link: Linker = halving, **changed: Any) -> list[LevelOutput]:
    nodes = source_nodes(random_rows(0, n, DIM))
    return run_levels(LocalTasks(), new_run(tmp_path), nodes, options(**changed), link)


def test_the_loop_ends_at_one_node(tmp_path: Path) -> None:
    assert sizes(run_halving(tmp_path, 11)) == [(11, 6), (6, 3), (3, 2), (2, 1)]


def test_the_loop_ends_after_max_levels(tmp_path: Path) -> None:
    assert sizes(run_halving(tmp_path, 11, max_levels=2)) == [(11, 6), (6, 3)]


def test_early_stop_ends_after_a_level_that_adds_too_many_edges(tmp_path: Path) -> None:
    # 32 edges, then 16: fewer than k - 1 = 4 times less.
    assert sizes(run_halving(tmp_path, 64, early_stop=True)) == [(64, 32), (32, 16)]
    assert len(run_halving(tmp_path / "k3", 64, early_stop=True, k=3)) == 6


@pytest.mark.parametrize(("n", "expected"), [(5, [(5, 5)]), (6, [(6, 3)]), (1, [(1, 1)])])
def test_the_reference_builds_no_graph_of_k_nodes_or_fewer(
    tmp_path: Path, n: int, expected: list[tuple[int, int]]
) -> None:
    assert sizes(run_halving(tmp_path, n, compat="reference")) == expected


def test_a_level_without_edges_is_kept_only_at_the_bottom(tmp_path: Path) -> None:
    assert sizes(run_halving(tmp_path, 8, link=link_nothing)) == [(8, 8)]

    def once(tasks: Tasks, level: Level, graph: list[Any], prefix: str) -> Links:
        return (halving if prefix == "level-0" else link_nothing)(tasks, level, graph, prefix)

    assert sizes(run_halving(tmp_path / "once", 8, link=once)) == [(8, 4)]


def test_a_level_describes_its_members_and_trees(tmp_path: Path) -> None:
    x_ND = random_rows(0, 6, DIM)
    tasks = LocalTasks()
    levels = run_levels(tasks, new_run(tmp_path), source_nodes(x_ND), options(max_levels=2), halving)
    low, high = (joined(tasks, level.members) for level in levels)
    low_trees, high_trees = (joined(tasks, level.trees) for level in levels)
    assert low["id_N"].tolist() == low["at_N"].tolist() == [0, 1, 2, 3, 4, 5]
    assert low["label_N"].tolist() == [0, 0, 1, 1, 2, 2]
    assert low_trees["rank_N"].tolist() == [0, 1, 2]
    assert low_trees["id_N"].tolist() == high["id_N"].tolist() == [0, 2, 4]
    assert high["at_N"].tolist() == [0, 1, 2]
    assert high["label_N"].tolist() == [0, 0, 1]
    assert low_trees["count_N"].tolist() == [2, 2, 2]
    assert high_trees["count_N"].tolist() == [4, 2]
    cohesion = [np.linalg.norm(x_ND[members].mean(axis=0)) for members in ([0, 1], [2, 3], [4, 5])]
    np.testing.assert_allclose(low_trees["cohesion_N"], cohesion, rtol=1e-6)
    assert high_trees["cohesion_N"][1] == low_trees["cohesion_N"][2]


def test_cohesion_is_one_for_copies_and_small_for_orthogonal_members(tmp_path: Path) -> None:
    tasks = LocalTasks()
    x_ND = np.array([[1, 0], [1, 0], [1, 0], [0, 1]], dtype=np.float32)
    levels = run_levels(tasks, new_run(tmp_path), source_nodes(x_ND), options(max_levels=1), halving)
    assert joined(tasks, levels[0].trees)["cohesion_N"].tolist() == [1.0, np.float32(0.5**0.5)]


@pytest.mark.parametrize(("encoder", "tau"), [("gcn", 0.2), ("gat", 0.45)])
def test_the_hierarchy_is_the_same_bytes_for_any_sharding(tmp_path: Path, encoder: oracle.Encoder, tau: float) -> None:
    x_ND, _ = clustered(0, 4 * CHUNK + 33, DIM, 40)
    model = random_model(DIM, encoder)
    found = []
    for shards, parts in ((1, 1), (2, 3), (5, 2)):
        tasks = LocalTasks()
        link = link_by_model(model, put(model), tau, "default")
        run = new_run(tmp_path / str(shards))
        levels = run_levels(tasks, run, source_nodes(x_ND, parts), options(shards=shards), link)
        assert len(levels[0].members) == shards
        found.append([{**joined(tasks, level.members), **level_trees(tasks, level)} for level in levels])
    assert len(found[0]) >= 2
    for again in found[1:]:
        assert len(again) == len(found[0])
        for level, expected in zip(again, found[0], strict=True):
            for name, array in expected.items():
                assert same_bytes(level[name], array), name
    counts = found[0][-1]["tree_count_N"]
    assert counts.sum() == len(x_ND)
    assert 1 < len(counts) < len(x_ND) / 2


def level_trees(tasks: LocalTasks, level: LevelOutput) -> dict[str, np.ndarray]:
    return {f"tree_{name}": array for name, array in joined(tasks, level.trees).items()}


def attempt(path: Path, x_ND: np.ndarray, shards: int = 3) -> tuple[LocalTasks, list[LevelOutput]]:
    """A run, or its continuation in the same directory."""
    run = new_run(path)
    tasks = LocalTasks(run.work, run.saved)
    model = random_model(DIM, "gcn")
    link = link_by_model(model, put(model), 0.2, "default")
    return tasks, run_levels(tasks, run, source_nodes(x_ND), options(shards=shards, max_levels=3), link)


def saved(directory: Path) -> dict[str, bytes]:
    """All files of a run but the leases of its attempts."""
    paths = (info.path for info in Storage(str(directory)).list())
    return {path: (directory / path).read_bytes() for path in paths if not path.startswith("_work/lease/")}


def test_a_run_goes_on_from_what_is_saved_and_ends_in_the_same_bytes(tmp_path: Path) -> None:
    x_ND, _ = clustered(0, 2 * CHUNK + 33, DIM, 40)
    tasks, levels = attempt(tmp_path, x_ND)
    assert len(levels) >= 2
    whole = saved(tmp_path)

    resumed, again = attempt(tmp_path, x_ND)
    assert resumed.calls == []
    assert [level.numbers for level in again] == [level.numbers for level in levels]
    for level, expected in zip(again, levels, strict=True):
        assert (level.starts, level.clusters) == (expected.starts, expected.clusters)
        for name, array in joined(tasks, expected.members).items():
            assert same_bytes(joined(resumed, level.members)[name], array)

    # Killed in the search of level 0: its first shard's graph is saved, the rest of the run is not.
    kept = {"fingerprint.json", *(f"level-0/nodes-0000{s}.safetensors" for s in range(3))}
    kept.add("level-0/graph-00000.safetensors")
    for info in Storage(str(tmp_path / "_work")).list():
        if info.path not in kept:
            (tmp_path / "_work" / info.path).unlink()
    resumed, _ = attempt(tmp_path, x_ND)
    assert resumed.calls.count("search_shard") == tasks.calls.count("search_shard") - 1
    seen = saved(tmp_path)
    assert seen.keys() == whole.keys()
    differing = {path for path in whole if seen[path] != whole[path]}
    assert {path.split("/")[1] for path in differing} <= {"markers"}  # they hold times


def test_blocks_and_markers_carry_the_prefix(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    nodes = source_nodes(random_rows(0, 4, DIM))
    run_levels(LocalTasks(run.work), run, nodes, options(max_levels=1), halving, prefix="hierarchy-2/")
    paths = {path.removeprefix("_work/") for path in saved(tmp_path)} - {"fingerprint.json"}
    assert "markers/hierarchy-2/level-0.json" in paths
    assert all("hierarchy-2/level-0" in path for path in paths)


def test_sums_of_the_top_level_are_those_of_the_samples(tmp_path: Path) -> None:
    x_ND = random_rows(0, 9, DIM)
    run = new_run(tmp_path)
    tasks = LocalTasks()
    run_levels(tasks, run, source_nodes(x_ND), options(), halving)
    (top,) = (path for path in tasks.blocks if path.startswith("level-3/peaks"))
    fixed_ND = np.rint(x_ND.astype(np.float64) * FIXED_POINT).astype(np.int64)
    assert tasks.blocks[top]["sum_ND"].tolist() == [fixed_ND.sum(axis=0).tolist()]
    assert tasks.blocks[top]["count_N"].tolist() == [9]
