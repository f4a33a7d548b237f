"""One process clusters a graph as the tasks over shards do."""

import numpy as np
import pytest
import torch

from hilander_dist.cluster import halves
from hilander_dist.cluster.collapse import collapse
from hilander_dist.cluster.flow_links import link_by_relations
from hilander_dist.cluster.local import f_scores, label_graph, score_episode, score_graph
from hilander_dist.cluster.roots import find_roots
from hilander_dist.config import Calibration, RelationalModel
from hilander_dist.lander.checkpoint import load_checkpoint
from hilander_dist.lander.episodes import Plan, build_episode, graph_relations
from hilander_dist.lander.relational import HALF_INPUTS, CarefulHead, ClusterHead, RelationalLander
from hilander_dist.pipeline.cluster import GENERAL
from tests.local_tasks import LocalTasks, put
from tests.points import with_duplicates
from tests.unit.cluster.small import joined, laid_out

K = 12


@pytest.mark.parametrize("lone", [False, True])
@pytest.mark.parametrize(
    ("sure", "split", "join"), [(False, False, False), (True, False, False), (False, True, False), (False, True, True)]
)
@pytest.mark.parametrize("shards", [1, 2])
def test_a_graph_has_the_clusters_of_the_sharded_level(
    shards: int, sure: bool, split: bool, join: bool, lone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(halves, "LEAST_CUTS", 3)
    monkeypatch.setattr(halves, "LEAST_GAP", -10.0)
    x_ND, class_N = with_duplicates(0, 1100, 12)
    torch.manual_seed(3)
    model = RelationalLander(RelationalModel(hidden=8))
    with torch.no_grad():
        model.head.weight *= 20
        if sure:  # The head of pairs: it merges all that is larger than a list.
            model.pair.out.bias.fill_(20)
        if split:  # Halves of all clusters of a fit size.
            model.split.out.bias.fill_(-20)
        if join:
            # Much of what is not too large, in an order of its own: equal scores would go by the clusters' numbers.
            head = ClusterHead(HALF_INPUTS, 0.0)
            for layer in head.modules():
                if isinstance(layer, torch.nn.Linear):
                    layer.reset_parameters()
            head.out.bias.fill_(1)
            model.join = CarefulHead([head])
    calibration = Calibration(forest_tau=0.6, rest=0.5, tau=0.6 if lone else 0.5, lone_rate=0.5 if lone else 0.0)
    tasks = LocalTasks()
    level, graph = laid_out(tasks, {"id_N": np.arange(len(x_ND)), "x_ND": x_ND}, shards, K)
    links = link_by_relations(model, put(model), calibration, K, calibration.tau)(tasks, level, graph, "level-0")
    pointers = find_roots(tasks, links.blocks, level.starts)
    labels = joined(tasks, collapse(tasks, level, pointers, len(x_ND), "level-0").labels)["label_N"]

    id_N = joined(tasks, level.nodes)["id_N"]
    edges = joined(tasks, graph)
    nbr_NK = edges["nbr_NK"]
    relations = graph_relations(joined(tasks, level.nodes)["x_ND"], nbr_NK, K)
    episode = {"nbr_NK": nbr_NK.astype(np.int32), "sim_NK": edges["sim_NK"], **relations}
    logit_NK, density_N = score_graph(model, episode)
    found_N = label_graph(episode["nbr_NK"], logit_NK, density_N, model, calibration, [calibration.tau])[0]
    assert f_scores(found_N, labels) == (1.0, 1.0)
    sizes = np.unique(labels, return_counts=True)[1]
    assert len(sizes) == 2 and sizes.min() < K if sure else 10 < len(sizes) < 1000
    episode["label_N"] = class_N[id_N]
    assert score_episode(model, episode, calibration) == f_scores(found_N, class_N[id_N])


@pytest.mark.parametrize("rows", [6, 20])
def test_the_general_checkpoint_finds_classes_that_are_small_against_the_lists(rows: int) -> None:
    rng = np.random.default_rng(0)
    class_N = np.repeat(np.arange(60), rows)
    x_ND = rng.normal(size=(60, 32))[class_N] + 0.7 * rng.normal(size=(len(class_N), 32))
    x_ND = np.asarray(x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True), dtype=np.float32)
    model = load_checkpoint(GENERAL.read_bytes(), "general", RelationalModel())
    assert isinstance(model, RelationalLander)
    assert model.calibration is not None
    episode = build_episode(x_ND, class_N, Plan(0, 80, np.zeros(0, int), np.zeros(0), 0.0, 1.0), rng)
    assert min(score_episode(model, episode, model.calibration)) > 0.9


@pytest.mark.parametrize("seed", [0, 1])
def test_the_general_checkpoint_leaves_rows_alone_that_nothing_belongs_to(seed: int) -> None:
    # 680 people, 500 of them with one photo. Before networks met strangers in training: .90/.84 at best.
    rng = np.random.default_rng(seed)
    size_C = np.r_[np.ones(500, dtype=np.int64), rng.integers(2, 6, 150), rng.integers(6, 60, 30)]
    class_N = np.repeat(np.arange(680), size_C)
    person_CD, photo_ND = (rng.normal(size=(n, 64)) / 8 for n in (680, len(class_N)))
    x_ND = person_CD[class_N] + 0.8 * photo_ND + 0.5 * rng.normal(size=64) / 8
    x_ND = np.asarray(x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True), dtype=np.float32)
    model = load_checkpoint(GENERAL.read_bytes(), "general", RelationalModel())
    assert isinstance(model, RelationalLander)
    assert model.calibration is not None
    episode = build_episode(x_ND, class_N, Plan(0, 80, np.zeros(0, int), np.zeros(0), 0.0, 1.0), rng)
    pairwise, bcubed = score_episode(model, episode, model.calibration)
    assert pairwise > 0.93
    assert bcubed > 0.88


def test_clusters_without_pairs_score_zero_where_there_are_pairs() -> None:
    assert f_scores(np.arange(4), np.zeros(4, dtype=np.int64))[0] == 0
