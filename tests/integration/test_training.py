"""Meta-training on a real local Ray: one worker, two workers, two workers of which one dies, and mistakes."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from hilander_dist.config import ModelConfig, TrainConfig
from hilander_dist.errors import ClusterError, ConfigError, InputError
from hilander_dist.lander import training
from hilander_dist.lander.checkpoint import load_checkpoint
from hilander_dist.lander.level_course import LevelCourse
from hilander_dist.lander.level_graphs import LevelGraph, ground_truth_density

# Ray Train imports Ray Data, whose defaults trip over their own deprecations.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*")

MODEL = ModelConfig(hidden=16)
TRAIN = TrainConfig(epochs=6, batch_size=64, lr=0.05)


def course(load: Callable[[list[str]], list[LevelGraph]], *uris: str, **changed: Any) -> LevelCourse:
    return LevelCourse(load, list(uris), 8, MODEL, TRAIN.model_copy(update=changed), 5)


def make_graph(nodes: int, seed: int) -> LevelGraph:
    """Points around 10 centres, with their exact 5 nearest neighbours."""
    rng = np.random.default_rng(seed)
    label_N = np.sort(rng.integers(0, 10, nodes))
    x_ND = rng.normal(size=(10, 8))[label_N] + 0.8 * rng.normal(size=(nodes, 8))
    x_ND = (x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)).astype(np.float32)
    sim_NN = x_ND @ x_ND.T
    np.fill_diagonal(sim_NN, -np.inf)
    nbr_NK = np.argsort(-sim_NN, axis=1)[:, :5]
    sim_NK = np.take_along_axis(sim_NN, nbr_NK, axis=1)
    nbr_NK, sim_NK = np.where(sim_NK > 0, nbr_NK, -1), np.maximum(sim_NK, 0)
    gt_density_N = ground_truth_density(nbr_NK, sim_NK, label_N, label_N[nbr_NK])
    return LevelGraph(x_ND, x_ND, nbr_NK, sim_NK, label_N, gt_density_N)


def load_graphs(uris: list[str]) -> list[LevelGraph]:
    """Two levels. The second has 129 nodes: with two workers, its last batch of one node leaves one of them empty-handed."""
    return [make_graph(300, 0), make_graph(129, 1)]


def load_graphs_then_die(uris: list[str]) -> list[LevelGraph]:
    """As load_graphs, but one process ends itself once a checkpoint is registered; the folder is the first URI."""
    training.REPORT_EVERY_S = 0.0
    snapshot, died = Path(uris[0], "run", "checkpoint_manager_snapshot.json"), Path(uris[0], "died")

    def die_once() -> None:
        while not (snapshot.exists() and "checkpoint_2" in snapshot.read_text()):
            time.sleep(0.005)
        try:
            died.touch(exist_ok=False)
        except FileExistsError:
            return
        os._exit(1)

    if died.exists():
        assert ray.train.get_checkpoint() is not None
    else:
        threading.Thread(target=die_once, daemon=True).start()
    return load_graphs(uris)


def load_on_the_first_only(uris: list[str]) -> list[LevelGraph]:
    rank = ray.train.get_context().get_world_rank()
    if rank > 0:
        raise InputError(f"{uris[0]}: no such level graph, worker {rank}")
    return load_graphs(uris)


@pytest.mark.usefixtures("local_ray")
class TestFit:
    @pytest.mark.timeout(900)
    def test_one_worker_as_many_as_there_is_room_for_and_a_death_give_one_curve(self, tmp_path: Path) -> None:
        alone = training.fit(course(load_graphs), str(tmp_path / "one"), "run")
        # Two of the three that it asks for.
        pair = training.fit(course(load_graphs, num_workers=3, min_workers=1), str(tmp_path / "two"), "run")
        folder = tmp_path / "three"
        mended = training.fit(course(load_graphs_then_die, str(folder), num_workers=2), str(folder), "run")

        assert (folder / "died").exists()  # and load_graphs_then_die asserts that there was a checkpoint to go on from
        assert mended == pair
        assert len(alone.loss_E) == TRAIN.epochs
        assert alone.loss_E[-1] < alone.loss_E[0]
        np.testing.assert_allclose(pair.loss_E, alone.loss_E, atol=1e-5)
        one, other = (load_checkpoint(found.checkpoint, "test", MODEL).state_dict() for found in (alone, pair))
        for key, value in one.items():
            np.testing.assert_allclose(value, other[key], atol=1e-5)

        again = training.fit(course(load_on_the_first_only, str(folder), num_workers=2), str(folder), "run")
        assert again == mended

    def test_a_mistake_seen_by_one_worker_ends_the_training_of_all(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"^a: no such level graph, worker 1$"):
            training.fit(course(load_on_the_first_only, "a", num_workers=2), str(tmp_path), "run")

    def test_a_loss_that_explodes(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"lower train\.lr"):
            training.fit(course(load_graphs, lr=1e20), str(tmp_path), "run")

    def test_too_few_cpus_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ClusterError, match=r"train\.num_workers=3: the cluster has 2 CPUs"):
            training.fit(course(load_graphs, num_workers=3), str(tmp_path), "run")
