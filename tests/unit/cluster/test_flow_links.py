"""Relational links: the same for any sharding, as one process computes them, on a forest to denser nodes."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from hilander_dist.cluster import flow_links
from hilander_dist.cluster.base_rate import FIRST_TAU, base_rate_shift, count_best, least_shift, moved_shift
from hilander_dist.cluster.flow import REST_TAU, edge_weights
from hilander_dist.cluster.flow_links import (
    cluster_forest,
    link_by_relations,
    merge_forest,
    rested,
    score_forest,
    with_base_rate,
)
from hilander_dist.cluster.flow_rounds import merge_round
from hilander_dist.cluster.forward import plan_halo
from hilander_dist.cluster.links import Links
from hilander_dist.cluster.relations import chances, score_relations
from hilander_dist.cluster.roots import find_roots
from hilander_dist.cluster.splits import Scored, cut_links, usual_cuts
from hilander_dist.config import Calibration, RelationalModel
from hilander_dist.errors import ClusterError
from hilander_dist.knn.layout import CHUNK
from hilander_dist.lander.episodes import graph_relations
from hilander_dist.lander.relational import RelationalLander, edge_inputs, list_depths, merge_moments, moments
from hilander_dist.tasks import Block
from tests.local_tasks import LocalTasks, put
from tests.points import with_duplicates
from tests.unit.cluster.small import joined, laid_out, same_bytes
from tests.unit.knn.test_shared import by_sets

K = 12
DIM = 12


@pytest.fixture(scope="module")
def nodes() -> Block:
    x_ND, _ = with_duplicates(0, 2 * CHUNK + 90, DIM)
    return {"id_N": np.random.default_rng(1).permutation(5000)[: len(x_ND)], "x_ND": x_ND}


@pytest.fixture(scope="module")
def model() -> RelationalLander:
    torch.manual_seed(3)
    model = RelationalLander(RelationalModel(hidden=8))
    with torch.no_grad():
        model.head.weight *= 20  # Else all probabilities are near one half.
    return model


def linked(nodes: Block, model: RelationalLander, shards: int, **calibration: Any) -> tuple[Links, Block, Block]:
    tasks = LocalTasks()
    level, graph = laid_out(tasks, nodes, shards, K)
    link = link_by_relations(model, put(model), Calibration(**calibration), K, 0.5)
    links = link(tasks, level, graph, "level-0")
    return links, joined(tasks, links.blocks), joined(tasks, level.nodes)


@pytest.mark.parametrize(("shards", "rest"), [(2, 0.0), (3, 0.0), (3, 2.0)])
def test_links_are_the_same_bytes_for_any_sharding(
    nodes: Block, model: RelationalLander, shards: int, rest: float
) -> None:
    one, other = (linked(nodes, model, S, forest_tau=0.6, rest=rest) for S in (1, shards))
    assert one[0].numbers == other[0].numbers
    for name, array in one[1].items():
        assert same_bytes(other[1][name], array), name
    peaks = one[1]["parent_N"] == np.arange(len(one[1]["parent_N"]))
    assert 5 < peaks.sum() < len(peaks) - 5


def test_scores_are_those_of_the_whole_graph_in_one_forward(nodes: Block, model: RelationalLander) -> None:
    tasks = LocalTasks()
    level, graph = laid_out(tasks, nodes, 3, K)
    scores = joined(
        tasks, score_relations(tasks, model, put(model), level, graph, plan_halo(tasks, level, graph), K, "level-0")
    )
    edges = joined(tasks, graph)
    nbr_NK, sim_NK = edges["nbr_NK"], edges["sim_NK"]
    real_NK = nbr_NK >= 0
    sim_E = sim_NK[real_NK].astype(np.float64)
    cos_NKM = graph_relations(joined(tasks, level.nodes)["x_ND"], nbr_NK, K)["cos_NKM"]
    cos_EM = cos_NKM[real_NK] / 2.0**14
    stats = merge_moments([moments(nbr_NK, sim_NK, cos_NKM)])
    assert stats.mean == pytest.approx((sim_E.mean(), *cos_EM.mean(0)), rel=1e-5)
    assert stats.deviation == pytest.approx((sim_E.std(), *cos_EM.std(0)), rel=1e-5)
    mean_N = np.array([row[real].mean() if real.any() else 0 for row, real in zip(sim_NK, real_NK, strict=True)])
    mean = torch.from_numpy(mean_N.astype(np.float32))
    nbr = torch.from_numpy(nbr_NK)
    inputs = edge_inputs(
        torch.from_numpy(sim_NK),
        torch.from_numpy(by_sets(nbr_NK, list(list_depths(K)))),
        torch.from_numpy(cos_NKM),
        mean,
        mean[nbr.clamp(min=0)],
        nbr >= 0,
        K,
        stats,
    )
    with torch.inference_mode():
        logit_NK = model(inputs, nbr).numpy()
    np.testing.assert_allclose(scores["logit_NK"], logit_NK, atol=2e-4)
    p_NK = 1 / (1 + np.exp(-logit_NK.astype(np.float64)))
    density_N = (sim_NK * (2 * p_NK - 1) * real_NK).sum(1) / np.maximum(real_NK.sum(1), 1)
    np.testing.assert_allclose(scores["density_N"], density_N, atol=1e-4)


def test_links_lead_to_denser_nodes_of_the_same_tree(nodes: Block, model: RelationalLander) -> None:
    _, links, placed = linked(nodes, model, 2, forest_tau=0.9)
    parent_N, density_N, id_N = links["parent_N"], links["density_N"], placed["id_N"]
    child = np.flatnonzero(parent_N != np.arange(len(parent_N)))
    for i, j in zip(child.tolist(), parent_N[child].tolist(), strict=True):
        assert (density_N[j], -id_N[j]) > (density_N[i], -id_N[i])
    # A link of the forest has a probability; a root that joined another tree has none.
    sure = ~np.isnan(links["confidence_N"])
    assert (links["confidence_N"][sure] > 0.9).all()
    assert (~sure[child]).any()


def test_the_base_rate_moves_edges_towards_the_levels_own(nodes: Block, model: RelationalLander) -> None:
    few, _, _ = linked(nodes, model, 1, base_rate=0.9)
    many, _, _ = linked(nodes, model, 1, base_rate=0.1)
    assert few.numbers["mean_probability"] == many.numbers["mean_probability"]
    assert few.numbers["base_rate_shift"] < 0 < many.numbers["base_rate_shift"]


@pytest.mark.parametrize("shards", [1, 3])
def test_the_last_base_rate_is_the_share_of_edges_inside_the_first_clusters(
    nodes: Block, model: RelationalLander, shards: int
) -> None:
    tasks = LocalTasks()
    level, graph = laid_out(tasks, nodes, shards, K)
    calibration = Calibration(base_rate=0.3)
    first = score_forest(tasks, model, put(model), calibration, K, level, graph, "level-0")
    assert first.least < first.shift == base_rate_shift(first.mean_probability, 0.3)
    forest = with_base_rate(tasks, first, 0.3)
    links = merge_forest(tasks, first, FIRST_TAU)
    root_N = joined(tasks, find_roots(tasks, links, level.starts))["pointer_N"]
    nbr_NK = joined(tasks, graph)["nbr_NK"]
    inside_NK = (root_N[:, None] == root_N[np.maximum(nbr_NK, 0)]) & (nbr_NK >= 0)
    share = float(np.count_nonzero(inside_NK) / np.count_nonzero(nbr_NK >= 0))
    assert forest.shift == base_rate_shift(share, 0.3) != first.shift
    assert forest.shift == moved_shift(first.shift, share, 0.3, first.least)
    whitened = with_base_rate(tasks, first, 0.3, whitened=True)
    assert whitened.shift == (first.shift + forest.shift) / 2


@pytest.mark.parametrize("shards", [1, 3])
def test_a_high_base_rate_of_training_does_not_leave_all_nodes_alone(
    nodes: Block, model: RelationalLander, shards: int
) -> None:
    tasks = LocalTasks()
    level, graph = laid_out(tasks, nodes, shards, K)
    calibration = Calibration(base_rate=0.999)
    first = score_forest(tasks, model, put(model), calibration, K, level, graph, "level-0")
    scores, nbr_NK = joined(tasks, first.scores), joined(tasks, graph)["nbr_NK"]
    assert first.least == least_shift(count_best(scores["logit_NK"], nbr_NK >= 0)) < 0
    assert first.shift == with_base_rate(tasks, first, 0.999).shift == first.least


@pytest.mark.parametrize("shards", [1, 3])
def test_the_walk_rests_for_the_same_share_at_any_tau(nodes: Block, model: RelationalLander, shards: int) -> None:
    tasks = LocalTasks()
    level, graph = laid_out(tasks, nodes, shards, K)
    forest = score_forest(tasks, model, put(model), Calibration(rest=2.0), K, level, graph, "level-0")
    forest = replace(forest, shift=0.25)
    real_NK = joined(tasks, graph)["nbr_NK"] >= 0
    p1_E = chances(joined(tasks, forest.scores)["logit_NK"][real_NK], 0.25)
    weights = {tau: int(edge_weights(p1_E, tau).sum()) for tau in (0.3, REST_TAU, 0.7)}
    assert weights[0.3] > weights[REST_TAU] > weights[0.7] > 0
    for tau, weight in weights.items():
        assert rested(tasks, forest, tau).rest == 2.0 * weight / weights[REST_TAU]
    assert rested(tasks, replace(forest, rest=0.0), 0.7).rest == 0
    assert rested(tasks, replace(forest, shift=-60.0), 0.7).rest == 2.0


@pytest.mark.parametrize("shards", [1, 3])
def test_what_is_usual_for_a_cut_does_not_depend_on_the_tau_that_is_asked_for(
    nodes: Block, model: RelationalLander, shards: int
) -> None:
    tasks = LocalTasks()
    level, graph = laid_out(tasks, nodes, shards, K)
    forest = score_forest(tasks, model, put(model), Calibration(rest=2.0), K, level, graph, "level-0")
    scored = Scored(forest.model_ref, forest.own, forest.scores, forest.halo, forest.k, forest.shift)
    seen: list[np.ndarray] = []

    def split_clusters(head: Any, members: Any, neighbours: int, cuts: Any, usual: np.ndarray) -> np.ndarray:
        seen.append(usual)
        return np.zeros(len(members.group_M), dtype=np.int64)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hilander_dist.cluster.splits.split_clusters", split_clusters)
        for tau in (0.3, 0.7):
            cluster_forest(tasks, forest, tau, 0.7)
    merged = merge_forest(tasks, rested(tasks, forest, 0.7), 0.7)
    usual = tasks.get(usual_cuts(tasks, cut_links(tasks, scored, merged)))
    assert np.isfinite(usual).all()
    assert len(seen) == 2 * shards
    assert all(np.array_equal(one, usual) for one in seen)
    low = merge_forest(tasks, rested(tasks, forest, 0.3), 0.3)
    assert not np.array_equal(tasks.get(usual_cuts(tasks, cut_links(tasks, scored, low))), usual)


def test_a_merge_that_fits_no_node_is_refused(nodes: Block, model: RelationalLander) -> None:
    tasks = LocalTasks()
    level, graph = laid_out(tasks, nodes, 2, K)
    tasks.memory_offered = 10**6
    with pytest.raises(ClusterError, match=r"merges \d+ pairs of clusters takes up to 0\.4 GB, .* offers 0\.0 GB"):
        link_by_relations(model, put(model), Calibration(), K, 0.5)(tasks, level, graph, "level-0")


@pytest.mark.parametrize(("shards", "pairs_at_once"), [(1, 0), (3, 0), (3, 700)])
def test_rounds_over_shards_merge_what_one_task_merges(
    nodes: Block, model: RelationalLander, monkeypatch: pytest.MonkeyPatch, shards: int, pairs_at_once: int
) -> None:
    _, one, _ = linked(nodes, model, 1, forest_tau=0.95)
    monkeypatch.setattr(flow_links, "PAIRS_AT_ONCE", pairs_at_once)
    rounds: list[int] = []

    def counted(*given: Any) -> Any:
        rounds.append(1)
        return merge_round(*given)

    monkeypatch.setattr(flow_links, "merge_round", counted)
    _, other, _ = linked(nodes, model, shards, forest_tau=0.95)
    assert len(rounds) > 2 * (3 if pairs_at_once == 0 else 1)  # Trees are merged twice.
    for name, array in one.items():
        assert same_bytes(other[name], array), name
