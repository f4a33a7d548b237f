"""Meta-training of LANDER with Ray Train (algorithm.md 2.3 to 2.5): DDP over the nodes of each batch.

The state is the weights, the momentum and the losses of the finished epochs. All else is a function of the seed and the
step, so a training that is cut off goes on from its last checkpoint to the bytes that it would have reached.

A report makes all workers wait until Ray Train's controller has polled them, 2 s by default: an epoch of a small set
takes less. So workers report, with a checkpoint, once 30 s have passed, and after the last epoch.
"""

import io
import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ray
import ray.train
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer, get_device, prepare_model

from hilander_dist.config import ModelConfig, TrainConfig
from hilander_dist.errors import ClusterError, ConfigError, UserError
from hilander_dist.lander.batches import Batch, learning_rate, make_batch, target_batches
from hilander_dist.lander.checkpoint import load_checkpoint, save_checkpoint
from hilander_dist.lander.level_graphs import LevelGraph
from hilander_dist.lander.losses import lander_loss
from hilander_dist.lander.model import Lander

MODEL_FILE = "model.safetensors"
STATE_FILE = "state.pt"
REPORT_EVERY_S = 30.0


@dataclass(frozen=True)
class TrainedModel:
    """What training leaves."""

    checkpoint: bytes
    """For ``load_checkpoint``."""

    loss_E: list[float]
    """Mean loss of each epoch's steps."""


@dataclass(frozen=True)
class _Job:
    load: Callable[[list[str]], list[LevelGraph]]
    uris: list[str]
    dim: int
    model: ModelConfig
    train: TrainConfig
    seed: int


