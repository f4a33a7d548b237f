"""The whole network: shapes, invariances, and the bits that sharding relies on."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hilander_dist.config import RawModel
from hilander_dist.lander.model import Lander
from hilander_dist.training.level_graphs import LevelGraph
from tests.unit.training.made_graphs import random_graph, random_neighbours

ENCODERS: list[dict[str, Any]] = [
    {},
    {"num_conv": 3},
    {"cluster_features": False},
    {"encoder": "gat"},
    {"encoder": "gat", "heads": 3, "num_conv": 2},
]
CHUNK = 512


def make_model(dim: int, seed: int = 0, **options: Any) -> Lander:
    torch.manual_seed(seed)
    model = Lander(dim, RawModel.model_validate({"hidden": 16, **options}))
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, -0.5, 0.5)
    return model


def run(model: Lander, graph: LevelGraph) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, p1 and density of a whole graph."""
    nbr_NK, sim_NK = torch.from_numpy(graph.nbr_NK), torch.from_numpy(graph.sim_NK)
    with torch.inference_mode():
        logits_NK2 = model(torch.from_numpy(graph.x_ND), torch.from_numpy(graph.c_ND), nbr_NK, sim_NK)
        p0_NK, p1_NK = model.probabilities(logits_NK2)
        return logits_NK2, p1_NK, model.density(p0_NK, p1_NK, sim_NK, nbr_NK)


class TestStateDict:
    def test_gcn(self) -> None:
        shapes = {key: tuple(value.shape) for key, value in Lander(8, RawModel(hidden=6)).state_dict().items()}
        assert shapes == {
            "conv.0.gcn_layer.mlp.weight": (6, 32),
            "conv.0.gcn_layer.mlp.bias": (6,),
            "src_mlp.weight": (3, 6),
            "src_mlp.bias": (3,),
            "dst_mlp.weight": (3, 6),
            "dst_mlp.bias": (3,),
            "classifier_conn.0.weight": (3,),
            "classifier_conn.1.weight": (3, 3),
            "classifier_conn.1.bias": (3,),
            "classifier_conn.2.weight": (3,),
            "classifier_conn.3.weight": (2, 3),
            "classifier_conn.3.bias": (2,),
        }

    def test_gat(self) -> None:
        state = Lander(8, RawModel(encoder="gat", hidden=6, heads=2)).state_dict()
        assert {key: tuple(value.shape) for key, value in state.items() if key.startswith("conv")} == {
            "conv.0.bias": (2, 6),
            "conv.0.gcn_layer.fc.weight": (12, 8),
            "conv.0.gcn_layer.attn_l": (1, 2, 6),
            "conv.0.gcn_layer.attn_r": (1, 2, 6),
            "conv.0.gcn_layer.bias": (12,),
        }

    def test_widths_by_depth(self) -> None:
        state = Lander(8, RawModel(hidden=6, num_conv=4)).state_dict()
        found = [tuple(state[f"conv.{layer}.gcn_layer.mlp.weight"].shape) for layer in range(4)]
        assert found == [(6, 32), (6, 12), (3, 12), (3, 6)]
        assert state["src_mlp.weight"].shape == (3, 3)

    def test_prelu_starts_at_a_quarter(self) -> None:
        assert Lander(8, RawModel(hidden=6)).state_dict()["classifier_conn.0.weight"].tolist() == [0.25] * 3


