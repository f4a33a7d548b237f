"""Training by one worker that is killed and goes on, and how a failed training ends; workers of Ray are in tests/integration."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from hilander_dist.config import RawModel, RawTrain, RelationalModel, RelationalTrain
from hilander_dist.errors import ClusterError, ConfigError
from hilander_dist.lander.inference import Inference
from hilander_dist.lander.relational import RelationalLander
from hilander_dist.training import episode_course
from hilander_dist.training import loop as training
from hilander_dist.training.episode_course import EpisodeCourse
from hilander_dist.training.episodes import Block
from hilander_dist.training.level_course import LevelCourse
from hilander_dist.training.level_graphs import LevelGraph
from tests.unit.training.alone import KilledError, train_alone
from tests.unit.training.made_episodes import write_episodes
from tests.unit.training.made_graphs import load_two_levels

RAW = RawModel(hidden=16)


def load_nothing(uris: list[str]) -> list[LevelGraph]:
    raise AssertionError("nothing is to be trained")


def always_half(model: RelationalLander, episode: Block) -> tuple[float, float]:
    return 0.5, 0.5


def raw_course(**changed: Any) -> LevelCourse:
    train = RawTrain(epochs=6, batch_size=64, lr=0.05).model_copy(update=changed)
    return LevelCourse(load_two_levels, [], 8, RAW, train, 5)


def relational_course(folder: Path) -> EpisodeCourse:
    """Of two sets: with the mean of the weights from the middle on, of which the fourth epoch's is the first to be kept as the best."""
    uris = write_episodes(folder)
    model, train = RelationalModel(hidden=8), RelationalTrain(epochs=5)
    sets = (tuple(uris[:2]), tuple(uris[2:4])), ((uris[4],), (uris[0],))
    return EpisodeCourse(*sets, model, train, 7, Inference(), always_half)


@pytest.mark.parametrize("features", ["raw", "relational"])
def test_a_training_killed_after_every_epoch_ends_in_the_same_bytes(
    features: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(episode_course, "STEPS_OF_SEVERAL", 12)
    course = raw_course() if features == "raw" else relational_course(tmp_path)
    undisturbed = train_alone(course, tmp_path / "undisturbed")
    assert len(undisturbed.history) == course.train.epochs
    for _ in range(course.train.epochs - 1):
        with pytest.raises(KilledError):
            train_alone(course, tmp_path / "killed", reports=1)
    assert train_alone(course, tmp_path / "killed") == undisturbed


def test_a_finished_training_loads_nothing(tmp_path: Path) -> None:
    finished = train_alone(raw_course(), tmp_path)
    again = LevelCourse(load_nothing, [], 8, RAW, raw_course().train, 5)
    assert train_alone(again, tmp_path) == finished


def test_a_training_stops_where_nothing_becomes_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(episode_course, "STEPS_OF_SEVERAL", 2)
    course = relational_course(tmp_path)
    impatient = replace(course, train=RelationalTrain(epochs=12, patience=1))
    # The last quarter begins with the tenth, which is the first that can be the best.
    assert len(train_alone(impatient, tmp_path / "run").history) == 11


def test_a_loss_that_explodes_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lower train\.lr"):
        train_alone(raw_course(lr=1e20), tmp_path)


def fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception) -> None:
    """Call ``training.fit`` with a trainer that fails with ``error``."""

    class FailingTrainer:
        def __init__(self, *args: Any, **options: Any) -> None:
            pass

        def fit(self) -> None:
            raise error

    monkeypatch.setattr(training, "TorchTrainer", FailingTrainer)
    monkeypatch.setattr(ray, "nodes", list)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 1.0})
    training.fit(LevelCourse(load_nothing, [], 8, RawModel(), RawTrain(), 0), str(tmp_path), "run")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            WorkerGroupError("failed", {0: UserExceptionWithTraceback(ValueError("x"), "Traceback\nValueError: x\n")}),
            "ValueError: x",
        ),
        (ControllerError(RuntimeError("no placement group")), "no placement group"),
    ],
)
def test_failures_are_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, reason: str) -> None:
    with pytest.raises(ClusterError) as caught:
        fit(monkeypatch, tmp_path, error)
    assert str(caught.value) == f"training run failed: {reason}; run it again to go on from its last checkpoint"


def test_too_few_gpus_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ray, "nodes", list)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 1.0})
    config = RawTrain(num_workers=2, use_gpu=True)
    with pytest.raises(ClusterError, match=r"train\.num_workers=2: the cluster has 1 GPUs"):
        training.fit(LevelCourse(load_nothing, [], 8, RawModel(), config, 0), str(tmp_path), "run")


def test_the_mean_of_the_weights_is_used_once_it_has_begun() -> None:
    state = training._State(LevelCourse(load_nothing, [], 8, RawModel(), RawTrain(), 0), torch.device("cpu"))
    assert state.in_use() is state.lander
    weights = next(state.lander.parameters())
    for value in (1.0, 2.0, 6.0):
        with torch.no_grad():
            weights.fill_(value)
        state.mean.update_parameters(state.lander)
    assert (next(state.in_use().parameters()) == 3).all()
    assert (weights == 6).all()
