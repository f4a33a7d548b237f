"""The head of pairs learns from clusters of episodes; calibration picks what they say."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hilander_dist.config import Calibration, ModelConfig
from hilander_dist.lander.episodes import Plan, build_episode
from hilander_dist.lander.relational import PAIR_INPUTS, CarefulHead, RelationalLander, pair_head
from hilander_dist.pipeline.calibration import TAUS, best_tau, sweep_taus
from hilander_dist.pipeline.head_training import fit_careful
from hilander_dist.pipeline.pair_training import pair_examples
from hilander_dist.pipeline.tune import choose_tau
from hilander_dist.storage import Storage
from hilander_dist.tasks import Block
from tests.local_tasks import LocalTasks, put
from tests.points import clustered


@pytest.fixture
def model() -> RelationalLander:
    torch.manual_seed(0)
    model = RelationalLander(ModelConfig(features="relational", hidden=8))
    model.calibration = Calibration(forest_tau=0.6)
    with torch.no_grad():
        model.head.weight *= 20
    return model


def episode(where: Path, rows: int, k: int, group: float = 0.0, strangers: float = 0.0) -> str:
    x_ND, label_N = clustered(0, rows, 12, 12)
    plan = Plan(0, k, np.zeros(0, int), np.zeros(0), 0.0, 1.0, group, strangers=strangers)
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


@pytest.mark.parametrize("change", [{"group": 3.0}, {"strangers": 0.5}])
def test_classes_that_were_moved_and_strangers_give_none(
    model: RelationalLander, tmp_path: Path, change: dict[str, float]
) -> None:
    assert len(pair_examples(model, episode(tmp_path, 400, 40, **change), 0)["same_E"]) == 0


def by_rule(seed: int, left: int, right: int) -> Block:
    """Examples that are of one class where one number is above another."""
    inputs_EF = np.random.default_rng(seed).normal(size=(4000, PAIR_INPUTS)).astype(np.float32) * 5 + 3
    same_E = inputs_EF[:, left] > inputs_EF[:, right]
    return {"inputs_EF": inputs_EF, "same_E": same_E, "weight_E": np.ones(4000, np.float32)}


def joined(head: CarefulHead, inputs_EF: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return np.asarray(head(torch.from_numpy(inputs_EF)).numpy() > 0)


def test_the_head_of_one_set_learns_its_rule() -> None:
    examples = by_rule(0, 0, 1)
    head = fit_careful(LocalTasks(), "pairs", [[put(examples)]], pair_head, 0)
    assert (joined(head, examples["inputs_EF"]) == examples["same_E"]).mean() > 0.95
    few = {name: column[:5] for name, column in examples.items()}
    untrained = fit_careful(LocalTasks(), "pairs", [[put(few)]], pair_head, 0)
    assert not joined(untrained, examples["inputs_EF"]).any()


def test_the_head_of_several_sets_joins_what_the_others_of_each_would() -> None:
    sets = [by_rule(0, 0, 1), by_rule(1, 2, 3), by_rule(2, 0, 1)]
    tasks = LocalTasks()
    head = fit_careful(tasks, "pairs", [[put(examples)] for examples in sets], pair_head, 0)
    assert len(head.members) == 3
    # The second set's rule is unknown to one member, the others' is known to all.
    inputs_EF = by_rule(3, 0, 1)["inputs_EF"]
    known_E, found_E = inputs_EF[:, 0] > inputs_EF[:, 1], joined(head, inputs_EF)
    assert (found_E & ~known_E).sum() < 0.05 * known_E.sum()
    alone = fit_careful(tasks, "pairs", [[put(sets[0])], [put(sets[2])]], pair_head, 0)
    assert (joined(alone, inputs_EF) == known_E).mean() > 0.95


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


def test_tuning_picks_the_tau_of_the_labels_and_tells_what_to_expect() -> None:
    class_M = np.repeat(np.arange(20), 10)
    found_TM = np.stack([np.arange(200) for _ in TAUS])
    for at in (5, 6, 7):
        found_TM[at] = class_M
    tuning = choose_tau(found_TM, class_M)
    assert tuning["tau"] == TAUS[6]
    assert tuning["expected_pairwise_f"] == 1.0
    assert tuning["by_tau"][0]["pairwise_f"] == 0.0
