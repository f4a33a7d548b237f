import functools
import json
import math
from typing import Any

import numpy as np
import pytest

from hilander_dist.errors import ClusterError
from hilander_dist.knn import graph as graph_module
from hilander_dist.knn import layout
from hilander_dist.knn import recall as recall_module
from hilander_dist.knn.graph import GraphOptions, GraphStats, knn_graph, search_shard
from hilander_dist.knn.layout import CHUNK
from hilander_dist.knn.quantizer import nearest_cells, one_group
from hilander_dist.knn.recall import Probing, mean_interval, share_of, truth_path
from hilander_dist.local_tasks import LocalTasks, held
from hilander_dist.tasks import Block, Lazy
from tests import oracle
from tests.points import all_equal, clustered, negative_only, with_duplicates

DIM = 8


def graph_of(
    x_ND: np.ndarray,
    shards: int,
    k: int,
    recall: float,
    id_N: np.ndarray | None = None,
    device: str = "cpu",
    tasks: LocalTasks | None = None,
) -> tuple[Block, Block, GraphStats]:
    """The whole level's nodes, its graph, and how it was searched."""
    tasks = tasks or LocalTasks()
    block = {"id_N": np.arange(len(x_ND)) if id_N is None else id_N, "x_ND": x_ND}
    options = GraphOptions(k, recall, 0, device)
    level, graph, stats = knn_graph(tasks, held([block]), len(x_ND), x_ND.shape[1], shards, options, "level-0")
    assert [f"level-0/graph-{s:05d}.safetensors" in tasks.blocks for s in range(level.shards)] == [True] * level.shards
    return joined(tasks.get(level.nodes)), joined(tasks.get(graph)), stats


def joined(blocks: list[Block]) -> Block:
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


@pytest.mark.parametrize("shards", [1, 2, 3])
@pytest.mark.parametrize("nlist", [1, 15])
def test_probing_every_cell_gives_the_exact_graph_for_any_sharding(
    shards: int, nlist: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "choose_nlist", lambda n: nlist)
    x_ND, _ = with_duplicates(0, 2 * CHUNK + 70, DIM)
    nodes, graph, stats = graph_of(x_ND, shards, 6, recall=1.0, id_N=np.random.default_rng(0).permutation(len(x_ND)))
    nbr_NK, sim_NK, _ = oracle.knn(nodes["x_ND"], nodes["id_N"], 6)
    np.testing.assert_array_equal(graph["nbr_NK"], nbr_NK)
    np.testing.assert_array_equal(graph["sim_NK"].view(np.int32), sim_NK.view(np.int32))
    assert (stats.recall, stats.recall_low, stats.nprobe) == (1.0, 1.0, stats.nlist)
    assert stats.recall_sample == 0


