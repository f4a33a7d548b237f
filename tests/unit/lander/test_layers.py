import numpy as np
import pytest
import torch
from torch import nn

from hilander_dist.lander.layers import GatConvolution, GcnConvolution, Linear, affine_weights
from tests.unit.training.made_graphs import random_neighbours

K, TABLE, NODES, WIDTH = 4, 30, 20, 6


def situation() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """h_BI, h_TI, nbr_BK, sim_BK."""
    rng = np.random.default_rng(0)
    nbr_BK, sim_BK = random_neighbours(rng, NODES, TABLE, K)
    h_BI, h_TI = rng.normal(size=(NODES, WIDTH)), rng.normal(size=(TABLE, WIDTH))
    return (
        torch.from_numpy(h_BI).float(),
        torch.from_numpy(h_TI).float(),
        torch.from_numpy(nbr_BK),
        torch.from_numpy(sim_BK),
    )


def test_gcn_formula() -> None:
    h_BI, h_TI, nbr_BK, sim_BK = situation()
    layer = GcnConvolution(WIDTH, 5, "torch")
    with torch.no_grad():
        z_BH = layer(h_BI, layer.message(h_BI), layer.message(h_TI), nbr_BK, sim_BK).numpy()
    weight = layer.gcn_layer["mlp"].get_parameter("weight").detach().double().numpy()
    bias = layer.gcn_layer["mlp"].get_parameter("bias").detach().double().numpy()
    for b in range(NODES):
        rows = [int(j) for j in nbr_BK[b] if j >= 0]
        share = sim_BK[b, : len(rows)].double().numpy()
        mean = (share / share.sum()) @ h_TI[rows].double().numpy() if rows else np.zeros(WIDTH)
        expected = weight @ np.concatenate([h_BI[b].double().numpy(), mean]) + bias
        np.testing.assert_allclose(z_BH[b], np.maximum(expected, 0), atol=1e-5)


@pytest.mark.parametrize("heads", [1, 3])
def test_gat_formula(heads: int) -> None:
    h_BI, h_TI, nbr_BK, sim_BK = situation()
    torch.manual_seed(1)
    layer = GatConvolution(WIDTH, 5, heads, "torch")
    nn.init.normal_(layer.bias)
    nn.init.normal_(layer.gcn_layer.bias)
    with torch.no_grad():
        z_BH = layer(h_BI, layer.message(h_BI), layer.message(h_TI), nbr_BK, sim_BK).numpy()
    state = {key: value.double().numpy() for key, value in layer.state_dict().items()}
    W_PHI = state["gcn_layer.fc.weight"].reshape(heads, 5, WIDTH)
    left_PH, right_PH = state["gcn_layer.attn_l"][0], state["gcn_layer.attn_r"][0]
    for b in range(NODES):
        heads_out = []
        for p in range(heads):
            rows = [int(j) for j in nbr_BK[b] if j >= 0]
            total = np.zeros(5)
            if rows:
                q_KH = h_TI[rows].double().numpy() @ W_PHI[p].T
                logit_K = q_KH @ left_PH[p] + W_PHI[p] @ h_BI[b].double().numpy() @ right_PH[p]
                power_K = np.exp(np.where(logit_K < 0, 0.2 * logit_K, logit_K))
                total = (power_K / power_K.sum()) @ q_KH
            heads_out.append(total + state["gcn_layer.bias"].reshape(heads, 5)[p] + state["bias"][p])
        np.testing.assert_allclose(z_BH[b], np.maximum(np.mean(heads_out, 0), 0), atol=1e-5)


def test_gat_initial_weights() -> None:
    """Xavier normal with gain sqrt 2 as in DGL: variance 4 / (fan in + fan out); biases 0."""
    torch.manual_seed(0)
    layer = GatConvolution(300, 200, 2, "torch")
    fc = layer.gcn_layer.fc.weight
    assert float(fc.detach().std()) == pytest.approx((4 / (300 + 400)) ** 0.5, rel=0.02)
    # The fans of a (1, heads, width) tensor are heads * width and 1 * width.
    assert float(layer.gcn_layer.attn_l.detach().std()) == pytest.approx((4 / (400 + 200)) ** 0.5, rel=0.2)
    assert not layer.bias.any()
    assert not layer.gcn_layer.bias.any()


def test_affine_weights() -> None:
    found = affine_weights(torch.tensor([[0.5, 0.25, 0.25], [0.9, 0.0, 0.0], [0.0, 0.0, 0.0], [-0.5, 0.0, 0.0]]))
    assert found.tolist() == [[0.5, 0.25, 0.25], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [-0.5, 0.0, 0.0]]


@pytest.mark.parametrize("width", [1, 9, 33, 50, 129])
@pytest.mark.parametrize("outputs", [1, 2, 5, 11, 12, 16, 33])
def test_linear_gives_equal_rows_equal_bits(width: int, outputs: int) -> None:
    torch.manual_seed(width)
    layer = Linear(width, outputs)
    x = torch.randn(1024, width)
    places = torch.randperm(1024)[:300]
    x[places] = x[places[0]].clone()
    with torch.inference_mode():
        y = layer(x)
    assert y.shape == (1024, outputs)
    assert (y[places] == y[places[0]]).all()
    torch.testing.assert_close(y, nn.functional.linear(x, layer.weight, layer.bias).detach())


def test_linear_gradients_are_those_of_nn_linear() -> None:
    torch.manual_seed(0)
    mine, plain = Linear(7, 2), nn.Linear(7, 2)
    plain.load_state_dict(mine.state_dict())
    x = torch.randn(40, 7)
    for layer in (mine, plain):
        layer(x).square().sum().backward()
    torch.testing.assert_close(mine.weight.grad, plain.weight.grad)
    torch.testing.assert_close(mine.bias.grad, plain.bias.grad)
