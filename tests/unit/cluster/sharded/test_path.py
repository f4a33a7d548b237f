"""The level path: the same for any shards and whoever merges, nested, with the numbers that a loop over the rows counts."""

from pathlib import Path as File
from typing import Any

import numpy as np
import pytest

from hilander_dist.cluster.memory import PROCESS, merge_bytes
from hilander_dist.cluster.partition.codelength import cluster_terms, codelength
from hilander_dist.cluster.partition.level_choice import LevelStats
from hilander_dist.cluster.partition.log_odds import MOST, ONE, probabilities, quantise
from hilander_dist.cluster.sharded import path as path_module
from hilander_dist.cluster.sharded.path import Path, ScoredGraph, labels_at, merge_path
from hilander_dist.lander.inference import Inference
from hilander_dist.local_tasks import LocalTasks
from hilander_dist.run import Run
from hilander_dist.storage import Storage
from hilander_dist.tasks import Block
from tests.unit.cluster.small import random_scores, row_labels, scored_shards

WITH_LENGTH = Inference(least_linked=1.0)
"""The rule may ask for code lengths, whatever the scores."""


@pytest.fixture(scope="module")
def scores() -> Block:
    return random_scores(3, 240, 14)


def merged(
    scores: Block,
    shards: int,
    inference: Inference = WITH_LENGTH,
    tasks: LocalTasks | None = None,
    run: Run | None = None,
) -> tuple[LocalTasks, ScoredGraph, Path]:
    tasks = tasks or LocalTasks()
    graph = scored_shards(tasks, scores, shards)
    return tasks, graph, merge_path(tasks, run, graph, inference, "level-0")


def labels_of(tasks: LocalTasks, graph: ScoredGraph, path: Path) -> np.ndarray:
    """The cluster of each row at each level, int64 (L, N)."""
    return np.stack(
        [row_labels(tasks, labels_at(tasks, graph, path, at), graph.starts) for at in range(len(path.levels))]
    )


def moves_of(tasks: LocalTasks, path: Path) -> list[list[dict[str, bytes]]]:
    return [
        [{name: column.tobytes() for name, column in block.items()} for block in tasks.get(moves.blocks)]
        for moves in path.moves
    ]


@pytest.mark.parametrize("shards", [2, 3, 8])
def test_the_path_is_the_same_bytes_for_any_shards(scores: Block, shards: int) -> None:
    alone_tasks, alone_graph, alone = merged(scores, 1)
    tasks, graph, path = merged(scores, shards)
    assert len(graph.starts) == shards + 1
    assert path.levels == alone.levels
    assert len(path.moves) == len(path.levels) > 5
    assert moves_of(tasks, path) == moves_of(alone_tasks, alone)
    found = labels_of(tasks, graph, path)
    assert found.tobytes() == labels_of(alone_tasks, alone_graph, alone).tobytes()


def test_levels_are_nested_and_end_where_no_edge_is_left_between_clusters(scores: Block) -> None:
    tasks, graph, path = merged(scores, 3)
    below_N = row_labels(tasks, graph.seeds, graph.starts)
    for label_N, stats in zip(labels_of(tasks, graph, path), path.levels, strict=True):
        assert len(set(zip(below_N.tolist(), label_N.tolist(), strict=True))) == len(set(below_N.tolist()))
        assert stats.clusters == len(set(label_N.tolist()))
        below_N = label_N
    counts = [stats.clusters for stats in path.levels]
    assert counts == sorted(counts, reverse=True)
    assert graph.seed_count > counts[0] > counts[-1]
    assert [stats.shift for stats in path.levels] == WITH_LENGTH.shifts()[: len(counts)]
    assert all(stats.inside < graph.edges for stats in path.levels[:-1])


@pytest.mark.parametrize("shards", [1, 3])
def test_each_level_is_measured_at_its_own_shift(scores: Block, shards: int) -> None:
    tasks, graph, path = merged(scores, shards)
    nbr_NK, step_NK = scores["nbr_NK"], quantise(scores["logit_NK"])
    for label_N, stats in zip(labels_of(tasks, graph, path), path.levels, strict=True):
        chance_Q = probabilities(stats.shift)
        rows = {"closed": 0, "above": 0, "below": 0}
        edges_C, exits_C = np.zeros((2, len(nbr_NK)), dtype=np.int64)
        for n in range(len(nbr_NK)):
            real_K = nbr_NK[n] >= 0
            same_E = label_N[nbr_NK[n][real_K]] == label_N[n]
            expected = chance_Q[step_NK[n][real_K].astype(int) + MOST].sum()
            if real_K.any():
                row = "closed" if same_E.all() else "above" if same_E.sum() * ONE > expected else "below"
                rows[row] += 1
            edges_C[label_N[n]] += len(same_E)
            exits_C[label_N[n]] += (~same_E).sum()
        exits = int(exits_C.sum())
        length = codelength(cluster_terms(edges_C, exits_C, graph.edges), exits, graph.edges)
        clusters = len(set(label_N.tolist()))
        closed, above, below = rows.values()
        expected = round(float(probabilities(stats.shift)[step_NK[nbr_NK >= 0].astype(int) + MOST].sum()) / ONE)
        assert stats == LevelStats(stats.shift, clusters, closed, above, below, graph.edges - exits, expected, length)