class TestEdgeHead:
    def test_formula(self) -> None:
        model = make_model(3)
        rng = np.random.default_rng(0)
        z_TH, z_BH = rng.normal(size=(7, 16)), rng.normal(size=(5, 16))
        nbr_BK, sim_BK = random_neighbours(rng, 5, 7, 6)
        nbr, sim = torch.from_numpy(nbr_BK), torch.from_numpy(sim_BK)
        with torch.no_grad():
            src_TG, _ = model.project(torch.from_numpy(z_TH).float())
            _, dst_BG = model.project(torch.from_numpy(z_BH).float())
            p0_BK, p1_BK = model.probabilities(model.edge_logits(src_TG, dst_BG, nbr))
            density_B = model.density(p0_BK, p1_BK, sim, nbr)
        w = {key: value.double().numpy() for key, value in model.state_dict().items()}
        for b in range(5):
            terms = []
            for k in range(6):
                j = nbr_BK[b, k]
                if j < 0:
                    assert p0_BK[b, k] == p1_BK[b, k] == 0
                    continue
                source = w["src_mlp.weight"] @ z_TH[j] + w["src_mlp.bias"]
                u = source + w["dst_mlp.weight"] @ z_BH[b] + w["dst_mlp.bias"]
                u = np.where(u < 0, w["classifier_conn.0.weight"] * u, u)
                u = w["classifier_conn.1.weight"] @ u + w["classifier_conn.1.bias"]
                u = np.where(u < 0, w["classifier_conn.2.weight"] * u, u)
                logit = w["classifier_conn.3.weight"] @ u + w["classifier_conn.3.bias"]
                p1 = 1 / (1 + np.exp(logit[0] - logit[1]))
                np.testing.assert_allclose([p0_BK[b, k], p1_BK[b, k]], [1 - p1, p1], atol=1e-5)
                terms.append(sim_BK[b, k] * (2 * p1 - 1))
            np.testing.assert_allclose(density_B[b], np.mean(terms) if terms else 0, atol=1e-5)

    def test_probabilities_at_extreme_logits_are_finite(self) -> None:
        inf = float("-inf")
        p0_BK, p1_BK = Lander.probabilities(torch.tensor([[[-300.0, 300.0], [300.0, -300.0], [inf, inf]]]))
        assert p0_BK.tolist() == [[0, 1, 0]]
        assert p1_BK.tolist() == [[1, 0, 0]]


