"""One process clusters a graph as the tasks over shards do."""

import numpy as np
import pytest
import torch

from hilander_dist.cluster.hierarchy.levels import Nodes
from hilander_dist.cluster.local import cluster_graph, f_scores
from hilander_dist.cluster.partition.level_choice import choose_level
from hilander_dist.cluster.relational import score_rows
from hilander_dist.cluster.sharded.path import labels_at, merge_path
from hilander_dist.config import RelationalModel
from hilander_dist.jobs.models import GENERAL
from hilander_dist.knn.graph import GraphOptions
from hilander_dist.lander.checkpoint import load_checkpoint
from hilander_dist.lander.inference import Inference
from hilander_dist.lander.relational import RelationalLander
from hilander_dist.local_tasks import LocalTasks, held, put
from hilander_dist.training.episodes import Plan, build_episode, exact_neighbours, graph_relations
from hilander_dist.training.validation import score_episode, score_graph
from tests.points import clustered
from tests.unit.cluster.small import joined, laid_out, random_scores, row_labels, same_bytes, scored_shards

AS_THEY_ARE = Plan(0, 80, np.zeros(0, int), np.zeros(0), 0.0, 1.0)


def general() -> RelationalLander:
    found = load_checkpoint(GENERAL.read_bytes(), "general", RelationalModel())
    assert isinstance(found, RelationalLander)
    return found


@pytest.mark.parametrize("shards", [1, 2, 3])
@pytest.mark.parametrize(
    ("seed", "inference"),
    [(0, Inference()), (1, Inference(shift=-1.0)), (2, Inference(least_linked=1.0, shift_step=0.25, last_shift=2.0))],
)
def test_a_graph_has_the_levels_and_the_answer_of_the_sharded_path(
    seed: int, inference: Inference, shards: int
) -> None:
    scores = random_scores(seed, 240, 14)
    scores["id_N"] = np.arange(240)
    tasks = LocalTasks()
    graph = scored_shards(tasks, scores, shards, inference)
    path = merge_path(tasks, None, graph, inference, "level-0")
    label_LN = [row_labels(tasks, labels_at(tasks, graph, path, at), graph.starts) for at in range(len(path.levels))]
    found = cluster_graph(scores["nbr_NK"], scores["logit_NK"], scores["density_N"], inference)
    assert same_bytes(found.label_LN, np.stack(label_LN))
    assert found.chosen == choose_level(path.levels, graph.linked, inference).level
    assert len(found.label_LN) > 5
    sizes = [len(np.unique(label_N)) for label_N in found.label_LN]
    assert sizes[0] > sizes[-1]


def test_an_episode_is_scored_as_the_rows_of_a_job_and_its_answer_against_its_classes() -> None:
    k, model = 16, general()
    x_ND, class_N = clustered(2, 500, 16, 12)
    tasks = LocalTasks()
    search = GraphOptions(k, 1.0, 0)
    nodes = Nodes(held([{"id_N": np.arange(500), "x_ND": x_ND}]), 500, 16, 500)
    level, graph, _ = score_rows(tasks, nodes, 1, search, model, put(model), "level-0")
    path = merge_path(tasks, None, graph, model.inference, "level-0")
    chosen = choose_level(path.levels, graph.linked, model.inference).level
    expected_N = row_labels(tasks, labels_at(tasks, graph, path, chosen), graph.starts)

    _, edges = laid_out(LocalTasks(), {"id_N": np.arange(500), "x_ND": x_ND}, 1, k)
    nodes_of_level, found = joined(tasks, level.nodes), joined(tasks, edges)
    relations = graph_relations(nodes_of_level["x_ND"], found["nbr_NK"], k)
    episode = {"nbr_NK": found["nbr_NK"].astype(np.int32), "sim_NK": found["sim_NK"], **relations}
    episode["label_N"] = class_N[nodes_of_level["id_N"]]
    expected = f_scores(expected_N, episode["label_N"])
    assert score_episode(model, episode) == pytest.approx(
        expected, abs=0.005
    )  # Of densities that differ in the last digit.
    assert 0.3 < min(expected) < max(expected) < 0.99


def test_scores_of_an_episode_are_the_networks() -> None:
    torch.manual_seed(0)
    model = RelationalLander(RelationalModel(hidden=8))
    x_ND, class_N = clustered(0, 60, 8, 5)
    episode = build_episode(x_ND, class_N, AS_THEY_ARE._replace(k=9), np.random.default_rng(0))
    logit_NK, density_N = score_graph(model, episode)
    nbr_NK, sim_NK = exact_neighbours(x_ND, 8)
    assert logit_NK.shape == nbr_NK.shape
    assert (logit_NK[nbr_NK < 0] == 0).all()
    p1_NK = 1 / (1 + np.exp(-logit_NK.astype(np.float64)))
    expected_N = (sim_NK * (2 * p1_NK - 1) * (nbr_NK >= 0)).sum(1) / (nbr_NK >= 0).sum(1)
    np.testing.assert_allclose(density_N, expected_N, atol=1e-6)


@pytest.mark.parametrize("rows", [8, 20])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_general_checkpoint_finds_classes_that_are_small_against_the_lists(rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    class_N = np.repeat(np.arange(60), rows)
    x_ND = rng.normal(size=(60, 32))[class_N] + 0.7 * rng.normal(size=(len(class_N), 32))
    x_ND = np.asarray(x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True), dtype=np.float32)
    assert min(score_episode(general(), build_episode(x_ND, class_N, AS_THEY_ARE, rng))) > 0.95


@pytest.mark.parametrize("seed", [0, 1])
def test_the_general_checkpoint_leaves_rows_alone_that_nothing_belongs_to(seed: int) -> None:
    # 680 people, 500 of them with one photo. Before networks met strangers in training: .90/.84 at best.
    rng = np.random.default_rng(seed)
    size_C = np.r_[np.ones(500, dtype=np.int64), rng.integers(2, 6, 150), rng.integers(6, 60, 30)]
    class_N = np.repeat(np.arange(680), size_C)
    person_CD, photo_ND = (rng.normal(size=(n, 64)) / 8 for n in (680, len(class_N)))
    x_ND = person_CD[class_N] + 0.8 * photo_ND + 0.5 * rng.normal(size=64) / 8
    x_ND = np.asarray(x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True), dtype=np.float32)
    pairwise, bcubed = score_episode(general(), build_episode(x_ND, class_N, AS_THEY_ARE, rng))
    assert pairwise > 0.93
    assert bcubed > 0.9


def test_clusters_without_pairs_score_zero_where_there_are_pairs() -> None:
    assert f_scores(np.arange(4), np.zeros(4, dtype=np.int64))[0] == 0
