"""Seeds: the trees of sure links to denser neighbours, against a loop over the rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilander_dist.cluster.partition.log_odds import MOST, STEP, log_odds, quantise
from hilander_dist.lander.inference import Inference
from hilander_dist.local_tasks import LocalTasks
from hilander_dist.tasks import Block
from tests.unit.cluster.small import random_scores, row_labels, same_bytes, scored_shards


def parent(scores: Block, node: int, probability: float) -> int:
    """The most probable denser neighbour above the limit, of equally probable ones that of the smallest id; or the node."""
    step_NK, id_N, density_N = quantise(scores["logit_NK"]), scores["id_N"], scores["density_N"]
    best = (0, 0, node)
    for rank, other in enumerate(scores["nbr_NK"][node].tolist()):
        denser = other >= 0 and (-density_N[other], id_N[other]) < (-density_N[node], id_N[node])
        step = int(step_NK[node, rank])
        if denser and step > log_odds(probability) * STEP:
            best = min(best, (-step, int(id_N[other]), other))
    return best[2]


def roots(scores: Block, probability: float) -> list[int]:
    parents = [parent(scores, node, probability) for node in range(len(scores["id_N"]))]
    found = []
    for node in range(len(parents)):
        while parents[node] != node:
            node = parents[node]
        found.append(node)
    return found


@given(st.integers(0, 10**6), st.integers(1, 40), st.sampled_from([0.6, 0.9, 0.95]), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_rows_go_to_the_roots_of_their_sure_links(seed: int, n: int, probability: float, shards: int) -> None:
    scores, tasks = random_scores(seed, n, 3), LocalTasks()
    graph = scored_shards(tasks, scores, shards, Inference(seed_probability=probability))
    label_N = row_labels(tasks, graph.seeds, graph.starts)
    assert label_N.tolist() == roots(scores, probability)
    assert graph.seed_count == len(set(label_N.tolist()))


def test_a_link_needs_a_denser_neighbour_and_more_than_the_limit() -> None:
    limit = int(log_odds(0.95) * STEP)  # The step just below it.
    for step, density, seeds in ((limit, [0.5, 0.6], 2), (limit + 1, [0.5, 0.6], 1), (limit + 1, [0.6, 0.6], 1)):
        scores = {
            "id_N": np.arange(2),
            "nbr_NK": np.array([[1], [0]]),
            "logit_NK": np.full((2, 1), step / STEP, dtype=np.float32),
            "density_N": np.array(density, dtype=np.float32),
        }
        graph = scored_shards(LocalTasks(), scores, 2)
        assert graph.seed_count == seeds
    # It goes up: where one alone has the other for a neighbour, that one must be less dense.
    for density_N, seeds in (([0.5, 0.6], 1), ([0.6, 0.5], 2)):
        one_way = {**scores, "nbr_NK": np.array([[1], [-1]]), "density_N": np.array(density_N, dtype=np.float32)}
        assert scored_shards(LocalTasks(), one_way, 1).seed_count == seeds


@pytest.mark.parametrize("shards", [1, 2, 3, 8])
def test_seeds_and_histograms_are_the_same_for_any_shards(shards: int) -> None:
    scores, tasks = random_scores(1, 120, 8), LocalTasks()
    graph = scored_shards(tasks, scores, shards)
    edges_Q = graph.edges_Q
    alone = scored_shards(tasks, scores, 1)
    alone_Q = alone.edges_Q
    assert len(graph.seeds) == shards
    assert same_bytes(row_labels(tasks, graph.seeds, graph.starts), row_labels(tasks, alone.seeds, alone.starts))
    assert (graph.seed_count, graph.edges, graph.linked) == (alone.seed_count, alone.edges, alone.linked)
    assert 8 < graph.seed_count < 120
    assert same_bytes(edges_Q, alone_Q)


def test_a_graph_knows_its_edges_and_how_many_rows_have_a_probable_one() -> None:
    scores = random_scores(2, 80, 5)
    graph = scored_shards(LocalTasks(), scores, 3)
    edges_Q = graph.edges_Q
    real_NK, step_NK = scores["nbr_NK"] >= 0, quantise(scores["logit_NK"])
    assert graph.edges == real_NK.sum()
    np.testing.assert_array_equal(edges_Q, np.bincount(step_NK[real_NK].astype(int) + MOST, minlength=2 * MOST + 1))
    probable_N = (real_NK & (step_NK > 0)).any(1)
    assert graph.linked == pytest.approx(probable_N.sum() / real_NK.any(1).sum())


def test_rows_without_any_neighbour_are_seeds() -> None:
    scores = random_scores(0, 9, 2)
    none = {**scores, "nbr_NK": np.full_like(scores["nbr_NK"], -1)}
    graph = scored_shards(LocalTasks(), none, 2)
    assert (graph.seed_count, graph.edges, graph.linked) == (9, 0, 0.0)
