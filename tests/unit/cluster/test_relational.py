"""The default method as a whole, with the general checkpoint: the same for any shards, nested up to one root."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilander_dist.cluster.hierarchy.levels import Hierarchy, Nodes
from hilander_dist.cluster.partition.edge_sums import companions
from hilander_dist.cluster.partition.log_odds import probabilities
from hilander_dist.cluster.relational import cluster_rows, kept_levels, score_rows, whitened_rows
from hilander_dist.config import RelationalModel
from hilander_dist.jobs.models import GENERAL
from hilander_dist.knn.graph import GraphOptions
from hilander_dist.knn.layout import CHUNK
from hilander_dist.lander.checkpoint import load_checkpoint
from hilander_dist.lander.inference import Inference
from hilander_dist.lander.relational import RelationalLander
from hilander_dist.local_tasks import LocalTasks, held, put
from hilander_dist.run import Run
from hilander_dist.storage import Storage
from hilander_dist.tasks import Block
from tests.points import SETS, clustered
from tests.unit.cluster.small import joined, same_bytes

K = 16
N = 2 * CHUNK + 90
SEARCH = GraphOptions(K, 1.0, 0)
ALL_LEVELS = 10**6


@pytest.fixture(scope="module")
def model() -> RelationalLander:
    found = load_checkpoint(GENERAL.read_bytes(), "general", RelationalModel())
    assert isinstance(found, RelationalLander)
    return found


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return clustered(5, N, 24, 40)[0]


def nodes_of(x_ND: np.ndarray, parts: int) -> Nodes:
    cuts = [len(x_ND) * p // parts for p in range(parts + 1)]
    blocks = [{"id_N": np.arange(a, b), "x_ND": x_ND[a:b]} for a, b in itertools.pairwise(cuts)]
    return Nodes(held(blocks), len(x_ND), x_ND.shape[1], len(x_ND))


def found_in(
    where: Path,
    x_ND: np.ndarray,
    model: RelationalLander,
    shards: int,
    parts: int = 2,
    levels: int = ALL_LEVELS,
    on_disk: bool = False,
) -> tuple[LocalTasks, Hierarchy]:
    run = Run(Storage(str(where)), {"job": "test"})
    tasks = LocalTasks(run.work, run.saved) if on_disk else LocalTasks()
    return tasks, cluster_rows(tasks, run, nodes_of(x_ND, parts), shards, SEARCH, model, put(model), levels)


def content(tasks: LocalTasks, found: Hierarchy) -> list[Block]:
    """The blocks of all levels, and the tree."""
    blocks = [joined(tasks, refs) for level in found.levels for refs in (level.members, level.trees)]
    return blocks if found.tree is None else [*blocks, tasks.get(found.tree)]


def test_the_hierarchy_is_the_same_bytes_for_any_sharding(
    rows: np.ndarray, model: RelationalLander, tmp_path: Path
) -> None:
    tasks, alone = found_in(tmp_path / "1", rows, model, 1, 1)
    expected = content(tasks, alone)
    tasks, found = found_in(tmp_path / "3", rows, model, 3, 5)
    assert len(found.levels[0].members) == 3
    assert found.chosen == alone.chosen
    assert [(level.clusters, level.numbers) for level in found.levels] == [
        (level.clusters, level.numbers) for level in alone.levels
    ]
    assert found.numbers == alone.numbers
    for one, other in zip(content(tasks, found), expected, strict=True):
        assert one.keys() == other.keys()
        for name, column in one.items():
            assert same_bytes(column, other[name]), name


@pytest.fixture(scope="module")
def whole(
    rows: np.ndarray, model: RelationalLander, tmp_path_factory: pytest.TempPathFactory
) -> tuple[LocalTasks, Hierarchy]:
    return found_in(tmp_path_factory.mktemp("whole"), rows, model, 2)


def test_levels_are_nested_up_to_one_root(whole: tuple[LocalTasks, Hierarchy]) -> None:
    tasks, found = whole
    counts = [level.clusters for level in found.levels]
    assert counts == sorted(set(counts), reverse=True)
    assert counts[-1] == 1
    assert len(counts) > found.chosen + 2
    below = N
    peak_of = np.arange(N)
    sizes = np.ones(N, dtype=np.int64)
    for level in found.levels:
        members, trees = joined(tasks, level.members), joined(tasks, level.trees)
        assert sorted(members["at_N"].tolist()) == list(range(below))
        order = np.argsort(trees["rank_N"])
        assert trees["rank_N"][order].tolist() == list(range(level.clusters))
        sizes = np.bincount(members["label_N"], sizes[members["at_N"]], level.clusters).astype(np.int64)
        assert trees["count_N"][order].tolist() == sizes.tolist()
        # A peak is the peak of a cluster below.
        peaks = trees["id_N"][order]
        assert set(zip(members["label_N"].tolist(), peak_of[members["at_N"]].tolist(), strict=True)) >= set(
            enumerate(peaks.tolist())
        )
        peak_of, below = peaks, level.clusters
    shifts = [level.numbers.get("shift") for level in found.levels]
    on_path = [shift for shift in shifts if shift is not None]
    assert on_path == sorted(on_path) == shifts[: len(on_path)]
    assert shifts[found.chosen] == found.numbers["chosen_shift"]


def test_the_manifest_tells_the_path_and_the_choice(whole: tuple[LocalTasks, Hierarchy], rows: np.ndarray) -> None:
    _, found = whole
    chosen = [stats for stats in found.numbers["path"] if stats["shift"] == found.numbers["chosen_shift"]]
    assert [stats["clusters"] for stats in chosen] == [found.levels[found.chosen].clusters]
    assert found.numbers["chosen_because"] == "agreement"
    assert found.numbers["warnings"] == []
    assert 0 < found.numbers["mean_probability"] < 1
    assert found.numbers["graph"]["recall"] == 1


def test_rows_know_how_sure_their_cluster_in_the_answer_is(
    whole: tuple[LocalTasks, Hierarchy], rows: np.ndarray, model: RelationalLander
) -> None:
    tasks, found = whole
    members = joined(tasks, found.levels[0].members)
    label_N = members["label_N"]
    for level in found.levels[1 : found.chosen + 1]:
        upper = joined(tasks, level.members)
        label_N = upper["label_N"][np.argsort(upper["at_N"])][label_N]
    # Of one shard rows are the table.
    alone = LocalTasks()
    _, scored, _ = score_rows(alone, nodes_of(rows, 1), 1, SEARCH, model, put(model), "level-0")
    chance_Q = probabilities(found.numbers["chosen_shift"])
    clusters = int(label_N.max()) + 1
    local_NK, step_NK = alone.get(scored.local)[0], alone.get(scored.scores)[0]["step_NK"]
    expected = companions(label_N.astype(np.int32), clusters, local_NK, step_NK, chance_Q)
    for name, column in zip(("confidence_N", "margin_N"), expected, strict=True):
        np.testing.assert_array_equal(members[name], column)
    assert members["confidence_N"].max() > 0.5


@pytest.mark.parametrize("extra", [-9, 1])
def test_no_more_levels_are_written_than_asked_for_but_up_to_the_answer(
    whole: tuple[LocalTasks, Hierarchy], rows: np.ndarray, model: RelationalLander, extra: int, tmp_path: Path
) -> None:
    whole_tasks, every = whole
    asked = max(every.chosen + 1 + extra, 1)
    tasks, found = found_in(tmp_path, rows, model, 2, levels=asked)
    assert len(found.levels) == max(asked, every.chosen + 1)
    assert found.chosen == every.chosen
    for level, other in zip(found.levels, every.levels, strict=False):
        for one, expected in ((level.members, other.members), (level.trees, other.trees)):
            block = joined(tasks, one)
            assert all(same_bytes(block[name], column) for name, column in joined(whole_tasks, expected).items())


def test_a_tuned_checkpoint_answers_with_its_level(
    whole: tuple[LocalTasks, Hierarchy], rows: np.ndarray, model: RelationalLander, tmp_path: Path
) -> None:
    _, every = whole
    tuned = load_checkpoint(GENERAL.read_bytes(), "general", RelationalModel())
    assert isinstance(tuned, RelationalLander)
    shift = every.numbers["path"][1]["shift"]
    tuned.inference = model.inference.model_copy(update={"shift": shift + 0.1})
    _, found = found_in(tmp_path, rows, tuned, 2)
    assert found.numbers["chosen_shift"] == shift != every.numbers["chosen_shift"]
    assert found.levels[found.chosen].clusters == every.numbers["path"][1]["clusters"]
    assert found.numbers["chosen_because"] == "asked for"


def test_a_run_goes_on_in_the_same_bytes(rows: np.ndarray, model: RelationalLander, tmp_path: Path) -> None:
    first_tasks, first = found_in(tmp_path, rows, model, 2, on_disk=True)
    tasks, again = found_in(tmp_path, rows, model, 2, on_disk=True)
    assert "search_shard" in first_tasks.calls
    assert not {"search_shard", "_merge_all", "_score", "_next_states", "_edge_columns"} & set(tasks.calls)
    assert again.numbers == first.numbers
    for one, other in zip(content(tasks, again), content(first_tasks, first), strict=True):
        assert all(same_bytes(column, other[name]) for name, column in one.items())


def test_the_clusters_for_whitening_are_those_of_the_answer(
    whole: tuple[LocalTasks, Hierarchy], rows: np.ndarray, model: RelationalLander, tmp_path: Path
) -> None:
    _, every = whole
    run = Run(Storage(str(tmp_path)), {"job": "test"})
    tasks = LocalTasks()
    nodes = nodes_of(rows, 2)
    parts, numbers = whitened_rows(tasks, run, nodes, model, put(model), 2, SEARCH)
    assert numbers is not None
    assert numbers["clusters"] == every.levels[every.chosen].clusters
    assert (parts is nodes.parts) == (not numbers["kept"])
    # Its markers and blocks are its own.
    markers = [info.path for info in run.work.list() if info.path.startswith("markers/")]
    assert markers
    assert all(path.startswith("markers/whitening") for path in markers)
    assert all(path.startswith("whitening/") for path in tasks.blocks)


@pytest.mark.parametrize("name", SETS)
def test_any_rows_have_a_hierarchy(name: str, model: RelationalLander, tmp_path: Path) -> None:
    x_ND = np.asarray(SETS[name](), dtype=np.float32)
    x_ND = x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)
    tasks, found = found_in(tmp_path, x_ND, model, 1, 1)
    assert len(joined(tasks, found.levels[0].members)["id_N"]) == len(x_ND)
    assert found.levels[-1].clusters == 1
    if name == "negative only":
        assert found.levels[found.chosen].clusters == len(x_ND)
        assert found.numbers["chosen_because"] == "no edges"


def test_without_the_memory_to_join_means_the_path_is_all(
    rows: np.ndarray, model: RelationalLander, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hilander_dist.cluster.hierarchy.linkage.MOST_CLUSTERS", 0)
    _, found = found_in(tmp_path, rows, model, 1, 1)
    assert found.tree is None
    assert all("shift" in level.numbers for level in found.levels)


PATHS = st.lists(st.integers(1, 60), min_size=1, max_size=15).map(lambda counts: sorted(counts, reverse=True))


@given(PATHS, st.integers(0, 40), st.floats(0.05, 1), st.data())
def test_kept_levels_are_the_answer_the_last_one_and_those_with_clearly_fewer_clusters(
    clusters: list[int], more: int, share: float, data: Any
) -> None:
    rows = clusters[0] + more
    chosen = data.draw(st.integers(0, len(clusters) - 1))
    kept = kept_levels(clusters, rows, chosen, Inference(kept_share=share))
    assert kept == sorted(set(kept))
    assert chosen in kept
    # The last one, unless a level with as many clusters is there.
    assert clusters[kept[-1]] == clusters[-1] or (len(kept) == 1 and clusters[-1] == rows)
    for at in kept[:-1]:
        below = ([rows] + [clusters[lower] for lower in kept if lower < at])[-1]
        assert at == chosen or clusters[at] <= share * below
    for at in range(len(clusters)):
        if at not in kept and at != len(clusters) - 1:
            below = ([rows] + [clusters[lower] for lower in kept if lower < at])[-1]
            assert clusters[at] > share * below


def test_a_level_with_exactly_the_share_that_is_kept_is_written() -> None:
    inference = Inference(kept_share=0.75)
    assert kept_levels([120, 90, 89, 68, 67, 66, 66], 160, 3, inference) == [0, 1, 3, 6]
    assert kept_levels([160, 160], 160, 0, inference) == [0]
