"""How a failed training ends; training itself is in tests/integration/test_training.py."""

from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from hilander_dist.config import ModelConfig, TrainConfig
from hilander_dist.errors import ClusterError
from hilander_dist.lander import training
from hilander_dist.lander.level_course import LevelCourse
from hilander_dist.lander.level_graphs import LevelGraph


def load_nothing(uris: list[str]) -> list[LevelGraph]:
    return []


def fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception) -> None:
    """Call ``training.fit`` with a trainer that fails with ``error``."""

    class FailingTrainer:
        def __init__(self, *args: Any, **options: Any) -> None:
            pass

        def fit(self) -> None:
            raise error

    monkeypatch.setattr(training, "TorchTrainer", FailingTrainer)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 1.0})
    training.fit(LevelCourse(load_nothing, [], 8, ModelConfig(), TrainConfig(), 0), str(tmp_path), "run")


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
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 1.0})
    config = TrainConfig(num_workers=2, use_gpu=True)
    with pytest.raises(ClusterError, match=r"train\.num_workers=2: the cluster has 1 GPUs"):
        training.fit(LevelCourse(load_nothing, [], 8, ModelConfig(), config, 0), str(tmp_path), "run")


def test_the_mean_of_the_weights_is_used_once_it_has_begun() -> None:
    state = training._State(LevelCourse(load_nothing, [], 8, ModelConfig(), TrainConfig(), 0), torch.device("cpu"))
    assert state.in_use() is state.lander
    weights = next(state.lander.parameters())
    for value in (1.0, 2.0, 6.0):
        with torch.no_grad():
            weights.fill_(value)
        state.mean.update_parameters(state.lander)
    assert (next(state.in_use().parameters()) == 3).all()
    assert (weights == 6).all()
