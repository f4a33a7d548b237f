"""The training loss (algorithm.md 2.4) and the balancing of its edges, both for a batch that workers share.

Nothing here depends on how a batch is split: sums are divided by the counts of the whole batch, and an edge is drawn by
a hash of its own id.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.nn import functional

_MASK64 = (1 << 64) - 1


class Denominators(NamedTuple):
    """Counts over the whole batch, all workers together."""

    targets: int
    edges: int


def lander_loss(
    logits_BK2: Tensor,
    density_B: Tensor,
    label_same_BK: Tensor,
    mask_BK: Tensor,
    gt_density_B: Tensor,
    denominators: Denominators,
) -> Tensor:
    """This worker's share of the loss: squared error of the densities plus cross-entropy of the masked edges.

    Args:
        logits_BK2: logits of (different, same).
        density_B: predicted densities.
        label_same_BK: bool, the edges' labels.
        mask_BK: bool, edges that count; False at pads.
        gt_density_B: densities to reach.
        denominators: what the two sums are divided by. The shares of all workers add up to the batch's loss, so under
            DDP, which takes the mean of the gradients, a worker multiplies its share by the number of workers.
    """
    error = (density_B - gt_density_B).square().sum() / max(denominators.targets, 1)
    entropy = functional.cross_entropy(logits_BK2[mask_BK], label_same_BK[mask_BK].long(), reduction="sum")
    return error + entropy / max(denominators.edges, 1)


def balance_mask(
    mask: npt.NDArray[np.bool_],
    same: npt.NDArray[np.bool_],
    edge_id: npt.NDArray[np.int64],
    seed: int,
    step: int,
    n_pos: int,
    n_neg: int,
) -> npt.NDArray[np.bool_]:
    """Undersample the majority of {masked same-label, masked other} edges to the minority's number, on average.

    An edge of the majority stays with probability minority / majority, by a hash of (seed, step, edge id): any split of
    a batch over workers keeps the same edges. Where a class is absent, all masked edges stay; the reference drops them.

    Args:
        mask: edges that count, of any shape; ``same`` and ``edge_id`` have it too.
        same: whether the ends share a label.
        edge_id: number of the edge in its graph.
        seed: of the run.
        step: number of the optimiser step.
        n_pos: masked same-label edges in the whole batch.
        n_neg: masked other edges in the whole batch.
    """
    if min(n_pos, n_neg) == 0:
        return mask.copy()
    threshold = (min(n_pos, n_neg) << 53) // max(n_pos, n_neg)
    drawn = (hash_ids(edge_id, seed, step) >> np.uint64(11)) < np.uint64(threshold)
    majority = same if n_pos > n_neg else ~same
    return mask & (drawn | ~majority)


def hash_ids(edge_id: npt.NDArray[np.int64], seed: int, step: int) -> npt.NDArray[np.uint64]:
    """64 uniform bits for each edge: SplitMix64's finaliser, applied to the seed, the step and the edge in turn."""
    key = np.array([seed & _MASK64], np.uint64)
    key = _mix(_mix(key) + np.uint64(step & _MASK64))
    return _mix(key + edge_id.astype(np.uint64))


def _mix(value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
