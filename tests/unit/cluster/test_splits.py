"""Splitting over shards: a forest of the same clusters, however it is cut."""

import numpy as np
import pytest
import torch

from hilander_dist.cluster import halves
from hilander_dist.cluster.flow_links import link_by_relations
from hilander_dist.cluster.halves import LEAST_MEMBERS, most_members
from hilander_dist.cluster.roots import find_roots
from hilander_dist.cluster.splits import new_parents
from hilander_dist.config import Calibration, RelationalModel
from hilander_dist.knn.layout import CHUNK
from hilander_dist.lander.relational import HALF_INPUTS, CarefulHead, ClusterHead, RelationalLander
from hilander_dist.tasks import Block
from tests.local_tasks import LocalTasks, put
from tests.points import with_duplicates
from tests.unit.cluster.small import joined, laid_out, same_bytes

K = 12


@pytest.fixture(autouse=True)
def _any_cut_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(halves, "LEAST_CUTS", 3)
    monkeypatch.setattr(halves, "LEAST_GAP", -10.0)


@pytest.fixture(scope="module")
def nodes() -> Block:
    x_ND, _ = with_duplicates(0, 2 * CHUNK + 90, 12)
    return {"id_N": np.random.default_rng(1).permutation(5000)[: len(x_ND)], "x_ND": x_ND}


def linked(nodes: Block, shards: int, split: bool, join: bool = False) -> Block:
    """Links, roots and ids of a level; with ``split`` all that may be split is split, and again; with ``join`` all that may be
    joined is joined."""
    torch.manual_seed(3)
    model = RelationalLander(RelationalModel(hidden=8))
    with torch.no_grad():
        model.head.weight *= 20  # Else all probabilities are near one half.
        if split:
            model.split.out.bias.fill_(-20)
        if join:
            model.join = CarefulHead([ClusterHead(HALF_INPUTS, 20.0)])
    tasks = LocalTasks()
    level, graph = laid_out(tasks, nodes, shards, K)
    links = link_by_relations(model, put(model), Calibration(forest_tau=0.6), K, 0.5)(tasks, level, graph, "level-0")
    root_N = joined(tasks, find_roots(tasks, links.blocks, level.starts))["pointer_N"]
    return {**joined(tasks, links.blocks), "root_N": root_N, "id_N": joined(tasks, level.nodes)["id_N"]}


@pytest.mark.parametrize("join", [False, True])
@pytest.mark.parametrize("shards", [2, 3])
def test_splits_and_joins_are_the_same_bytes_for_any_sharding(nodes: Block, shards: int, join: bool) -> None:
    one, other = linked(nodes, 1, True, join), linked(nodes, shards, True, join)
    for name, array in one.items():
        assert same_bytes(other[name], array), name


def test_clusters_of_a_fit_size_are_split_and_stay_trees_to_denser_nodes(nodes: Block) -> None:
    whole, split = linked(nodes, 2, split=False), linked(nodes, 2, split=True)
    root_N, size_N = whole["root_N"], np.bincount(whole["root_N"])[whole["root_N"]]
    fit_N = (size_N >= LEAST_MEMBERS) & (size_N <= most_members(K - 1))
    assert 0 < fit_N.mean() < 1
    for name in ("root_N", "parent_N", "confidence_N"):
        assert same_bytes(split[name][~fit_N], whole[name][~fit_N])
    for root in np.unique(root_N[fit_N]):
        parts = np.unique(split["root_N"][root_N == root])
        assert len(parts) > 1
        assert set(parts) <= set(np.flatnonzero(root_N == root))
    parent_N, density_N, id_N = split["parent_N"], split["density_N"], split["id_N"]
    child = np.flatnonzero(parent_N != np.arange(len(parent_N)))
    for i, j in zip(child.tolist(), parent_N[child].tolist(), strict=True):
        assert (density_N[j], -id_N[j]) > (density_N[i], -id_N[i])
    assert np.isnan(split["confidence_N"][split["root_N"] == np.arange(len(parent_N))]).all()


def test_joined_clusters_are_trees_to_denser_nodes_of_a_fit_size(nodes: Block) -> None:
    apart, joined_ = linked(nodes, 2, split=True), linked(nodes, 2, split=True, join=True)
    assert len(np.unique(joined_["root_N"])) < len(np.unique(apart["root_N"])) - 5
    for root in np.unique(apart["root_N"]):
        assert len(np.unique(joined_["root_N"][apart["root_N"] == root])) == 1
    size_N = np.bincount(joined_["root_N"])[joined_["root_N"]]
    grown_N = size_N > np.bincount(apart["root_N"])[apart["root_N"]]
    assert size_N[grown_N].max() <= most_members(K - 1)
    parent_N, density_N, id_N = joined_["parent_N"], joined_["density_N"], joined_["id_N"]
    child = np.flatnonzero(parent_N != np.arange(len(parent_N)))
    for i, j in zip(child.tolist(), parent_N[child].tolist(), strict=True):
        assert (density_N[j], -id_N[j]) > (density_N[i], -id_N[i])


def test_members_of_a_part_keep_their_parent_or_link_to_its_densest() -> None:
    # Two clusters of positions 10 to 14 and 20, 21; the first is split into 10, 12, 14 and 11, 13.
    nodes = {
        "position_M": np.array([10, 11, 12, 13, 14, 20, 21]),
        "parent_M": np.array([10, 10, 11, 12, 10, 21, 21]),
        "density_M": np.array([0.9, 0.7, 0.5, 0.7, 0.1, 0.2, 0.3], dtype=np.float32),
        "id_M": np.array([5, 8, 6, 7, 1, 2, 3]),
    }
    moved = new_parents(nodes, np.array([0, 0, 0, 0, 0, 1, 1]), np.array([0, 1, 0, 1, 0, 0, 0]))
    # Of the equally dense 11 and 13 the smaller id is denser: 13 becomes a peak.
    assert dict(zip(moved["position_P"].tolist(), moved["parent_P"].tolist(), strict=True)) == {11: 13, 12: 10, 13: 13}
