"""Meta-training on a real local Ray: two workers, and mistakes. One that dies is in test_relational.py."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from hilander_dist.config import RawModel, RawTrain
from hilander_dist.errors import ClusterError, InputError
from hilander_dist.lander.checkpoint import load_checkpoint
from hilander_dist.training import loop as training
from hilander_dist.training.level_course import LevelCourse
from hilander_dist.training.level_graphs import LevelGraph
from tests.unit.training.alone import train_alone
from tests.unit.training.made_graphs import load_two_levels

# Ray Train imports Ray Data, whose defaults trip over their own deprecations.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*")

MODEL = RawModel(hidden=16)
TRAIN = RawTrain(epochs=6, batch_size=64, lr=0.05)


def course(load: Callable[[list[str]], list[LevelGraph]], *uris: str, **changed: Any) -> LevelCourse:
    return LevelCourse(load, list(uris), 8, MODEL, TRAIN.model_copy(update=changed), 5)


def load_on_the_first_only(uris: list[str]) -> list[LevelGraph]:
    rank = ray.train.get_context().get_world_rank()
    if rank > 0:
        raise InputError(f"{uris[0]}: no such level graph, worker {rank}")
    return load_two_levels(uris)


@pytest.mark.usefixtures("local_ray")
class TestFit:
    def test_as_many_workers_as_there_is_room_for_give_the_curve_of_one(self, tmp_path: Path) -> None:
        alone = train_alone(course(load_two_levels), tmp_path / "one")
        # Two of the three that it asks for.
        pair = training.fit(course(load_two_levels, num_workers=3, min_workers=1), str(tmp_path / "two"), "run")

        loss_E, pair_loss_E = ([epoch["loss"] for epoch in found.history] for found in (alone, pair))
        assert len(loss_E) == TRAIN.epochs
        assert loss_E[-1] < loss_E[0]
        np.testing.assert_allclose(pair_loss_E, loss_E, atol=1e-5)
        one, other = (load_checkpoint(found.checkpoint, "test", MODEL).state_dict() for found in (alone, pair))
        for key, value in one.items():
            np.testing.assert_allclose(value, other[key], atol=1e-5)

    def test_a_mistake_seen_by_one_worker_ends_the_training_of_all(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"^a: no such level graph, worker 1$"):
            training.fit(course(load_on_the_first_only, "a", num_workers=2), str(tmp_path), "run")

    def test_too_few_cpus_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ClusterError, match=r"train\.num_workers=3: the cluster has 2 CPUs"):
            training.fit(course(load_two_levels, num_workers=3), str(tmp_path), "run")
