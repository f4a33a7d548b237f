"""The two graph convolutions (algorithm.md 1.5), each split into what a node sends and what it does with what it got.

Parameter names are those of the official checkpoints (algorithm.md 1.12).
Shapes: N or B nodes, I input width, H output width, P heads, M message width, T rows of the neighbours' table,
K neighbours.
"""

import math
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from hilander_dist.lander.backends import load_backend
from hilander_dist.lander.neighbours import rank_sum

# For fewer than 12 output columns, MKL's kernels give bits that depend on a row's alignment, hence on its place in the
# chunk, wherever the input width is no multiple of 4; from 12 columns on they do not.
_LEAST_OUTPUTS = 16


class Linear(nn.Linear):
    """A linear layer that gives equal rows equal bits wherever they stand in a chunk of a multiple of 512 rows."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name in nn.Linear
        """See nn.Linear. Few outputs are computed among zero columns, which are cut off again."""
        missing = _LEAST_OUTPUTS - self.out_features
        if missing <= 0:
            return super().forward(input)
        weight = functional.pad(self.weight, (0, 0, 0, missing))
        bias = None if self.bias is None else functional.pad(self.bias, (0, missing))
        return functional.linear(input, weight, bias)[:, : self.out_features]


class GcnConvolution(nn.Module):
    """z_i = ReLU(W [h_i ; sum_j a_ij h_j] + b) with the affine weights a_ij of algorithm.md 1.4."""

    def __init__(self, in_width: int, out_width: int, backend: Literal["torch", "dgl"]) -> None:
        super().__init__()
        self.backend = backend
        self.gcn_layer = nn.ModuleDict({"mlp": Linear(2 * in_width, out_width)})

    def message(self, h_NI: Tensor) -> Tensor:
        """What the neighbours need of a node: its own features (M = I). Where those are [x ; x], x will do."""
        return h_NI

    def forward(self, h_BI: Tensor, m_own_BM: Tensor, m_TM: Tensor, nbr_BK: Tensor, sim_BK: Tensor) -> Tensor:  # noqa: ARG002 - the seam is GAT's too
        """The B nodes' output (B, H)."""
        mean_BI = load_backend(self.backend).weighted_sum(m_TM, nbr_BK, affine_weights(sim_BK))
        if mean_BI.shape[1] < h_BI.shape[1]:
            mean_BI = torch.cat([mean_BI, mean_BI], 1)
        return functional.relu(cast("Tensor", self.gcn_layer["mlp"](torch.cat([h_BI, mean_BI], 1))))


class GatConvolution(nn.Module):
    """z_i = ReLU(mean over heads of (sum_j alpha_ij q_j + b + b')), q = W h, attention from al.q_j + ar.q_i."""

    def __init__(self, in_width: int, out_width: int, heads: int, backend: Literal["torch", "dgl"]) -> None:
        super().__init__()
        self.backend = backend
        self.gcn_layer = _GatParameters(in_width, out_width, heads)
        self.bias = nn.Parameter(torch.zeros(heads, out_width))

    def message(self, h_NI: Tensor) -> Tensor:
        """What the neighbours need of a node: per head q (H columns), then al.q (one column); M = P (H + 1)."""
        q_NPH = self._split(cast("Tensor", self.gcn_layer.fc(h_NI)))
        left_NP1 = (q_NPH * self.gcn_layer.attn_l).sum(-1, keepdim=True)
        return torch.cat([q_NPH, left_NP1], 2).flatten(1)

    def forward(self, h_BI: Tensor, m_own_BM: Tensor, m_TM: Tensor, nbr_BK: Tensor, sim_BK: Tensor) -> Tensor:  # noqa: ARG002 - the seam is GCN's too
        """The B nodes' output (B, H)."""
        right_BP = (self._split(m_own_BM)[:, :, :-1] * self.gcn_layer.attn_r).sum(-1)
        sum_BPH = load_backend(self.backend).attention_sum(self._split(m_TM), right_BP, nbr_BK)
        return functional.relu((sum_BPH + self._split(self.gcn_layer.bias[None, :]) + self.bias).mean(1))

    def _split(self, rows: Tensor) -> Tensor:
        """(N, P * X) to (N, P, X)."""
        heads = self.bias.shape[0]
        return rows.reshape(rows.shape[0], heads, rows.shape[1] // heads)


class _GatParameters(nn.Module):
    """The parameters of one attention layer, initialised as DGL's GATConv does (Xavier normal, gain sqrt 2)."""

    def __init__(self, in_width: int, out_width: int, heads: int) -> None:
        super().__init__()
        self.fc = Linear(in_width, heads * out_width, bias=False)
        self.attn_l = nn.Parameter(torch.empty(1, heads, out_width))
        self.attn_r = nn.Parameter(torch.empty(1, heads, out_width))
        self.bias = nn.Parameter(torch.zeros(heads * out_width))
        for weight in (self.fc.weight, self.attn_l, self.attn_r):
            nn.init.xavier_normal_(weight, gain=math.sqrt(2))


def affine_weights(sim_BK: Tensor) -> Tensor:
    """s_ij / sum_j s_ij (algorithm.md 1.4), the sum in rank order; a sum that is not positive divides by 1."""
    sum_B = rank_sum(sim_BK)
    return sim_BK / sum_B.masked_fill(sum_B <= 0, 1.0)[:, None]
