"""LANDER on relational inputs: one checkpoint for embeddings of any dimension (architecture.md, last section).

An edge is described by seven numbers that know nothing of coordinates: its similarity in units of the level's own spread,
its similarity against what is usual around both ends, and the overlap (Jaccard) of both ends' neighbour lists at four
depths. A node's state is what its edges say together (mean and maximum over them); it travels to the neighbours, and each
round reads both ends' states beside the edge. All is symmetric in both ends, so both directions of an edge agree.

Shapes: B nodes, K neighbours, T rows of the neighbours' table, Q depths, F edge inputs, W width.
"""

import itertools
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from hilander_dist.config import Calibration, ModelConfig
from hilander_dist.lander.layers import Linear

_DEPTHS = (1 / 16, 1 / 8, 3 / 8, 1.0)

EDGE_INPUTS = 3 + len(_DEPTHS)


class EdgeStats(NamedTuple):
    """Of the similarities of all edges of a level."""

    mean: float
    deviation: float


def list_depths(k: int) -> tuple[int, ...]:
    """Lengths (the node itself included) at which neighbour lists are compared: a 16th, an 8th, 3/8 and all of k."""
    return tuple(max(2, round(k * share)) for share in _DEPTHS)


def edge_inputs(
    sim_BK: Tensor,
    shared_BKQ: Tensor,
    own_mean_B: Tensor,
    nbr_mean_BK: Tensor,
    real_BK: Tensor,
    k: int,
    stats: EdgeStats,
) -> Tensor:
    """What the network is told of each edge.

    Args:
        sim_BK: similarities.
        shared_BKQ: number of shared neighbours at each of ``list_depths(k)``.
        own_mean_B: mean similarity of the node to its neighbours.
        nbr_mean_BK: the same of each neighbour.
        real_BK: bool, False at pads.
        k: length of the neighbour lists, the node itself included.
        stats: of the level.

    Returns:
        ``inputs_BKF`` float32: standardised similarity; Jaccard overlap at each depth; twice the similarity less what is
        usual at both ends; how far both ends differ in that. 0 at pads.
    """
    z_BK = (sim_BK - stats.mean) / stats.deviation
    own_B1, nbr_BK = ((mean - stats.mean) / stats.deviation for mean in (own_mean_B[:, None], nbr_mean_BK))
    twice_Q = 2 * torch.tensor(list_depths(k), dtype=torch.float32, device=sim_BK.device)
    shared_BKQ = shared_BKQ.float()
    jaccard_BKQ = shared_BKQ / (twice_Q - shared_BKQ)
    columns = [z_BK[:, :, None], jaccard_BKQ, (2 * z_BK - (own_B1 + nbr_BK))[:, :, None]]
    columns.append((own_B1 - nbr_BK).abs()[:, :, None])
    return torch.cat(columns, 2) * real_BK[:, :, None]


PAIR_INPUTS = 10

_PAIR_WIDTH = 24


class PairHead(nn.Module):
    """Scores pairs of clusters from sums over their members' edges (``cluster.pairs``). Untrained, it merges nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.mean_F: Tensor
        self.deviation_F: Tensor
        self.register_buffer("mean_F", torch.zeros(PAIR_INPUTS))
        self.register_buffer("deviation_F", torch.ones(PAIR_INPUTS))
        widths = (PAIR_INPUTS, _PAIR_WIDTH, _PAIR_WIDTH)
        self.body = nn.Sequential(
            *(layer for pair in itertools.pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU()))
        )
        self.out = nn.Linear(_PAIR_WIDTH, 1)
        with torch.no_grad():
            self.out.weight.zero_()
            self.out.bias.fill_(-20.0)

    def forward(self, inputs_EF: Tensor) -> Tensor:
        """Log-odds that both clusters are of one class, (E)."""
        return cast("Tensor", self.out(self.body((inputs_EF - self.mean_F) / self.deviation_F)))[:, 0]


class RelationalLander(nn.Module):
    """Scores the edges of one level from relations alone."""

    def __init__(self, config: ModelConfig) -> None:
        """Of ``config.hidden`` numbers a node and ``config.num_conv`` rounds. Weights come from torch's generator."""
        super().__init__()
        self.config, self.num_conv = config, config.num_conv
        self.calibration: Calibration | None = None
        W = config.hidden
        self.edge = nn.ModuleList(
            nn.Sequential(Linear(EDGE_INPUTS + (2 * W if layer else 0), W), nn.ReLU(), Linear(W, W), nn.ReLU())
            for layer in range(config.num_conv + 1)
        )
        self.node = nn.ModuleList(
            nn.Sequential(Linear(3 * W if layer else 2 * W, W), nn.ReLU()) for layer in range(config.num_conv)
        )
        self.head = Linear(W, 1)
        self.pair = PairHead()

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
        return cast("Tensor", self.edge[layer](rows.flatten(0, 1))).reshape(*nbr_BK.shape, -1)


def edge_density(p1_BK: Tensor, sim_BK: Tensor, nbr_BK: Tensor) -> Tensor:
    """Mean over the real neighbours of s (2 p1 - 1), d_B; 0 without any (algorithm.md 1.7)."""
    real_BK = nbr_BK >= 0
    return (sim_BK * (2 * p1_BK - 1) * real_BK).sum(1) / real_BK.sum(1).clamp(min=1)
