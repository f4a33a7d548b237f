import numpy as np
import pytest

from hilander_dist.cluster.hierarchy.label_links import link_by_labels, training_path
from hilander_dist.knn.layout import CHUNK, Level
from hilander_dist.local_tasks import LocalTasks, put, put_all
from hilander_dist.tasks import Block
from hilander_dist.training.level_graphs import load_level_graph
from tests import oracle
from tests.points import clustered
from tests.unit.cluster.small import joined, laid_out, same_bytes

DIM, K = 6, 6


@pytest.fixture(scope="module")
def nodes() -> Block:
    x_ND, class_N = clustered(3, 2 * CHUNK + 40, DIM, 25, spread=1.5)
    return {"id_N": np.arange(len(x_ND)) * 2, "x_ND": x_ND, "class_N": class_N}


@pytest.mark.parametrize("merge_across_labels", [False, True])
def test_each_node_links_to_its_most_similar_denser_neighbour(nodes: Block, merge_across_labels: bool) -> None:
    tasks = LocalTasks()
    level, graph = laid_out(tasks, nodes, 1, K)
    links = joined(tasks, link_by_labels(merge_across_labels)(tasks, level, graph, "h/level-0").blocks)
    placed, edges = joined(tasks, level.nodes), joined(tasks, graph)
    density_N = oracle.gt_density(placed["class_N"], edges["nbr_NK"], edges["sim_NK"])
    np.testing.assert_allclose(links["density_N"], density_N, rtol=1e-6)
    expected = []
    for i, nbrs in enumerate(edges["nbr_NK"].tolist()):
        allowed = [
            (-edges["sim_NK"][i, rank], placed["id_N"][j], j)
            for rank, j in enumerate(nbrs)
            if j >= 0
            and (merge_across_labels or placed["class_N"][j] == placed["class_N"][i])
            and (-links["density_N"][j], placed["id_N"][j]) < (-links["density_N"][i], placed["id_N"][i])
        ]
        expected.append(min(allowed)[2] if allowed else i)
    assert links["parent_N"].tolist() == expected
    across = placed["class_N"][links["parent_N"]] != placed["class_N"]
    assert across.any() == merge_across_labels
    np.testing.assert_array_equal(np.isnan(links["confidence_N"]), links["parent_N"] == np.arange(level.n))


@pytest.mark.parametrize("shards", [2, 3])
def test_links_and_training_graphs_are_the_same_bytes_for_any_sharding(nodes: Block, shards: int) -> None:
    results = []
    for count in (1, shards):
        tasks = LocalTasks()
        level, graph = laid_out(tasks, nodes, count, K)
        links = joined(tasks, link_by_labels(False)(tasks, level, graph, "h/level-0").blocks)
        blocks = [tasks.blocks[training_path("h/level-0", s)] for s in range(level.shards)]
        results.append({**links, **vars(load_level_graph(blocks))})
    assert results[0].keys() >= {"x_ND", "c_ND", "nbr_NK", "sim_NK", "label_N", "gt_density_N", "parent_N"}
    for name, array in results[0].items():
        assert same_bytes(results[1][name], array), name
    np.testing.assert_array_equal(results[0]["gt_density_N"], results[0]["density_N"])


def test_similarities_are_compared_to_their_last_bit_and_down_to_zero() -> None:
    """As distances 1 - s in float32 the first two would tie and the last would be none."""
    low = np.float32(0.01)
    sim_NK = np.array([[np.nextafter(low, np.float32(1)), low], [0.9, 0], [0.9, 0], [1e-9, 0]], dtype=np.float32)
    nbr_NK = np.array([[2, 1], [2, -1], [1, -1], [1, -1]])
    nodes = {"id_N": np.arange(4), "x_ND": np.eye(4, dtype=np.float32), "class_N": np.zeros(4, dtype=np.int64)}
    level = Level(4, (0, 4), put_all([nodes]), put(None), put(None))
    tasks = LocalTasks()
    links = link_by_labels(False)(tasks, level, put_all([{"nbr_NK": nbr_NK, "sim_NK": sim_NK}]), "h")
    assert joined(tasks, links.blocks)["parent_N"].tolist() == [2, 1, 1, 1]