@pytest.mark.parametrize("options", ENCODERS)
class TestWholeGraph:
    def test_permutation_equivariance(self, options: dict[str, Any]) -> None:
        graph, model = random_graph(0, 40), make_model(5, **options)
        order = np.random.default_rng(1).permutation(40)
        place = np.argsort(order)
        nbr_NK = graph.nbr_NK[order]
        moved = LevelGraph(
            graph.x_ND[order],
            graph.c_ND[order],
            np.where(nbr_NK >= 0, place[nbr_NK], -1),
            graph.sim_NK[order],
            graph.label_N[order],
            graph.gt_density_N[order],
        )
        for before, after in zip(run(model, graph), run(model, moved), strict=True):
            torch.testing.assert_close(before[torch.from_numpy(order)], after, atol=1e-6, rtol=1e-5)

    def test_more_pads_change_nothing(self, options: dict[str, Any]) -> None:
        graph, model = random_graph(2, 40), make_model(5, **options)
        wider = LevelGraph(
            graph.x_ND,
            graph.c_ND,
            np.pad(graph.nbr_NK, ((0, 0), (0, 3)), constant_values=-1),
            np.pad(graph.sim_NK, ((0, 0), (0, 3))),
            graph.label_N,
            graph.gt_density_N,
        )
        (logits, p1, density), (wide_logits, wide_p1, wide_density) = run(model, graph), run(model, wider)
        torch.testing.assert_close(logits, wide_logits[:, :4], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(p1, wide_p1[:, :4], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(density, wide_density, atol=1e-6, rtol=1e-5)
        assert (wide_logits[:, 4:] == float("-inf")).all()

    def test_an_isolated_node_has_density_0(self, options: dict[str, Any]) -> None:
        graph = random_graph(3, 40)
        isolated = (graph.nbr_NK < 0).all(1)
        assert isolated.any()
        _, p1, density = run(make_model(5, **options), graph)
        assert not density[torch.from_numpy(isolated)].any()
        assert not p1[torch.from_numpy(isolated)].any()
        assert density.isfinite().all()

    def test_every_parameter_gets_a_gradient_even_from_no_nodes(self, options: dict[str, Any]) -> None:
        """DDP waits for each of them."""
        model = make_model(5, **options)
        logits = model(torch.zeros(0, 5), torch.zeros(0, 5), torch.zeros(0, 4, dtype=torch.int64), torch.zeros(0, 4))
        torch.autograd.backward(logits.sum())
        assert all(parameter.grad is not None for parameter in model.parameters())

    def test_gradients_are_finite_beside_pads(self, options: dict[str, Any]) -> None:
        graph, model = random_graph(4, 40), make_model(5, **options)
        nbr_NK, sim_NK = torch.from_numpy(graph.nbr_NK), torch.from_numpy(graph.sim_NK)
        logits = model(torch.from_numpy(graph.x_ND), torch.from_numpy(graph.c_ND), nbr_NK, sim_NK)
        torch.autograd.backward(model.density(*model.probabilities(logits), sim_NK, nbr_NK).sum())
        gradients = [parameter.grad for parameter in model.parameters()]
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def chunk_outputs(
    model: Lander, own: Tensor, table: Tensor, src_TG: Tensor, nbr_BK: Tensor, sim_BK: Tensor
) -> list[Tensor]:
    """Everything that a sharded run computes from one chunk."""
    with torch.inference_mode():
        m_BM, m_TM = model.message(0, own), model.message(0, table)
        z_BH = model.convolve(0, own, m_BM, m_TM, nbr_BK, sim_BK)
        src_BG, dst_BG = model.project(z_BH)
        p0_BK, p1_BK = model.probabilities(model.edge_logits(src_TG, dst_BG, nbr_BK))
        return [m_BM, z_BH, src_BG, dst_BG, p0_BK, p1_BK, model.density(p0_BK, p1_BK, sim_BK, nbr_BK)]


@pytest.mark.parametrize("encoder", ["gcn", "gat"])
@settings(max_examples=15, deadline=None)
@given(
    hidden=st.sampled_from([2, 6, 10, 18, 30, 46, 64, 130]),
    dim=st.integers(1, 70),
    k=st.integers(1, 12),
    seed=st.integers(0, 1000),
)
def test_equal_situations_have_equal_bits_in_any_row_of_any_chunk(
    encoder: str, hidden: int, dim: int, k: int, seed: int
) -> None:
    """Exact duplicates must tie exactly, and a shard's bits must not depend on what else is in a chunk."""
    torch.set_num_threads(1)
    model = make_model(dim, seed, encoder=encoder, hidden=hidden)
    rng = np.random.default_rng(seed)
    width = 2 * dim if encoder == "gcn" else dim
    table = torch.from_numpy(rng.normal(size=(700, width))).float()
    src_TG = torch.from_numpy(rng.normal(size=(700, hidden // 2))).float()
    seen: list[Tensor] = []
    row = torch.from_numpy(rng.normal(size=width)).float()
    nbr_1K, sim_1K = (torch.from_numpy(array) for array in random_neighbours(rng, 1, 700, k))
    for _ in range(2):
        own = torch.from_numpy(rng.normal(size=(CHUNK, width))).float()
        nbr_BK, sim_BK = (torch.from_numpy(array) for array in random_neighbours(rng, CHUNK, 700, k))
        places = torch.from_numpy(rng.permutation(CHUNK)[:150])
        own[places], nbr_BK[places], sim_BK[places] = row, nbr_1K, sim_1K
        own[-7:], nbr_BK[-7:], sim_BK[-7:] = 0, -1, 0
        places = places[places < CHUNK - 7]
        outputs = [output[places] for output in chunk_outputs(model, own, table, src_TG, nbr_BK, sim_BK)]
        seen = seen or [output[:1].clone() for output in outputs]
        for output, first in zip(outputs, seen, strict=True):
            assert (output == first).all()
