"""LANDER (algorithm.md 1.5 to 1.7), cut where a distributed run cuts it.

A node's message is computed once, at its owner, and travels; so does its source projection. All else is work on a block
of B nodes with their neighbours' rows in a table:

    h = model.inputs(x, c)
    for layer in range(model.num_conv):
        m = model.message(layer, h)                        # travels
        h = model.convolve(layer, h, m, m_table, nbr, sim)
    src, dst = model.project(h)                            # src travels
    p0, p1 = model.probabilities(model.edge_logits(src_table, dst, nbr))
    d = model.density(p0, p1, sim, nbr)

On full chunks of 512 rows and one thread, the bits of a node's results depend on its row and its neighbours' rows only,
not on its place in the chunk: matrix products are over whole chunks, all else is per element or a sum in rank order.

Shapes: N nodes, B nodes of a block, T rows of a table, K neighbours, D the embedding's dimension, F = D or 2 D inputs,
I and H input and output width of a convolution, M width of a message, G = hidden / 2.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from hilander_dist.config import RawModel
from hilander_dist.lander.layers import GatConvolution, GcnConvolution, Linear
from hilander_dist.lander.neighbours import neighbour_rows, rank_sum

# Edges of 4 ranks x 512 nodes x 256 floats are 2 MB, which stay in the cache: twice as fast as all of 79 ranks at once.
_RANKS_AT_ONCE = 4


class Lander(nn.Module):
    """Scores the directed edges and the nodes of one level. State-dict keys: the official ones (algorithm.md 1.12)."""

    def __init__(self, dim: int, config: RawModel) -> None:
        """For embeddings of ``dim`` numbers. Weights are drawn from torch's global generator."""
        super().__init__()
        self.dim, self.config, self.num_conv = dim, config, config.num_conv
        H, G = config.hidden, config.hidden // 2
        widths = [dim * 2 if config.uses_cluster_features else dim, H, H, G, G]
        self.conv = nn.ModuleList(
            GcnConvolution(widths[layer], widths[layer + 1], config.backend)
            if config.encoder == "gcn"
            else GatConvolution(widths[layer], widths[layer + 1], config.heads, config.backend)
            for layer in range(config.num_conv)
        )
        self.src_mlp = Linear(widths[config.num_conv], G)
        self.dst_mlp = Linear(widths[config.num_conv], G)
        self.classifier_conn = nn.Sequential(nn.PReLU(G), Linear(G, G), nn.PReLU(G), Linear(G, 2))

    @property
    def sends_inputs(self) -> bool:
        """Whether a layer's message is its input itself (GCN), which then need not be computed."""
        return self.config.encoder == "gcn"

    def inputs(self, x_ND: Tensor, c_ND: Tensor) -> Tensor:
        """The network's input h_NF: [x ; c], or x where the model takes no cluster features."""
        return torch.cat([x_ND, c_ND], 1) if self.config.uses_cluster_features else x_ND

    def message(self, layer: int, h_NI: Tensor) -> Tensor:
        """What the neighbours of each node need of it, m_NM: h itself (GCN); q and al.q per head (GAT)."""
        return self._convolution(layer).message(h_NI)

    def convolve(
        self, layer: int, h_BI: Tensor, m_own_BM: Tensor, m_TM: Tensor, nbr_BK: Tensor, sim_BK: Tensor
    ) -> Tensor:
        """Output z_BH of one convolution.

        Args:
            layer: 0 .. num_conv - 1.
            h_BI: the nodes' own input.
            m_own_BM: the nodes' own messages.
            m_TM: messages of all nodes that are anyone's neighbour here.
            nbr_BK: int64 rows of ``m_TM``, -1 pads.
            sim_BK: similarity to each neighbour, 0 at pads; GCN's weights are its share of the row's sum.
        """
        return cast("Tensor", self._convolution(layer)(h_BI, m_own_BM, m_TM, nbr_BK, sim_BK))

    def project(self, z_BH: Tensor) -> tuple[Tensor, Tensor]:
        """The edge head's two halves (src_BG, dst_BG): what a node adds as a neighbour, and as the edge's owner."""
        return cast("Tensor", self.src_mlp(z_BH)), cast("Tensor", self.dst_mlp(z_BH))

    def edge_logits(self, src_TG: Tensor, dst_BG: Tensor, nbr_BK: Tensor) -> Tensor:
        """Logits of (different, same) for each edge, logits_BK2; both -inf at pads (algorithm.md 1.6)."""
        logits_BK2 = torch.cat([self._logits(src_TG, dst_BG, nbr) for nbr in torch.split(nbr_BK, _RANKS_AT_ONCE, 1)], 1)
        return logits_BK2.masked_fill((nbr_BK < 0)[:, :, None], float("-inf"))

    @staticmethod
    def probabilities(logits_BK2: Tensor) -> tuple[Tensor, Tensor]:
        """Softmax of the logits: (p0_BK different, p1_BK same); 0 and 0 at pads."""
        pad_BK1 = (logits_BK2 == float("-inf")).all(-1, keepdim=True)
        p_BK2 = logits_BK2.masked_fill(pad_BK1, 0.0).softmax(-1).masked_fill(pad_BK1, 0.0)
        return p_BK2[:, :, 0], p_BK2[:, :, 1]

    @staticmethod
    def density(p0_BK: Tensor, p1_BK: Tensor, sim_BK: Tensor, nbr_BK: Tensor) -> Tensor:
        """Mean over the real neighbours of s (p1 - p0), in rank order: d_B; 0 without any (algorithm.md 1.7)."""
        count_B = (nbr_BK >= 0).sum(1).clamp(min=1)
        return rank_sum(sim_BK * (p1_BK - p0_BK)) / count_B

    def forward(
        self, x_ND: Tensor, c_ND: Tensor, nbr_NK: Tensor, sim_NK: Tensor, sizes: Sequence[int] | None = None
    ) -> Tensor:
        """Edge logits of a whole graph, (N, K, 2), or of the target nodes of a cut-out subgraph.

        Args:
            x_ND: unit identity features.
            c_ND: cluster features.
            nbr_NK: int64 rows of ``x_ND``, -1 pads.
            sim_NK: similarities, 0 at pads.
            sizes: for a subgraph (``cut_subgraph``): number of nodes within 0, 1, ..., num_conv + 1 steps of the
                targets, the nodes being in order of steps. Each layer computes only the nodes that the next one needs;
                the outermost need no row in ``nbr_NK`` and ``sim_NK``; logits come for the first ``sizes[0]`` nodes.
        """
        if sizes is None:
            sizes = [len(x_ND)] * (self.num_conv + 2)
        h = self.inputs(x_ND, c_ND)
        for layer in range(self.num_conv):
            rows = sizes[self.num_conv - layer]
            m = self.message(layer, h)
            h = self.convolve(layer, h[:rows], m[:rows], m, nbr_NK[:rows], sim_NK[:rows])
        src_NG, dst_NG = self.project(h)
        targets = sizes[0]
        return self.edge_logits(src_NG, dst_NG[:targets], nbr_NK[:targets])

    def _logits(self, src_TG: Tensor, dst_BG: Tensor, nbr_BR: Tensor) -> Tensor:
        u_BRG = neighbour_rows(src_TG, nbr_BR) + dst_BG[:, None, :]
        return cast("Tensor", self.classifier_conn(u_BRG.flatten(0, 1))).reshape(*nbr_BR.shape, 2)

    def _convolution(self, layer: int) -> GcnConvolution | GatConvolution:
        return cast("GcnConvolution | GatConvolution", self.conv[layer])