def test_an_approximate_graph_is_the_same_for_any_sharding_and_reports_its_recall_on_nodes_that_did_not_choose(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(layout, "choose_nlist", lambda n: 80)
    n = 7 * CHUNK + 100
    x_ND, _ = clustered(1, n, DIM, 60)
    tasks = LocalTasks()
    nodes, graph, stats = graph_of(x_ND, 1, 8, recall=0.9, tasks=tasks)
    truth = tasks.blocks[truth_path("level-0")]
    for shards in (3, 8):
        others = LocalTasks()
        again = graph_of(x_ND, shards, 8, recall=0.9, tasks=others)
        assert f"level-0/graph-{shards - 1:05d}.safetensors" in others.blocks
        for name, column in graph.items():
            assert again[1][name].tobytes() == column.tobytes()
        for name, column in truth.items():
            assert others.blocks[truth_path("level-0")][name].tobytes() == column.tobytes()
        assert again[2] == stats
    exact_NK = oracle.knn(nodes["x_ND"], nodes["id_N"], 8)[0]

    def brute_force(id_M: np.ndarray) -> np.ndarray:
        return np.array(
            [
                len(set(graph["nbr_NK"][i]) & set(exact_NK[i]) - {-1}) / (exact_NK[i] >= 0).sum()
                for i in np.flatnonzero(np.isin(nodes["id_N"], id_M))
            ]
        )

    reporting, choosing = (share_of(truth, chooses)["id_N"] for chooses in (False, True))
    assert stats.recall_sample == len(reporting) > 150
    assert (stats.recall, stats.recall_low) == pytest.approx(mean_interval(brute_force(reporting)))
    assert stats.recall != pytest.approx(brute_force(choosing).mean())
    assert mean_interval(brute_force(choosing))[1] >= 0.9
    assert 1 <= stats.nprobe < stats.nlist
    assert stats.as_dict()["nprobe"] == stats.nprobe


def spoil(monkeypatch: pytest.MonkeyPatch, tasks: LocalTasks, chooses: bool) -> None:
    """Take their neighbours from the sampled nodes of one kind."""

    @functools.wraps(search_shard)
    def search(shard: int, everything: Lazy, *rest: Any) -> Block:
        graph = search_shard(shard, everything, *rest)
        id_M = share_of(tasks.blocks[truth_path("level-0")], chooses)["id_N"]
        kept_N = ~np.isin(everything.get(shard)["id_N"], id_M)
        return {"nbr_NK": graph["nbr_NK"], "sim_NK": graph["sim_NK"] * kept_N[:, None]}

    monkeypatch.setattr(graph_module, "search_shard", search)


def test_a_graph_that_is_good_only_where_its_probing_was_chosen_reports_how_bad_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(layout, "choose_nlist", lambda n: 40)
    x_ND, _ = clustered(1, 1800, DIM, 60)
    tasks = LocalTasks()
    spoil(monkeypatch, tasks, chooses=False)
    stats = graph_of(x_ND, 2, 8, recall=0.9, tasks=tasks)[2]
    assert (stats.recall, stats.recall_low) == (0, 0)
    assert stats.recall_sample > 150


def test_a_graph_that_is_bad_where_its_probing_was_chosen_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "choose_nlist", lambda n: 40)
    x_ND, _ = clustered(1, 1800, DIM, 60)
    tasks = LocalTasks()
    spoil(monkeypatch, tasks, chooses=True)
    with pytest.raises(ClusterError, match=r"level-0: .* recall of 0\.0000 on the nodes .* below target_recall=0\.9"):
        graph_of(x_ND, 2, 8, recall=0.9, tasks=tasks)


