"""The oracle's network against examples worked out by hand."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests import oracle, points

Array = NDArray[Any]


def f32(values: Any) -> Array:
    return np.array(values, dtype=np.float32)


# The network, on a graph of 3 nodes: 0 <- 1 (sim 0.5), 0 <- 2 (0.25), 1 <- 0 (0.5), node 2 has no neighbour.
X, NBR, SIM = f32([[1], [2], [-1]]), np.array([[1, 2], [0, -1], [-1, -1]]), f32([[0.5, 0.25], [0.5, 0], [0, 0]])
# S = z0 + 2 z1 - 1.5, D = z0 - z1, v = 0.5 PReLU_0.5(S + D) - 1, p1 = sigmoid(PReLU_0.25(v)).
HEAD: dict[str, Any] = {
    "src_mlp.weight": [[1, 2]],
    "src_mlp.bias": [-1.5],
    "dst_mlp.weight": [[1, -1]],
    "dst_mlp.bias": [0],
    "classifier_conn.0.weight": [0.5],
    "classifier_conn.1.weight": [[0.5]],
    "classifier_conn.1.bias": [-1],
    "classifier_conn.2.weight": [0.25],
    "classifier_conn.3.weight": [[0], [1]],
    "classifier_conn.3.bias": [0, 0],
}


def with_head(layer: dict[str, Any]) -> oracle.Weights:
    return {key: f32(value) for key, value in (layer | HEAD).items()}


def sigmoid(v: float) -> float:
    return 1 / (1 + math.exp(-v))


def test_gcn_by_hand() -> None:
    # z = ReLU(h, mean h): node 0: mean = 2/3 * 2 + 1/3 * -1 = 1, z = (1, 1). Node 1: z = (2, 1). Node 2: z = (0, 0).
    # S = 1.5, 2.5, -1.5; D = 0, 1, 0. 0 <- 1: u = 2.5, v = 0.25. 0 <- 2: u = -1.5, -0.75, v = -1.375, -0.34375.
    # 1 <- 0: u = 2.5, v = 0.25. p1 - p0 = tanh(v / 2).
    layer: dict[str, Any] = {"conv.0.gcn_layer.mlp.weight": [[1, 0], [0, 1]], "conv.0.gcn_layer.mlp.bias": [0, 0]}
    p0_NK, p1_NK, density_N = oracle.forward(with_head(layer), X, X, NBR, SIM)
    near, far = 0.25, -0.34375
    np.testing.assert_allclose(p1_NK, f32([[sigmoid(near), sigmoid(far)], [sigmoid(near), 0], [0, 0]]), 1e-6)
    np.testing.assert_allclose(p0_NK, f32([[sigmoid(-near), sigmoid(-far)], [sigmoid(-near), 0], [0, 0]]), 1e-6)
    first = (0.5 * math.tanh(near / 2) + 0.25 * math.tanh(far / 2)) / 2
    np.testing.assert_allclose(density_N, [first, 0.5 * math.tanh(near / 2), 0], rtol=1e-6)
    assert {p0_NK.dtype, p1_NK.dtype, density_N.dtype} == {np.dtype(np.float32)}


def test_gat_by_hand() -> None:
    # q = (h, 0) in head 0 and (0, 2h) in head 1; al.q = h in both; ar.q = -h in head 0 and 0 in head 1.
    # Node 0, head 0: e = 2 - 1 = 1 and 0.2 * (-1 - 1) = -0.4: alpha = sigmoid(1.4) on node 1; head 1: e = 2 and -0.2.
    # Biases: head 0 + (0.2, 0), head 1 + (0, 0.5). z = mean of the heads. Node 1 sees node 0, node 2 only biases.
    layer = {
        "conv.0.gcn_layer.fc.weight": [[1], [0], [0], [2]],
        "conv.0.gcn_layer.attn_l": [[[1, 0], [0, 0.5]]],
        "conv.0.gcn_layer.attn_r": [[[-1, 0], [0, 0]]],
        "conv.0.gcn_layer.bias": [0, 0, 0, 0.5],
        "conv.0.bias": [[0.2, 0], [0, 0]],
    }
    p0_NK, p1_NK, _ = oracle.forward(with_head(layer), X, X, NBR, SIM)
    a, b = sigmoid(1.4), sigmoid(2.2)
    z_0 = ((2 * a - (1 - a) + 0.2) / 2, (2 * (2 * b - (1 - b)) + 0.5) / 2)
    z_1 = ((1 + 0.2) / 2, (2 + 0.5) / 2)
    z_2 = (0.1, 0.25)

    def p1(source: tuple[float, float], target: tuple[float, float]) -> float:
        u = source[0] + 2 * source[1] - 1.5 + target[0] - target[1]
        v = 0.5 * (u if u > 0 else 0.5 * u) - 1
        return sigmoid(v if v > 0 else 0.25 * v)

    np.testing.assert_allclose(p1_NK, f32([[p1(z_1, z_0), p1(z_2, z_0)], [p1(z_0, z_1), 0], [0, 0]]), rtol=1e-6)
    np.testing.assert_allclose((p0_NK + p1_NK)[NBR >= 0], 1, atol=1e-7)


@pytest.mark.parametrize("encoder", ["gcn", "gat"])
def test_network_input_is_identity_then_cluster_feature(encoder: oracle.Encoder) -> None:
    rng = np.random.default_rng(0)
    x_ND = points.random_rows(0, 40, 5)
    nbr_NK, sim_NK, _ = oracle.knn(x_ND, np.arange(40), 6)
    plain = oracle.random_weights(rng, 5, 8, encoder, 2, 1, False)
    name = "conv.0.gcn_layer." + ("mlp.weight" if encoder == "gcn" else "fc.weight")
    extra = rng.normal(size=(8, 5)).astype(np.float32)
    own, around = plain[name][:, :5], plain[name][:, 5:]
    wide = plain | {name: np.concatenate([own, extra, around, extra][: 4 if encoder == "gcn" else 2], axis=1)}
    expected = oracle.forward(plain, x_ND, x_ND, nbr_NK, sim_NK)
    for got, value in zip(oracle.forward(wide, x_ND, x_ND * 0, nbr_NK, sim_NK), expected, strict=True):
        np.testing.assert_allclose(got, value, atol=1e-7)
    assert np.abs(oracle.forward(wide, x_ND, x_ND, nbr_NK, sim_NK)[1] - expected[1]).max() > 1e-3


def test_a_second_layer_that_passes_its_input_changes_nothing() -> None:
    x_ND = points.random_rows(0, 40, 5)
    nbr_NK, sim_NK, _ = oracle.knn(x_ND, np.arange(40), 6)
    one = oracle.random_weights(np.random.default_rng(0), 5, 8, "gcn")
    passing = {"conv.1.gcn_layer.mlp.weight": np.eye(8, 16), "conv.1.gcn_layer.mlp.bias": np.zeros(8)}
    expected = oracle.forward(one, x_ND, x_ND, nbr_NK, sim_NK)
    for got, value in zip(oracle.forward(one | passing, x_ND, x_ND, nbr_NK, sim_NK), expected, strict=True):
        np.testing.assert_allclose(got, value, atol=1e-7)


def test_weights_have_the_official_names_and_shapes() -> None:
    gcn = oracle.random_weights(np.random.default_rng(0), 6, 8, "gcn", 4, cluster_features=True)
    shapes = [gcn[f"conv.{layer}.gcn_layer.mlp.weight"].shape for layer in range(4)]
    assert shapes == [(8, 24), (8, 16), (4, 16), (4, 8)]
    assert [gcn[f"{name}.weight"].shape for name in ("src_mlp", "dst_mlp")] == [(4, 4), (4, 4)]
    gat = oracle.random_weights(np.random.default_rng(0), 6, 8, "gat", 1, 3, False)
    assert {key: value.shape for key, value in gat.items() if key.startswith("conv")} == {
        "conv.0.bias": (3, 8),
        "conv.0.gcn_layer.attn_l": (1, 3, 8),
        "conv.0.gcn_layer.attn_r": (1, 3, 8),
        "conv.0.gcn_layer.bias": (24,),
        "conv.0.gcn_layer.fc.weight": (24, 6),
    }
    assert {key for key in gat if not key.startswith("conv")} == set(HEAD)
    assert {value.dtype for value in (gcn | gat).values()} == {np.dtype(np.float32)}
