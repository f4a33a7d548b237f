"""The head of pairs learns from clusters of episodes; calibration picks what they say."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hilander_dist.config import Calibration, RelationalModel
from hilander_dist.lander.episodes import Plan, build_episode
from hilander_dist.lander.relational import PAIR_INPUTS, RelationalLander, pair_head
from hilander_dist.pipeline.calibration import TAUS, best_tau, sweep_taus
from hilander_dist.pipeline.head_training import fit_head
from hilander_dist.pipeline.pair_training import pair_examples
from hilander_dist.storage import Storage
from tests.points import clustered


@pytest.fixture
def model() -> RelationalLander:
    torch.manual_seed(0)
    model = RelationalLander(RelationalModel(hidden=8))
    model.calibration = Calibration(forest_tau=0.6)
    with torch.no_grad():
        model.head.weight *= 20
    return model


def episode(where: Path, rows: int, k: int, group: float = 0.0, strangers: float = 0.0, parts: float = 0.0) -> str:
    x_ND, label_N = clustered(0, rows, 12, 12)
    plan = Plan(0, k, np.zeros(0, int), np.zeros(0), 0.0, 1.0, group, strangers=strangers, parts=parts)
    Storage(str(where)).write_block(
        f"{rows}-{k}.safetensors", build_episode(x_ND, label_N, plan, np.random.default_rng(0))
    )
    return str(where / f"{rows}-{k}.safetensors")


def test_examples_are_pairs_of_clusters(model: RelationalLander, tmp_path: Path) -> None:
    uri = episode(tmp_path, 400, 40)
    examples = pair_examples(model, uri, 0)
    assert examples["inputs_EF"].shape == (len(examples["same_E"]), PAIR_INPUTS)
    assert 0 < examples["same_E"].mean() < 1
    again = pair_examples(model, uri, 0)
    assert all(np.array_equal(again[name], column) for name, column in examples.items())


@pytest.mark.parametrize(("rows", "k"), [(40, 40), (400, 12)])
def test_small_episodes_give_none(model: RelationalLander, tmp_path: Path, rows: int, k: int) -> None:
    assert len(pair_examples(model, episode(tmp_path, rows, k), 0)["same_E"]) == 0


@pytest.mark.parametrize("change", [{"group": 3.0}, {"strangers": 0.5}, {"parts": 3.0}])
def test_classes_that_were_moved_or_divided_and_strangers_give_none(
    model: RelationalLander, tmp_path: Path, change: dict[str, float]
) -> None:
    assert len(pair_examples(model, episode(tmp_path, 400, 40, **change), 0)["same_E"]) == 0


def test_the_head_learns_a_rule() -> None:
    rng = np.random.default_rng(0)
    inputs_EF = rng.normal(size=(4000, PAIR_INPUTS)).astype(np.float32) * 5 + 3
    same_E = inputs_EF[:, 0] > inputs_EF[:, 1]
    examples = {"inputs_EF": inputs_EF, "same_E": same_E, "weight_E": np.ones(4000, np.float32)}
    head = fit_head([examples], pair_head(), 0)
    with torch.inference_mode():
        found_E = head(torch.from_numpy(inputs_EF)).numpy() > 0
    assert (found_E == same_E).mean() > 0.95
    untrained = fit_head([{name: column[:5] for name, column in examples.items()}], pair_head(), 0)
    with torch.inference_mode():
        assert (untrained(torch.from_numpy(inputs_EF)) < -10).all()


def test_the_best_tau_has_good_neighbours() -> None:
    f_T2 = np.full((len(TAUS), 2), 0.5)
    assert best_tau(f_T2) == len(TAUS) // 2
    f_T2[1:3] = 0.51  # Within the noise.
    assert best_tau(f_T2) == len(TAUS) // 2
    f_T2[1] = 0.9  # A single peak of .9 counts less than three of .8.
    f_T2[5:8] = 0.8
    assert best_tau(f_T2) == 6


def test_a_sweep_repeats_the_clustering_alone(model: RelationalLander, tmp_path: Path) -> None:
    f_T2 = sweep_taus(model, episode(tmp_path, 400, 40))
    assert f_T2.shape == (len(TAUS), 2)
    assert ((f_T2 >= 0) & (f_T2 <= 1)).all()