@pytest.mark.parametrize("n", [1, 2, 5, recall_module.CHOOSING + recall_module.REPORTING])
def test_where_all_nodes_would_be_sampled_all_cells_are_searched(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a small run that is given the cells of a large one."""
    monkeypatch.setattr(layout, "choose_nlist", lambda n: 10)
    x_ND, _ = clustered(0, n, DIM, min(n, 30))
    nodes, graph, stats = graph_of(x_ND, 2, 6, recall=0.5)
    np.testing.assert_array_equal(graph["nbr_NK"], oracle.knn(nodes["x_ND"], nodes["id_N"], 6)[0])
    assert (stats.recall, stats.recall_low, stats.recall_sample, stats.probe_gap) == (1, 1, 0, None)
    assert stats.nprobe == stats.nlist


def test_no_recall_is_reported_where_no_node_that_reports_has_a_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "choose_nlist", lambda n: 4)
    monkeypatch.setattr(recall_module, "CHOOSING", 20)
    monkeypatch.setattr(recall_module, "REPORTING", 10)
    stats = graph_of(np.eye(60, dtype=np.float32), 1, 4, recall=0.98)[2]
    assert math.isnan(stats.recall)
    assert math.isnan(stats.recall_low)
    told = json.loads(json.dumps(stats.as_dict(), allow_nan=False))
    assert (told["recall"], told["recall_low"], told["recall_sample"]) == (None, None, 0)


def test_an_exact_search_works_where_the_quantizer_found_fewer_cells_than_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(layout, "choose_nlist", lambda n: 10)
    x_ND = np.repeat(np.eye(4, dtype=np.float32), 5, axis=0)
    _, graph, stats = graph_of(x_ND, 1, 4, recall=1.0)
    assert (stats.nlist, stats.nprobe) == (4, 4)
    assert (graph["sim_NK"] == 1).all()


@pytest.mark.parametrize(("x_ND", "neighbours"), [(negative_only(5), 0), (all_equal(3, 4), 6)])
def test_a_level_with_few_neighbours_is_padded(x_ND: np.ndarray, neighbours: int) -> None:
    _, graph, stats = graph_of(x_ND, 3, 10, recall=0.98)
    assert graph["nbr_NK"].shape == (len(x_ND), 9)
    assert (graph["nbr_NK"] >= 0).sum() == neighbours
    assert (stats.recall, stats.recall_sample) == (1.0, 0)


def test_a_shard_fetches_only_the_shards_that_it_probes() -> None:
    """Four cells, one per shard, whose rows are orthogonal; each query probes its own cell and the next best."""
    x_ND = np.repeat(np.eye(4, dtype=np.float32), CHUNK, axis=0)
    x_ND[:CHUNK, 2] = 0.1  # shard 0 leans to cell 2
    fetched = []

    class Watched(Lazy):
        def get(self, index: int) -> Block:
            fetched.append(index)
            block: Block = self.refs[index]
            return block

    starts = tuple(range(0, 5 * CHUNK, CHUNK))
    quantizer = one_group(np.eye(4, dtype=np.float32))
    probe_NP, gap_NP = nearest_cells(x_ND, quantizer, 2)
    shards = [
        {"id_N": np.arange(CHUNK) + s * CHUNK, "x_ND": x, "probe_NP": probe, "gap_NP": gap}
        for s, (x, probe, gap) in enumerate(zip(*(np.split(rows, 4) for rows in (x_ND, probe_NP, gap_NP)), strict=True))
    ]
    graph = search_shard(
        0, Watched(tuple(shards)), starts, quantizer, np.array(starts), Probing(2, 2.0, 0.0, False), 3, "cpu"
    )
    assert fetched == [0, 2]
    assert graph["nbr_NK"].max() < CHUNK


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("noise", [0.0, 1e-7, 1e-4])
def test_a_third_of_all_rows_in_a_crowd_cost_few_comparisons(
    noise: float, shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hilander_dist.knn.near_duplicates.CROWD_LIMIT", 300)
    monkeypatch.setattr(recall_module, "CROWD_LIMIT", 300)
    monkeypatch.setattr(layout, "choose_nlist", lambda n: 40)
    rng = np.random.default_rng(0)
    x_ND = clustered(3, 9000, 16, 300)[0]
    crowd = rng.permutation(9000)[:3000]
    x_ND[crowd] = x_ND[crowd[0]] + noise * rng.standard_normal((3000, 16)).astype(np.float32)
    x_ND /= np.linalg.norm(x_ND, axis=1, keepdims=True)
    nodes, graph, stats = graph_of(x_ND, shards, 6, recall=0.95)
    assert stats.crowds_cut
    assert stats.rows_compared < 1500
    exact_NK = oracle.knn(nodes["x_ND"], nodes["id_N"], 6)[1]
    assert (graph["sim_NK"] >= exact_NK[:, -1:] - recall_module.TIE).mean() > 0.95
    in_crowd = np.isin(nodes["id_N"], crowd)
    assert (graph["sim_NK"][in_crowd] > 1 - recall_module.TIE).all()


def test_rows_kept_in_float16_give_the_graph_of_the_rounded_rows() -> None:
    x_ND = clustered(1, 900, DIM, 60)[0].astype(np.float16)
    _, graph, _ = graph_of(x_ND, 2, 8, recall=1.0)
    _, expected, _ = graph_of(x_ND.astype(np.float32), 2, 8, recall=1.0)
    np.testing.assert_array_equal(graph["nbr_NK"], expected["nbr_NK"])
    np.testing.assert_array_equal(graph["sim_NK"], expected["sim_NK"])


@pytest.mark.parametrize("recall", [0.9, 1.0])
def test_a_search_by_torch_gives_the_bits_of_the_cpu_kernel(recall: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "choose_nlist", lambda n: 30)
    monkeypatch.setattr(GraphOptions, "gpus", 0)
    x_ND = clustered(1, 1800, DIM, 60)[0]
    _, graph, stats = graph_of(x_ND, 2, 8, recall, device="cpu:0")
    _, expected, again = graph_of(x_ND, 2, 8, recall)
    np.testing.assert_array_equal(graph["nbr_NK"], expected["nbr_NK"])
    np.testing.assert_array_equal(graph["sim_NK"], expected["sim_NK"])
    assert stats == again
