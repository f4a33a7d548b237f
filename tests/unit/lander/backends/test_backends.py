"""Both backends against the formulas, and against each other with their gradients."""

import importlib
import sys
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from hilander_dist.errors import ModelError
from hilander_dist.lander import backends
from hilander_dist.lander.backends import load_backend
from tests.unit.training.made_graphs import random_neighbours

Name = Literal["torch", "dgl"]
NAMES: list[Name] = ["torch", "dgl"]


def inputs(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).float()


def neighbours(seed: int, nodes: int, table: int, k: int) -> tuple[Tensor, Tensor]:
    nbr_NK, sim_NK = random_neighbours(np.random.default_rng(seed), nodes, table, k)
    return torch.from_numpy(nbr_NK), torch.from_numpy(sim_NK)


@pytest.mark.parametrize("name", NAMES)
class TestFormulas:
    def test_weighted_sum(self, name: Name) -> None:
        nbr_BK, weight_BK = neighbours(0, 20, 15, 4)
        table_TM = inputs(1, 15, 3)
        found = load_backend(name).weighted_sum(table_TM, nbr_BK, weight_BK)
        for b in range(20):
            expected = np.zeros(3)
            for k in range(4):
                if nbr_BK[b, k] >= 0:
                    expected += float(weight_BK[b, k]) * table_TM[nbr_BK[b, k]].double().numpy()
            np.testing.assert_allclose(found[b], expected, atol=1e-6)

    def test_attention_sum(self, name: Name) -> None:
        nbr_BK, _ = neighbours(2, 20, 15, 4)
        table_TPM, right_BP = 3 * inputs(3, 15, 2, 4), 3 * inputs(4, 20, 2)
        found = load_backend(name).attention_sum(table_TPM, right_BP, nbr_BK)
        assert found.shape == (20, 2, 3)
        for b in range(20):
            rows = [int(j) for j in nbr_BK[b] if j >= 0]
            for p in range(2):
                expected = np.zeros(3)
                if rows:
                    logit = np.array([float(table_TPM[j, p, 3] + right_BP[b, p]) for j in rows])
                    power = np.exp(np.where(logit < 0, 0.2 * logit, logit))
                    expected = (power / power.sum()) @ table_TPM[rows, p, :3].double().numpy()
                np.testing.assert_allclose(found[b, p], expected, atol=1e-5)

    def test_only_pads(self, name: Name) -> None:
        nbr_BK = torch.full((3, 4), -1)
        backend = load_backend(name)
        assert backend.weighted_sum(inputs(0, 5, 2), nbr_BK, torch.zeros(3, 4)).equal(torch.zeros(3, 2))
        assert backend.attention_sum(inputs(0, 5, 2, 3), inputs(1, 3, 2), nbr_BK).equal(torch.zeros(3, 2, 2))


def test_equal_results_and_gradients() -> None:
    nbr_BK, sim_BK = neighbours(5, 60, 40, 6)
    wanted_BM, wanted_BPM = inputs(6, 60, 8), inputs(7, 60, 2, 7)
    results: list[list[Tensor]] = []
    for name in NAMES:
        table_TM, table_TPM = inputs(8, 40, 8).requires_grad_(), inputs(9, 40, 2, 8).requires_grad_()
        right_BP, weight_BK = inputs(10, 60, 2).requires_grad_(), sim_BK.clone().requires_grad_()
        total_BM = load_backend(name).weighted_sum(table_TM, nbr_BK, weight_BK)
        mean_BPM = load_backend(name).attention_sum(table_TPM, right_BP, nbr_BK)
        torch.autograd.backward((total_BM * wanted_BM).sum() + (mean_BPM * wanted_BPM).sum())
        leaves = (table_TM, table_TPM, right_BP, weight_BK)
        results.append([total_BM.detach(), mean_BPM.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)])
    assert len(results[0]) == len(results[1]) == 6
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-5)


def test_large_logits_do_not_overflow() -> None:
    nbr_BK = torch.tensor([[0, 1], [1, -1]])
    table_TPM = torch.tensor([[[2.0, 500.0]], [[7.0, 400.0]]])
    found = load_backend("torch").attention_sum(table_TPM, torch.tensor([[100.0], [-9000.0]]), nbr_BK)
    assert found.flatten().tolist() == [2.0, 7.0]


def test_a_missing_dgl_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dgl", None)
    monkeypatch.delitem(sys.modules, f"{backends.__name__}.dgl_backend", raising=False)
    monkeypatch.delattr(backends, "dgl_backend", raising=False)
    with pytest.raises(ModelError, match=r"pip install 'hilander-dist\[dgl\]'"):
        load_backend("dgl")
    monkeypatch.undo()
    importlib.import_module(f"{backends.__name__}.dgl_backend")