@pytest.mark.parametrize(
    ("changed", "asked"), [({}, False), ({"least_linked": 1.0}, True), ({"least_linked": 1.0, "shift": 0.5}, False)]
)
def test_code_lengths_are_computed_only_where_the_rule_may_ask(
    scores: Block, changed: dict[str, Any], asked: bool
) -> None:
    _, graph, path = merged(scores, 2, Inference(**changed))
    assert 0.4 < graph.linked < 1
    assert {stats.codelength is not None for stats in path.levels} == {asked}
    _, _, other = merged(scores, 2)
    assert [stats._replace(codelength=None) for stats in other.levels] == [
        stats._replace(codelength=None) for stats in path.levels
    ]


@pytest.mark.parametrize("shards", [1, 3, 8])
@pytest.mark.parametrize("at_once", [0, 30])
def test_rounds_over_the_shards_give_the_partition_of_one_task(
    scores: Block, shards: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone_tasks, alone_graph, alone = merged(scores, 1)
    monkeypatch.setattr(path_module, "PAIRS_AT_ONCE", at_once)
    tasks, graph, path = merged(scores, shards)
    spread = [moves.spread for moves in path.moves]
    assert any(spread)
    assert ("_merge_all" in tasks.calls) == ("_merge_rest" in tasks.calls) == (at_once > 0)
    assert path.levels == alone.levels
    assert labels_of(tasks, graph, path).tobytes() == labels_of(alone_tasks, alone_graph, alone).tobytes()


def test_a_cluster_without_memory_for_one_task_merges_by_rounds(scores: Block) -> None:
    _, _, alone = merged(scores, 2)
    tasks = LocalTasks()
    tasks.memory_offered = PROCESS - 1
    _, _, path = merged(scores, 2, tasks=tasks)
    assert path.levels == alone.levels
    assert "_merge_all" not in tasks.calls
    tasks = LocalTasks()
    tasks.memory_offered = merge_bytes(10**6)
    _, _, path = merged(scores, 2, tasks=tasks)
    assert path.levels == alone.levels
    assert not any(moves.spread for moves in path.moves)


@pytest.mark.parametrize("shards", [1, 2])
def test_a_graph_without_edges_has_one_level_of_its_rows(shards: int) -> None:
    scores = random_scores(0, 9, 2)
    none = {**scores, "nbr_NK": np.full_like(scores["nbr_NK"], -1)}
    tasks, graph, path = merged(none, shards)
    assert path.levels == [LevelStats(-3.0, 9, 0, 0, 0, 0, 0, None)]
    assert labels_of(tasks, graph, path).tolist() == [list(range(9))]


def attempt(where: File, scores: Block, shards: int = 3) -> tuple[LocalTasks, list[LevelStats], bytes]:
    """A run, or its continuation in the same directory."""
    run = Run(Storage(str(where)), {"job": "test"})
    tasks, graph, path = merged(scores, shards, tasks=LocalTasks(run.work, run.saved), run=run)
    return tasks, path.levels, labels_of(tasks, graph, path).tobytes()


def saved(where: File) -> dict[str, bytes]:
    """All files of a run but the leases of its attempts."""
    return {
        info.path: (where / info.path).read_bytes() for info in Storage(str(where)).list() if "/lease/" not in info.path
    }


@pytest.mark.parametrize("at_once", [path_module.PAIRS_AT_ONCE, 30])
def test_a_run_goes_on_at_the_level_in_which_it_was(
    scores: Block, tmp_path: File, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(path_module, "PAIRS_AT_ONCE", at_once)
    tasks, levels, labels = attempt(tmp_path, scores)
    whole = saved(tmp_path)
    markers = sorted(path for path in whole if "/markers/" in path)
    assert len(markers) == len(levels)
    assert ("_name" in tasks.calls) == (at_once == 30)

    # Complete: nothing is merged again.
    resumed, *again = attempt(tmp_path, scores)
    assert again == [levels, labels]
    assert not {"_merge_all", "_merge_rest", "_name"} & set(resumed.calls)
    assert saved(tmp_path) == whole

    # Killed after four levels, of which the last has its moves but no marker; later ones have nothing.
    kept = markers[:3]
    for path in whole:
        of_level = path.split("/path-")[-1][:2] if "/path-" in path else ""
        if of_level and path not in kept and ("/markers/" in path or of_level > "03"):
            (tmp_path / path).unlink()
    resumed, *again = attempt(tmp_path, scores)
    assert again == [levels, labels]
    assert saved(tmp_path) == whole
    all_at_once = [at for at in range(len(levels)) if any(f"/path-{at:02d}/moves" in path for path in whole)]
    assert tasks.calls.count("_merge_all") == len(all_at_once)
    assert resumed.calls.count("_merge_all") == len([at for at in all_at_once if at > 3])
    assert resumed.calls.count("_pass_shard") == tasks.calls.count("_pass_shard") - 3 * 3


def test_blocks_that_an_attempt_left_which_merged_in_the_other_way_are_passed_over(
    scores: Block, tmp_path: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, *expected = attempt(tmp_path / "one", scores)
    monkeypatch.setattr(path_module, "PAIRS_AT_ONCE", 30)
    attempt(tmp_path / "rounds", scores)
    # With less memory it was killed at some levels, before their markers.
    left = [name for name in saved(tmp_path / "rounds") if "pointers" in name]
    assert left
    for name in left:
        (tmp_path / "one" / name).write_bytes((tmp_path / "rounds" / name).read_bytes())
    _, *again = attempt(tmp_path / "one", scores)
    assert again == expected
