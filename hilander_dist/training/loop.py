"""Meta-training with Ray Train (algorithm.md 2.3 to 2.5): DDP, checkpoints, validation, early stopping.

What is trained, and on what, is a course: level graphs for a raw model (``level_course``), or episodes for a relational
one (``episode_course``). The state is the weights, their mean over the later steps where the course asks for one, the best
epoch's, the optimizer's, and the numbers of the finished epochs. All else is a function of the seed and the step, so a training
that is cut off goes on from its last checkpoint to the bytes that it would have reached; with another number of workers, up to
the order in which they add.

A report makes all workers wait until Ray Train's controller has polled them, 2 s by default: an epoch of a small set
takes less. So workers report, with a checkpoint, once 30 s have passed, and after the last epoch.
"""

import io
import json
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import ray
import ray.train
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer, get_device, prepare_model
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from hilander_dist.config import TrainConfig, WorkerOptions
from hilander_dist.errors import ClusterError, ConfigError, UserError
from hilander_dist.lander.checkpoint import AnyLander, load_checkpoint, save_checkpoint
from hilander_dist.versions import check_version, job_version
from hilander_dist.waiting import wait_for

MODEL_FILE = "model.safetensors"
BEST_FILE = "best.safetensors"
STATE_FILE = "state.pt"
REPORT_EVERY_S = 30.0

Epoch = dict[str, float]
"""epoch, loss (mean of its steps), and pairwise_f and bcubed_f where the course validates."""


class Lessons(Protocol):
    """A course with its data at hand, in a worker."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps."""

    def loss_share(self, model: nn.Module, step: int, rank: int, workers: int, device: torch.device) -> Tensor:
        """This worker's part of a step's loss; the parts of all workers add up to it. ``model`` may be wrapped by DDP."""

    def validate(self, model: nn.Module, rank: int, workers: int) -> tuple[Tensor, int]:
        """Sums of pairwise and BCubed F (2, float64) over this worker's held-out sets, and the number of all; 0 for none."""


class Course(Protocol):
    """What is trained, and on what; small and picklable."""

    @property
    def train(self) -> TrainConfig:
        """Epochs, learning rate and workers."""

    @property
    def seed(self) -> int:
        """Of the run."""

    def new_model(self) -> AnyLander:
        """The untrained model, drawn from the seed."""

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """A new optimizer of its parameters."""

    @property
    def patience(self) -> int | None:
        """Epochs without a better one after which training stops; None for never."""

    @property
    def averaged_from(self) -> float:
        """Share of the steps after which the mean of the weights so far takes their place in use; 1 for never."""

    def learning_rate(self, step: int, steps: int) -> float:
        """Of a step."""

    def open(self) -> Lessons:
        """Load what is needed; may raise UserError."""


@dataclass(frozen=True)
class TrainedModel:
    """What training leaves."""

    checkpoint: bytes
    """For ``load_checkpoint``: of the best epoch of the last quarter where the course validates, else of the last one."""

    history: list[Epoch]


