"""Meta-training of a raw LANDER on the level graphs of training hierarchies (algorithm.md 2.2 to 2.5)."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hilander_dist.config import RawModel, RawTrain
from hilander_dist.lander.losses import lander_loss
from hilander_dist.lander.model import Lander
from hilander_dist.training.batches import Batch, learning_rate, make_batch, target_batches
from hilander_dist.training.level_graphs import IntArray, LevelGraph


@dataclass(frozen=True)
class LevelCourse:
    """What a worker needs to train; see ``training.Course``."""

    load: Callable[[list[str]], list[LevelGraph]]
    """Module-level function that each worker calls with ``uris``; it gives the level graphs, the level 0 of the first
    hierarchy first (it sets an epoch's length)."""
    uris: list[str]
    """Of the level graphs, absolute: workers run in other directories."""
    dim: int
    """Of the embeddings."""
    model: RawModel
    train: RawTrain
    seed: int

    def new_model(self) -> Lander:
        """An untrained model, the same for the same seed."""
        torch.manual_seed(self.seed)
        return Lander(self.dim, self.model)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """SGD with momentum."""
        return torch.optim.SGD(
            model.parameters(), lr=self.train.lr, momentum=self.train.momentum, weight_decay=self.train.weight_decay
        )

    @property
    def patience(self) -> None:
        """It never stops early: nothing is validated, as in the paper."""

    @property
    def averaged_from(self) -> float:
        """Never, as in the paper."""
        return 1.0

    def learning_rate(self, step: int, steps: int) -> float:
        """A cosine down to 1e-5."""
        return learning_rate(step, steps, self.train.lr)

    def open(self) -> "LevelLessons":
        """Load the level graphs."""
        return LevelLessons(self, self.load(self.uris))


class LevelLessons:
    """The level graphs: in each round one batch from each of them, one optimizer step per batch."""

    def __init__(self, course: LevelCourse, graphs: list[LevelGraph]) -> None:
        self.course, self.graphs = course, graphs
        self.rounds = math.ceil(len(graphs[0].label_N) / course.train.batch_size)
        self._streams: list[Iterator[IntArray]] = []
        self._next = -1

    @property
    def steps_per_epoch(self) -> int:
        """One round per batch of the first graph."""
        return self.rounds * len(self.graphs)

    def loss_share(self, model: nn.Module, step: int, rank: int, workers: int, device: torch.device) -> Tensor:
        """This worker's part of the batch's loss; ``model`` is a Lander or DDP around one."""
        round_, number = divmod(step, len(self.graphs))
        if step != self._next:
            self._streams = [
                target_batches(
                    len(graph.label_N), self.course.train.batch_size, self.course.seed, at, round_ + (at < number)
                )
                for at, graph in enumerate(self.graphs)
            ]
        self._next = step + 1
        batch = make_batch(
            self.graphs[number],
            next(self._streams[number]),
            self.course.model.num_conv,
            self.course.train,
            self.course.seed,
            step,
            rank,
            workers,
            device,
        )
        return _batch_loss(model, batch)

    def validate(self, model: nn.Module, rank: int, workers: int) -> tuple[Tensor, int]:
        """A raw model has no held-out classes, as in the paper."""
        del model, rank, workers
        return torch.zeros(2, dtype=torch.float64), 0


def _batch_loss(model: nn.Module, batch: Batch) -> Tensor:
    logits_BK2 = model(batch.x_SD, batch.c_SD, batch.nbr_RK, batch.sim_RK, batch.sizes)
    B = batch.sizes[0]
    p0_BK, p1_BK = Lander.probabilities(logits_BK2)
    density_B = Lander.density(p0_BK, p1_BK, batch.sim_RK[:B], batch.nbr_RK[:B])
    return lander_loss(logits_BK2, density_B, batch.same_BK, batch.mask_BK, batch.gt_density_B, batch.denominators)
