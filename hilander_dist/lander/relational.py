"""LANDER on relational inputs: one checkpoint for embeddings of any dimension (architecture.md, last section).

An edge is described by ten numbers that know nothing of coordinates: its similarity in units of the level's own spread, its
similarity against what is usual around both ends, the overlap (Jaccard) of both ends' neighbour lists at four depths, and
the cosine of both ends' local means at three, again in units of its spread. A node's state is what its edges say together
(mean and maximum over them); it travels to the neighbours, and each round reads both ends' states beside the edge. All is
symmetric in both ends, so both directions of an edge agree.

Shapes: B nodes, K neighbours, T rows of the neighbours' table, Q depths of lists, M of means, F edge inputs, W width.
"""

from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from hilander_dist.config import RelationalModel
from hilander_dist.knn.local_means import COSINE_ONE
from hilander_dist.lander.inference import Inference
from hilander_dist.lander.layers import Linear

_DEPTHS = (1 / 16, 1 / 8, 3 / 8, 1.0)

_MEANS = 3
"""Local means are taken at the first so many depths."""

EDGE_INPUTS = 3 + len(_DEPTHS) + _MEANS

_FIXED = 2.0**24
"""Of sums of similarities and their squares over edges: 2**39 edges fit an int64."""

_LEAST_DEVIATION = 1e-3
"""Copies of one row have no spread: nothing is told by similarity there."""