def fit(
    load: Callable[[list[str]], list[LevelGraph]],
    uris: list[str],
    dim: int,
    model_config: ModelConfig,
    train_config: TrainConfig,
    seed: int,
    storage_path: str,
    run_name: str,
) -> TrainedModel:
    """Train on all level graphs, on a Ray that is initialised.

    Called again with equal arguments, it goes on from the last checkpoint below ``storage_path``/``run_name``, or
    returns the finished model. Up to 3 failures of workers are mended that way within a call.

    Args:
        load: module-level function that each worker calls with ``uris`` and that gives the level graphs, the level 0 of
            the first hierarchy first (it sets an epoch's length).
        uris: of the level graphs, absolute: workers run in other directories.
        dim: of the embeddings.
        model_config: the shape of the network.
        train_config: number and kind of workers, epochs, batch size, optimiser.
        seed: of the initial weights, the batches and the balancing.
        storage_path: absolute path or s3:// URI for the checkpoints.
        run_name: name of this training below it; one for each set of arguments.

    Raises:
        ClusterError: the cluster lacks the workers' CPUs or GPUs, or workers failed more than 3 times.
        ConfigError: the loss is no longer finite.
        UserError: whatever ``load`` raises of that kind.
    """
    check_resources(train_config)
    trainer = TorchTrainer(
        _train_worker,  # type: ignore[arg-type]  # Train v2 passes its value on; the types are those of v1.
        train_loop_config={"job": _Job(load, uris, dim, model_config, train_config, seed)},
        scaling_config=ScalingConfig(num_workers=train_config.num_workers, use_gpu=train_config.use_gpu),
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
    with result.checkpoint.filesystem.open_input_stream(f"{result.checkpoint.path}/{MODEL_FILE}") as file:
        return TrainedModel(checkpoint=file.readall(), loss_E=result.metrics["loss_E"])


def _train_worker(config: dict[str, Any]) -> UserError | None:
    """What each worker runs. It returns what only the user can mend: if it were raised, Ray would try thrice more."""
    try:
        _train(config["job"])
    except UserError as mistake:
        return mistake
    return None


def _train(job: _Job) -> None:
    """Train on this worker's parts of the batches. A UserError is raised on all workers, or on none."""
    resources = ray.get_runtime_context().get_assigned_resources()  # type: ignore[no-untyped-call]
    torch.set_num_threads(max(1, int(resources.get("CPU", 1))))
    context, device = ray.train.get_context(), get_device()
    rank, workers = context.get_world_rank(), context.get_world_size()
    torch.manual_seed(job.seed)
    lander = Lander(job.dim, job.model).to(device)
    optimizer = torch.optim.SGD(
        lander.parameters(), lr=job.train.lr, momentum=job.train.momentum, weight_decay=job.train.weight_decay
    )
    loss_E = _restore(lander, optimizer)
    if len(loss_E) == job.train.epochs:
        return
    graphs = _load(job, workers)
    rounds = math.ceil(len(graphs[0].label_N) / job.train.batch_size)
    steps = job.train.epochs * rounds * len(graphs)
    model = prepare_model(lander)
    streams = [
        target_batches(len(graph.label_N), job.train.batch_size, job.seed, number, len(loss_E) * rounds)
        for number, graph in enumerate(graphs)
    ]
    step, reported = len(loss_E) * rounds * len(graphs), time.monotonic()
    for epoch in range(len(loss_E), job.train.epochs):
        # Two sums over all workers: of the losses, and of "it is time to report", which only the first one says.
        sums_2 = torch.zeros(2, dtype=torch.float64, device=device)
        for _ in range(rounds):
            for graph, stream in zip(graphs, streams, strict=True):
                batch = make_batch(
                    graph, next(stream), job.model.num_conv, job.train, job.seed, step, rank, workers, device
                )
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(step, steps, job.train.lr)
                loss = _loss_share(model, batch)
                optimizer.zero_grad()
                # DDP takes the mean of the workers' gradients; the batch's gradient is their sum.
                (loss * workers).backward()
                optimizer.step()
                sums_2[0] += loss.detach()
                step += 1
        if rank == 0 and time.monotonic() - reported > REPORT_EVERY_S:
            sums_2[1] = 1
        torch.distributed.all_reduce(sums_2)
        loss_E.append(float(sums_2[0]) / (rounds * len(graphs)))
        if not math.isfinite(loss_E[-1]):
            raise ConfigError(
                f"the training loss became {loss_E[-1]} in epoch {epoch + 1}: lower train.lr ({job.train.lr})"
            )
        if sums_2[1] > 0 or epoch == job.train.epochs - 1:
            _report(job, lander, optimizer, loss_E, first=rank == 0)
            reported = time.monotonic()


def _load(job: _Job, workers: int) -> list[LevelGraph]:
    """The level graphs. Where any worker fails to load them, all raise its error: none may wait for one that has left."""
    graphs, mistake = [], None
    try:
        graphs = job.load(job.uris)
    except UserError as error:
        mistake = error
    mistakes: list[UserError | None] = [None] * workers
    torch.distributed.all_gather_object(mistakes, mistake)
    for one in mistakes:
        if one is not None:
            raise one
    return graphs


def _loss_share(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """This worker's part of the batch's loss; ``model`` is a Lander or DDP around one."""
    logits_BK2 = model(batch.x_SD, batch.c_SD, batch.nbr_RK, batch.sim_RK, batch.sizes)
    B = batch.sizes[0]
    p0_BK, p1_BK = Lander.probabilities(logits_BK2)
    density_B = Lander.density(p0_BK, p1_BK, batch.sim_RK[:B], batch.nbr_RK[:B])
    return lander_loss(logits_BK2, density_B, batch.same_BK, batch.mask_BK, batch.gt_density_B, batch.denominators)


def _report(job: _Job, lander: Lander, optimizer: torch.optim.Optimizer, loss_E: list[float], first: bool) -> None:
    metrics = {"epoch": len(loss_E), "loss": loss_E[-1], "loss_E": loss_E}
    if not first:
        ray.train.report(metrics)
        return
    metadata = {
        "epochs": str(len(loss_E)),
        "seed": str(job.seed),
        "train": json.dumps(job.train.model_dump(mode="json")),
    }
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, MODEL_FILE).write_bytes(save_checkpoint(lander, metadata))
        torch.save({"optimizer": optimizer.state_dict(), "loss_E": loss_E}, Path(folder, STATE_FILE))
        ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))


def _restore(lander: Lander, optimizer: torch.optim.Optimizer) -> list[float]:
    """Put the last checkpoint's weights and momentum in place; the losses of its epochs, none without a checkpoint."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return []
    with checkpoint.as_directory() as folder:
        saved = load_checkpoint(Path(folder, MODEL_FILE).read_bytes(), MODEL_FILE, lander.config)
        state = torch.load(io.BytesIO(Path(folder, STATE_FILE).read_bytes()), map_location="cpu", weights_only=True)
    lander.load_state_dict(saved.state_dict())
    optimizer.load_state_dict(state["optimizer"])
    loss_E: list[float] = state["loss_E"]
    return loss_E


def check_resources(config: TrainConfig) -> None:
    """Refuse a training that asks for more workers than the cluster has places: it would wait for ever.

    Raises:
        ClusterError: it names both numbers.
    """
    kind = "GPU" if config.use_gpu else "CPU"
    there = int(ray.cluster_resources().get(kind, 0))  # type: ignore[no-untyped-call]
    if there < config.num_workers:
        raise ClusterError(
            f"train.num_workers={config.num_workers}: the cluster has {there} {kind}s; lower it, or add nodes"
        )
