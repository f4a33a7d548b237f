import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilander_dist.knn import graph as graph_module
from hilander_dist.knn import layout
from hilander_dist.knn.graph import (
    GraphStats,
    Probing,
    build_graph,
    choose_probing,
    mean_interval,
    merge_truth,
    sample_rows_at,
    search_shard,
)
from hilander_dist.knn.layout import CHUNK, Level, lay_out
from hilander_dist.knn.quantizer import Quantizer, nearest_cells, one_group
from hilander_dist.tasks import Block, Lazy
from tests import oracle
from tests.local_tasks import LocalTasks, put_all
from tests.points import all_equal, clustered, negative_only, random_rows, with_duplicates

DIM = 8


def laid_out(x_ND: np.ndarray, shards: int, id_N: np.ndarray | None = None) -> tuple[LocalTasks, Level]:
    tasks = LocalTasks()
    block = {"id_N": np.arange(len(x_ND)) if id_N is None else id_N, "x_ND": x_ND}
    return tasks, lay_out(tasks, put_all([block]), len(x_ND), x_ND.shape[1], shards, seed=0, prefix="level-0")


def graph_of(
    x_ND: np.ndarray, shards: int, k: int, recall: float, id_N: np.ndarray | None = None
) -> tuple[Block, Block, GraphStats]:
    """The whole level's nodes, its graph, and how it was searched."""
    tasks, level = laid_out(x_ND, shards, id_N)
    graph, stats = build_graph(tasks, level, k, recall, seed=0, prefix="level-0")
    assert [f"level-0/graph-{s:05d}.safetensors" in tasks.blocks for s in range(level.shards)] == [True] * level.shards
    return joined(tasks.get(level.nodes)), joined(tasks.get(graph)), stats


def joined(blocks: list[Block]) -> Block:
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_mean_interval_is_the_mean_and_its_lower_95_percent_bound(values: list[float]) -> None:
    mean, low = mean_interval(np.array(values))
    assert mean == pytest.approx(sum(values) / len(values))
    deviation = (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5
    assert low == pytest.approx(max(0.0, mean - 1.96 * deviation / len(values) ** 0.5), abs=1e-9)


def test_mean_interval_of_nothing_is_perfect() -> None:
    assert mean_interval(np.empty(0)) == (1.0, 1.0)


def random_truth(seed: int, n: int, K: int, C: int) -> tuple[Block, Quantizer, np.ndarray]:
    """Sampled nodes with made-up neighbours, centroids, and cells of uneven size, some of them empty."""
    rng = np.random.default_rng(seed)
    nbr_NK = np.sort(rng.integers(0, 40, (n, K)))
    nbr_NK[np.arange(K)[None] >= rng.integers(0, K + 1, n)[:, None]] = -1
    cell_start = np.array([0, *np.sort(rng.integers(0, 41, C - 1)), 40])
    centroid_CD = random_rows(seed + 1, C, 3)
    quantizer = one_group(centroid_CD)
    return {"x_ND": random_rows(seed, n, 3), "nbr_NK": nbr_NK}, quantizer, cell_start


def recall_low(truth: Block, cell_start: np.ndarray, probed: list[list[int]]) -> float:
    """Lower end of the recall when each sampled node probes these cells, from the definition."""
    shares = []
    for cells, nbr_K in zip(probed, truth["nbr_NK"], strict=True):
        wanted = [next(c for c in range(len(cell_start)) if p < cell_start[c + 1]) for p in nbr_K if p >= 0]
        if wanted:
            shares.append(np.mean([cell in cells for cell in wanted]))
    return mean_interval(np.array(shares))[1]


TARGETS = st.sampled_from([0.2, 0.5, 0.8, 0.95, 1.0])


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), C=st.integers(1, 9), target=TARGETS, kept=st.sampled_from([1, 2, 9]))
def test_the_smallest_gap_that_reaches_the_target_is_taken(seed: int, C: int, target: float, kept: int) -> None:
    truth, quantizer, cell_start = random_truth(seed, 30, 4, C)
    cell_NC, gap_NC = nearest_cells(truth["x_ND"], quantizer, C)

    def low(gap: float) -> float:
        probed = [[int(c) for c, g in zip(*row, strict=True) if g <= gap] for row in zip(cell_NC, gap_NC, strict=True)]
        return recall_low(truth, cell_start, probed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph_module, "PROBES_KEPT", kept)
        patch.setattr(graph_module, "CELLS_AROUND", 6)
        probing = choose_probing(truth, quantizer, cell_start, target)
    probes = probing.nprobe
    cell_NC, gap_NC = cell_NC[:, :probes], gap_NC[:, :probes]
    assert probes == C or probes in (kept, max(3, 4 * kept), 12)
    assert low(probing.gap) >= target
    smaller = gap_NC[gap_NC < probing.gap]
    assert not len(smaller) or low(smaller.max()) < target
    assert probing.rows == pytest.approx((np.diff(cell_start)[cell_NC] * (gap_NC <= probing.gap)).sum(1).mean())


