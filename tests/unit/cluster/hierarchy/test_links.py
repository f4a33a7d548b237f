import numpy as np
import pytest

from hilander_dist.cluster.hierarchy.decode import Compat
from hilander_dist.cluster.hierarchy.links import link_by_model, link_nothing, neighbour_columns
from hilander_dist.cluster.scoring.halo import plan_halo
from hilander_dist.cluster.scoring.raw import score_level
from hilander_dist.knn.layout import CHUNK
from hilander_dist.local_tasks import LocalTasks, put
from hilander_dist.tasks import Block
from tests import oracle
from tests.points import with_duplicates
from tests.unit.cluster.small import joined, laid_out, random_model, same_bytes

DIM = 6
TAU = 0.14
"""Half of the edges pass."""


def test_neighbour_columns_read_own_rows_and_halo() -> None:
    own = {"v": np.array([10, 11]), "w": np.array([0.5, 0.25], dtype=np.float32)}
    at_neighbours = neighbour_columns(
        own, [{"v": np.array([20]), "w": np.array([9], dtype=np.float32)}], np.array([[1, 2], [0, -1]])
    )
    assert at_neighbours("v")[0].tolist() == [11, 20]
    assert at_neighbours("v")[1, 0] == 10
    assert at_neighbours("w")[0].tolist() == [0.25, 9]


@pytest.fixture(scope="module")
def nodes() -> Block:
    x_ND, _ = with_duplicates(0, 2 * CHUNK + 90, DIM)
    return {"id_N": np.random.default_rng(1).permutation(5000)[: len(x_ND)], "x_ND": x_ND}


@pytest.mark.parametrize("compat", ["default", "reference"])
def test_links_follow_from_the_scores_for_any_sharding(nodes: Block, compat: Compat) -> None:
    model = random_model(DIM, "gcn")
    linked = []
    for shards in (1, 3):
        tasks = LocalTasks()
        level, graph = laid_out(tasks, nodes, shards, 6)
        links = link_by_model(model, put(model), TAU, compat)(tasks, level, graph, "level-0").blocks
        linked.append(joined(tasks, links))
        scores = joined(tasks, score_level(tasks, model, put(model), level, graph, plan_halo(tasks, level, graph), "x"))
        placed, edges = joined(tasks, level.nodes), joined(tasks, graph)
    for name, array in linked[0].items():
        assert same_bytes(linked[1][name], array), name

    links_N = linked[0]
    p0_NK = scores["p0_NK"]
    parent_N, _ = oracle.decode(
        # The oracle's default mode ranks by p1, the package by p0: give it p1 of p0's order.
        placed["id_N"],
        edges["nbr_NK"],
        p0_NK,
        -p0_NK,
        scores["density_N"],
        TAU,
        compat,
    )
    np.testing.assert_array_equal(links_N["parent_N"], parent_N)
    assert same_bytes(links_N["density_N"], scores["density_N"])
    peak_N = parent_N == np.arange(len(parent_N))
    assert 20 < peak_N.sum() < len(peak_N) - 20
    np.testing.assert_array_equal(np.isnan(links_N["confidence_N"]), peak_N)
    for i in np.flatnonzero(~peak_N):
        (rank,) = np.flatnonzero(edges["nbr_NK"][i] == parent_N[i])
        assert links_N["confidence_N"][i] == scores["p1_NK"][i, rank]


def test_a_tau_of_one_links_nothing(nodes: Block) -> None:
    tasks = LocalTasks()
    level, graph = laid_out(tasks, nodes, 2, 6)
    model = random_model(DIM, "gcn")
    links = joined(tasks, link_by_model(model, put(model), 1.0, "default")(tasks, level, graph, "level-0").blocks)
    assert links["parent_N"].tolist() == list(range(level.n))


def test_link_nothing_makes_every_node_a_peak(nodes: Block) -> None:
    tasks = LocalTasks()
    level, graph = laid_out(tasks, nodes, 3, 6)
    links = joined(tasks, link_nothing(tasks, level, graph, "level-0").blocks)
    assert links["parent_N"].tolist() == list(range(level.n))
    assert links["density_N"].tolist() == [0.0] * level.n
    assert np.isnan(links["confidence_N"]).all()
    assert {name: array.dtype.name for name, array in links.items()} == {
        "parent_N": "int64",
        "density_N": "float32",
        "confidence_N": "float32",
    }
