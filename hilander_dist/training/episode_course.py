"""Meta-training of a relational LANDER on episodes, and its validation on held-out classes.

A step takes two episodes, in turn from each data set, so that all sets count alike whatever their size. A worker computes
every W-th episode of the step; the loss of a step is the mean over its episodes, whatever W is. A worker reads an episode
when its turn comes and keeps a few: none holds them all.
"""

import copy
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from hilander_dist.config import RelationalModel, RelationalTrain
from hilander_dist.lander.inference import Inference
from hilander_dist.lander.relational import (
    EDGE_INPUTS,
    RelationalLander,
    edge_inputs,
    mean_similarity,
    merge_moments,
    moments,
)
from hilander_dist.storage import Storage
from hilander_dist.training.episodes import Block, same_class

STEPS_OF_ONE, STEPS_OF_SEVERAL = 48, 96
"""Of an epoch, for one data set and for several, whose weights are averaged over more steps (LOG 2026-11-27, averaged)."""

EPISODES_PER_STEP = 2

_KEPT = 64
"""Episodes that a worker keeps, of up to 5 MB."""

_WARM_UP = 0.3
"""Share of the steps in which the learning rate rises."""

AVERAGED = 0.5
"""Of the steps on several sets, those after this share give the mean of the weights, which is used: as in SWAD (Cha et al., 2021) it
suits domains that were not met, and networks of other seeds come out alike (LOG 2026-11-27, averaged). A network of one set gains
nothing by it."""

_LEAST_RATE = 0.3
"""Of the peak learning rate in the end where weights are averaged: at nothing there is nothing to average."""


@dataclass(frozen=True)
class EpisodeCourse:
    """What a worker needs to train; see ``training.Course``."""

    training: tuple[tuple[str, ...], ...]
    """URIs of the episodes of each data set."""
    validation: tuple[tuple[str, ...], ...]
    """URIs of the held-out episodes of each data set."""
    model: RelationalModel
    train: RelationalTrain
    seed: int
    inference: Inference
    """With the base rate of training."""
    score: Callable[[RelationalLander, Block], tuple[float, float]]
    """Pairwise and BCubed F of the clustering of an episode; module-level."""

    def new_model(self) -> RelationalLander:
        """An untrained model, the same for the same seed."""
        torch.manual_seed(self.seed)
        model = RelationalLander(self.model)
        model.inference = self.inference
        return model

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(model.parameters(), lr=self.train.lr, weight_decay=self.train.weight_decay)

    @property
    def patience(self) -> int:
        """``train.patience``."""
        return self.train.patience

    @property
    def averaged_from(self) -> float:
        """Of several sets, the second half; see AVERAGED."""
        return AVERAGED if len(self.training) > 1 else 1.0

    def learning_rate(self, step: int, steps: int) -> float:
        """A cosine up over the first 30% of the steps, and one down, to nothing for one set."""
        done = step / steps
        if done < _WARM_UP:
            return self.train.lr * (1 + 24 * (1 - math.cos(math.pi * done / _WARM_UP)) / 2) / 25
        least = _LEAST_RATE if len(self.training) > 1 else 0.0
        down = (1 + math.cos(math.pi * (done - _WARM_UP) / (1 - _WARM_UP))) / 2
        return self.train.lr * (least + (1 - least) * down)

    def open(self) -> "EpisodeCourse":
        """Nothing is read before it is needed."""
        return self

    @property
    def steps_per_epoch(self) -> int:
        """See STEPS_OF_ONE."""
        return STEPS_OF_SEVERAL if len(self.training) > 1 else STEPS_OF_ONE

    def loss_share(self, model: nn.Module, step: int, rank: int, workers: int, device: torch.device) -> Tensor:
        """This worker's part of a step's loss: cross-entropy of the edges, the mean of each episode, over the step's number.

        A worker without an episode gives 0 with a gradient, for which the others wait. It goes through the model as they do,
        with a node that has no neighbours: DDP's workers wait for each other there as well, without end.
        """
        total = torch.zeros((), device=device)
        numbers = range(rank, EPISODES_PER_STEP, workers)
        if not numbers:
            inputs_NKF = torch.zeros((1, 1, EDGE_INPUTS), device=device)
            total = total + model(inputs_NKF, torch.full((1, 1), -1, device=device)).sum() * 0
        for number in numbers:
            episode = read_episode(self.episode_of(step * EPISODES_PER_STEP + number))
            same_NK, real_NK = same_class(episode)
            inputs_NKF, nbr_NK = (part.to(device) for part in episode_tensors(episode))
            logit_E = model(inputs_NKF, nbr_NK)[torch.from_numpy(real_NK).to(device)]
            if not real_NK.any():
                total = total + logit_E.sum()
                continue
            target_E = torch.from_numpy(same_NK[real_NK].astype(np.float32)).to(device)
            total = total + functional.binary_cross_entropy_with_logits(logit_E, target_E) / EPISODES_PER_STEP
        return total

    def episode_of(self, place: int) -> str:
        """The episode at a place of the endless sequence: the sets in turn, each in a new order whenever it is through."""
        turn, domain = divmod(place, len(self.training))
        uris = self.training[domain]
        lap, at = divmod(turn, len(uris))
        return uris[int(np.random.default_rng([self.seed, domain, lap]).permutation(len(uris))[at])]

    def validate(self, model: nn.Module, rank: int, workers: int) -> tuple[Tensor, int]:
        """Sums of pairwise and BCubed F over this worker's held-out episodes, and the number of all of them."""
        every = [uri for domain in self.validation for uri in domain]
        total_2 = torch.zeros(2, dtype=torch.float64)
        # Merges run on the host, whatever the network is trained on.
        host_model = copy.deepcopy(model).cpu()
        assert isinstance(host_model, RelationalLander)
        for uri in every[rank::workers]:
            total_2 += torch.tensor(self.score(host_model, read_episode(uri)), dtype=torch.float64)
        return total_2, len(every)


@functools.lru_cache(maxsize=_KEPT)
def read_episode(uri: str) -> Block:
    """An episode from the run's storage."""
    return Storage(uri).read_block()


def episode_tensors(episode: Block) -> tuple[Tensor, Tensor]:
    """``inputs_NKF`` and ``nbr_NK`` of an episode, for ``RelationalLander.forward``."""
    mean_N = mean_similarity(episode["sim_NK"], episode["nbr_NK"])
    stats = merge_moments([moments(episode["nbr_NK"], episode["sim_NK"], episode["cos_NKM"])])
    nbr_NK = torch.from_numpy(episode["nbr_NK"].astype(np.int64))
    sim_NK, shared_NKQ, cos_NKM = (torch.from_numpy(episode[name]) for name in ("sim_NK", "shared_NKQ", "cos_NKM"))
    own_mean_N, nbr_mean_NK = torch.from_numpy(mean_N), torch.from_numpy(mean_N[np.maximum(episode["nbr_NK"], 0)])
    k = nbr_NK.shape[1] + 1
    return edge_inputs(sim_NK, shared_NKQ, cos_NKM, own_mean_N, nbr_mean_NK, nbr_NK >= 0, k, stats), nbr_NK
