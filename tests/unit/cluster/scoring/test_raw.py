import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hilander_dist.cluster.hierarchy.features import cluster_means
from hilander_dist.cluster.scoring.halo import Halo, make_table, plan_halo, plan_shard
from hilander_dist.cluster.scoring.raw import score_level
from hilander_dist.knn.layout import CHUNK, Level
from hilander_dist.local_tasks import LocalTasks, put, put_all
from hilander_dist.storage import Storage
from hilander_dist.tasks import Block
from tests import oracle
from tests.points import clustered, random_rows
from tests.unit.cluster.small import joined, laid_out, random_model, same_bytes

DIM = 6


def random_neighbours(seed: int, n: int, K: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    nbr_NK = rng.integers(0, n, (n, K))
    nbr_NK[np.arange(K)[None] >= rng.integers(0, K + 1, n)[:, None]] = -1
    return nbr_NK


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 40), K=st.integers(1, 5), cuts=st.sets(st.integers(1, 39)))
def test_a_table_holds_every_neighbour_at_its_local_row(seed: int, n: int, K: int, cuts: set[int]) -> None:
    nbr_NK = random_neighbours(seed, n, K)
    starts = (0, *sorted(c for c in cuts if c < n), n)
    value_N = np.random.default_rng(seed).normal(size=n)
    for shard, (start, stop) in enumerate(itertools.pairwise(starts)):
        own_NK = nbr_NK[start:stop]
        local_NK, needs = plan_shard(own_NK, shard, starts)
        assert len(needs) == len(starts) - 1
        assert len(needs[shard]) == 0
        for need, low, high in zip(needs, starts[:-1], starts[1:], strict=True):
            assert (np.diff(need) > 0).all()
            assert ((need >= low) & (need < high)).all()
        table = make_table({"v": value_N[start:stop]}, [{"v": value_N[need]} for need in needs])["v"]
        np.testing.assert_array_equal(local_NK < 0, own_NK < 0)
        np.testing.assert_array_equal(table[local_NK[local_NK >= 0]], value_N[own_NK[own_NK >= 0]])
        assert len(table) == stop - start + len(set(own_NK[own_NK >= 0]) - set(range(start, stop)))


def test_halo_tables_bring_the_rows_in_the_order_of_the_needs() -> None:
    nbr_NK = random_neighbours(0, 30, 3)
    starts = (0, 10, 20, 30)
    shards = list(itertools.pairwise(starts))
    tasks = LocalTasks()
    level = Level(30, starts, put_all([{} for _ in shards]), put(None), put(None))
    halo = plan_halo(tasks, level, put_all([{"nbr_NK": nbr_NK[a:b]} for a, b in shards]))
    value_N = np.arange(30) * 2
    tables = halo.tables(tasks, put_all([{"v": value_N[a:b]} for a, b in shards]))
    for (start, stop), away, local in zip(shards, tables, halo.local, strict=True):
        table = make_table({"v": value_N[start:stop]}, tasks.get(away))["v"]
        own_NK, local_NK = nbr_NK[start:stop], tasks.get(local)
        np.testing.assert_array_equal(np.where(own_NK < 0, -1, table[local_NK]), np.where(own_NK < 0, -1, own_NK * 2))


def test_one_shard_needs_no_exchange() -> None:
    tasks = LocalTasks()
    assert Halo((0, 5), [], [[]]).tables(tasks, put_all([{"v": np.zeros(5)}])) == [[]]
    assert tasks.calls == []


def scored(
    nodes: Block, shards: int, encoder: oracle.Encoder, num_conv: int, cluster_features: bool
) -> tuple[Block, Block, Block]:
    """The level's nodes, graph and scores, all shards together."""
    tasks = LocalTasks()
    model = random_model(DIM, encoder, num_conv, cluster_features)
    level, graph = laid_out(tasks, nodes, shards, 5)
    scores = score_level(tasks, model, put(model), level, graph, plan_halo(tasks, level, graph), "level-0")
    assert [f"level-0/scores-{s:05d}.safetensors" in tasks.blocks for s in range(shards)] == [True] * shards
    return joined(tasks, level.nodes), joined(tasks, graph), joined(tasks, scores)


def test_scores_that_an_earlier_attempt_saved_are_loaded_and_nothing_else(tmp_path: Path) -> None:
    nodes = {"id_N": np.arange(900), "x_ND": clustered(0, 900, DIM, 40)[0]}
    model = random_model(DIM, "gcn")
    first = LocalTasks(Storage(str(tmp_path)))
    level, graph = laid_out(first, nodes, 2, 5)
    halo = plan_halo(first, level, graph)
    scores = joined(first, score_level(first, model, put(model), level, graph, halo, "level-0"))
    again = LocalTasks(Storage(str(tmp_path)), frozenset(info.path for info in first.store.list()))
    loaded = joined(again, score_level(again, model, put(model), level, graph, halo, "level-0"))
    assert again.calls == []
    assert all(same_bytes(loaded[name], array) for name, array in scores.items())


@pytest.mark.parametrize(
    ("encoder", "num_conv", "cluster_features"), [("gcn", 1, True), ("gcn", 2, False), ("gat", 2, True)]
)
def test_scores_are_the_models_and_the_same_bytes_for_any_sharding(
    encoder: oracle.Encoder, num_conv: int, cluster_features: bool
) -> None:
    n = 3 * CHUNK + 77
    x_ND, _ = clustered(0, n, DIM, 40)
    x_ND[5] = -x_ND[6]
    sum_ND = np.rint(random_rows(1, n, DIM).astype(np.float64) * 2**33).astype(np.int64)
    upper = {"id_N": np.arange(n), "x_ND": x_ND, "sum_ND": sum_ND, "count_N": np.full(n, 3), "rank_N": np.arange(n)}
    nodes, graph, scores = scored(upper, 1, encoder, num_conv, cluster_features)
    for shards in (2, 4):
        _, _, again = scored(upper, shards, encoder, num_conv, cluster_features)
        for name, array in scores.items():
            assert same_bytes(again[name], array), name

    model = random_model(DIM, encoder, num_conv, cluster_features)
    inputs = [nodes["x_ND"], cluster_means(nodes), graph["nbr_NK"], graph["sim_NK"]]
    with torch.inference_mode():
        logits_NK2 = model(*(torch.from_numpy(array) for array in inputs))
        p0_NK, p1_NK = (p.numpy() for p in model.probabilities(logits_NK2))
    np.testing.assert_allclose(scores["p0_NK"], p0_NK, atol=2e-6)
    np.testing.assert_allclose(scores["p1_NK"], p1_NK, atol=2e-6)
    real_NK = graph["nbr_NK"] >= 0
    density_N = (graph["sim_NK"] * (p1_NK - p0_NK)).sum(1) / np.maximum(real_NK.sum(1), 1)
    np.testing.assert_allclose(scores["density_N"], density_N, atol=2e-6)
    assert (scores["p0_NK"][~real_NK] == 0).all()
    assert {array.dtype for array in scores.values()} == {np.dtype(np.float32)}
    assert scores["p1_NK"][real_NK].std() > 0.05
