"""Which nodes a training step sees, and what a worker needs of them (algorithm.md 2.3 to 2.5).

Every worker knows all level graphs. So each computes the whole batch's masks and counts for itself, the same as all the
others do (2 ms in a step of 4096 targets that takes 1.7 s), and takes every W-th target. The batches and their loss do
not depend on the number W of workers.

Shapes: N nodes, B targets of a worker, S, R nodes and inner nodes of its subgraph, K neighbours, D dimensions.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hilander_dist.config import RawTrain
from hilander_dist.lander.losses import Denominators, balance_mask
from hilander_dist.training.level_graphs import IntArray, LevelGraph, cut_subgraph, edge_targets

_FINAL_LR = 1e-5


@dataclass(frozen=True)
class Batch:
    """One worker's part of a batch, as tensors on its device."""

    x_SD: Tensor
    c_SD: Tensor
    nbr_RK: Tensor
    sim_RK: Tensor
    sizes: list[int]
    """The subgraph, for ``Lander.forward``; the targets are its first rows."""

    same_BK: Tensor
    mask_BK: Tensor
    gt_density_B: Tensor
    denominators: Denominators
    """What ``lander_loss`` needs."""


def target_batches(num_nodes: int, batch_size: int, seed: int, graph: int, start: int) -> Iterator[IntArray]:
    """Batches of a graph's nodes without end, from batch number ``start`` on.

    Each pass over the graph is a permutation drawn for (seed, graph, pass), cut into batches of ``batch_size``; the
    last one is smaller. A small graph is passed over many times in an epoch, as in the reference.
    """
    batches = math.ceil(num_nodes / batch_size)
    for turn in itertools.count(start // batches):
        permutation = np.random.default_rng([seed, graph, turn]).permutation(num_nodes)
        for at in range(start % batches if turn == start // batches else 0, batches):
            yield permutation[at * batch_size : (at + 1) * batch_size]


def make_batch(
    graph: LevelGraph,
    target_T: IntArray,
    num_conv: int,
    config: RawTrain,
    seed: int,
    step: int,
    rank: int,
    workers: int,
    device: torch.device,
) -> Batch:
    """The part of the batch ``target_T`` that the worker ``rank`` of ``workers`` computes; it may be empty."""
    same_TK, mask_TK = edge_targets(graph, target_T)
    if config.balance:
        K = graph.nbr_NK.shape[1]
        edge_TK = target_T[:, None] * K + np.arange(K)
        n_pos, n_neg = int((mask_TK & same_TK).sum()), int((mask_TK & ~same_TK).sum())
        mask_TK = balance_mask(mask_TK, same_TK, edge_TK, seed, step, n_pos, n_neg)
    mine = slice(rank, None, workers)
    cut = cut_subgraph(graph, target_T[mine], num_conv)
    return Batch(
        x_SD=torch.from_numpy(cut.x_SD).to(device),
        c_SD=torch.from_numpy(cut.c_SD).to(device),
        nbr_RK=torch.from_numpy(cut.nbr_RK).to(device),
        sim_RK=torch.from_numpy(cut.sim_RK).to(device),
        sizes=cut.sizes,
        same_BK=torch.from_numpy(same_TK[mine]).to(device),
        mask_BK=torch.from_numpy(mask_TK[mine]).to(device),
        gt_density_B=torch.from_numpy(graph.gt_density_N[target_T[mine]]).to(device),
        denominators=Denominators(len(target_T), int(mask_TK.sum())),
    )


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Cosine from ``peak`` at step 0 to 1e-5 at step ``steps``."""
    return _FINAL_LR + (peak - _FINAL_LR) * (1 + math.cos(math.pi * step / steps)) / 2
