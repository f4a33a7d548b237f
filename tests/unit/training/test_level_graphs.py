import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hilander_dist.config import RawModel
from hilander_dist.lander.model import Lander
from hilander_dist.training.level_graphs import (
    LevelGraph,
    cut_subgraph,
    denser_mask,
    edge_targets,
    ground_truth_density,
    load_level_graph,
    same_label,
)
from tests.unit.training.made_graphs import random_graph


def test_blocks_are_joined_in_order() -> None:
    graph = random_graph(0, 11)
    arrays = {field.name: getattr(graph, field.name) for field in dataclasses.fields(LevelGraph)}
    blocks = [
        {name: array[part] for name, array in arrays.items()} for part in (slice(0, 4), slice(4, 5), slice(5, 11))
    ]
    joined = load_level_graph(blocks)
    for name, array in arrays.items():
        np.testing.assert_array_equal(getattr(joined, name), array)
        assert getattr(joined, name).dtype == array.dtype


def test_ground_truth_density_divides_by_k_minus_1_always() -> None:
    nbr_NK = np.array([[1, 2, -1], [0, -1, -1], [-1, -1, -1]])
    sim_NK = np.array([[0.75, 0.5, 0], [0.75, 0, 0], [0, 0, 0]], np.float32)
    label_N = np.array([4, 4, 7])
    found = ground_truth_density(nbr_NK, sim_NK, label_N, label_N[nbr_NK])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [(0.75 - 0.5) / 3, 0.75 / 3, 0])


def test_same_label_and_denser_mask() -> None:
    assert same_label(np.array([1, 2]), np.array([[1, 2], [2, -1]])).tolist() == [[True, False], [True, False]]
    g_nbr_NK = np.array([[0.5, 0.75], [-np.inf, 0.0]], np.float32)
    assert denser_mask(np.array([0.5, -1], np.float32), g_nbr_NK).tolist() == [[False, True], [False, True]]


def test_edge_targets_are_false_at_pads() -> None:
    graph = random_graph(1, 30, classes=2)
    target_B = np.array([7, 3, 29])
    same_BK, denser_BK = edge_targets(graph, target_B)
    for b, i in enumerate(target_B):
        for k, j in enumerate(graph.nbr_NK[i]):
            assert same_BK[b, k] == (j >= 0 and graph.label_N[i] == graph.label_N[j])
            assert denser_BK[b, k] == (j >= 0 and graph.gt_density_N[j] > graph.gt_density_N[i])


@pytest.mark.parametrize(
    "options", [{}, {"num_conv": 3}, {"encoder": "gat", "num_conv": 2, "heads": 2}, {"encoder": "gat"}]
)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), nodes=st.integers(4, 60), data=st.data())
def test_a_subgraph_gives_the_whole_graphs_logits(
    options: dict[str, Any], seed: int, nodes: int, data: st.DataObject
) -> None:
    graph = random_graph(seed, nodes)
    count = data.draw(st.integers(0, nodes), label="targets")
    target_B = np.random.default_rng(seed).permutation(nodes)[:count]
    torch.manual_seed(seed)
    model = Lander(5, RawModel.model_validate({"hidden": 16, **options}))
    cut = cut_subgraph(graph, target_B, model.num_conv)
    with torch.inference_mode():
        whole = model(*(torch.from_numpy(array) for array in (graph.x_ND, graph.c_ND, graph.nbr_NK, graph.sim_NK)))
        arrays = (cut.x_SD, cut.c_SD, cut.nbr_RK, cut.sim_RK)
        part = model(*(torch.from_numpy(array) for array in arrays), sizes=cut.sizes)
    assert cut.sizes == sorted(cut.sizes)
    assert len(cut.x_SD) == cut.sizes[-1] <= nodes
    torch.testing.assert_close(part, whole[torch.from_numpy(target_B)], atol=1e-6, rtol=1e-5)


def test_a_subgraph_holds_only_what_is_within_reach() -> None:
    """On a chain in which node i has the neighbour i + 1, one convolution reaches two nodes beyond the target."""
    nodes = 10
    graph = dataclasses.replace(
        random_graph(0, nodes, k=1), nbr_NK=np.append(np.arange(1, nodes), -1)[:, None], sim_NK=np.ones((nodes, 1), "f")
    )
    cut = cut_subgraph(graph, np.array([4]), num_conv=1)
    assert cut.sizes == [1, 2, 3]
    np.testing.assert_array_equal(cut.x_SD, graph.x_ND[[4, 5, 6]])
    assert cut.nbr_RK.tolist() == [[1], [2]]