class EdgeStats(NamedTuple):
    """Of all edges of a level: of the similarity, then of the cosine of local means at each depth."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]


def list_depths(k: int) -> tuple[int, ...]:
    """Lengths (the node itself included) at which neighbour lists are compared: a 16th, an 8th, 3/8 and all of k."""
    return tuple(max(2, round(k * share)) for share in _DEPTHS)


def mean_depths(k: int) -> tuple[int, ...]:
    """How many rows a local mean is of, the node itself included: a 16th, an 8th, 3/8 of k."""
    return list_depths(k)[:_MEANS]


def moments(nbr_NK: np.ndarray, sim_NK: np.ndarray, cos_NKM: np.ndarray) -> np.ndarray:
    """Number of edges, and the fixed-point sums of each of their columns and of its squares: int64 (1 + M, 3)."""
    real_NK = nbr_NK >= 0
    columns = [sim_NK[real_NK].astype(np.float64), *(cos_NKM[real_NK].T / COSINE_ONE)]
    return np.array(
        [[len(c_E), np.rint(c_E * _FIXED).sum(), np.rint(c_E * c_E * _FIXED).sum()] for c_E in columns], np.int64
    )


def merge_moments(parts: list[np.ndarray]) -> EdgeStats:
    """Means and standard deviations over the edges of all parts; 0 and 1 without any."""
    found = []
    for count, total, squares in np.stack(parts).sum(0).tolist():
        if count == 0:
            found.append((0.0, 1.0))
            continue
        mean = total / _FIXED / count
        found.append((mean, max(max(squares / _FIXED / count - mean * mean, 0.0) ** 0.5, _LEAST_DEVIATION)))
    means, deviations = zip(*found, strict=True)
    return EdgeStats(means, deviations)


def mean_similarity(sim_NK: np.ndarray, nbr_NK: np.ndarray) -> np.ndarray:
    """Mean similarity of each node to its neighbours, float32; 0 without any."""
    count_N = np.maximum((nbr_NK >= 0).sum(1), 1)
    mean_N: np.ndarray = (sim_NK.sum(1, dtype=np.float64) / count_N).astype(np.float32)
    return mean_N


def edge_inputs(
    sim_BK: Tensor,
    shared_BKQ: Tensor,
    cos_BKM: Tensor,
    own_mean_B: Tensor,
    nbr_mean_BK: Tensor,
    real_BK: Tensor,
    k: int,
    stats: EdgeStats,
) -> Tensor:
    """What the network is told of each edge.

    Args:
        sim_BK: similarities.
        shared_BKQ: number of shared neighbours at each of ``list_depths(k)`` (``knn.neighbour_overlap``).
        cos_BKM: int16 cosines of local means at each of ``mean_depths(k)`` (``knn.local_means``).
        own_mean_B: mean similarity of the node to its neighbours.
        nbr_mean_BK: the same of each neighbour.
        real_BK: bool, False at pads.
        k: length of the neighbour lists, the node itself included.
        stats: of the level.

    Returns:
        ``inputs_BKF`` float32: standardised similarity; Jaccard overlap at each depth; twice the similarity less what is
        usual at both ends; how far both ends differ in that; standardised cosine at each depth. 0 at pads.
    """
    z_BK, own_B1, nbr_BK = (
        (part - stats.mean[0]) / stats.deviation[0] for part in (sim_BK, own_mean_B[:, None], nbr_mean_BK)
    )
    mean_M, deviation_M = (torch.tensor(part[1:], dtype=torch.float32, device=sim_BK.device) for part in stats)
    twice_Q = 2 * torch.tensor(list_depths(k), dtype=torch.float32, device=sim_BK.device)
    shared_BKQ = shared_BKQ.float()
    jaccard_BKQ = shared_BKQ / (twice_Q - shared_BKQ)
    columns = [z_BK[:, :, None], jaccard_BKQ, (2 * z_BK - (own_B1 + nbr_BK))[:, :, None]]
    columns += [(own_B1 - nbr_BK).abs()[:, :, None], (cos_BKM.float() / COSINE_ONE - mean_M) / deviation_M]
    return torch.cat(columns, 2) * real_BK[:, :, None]


class RelationalLander(nn.Module):
    """Scores the edges of one level from relations alone."""

    def __init__(self, config: RelationalModel, dim: int | None = None) -> None:
        """Of ``config.hidden`` numbers a node and ``config.num_conv`` rounds. Weights come from torch's generator.

        Args:
            config: the shape.
            dim: of the embeddings, where it has a map for them; None for any embeddings, as they are.
        """
        super().__init__()
        self.config, self.num_conv = config, config.num_conv
        self.dim: int | None = None
        self.map_DD: Tensor
        if dim is not None:
            self.set_map(torch.eye(dim))
        self.inference = Inference()
        W = config.hidden
        self.edge = nn.ModuleList(
            nn.Sequential(Linear(EDGE_INPUTS + (2 * W if layer else 0), W), nn.ReLU(), Linear(W, W), nn.ReLU())
            for layer in range(config.num_conv + 1)
        )
        self.node = nn.ModuleList(
            nn.Sequential(Linear(3 * W if layer else 2 * W, W), nn.ReLU()) for layer in range(config.num_conv)
        )
        self.head = Linear(W, 1)

    def set_map(self, map_DD: Tensor) -> None:
        """Vectors go through this map, float32, before anything is computed (``cluster.whitening``)."""
        self.dim = len(map_DD)
        self.register_buffer("map_DD", map_DD)

    def node_state(self, layer: int, inputs_BKF: Tensor, state: Tensor, own_BW: Tensor, nbr_BK: Tensor) -> Tensor:
        """The nodes' state after round ``layer`` = 0 .. num_conv - 1, (B, W).

        Args:
            layer: the round.
            inputs_BKF: of the nodes' edges.
            state: (T, W), states after the round before of all nodes that are anyone's neighbour here; in round 0 of any
                size: it is not read.
            own_BW: the nodes' own.
            nbr_BK: int64 rows of ``state``, -1 pads.
        """
        real_BK1 = (nbr_BK >= 0)[:, :, None]
        edge_BKW = self._edge_state(layer, inputs_BKF, state, own_BW, nbr_BK) * real_BK1
        mean_BW = edge_BKW.sum(1) / real_BK1.sum(1).clamp(min=1)
        parts = [mean_BW, edge_BKW.amax(1)] + ([own_BW] if layer else [])
        return cast("Tensor", self.node[layer](torch.cat(parts, 1)))

    def edge_logits(self, inputs_BKF: Tensor, state: Tensor, own_BW: Tensor, nbr_BK: Tensor) -> Tensor:
        """Log-odds that both ends of each edge belong together, logit_BK; see ``node_state``. 0 at pads."""
        edge_BKW = self._edge_state(self.num_conv, inputs_BKF, state, own_BW, nbr_BK)
        logit_BK = self.head(edge_BKW.flatten(0, 1)).reshape(nbr_BK.shape)
        return cast("Tensor", logit_BK.masked_fill(nbr_BK < 0, 0.0))

    def forward(self, inputs_NKF: Tensor, nbr_NK: Tensor) -> Tensor:
        """Log-odds of the edges of a whole graph, logit_NK."""
        state_NW = inputs_NKF.new_zeros((len(inputs_NKF), self.config.hidden))
        for layer in range(self.num_conv):
            state_NW = self.node_state(layer, inputs_NKF, state_NW, state_NW, nbr_NK)
        return self.edge_logits(inputs_NKF, state_NW, state_NW, nbr_NK)

    def _edge_state(self, layer: int, inputs_BKF: Tensor, state: Tensor, own_BW: Tensor, nbr_BK: Tensor) -> Tensor:
        rows = inputs_BKF
        if layer:
            # Its gradient is ten times faster than that of indexing.
            nbr_BKW = functional.embedding(nbr_BK.clamp(min=0), state)
            rows = torch.cat([inputs_BKF, own_BW[:, None] + nbr_BKW, (own_BW[:, None] - nbr_BKW).abs()], 2)
        return cast("Tensor", self.edge[layer](rows.flatten(0, 1))).reshape(*nbr_BK.shape, self.config.hidden)


def edge_density(p1_BK: Tensor, sim_BK: Tensor, nbr_BK: Tensor) -> Tensor:
    """Mean over the real neighbours of s (2 p1 - 1), d_B; 0 without any (algorithm.md 1.7)."""
    real_BK = nbr_BK >= 0
    return (sim_BK * (2 * p1_BK - 1) * real_BK).sum(1) / real_BK.sum(1).clamp(min=1)