def fit(course: Course, storage_path: str, run_name: str, wait_s: float = 0) -> TrainedModel:
    """Train, on a Ray that is initialised.

    Called again with equal arguments, it goes on from the last checkpoint below ``storage_path``/``run_name``, or
    returns the finished model. Up to 3 failures of workers are mended that way within a call.

    Args:
        course: what to train.
        storage_path: absolute path or s3:// URI for the checkpoints.
        run_name: name of this training below it; one for each set of arguments.
        wait_s: how long to wait for the workers' nodes, in seconds.

    Raises:
        ClusterError: the cluster lacks the workers' CPUs or GPUs, or workers failed more than 3 times.
        ConfigError: the loss is no longer finite.
        UserError: whatever ``course.open`` raises of that kind.
    """
    config = course.train
    check_resources(config, wait_s)
    workers = (config.min_workers, config.num_workers) if config.min_workers else config.num_workers
    trainer = TorchTrainer(
        _train_worker,  # type: ignore[arg-type]  # Train v2 passes its value on; the types are those of v1.
        train_loop_config={"course": course, "version": job_version()},
        scaling_config=ScalingConfig(
            num_workers=workers,  # type: ignore[arg-type]  # The types are those of v1, without elasticity.
            use_gpu=config.use_gpu,
        ),
        run_config=RunConfig(
            name=run_name,
            storage_path=storage_path,
            failure_config=FailureConfig(max_failures=3),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    try:
        result = trainer.fit()
    except TrainingFailedError as error:
        failures = list(getattr(error, "worker_failures", {}).values())
        reason = str(failures[0] if failures else error).strip().splitlines()[-1]
        raise ClusterError(
            f"training {run_name} failed: {reason}; run it again to go on from its last checkpoint"
        ) from error
    mistake: UserError | None = cast("Any", result).return_value
    if mistake is not None:
        raise mistake
    assert result.checkpoint is not None
    assert result.metrics is not None
    file_name = BEST_FILE if "pairwise_f" in result.metrics else MODEL_FILE
    with result.checkpoint.filesystem.open_input_stream(f"{result.checkpoint.path}/{file_name}") as file:
        return TrainedModel(checkpoint=file.readall(), history=result.metrics["history"])


def _train_worker(config: dict[str, Any]) -> UserError | None:
    """What each worker runs. It returns what only the user can mend: if it were raised, Ray would try thrice more."""
    check_version(config["version"])
    try:
        _train(config["course"])
    except UserError as mistake:
        return mistake
    return None


class _State:
    """What a checkpoint holds."""

    def __init__(self, course: Course, device: torch.device) -> None:
        self.lander = course.new_model().to(device)
        self.mean = AveragedModel(self.lander)
        self.optimizer = course.optimizer(self.lander)
        self.history: list[Epoch] = []
        self.best: bytes | None = None
        self.best_epoch = 0

    def restore(self) -> None:
        """Put the last checkpoint in place, if there is one."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return
        with checkpoint.as_directory() as folder:
            saved = load_checkpoint(Path(folder, MODEL_FILE).read_bytes(), MODEL_FILE, self.lander.config)
            state = torch.load(io.BytesIO(Path(folder, STATE_FILE).read_bytes()), map_location="cpu", weights_only=True)
            if Path(folder, BEST_FILE).exists():
                self.best = Path(folder, BEST_FILE).read_bytes()
        self.lander.load_state_dict(saved.state_dict())
        self.mean.load_state_dict(state["mean"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history, self.best_epoch = state["history"], state["best_epoch"]

    def in_use(self) -> AnyLander:
        """The network as it would be used: the mean of its weights once that has begun."""
        return cast("AnyLander", self.mean.module) if self.mean.n_averaged > 0 else self.lander

    def report(self, first: bool) -> None:
        """Report to Ray Train; the first worker brings the checkpoint."""
        metrics = {**self.history[-1], "history": self.history}
        if not first:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, MODEL_FILE).write_bytes(save_checkpoint(self.lander, {}))
            if self.best is not None:
                Path(folder, BEST_FILE).write_bytes(self.best)
            state = {
                "optimizer": self.optimizer.state_dict(),
                "mean": self.mean.state_dict(),
                "history": self.history,
                "best_epoch": self.best_epoch,
            }
            torch.save(state, Path(folder, STATE_FILE))
            ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))


def _train(course: Course) -> None:
    """Train on this worker's parts of the steps. A UserError is raised on all workers, or on none."""
    resources = ray.get_runtime_context().get_assigned_resources()  # type: ignore[no-untyped-call]
    torch.set_num_threads(max(1, int(resources.get("CPU", 1))))
    context, device = ray.train.get_context(), get_device()
    rank, workers = context.get_world_rank(), context.get_world_size()
    state = _State(course, device)
    state.restore()
    epochs = course.train.epochs
    if _finished(course, state):
        return
    lessons = _open(course, workers)
    model = prepare_model(state.lander)
    steps_per_epoch = lessons.steps_per_epoch
    steps = epochs * steps_per_epoch
    reported = time.monotonic()
    while not _finished(course, state):
        epoch = len(state.history)
        # Four sums over all workers: of the losses, of "it is time to report", which only the first one says, of both F.
        sums_4 = torch.zeros(4, dtype=torch.float64, device=device)
        for step in range(epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch):
            for group in state.optimizer.param_groups:
                group["lr"] = course.learning_rate(step, steps)
            loss = lessons.loss_share(model, step, rank, workers, device)
            state.optimizer.zero_grad()
            # DDP takes the mean of the workers' gradients; the step's gradient is their sum.
            (loss * workers).backward()
            state.optimizer.step()
            if step >= course.averaged_from * steps:
                state.mean.update_parameters(state.lander)
            sums_4[0] += loss.detach()
        if rank == 0 and time.monotonic() - reported > REPORT_EVERY_S:
            sums_4[1] = 1
        f_2, sets = lessons.validate(state.in_use(), rank, workers)
        sums_4[2:] = f_2.to(device)
        torch.distributed.all_reduce(sums_4)
        numbers = {"epoch": epoch + 1, "loss": float(sums_4[0]) / steps_per_epoch}
        if not math.isfinite(numbers["loss"]):
            raise ConfigError(
                f"the training loss became {numbers['loss']} in epoch {epoch + 1}: lower train.lr ({course.train.lr})"
            )
        if sets:
            numbers |= {"pairwise_f": float(sums_4[2]) / sets, "bcubed_f": float(sums_4[3]) / sets}
        state.history.append(numbers)
        # While the learning rate is high, weights may score well on held-out classes by chance: only the last quarter of the
        # epochs may be chosen (LOG 2026-11-25, best-epoch).
        chosen = sets and 4 * (epoch + 1) > 3 * epochs
        if chosen and (state.best is None or _goodness(numbers) > _goodness(state.history[state.best_epoch])):
            metadata = {"train": json.dumps(course.train.model_dump(mode="json")), "seed": str(course.seed)}
            state.best_epoch = epoch
            state.best = save_checkpoint(state.in_use(), {**metadata, "epoch": str(epoch + 1)})
        if sums_4[1] > 0 or _finished(course, state):
            state.report(first=rank == 0)
            reported = time.monotonic()


def _goodness(epoch: Epoch) -> float:
    return epoch["pairwise_f"] + epoch["bcubed_f"]


def _finished(course: Course, state: _State) -> bool:
    """After the last epoch, and where nothing has become better for the course's patience."""
    done = len(state.history)
    waited = done - 1 - state.best_epoch if state.best is not None else 0
    return done >= course.train.epochs or (course.patience is not None and waited >= course.patience)


def _open(course: Course, workers: int) -> Lessons:
    """The lessons. Where any worker fails to load them, all raise its error: none may wait for one that has left."""
    lessons, mistake = None, None
    try:
        lessons = course.open()
    except UserError as error:
        mistake = error
    mistakes: list[UserError | None] = [None] * workers
    torch.distributed.all_gather_object(mistakes, mistake)
    for one in mistakes:
        if one is not None:
            raise one
    assert lessons is not None
    return lessons


def check_resources(config: WorkerOptions, wait_s: float) -> None:
    """Refuse a training that asks for more workers than the cluster has places: it would wait for ever.

    Args:
        config: how many, and of which kind.
        wait_s: how long to wait for nodes, in seconds.

    Raises:
        ClusterError: it names both numbers.
    """
    kind = "GPU" if config.use_gpu else "CPU"
    name, needed = ("min_workers", config.min_workers) if config.min_workers else ("num_workers", config.num_workers)
    wait_for({kind: 1}, wait_s, needed)
    there = int(ray.cluster_resources().get(kind, 0))  # type: ignore[no-untyped-call]
    if there < needed:
        raise ClusterError(f"train.{name}={needed}: the cluster has {there} {kind}s; lower it, or add nodes")