def test_one_probe_does_where_no_node_has_a_neighbour() -> None:
    truth, quantizer, cell_start = random_truth(0, 20, 4, 5)
    probing = choose_probing({**truth, "nbr_NK": np.full((20, 4), -1)}, quantizer, cell_start, 1.0)
    assert probing.gap == 0


def test_sampled_rows_carry_their_positions_whatever_the_shard() -> None:
    x_ND, _ = clustered(0, 900, DIM, 9)
    nodes = {"id_N": np.random.default_rng(0).permutation(900), "x_ND": x_ND}
    whole = sample_rows_at(nodes, 0.2, 5, start=0)
    np.testing.assert_array_equal(nodes["id_N"][whole["position_N"]], whole["id_N"])
    np.testing.assert_array_equal(x_ND[whole["position_N"]], whole["x_ND"])
    cut = [{name: rows[a:b] for name, rows in nodes.items()} for a, b in ((0, 512), (512, 900))]
    again = joined([sample_rows_at(part, 0.2, 5, start) for part, start in zip(cut, (0, 512), strict=True)])
    np.testing.assert_array_equal(again["position_N"], whole["position_N"])


def test_merge_truth_ranks_by_similarity_then_id_with_pads_last() -> None:
    pad = np.iinfo(np.int64).max
    left = {
        "nbr_NK": np.array([[4, 2], [-1, -1]]),
        "sim_NK": np.array([[0.5, 0.25], [0, 0]], dtype=np.float32),
        "id_NK": np.array([[40, 20], [pad, pad]]),
    }
    right = {
        "nbr_NK": np.array([[9, 8], [7, -1]]),
        "sim_NK": np.array([[0.5, 0.5], [0.1, 0]], dtype=np.float32),
        "id_NK": np.array([[3, 90], [70, pad]]),
    }
    merged = merge_truth({"id_N": np.array([1, 2])}, [left, right])
    assert merged["nbr_NK"].tolist() == [[9, 4], [7, -1]]
    assert merged["id_N"].tolist() == [1, 2]


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
    assert 400 < stats.recall_sample < 600


def test_an_approximate_graph_is_the_same_for_any_sharding_and_reports_its_recall(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(layout, "choose_nlist", lambda n: 40)
    monkeypatch.setattr(graph_module, "RECALL_SAMPLE", 1000)
    x_ND, _ = clustered(1, 900, DIM, 60)
    nodes, graph, stats = graph_of(x_ND, 1, 8, recall=0.9)
    again = graph_of(x_ND, 2, 8, recall=0.9)
    np.testing.assert_array_equal(again[1]["nbr_NK"], graph["nbr_NK"])
    np.testing.assert_array_equal(again[1]["sim_NK"], graph["sim_NK"])
    assert again[2] == stats
    # All nodes are in the sample of a level as small as this.
    exact_NK = oracle.knn(nodes["x_ND"], nodes["id_N"], 8)[0]
    found = [
        len(set(row[row >= 0]) & set(best[best >= 0])) / (best >= 0).sum()
        for row, best in zip(graph["nbr_NK"], exact_NK, strict=True)
    ]
    assert stats.recall_sample == 900
    assert stats.recall == pytest.approx(np.mean(found))
    assert 0.9 <= stats.recall_low <= stats.recall < 1
    assert 1 <= stats.nprobe < stats.nlist
    assert stats.as_dict()["nprobe"] == stats.nprobe


def test_an_exact_search_works_where_the_quantizer_found_fewer_cells_than_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(layout, "choose_nlist", lambda n: 10)
    x_ND = np.repeat(np.eye(4, dtype=np.float32), 5, axis=0)
    _, graph, stats = graph_of(x_ND, 1, 4, recall=1.0)
    assert (stats.nlist, stats.nprobe) == (4, 4)
    assert (graph["sim_NK"] == 1).all()


@pytest.mark.parametrize(("x_ND", "recall_sample"), [(negative_only(5), 0), (all_equal(3, 4), 3)])
def test_a_level_with_few_neighbours_is_padded(x_ND: np.ndarray, recall_sample: int) -> None:
    _, graph, stats = graph_of(x_ND, 3, 10, recall=0.98)
    assert graph["nbr_NK"].shape == (len(x_ND), 9)
    assert (graph["nbr_NK"] >= 0).sum() == recall_sample * 2
    assert (stats.recall, stats.recall_sample) == (1.0, recall_sample)


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
    graph = search_shard(0, Watched(tuple(shards)), starts, quantizer, np.array(starts), Probing(2, math.inf, 0.0), K=3)
    assert fetched == [0, 2]
    assert graph["nbr_NK"].max() < CHUNK
