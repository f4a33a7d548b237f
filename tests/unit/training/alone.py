"""Training by one worker in this process, without Ray, which can be killed after any of its checkpoints."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.train
import torch
from ray.train import Checkpoint

from hilander_dist.training import loop as training
from hilander_dist.training.loop import Course, TrainedModel


class KilledError(Exception):
    """The process would be gone."""


def train_alone(course: Course, folder: Path, reports: int | None = None) -> TrainedModel:
    """Train as ``training.fit`` does with one worker, with a checkpoint after every epoch.

    Args:
        course: what to train.
        folder: for the checkpoints; training goes on from the last one there.
        reports: that many checkpoints more, then it is killed; default: until it is done.

    Raises:
        KilledError: it was.
        UserError: as raised in a worker.
    """
    folder.mkdir(exist_ok=True)
    begun = len(list(folder.iterdir()))

    def report(metrics: dict[str, Any], checkpoint: Checkpoint) -> None:
        number = len(list(folder.iterdir()))
        shutil.copytree(checkpoint.path, folder / str(number))
        (folder / str(number) / "metrics.json").write_text(json.dumps(metrics))
        if number + 1 - begun == reports:
            raise KilledError

    def last() -> Checkpoint | None:
        count = len(list(folder.iterdir()))
        return Checkpoint.from_directory(folder / str(count - 1)) if count else None

    with pytest.MonkeyPatch.context() as patch, _one_process():
        patch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_assigned_resources=lambda: {"CPU": 1.0}))
        place = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
        patch.setattr(ray.train, "get_context", lambda: place)
        patch.setattr(ray.train, "get_checkpoint", last)
        patch.setattr(ray.train, "report", report)
        patch.setattr(training, "get_device", lambda: torch.device("cpu"))
        patch.setattr(training, "prepare_model", lambda model: model)
        patch.setattr(training, "REPORT_EVERY_S", 0.0)
        training._train(course)
    checkpoint = last()
    assert checkpoint is not None
    metrics = json.loads(Path(checkpoint.path, "metrics.json").read_text())
    name = training.BEST_FILE if "pairwise_f" in metrics else training.MODEL_FILE
    return TrainedModel(Path(checkpoint.path, name).read_bytes(), metrics["history"])


@contextmanager
def _one_process() -> Iterator[None]:
    """A process group of this process only."""
    threads = torch.get_num_threads()
    with TemporaryDirectory() as folder:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=0, world_size=1)
        try:
            yield
        finally:
            torch.distributed.destroy_process_group()
            torch.set_num_threads(threads)
