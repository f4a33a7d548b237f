"""The message-passing seam: two sums over neighbour lists, in plain torch (the default) or in DGL.

Both backends take neighbours as ``nbr_BK`` (int64 rows of a table, -1 pads) and give equal results.
"""

from typing import Literal, Protocol

from torch import Tensor


class Backend(Protocol):
    """What a backend (a module with these two functions) computes."""

    def weighted_sum(self, table_TM: Tensor, nbr_BK: Tensor, weight_BK: Tensor) -> Tensor:
        """Sum over k of weight[b, k] * table[nbr[b, k]]: (B, M). A node without neighbours gets zeros."""

    def attention_sum(self, table_TPM: Tensor, right_BP: Tensor, nbr_BK: Tensor) -> Tensor:
        """Attention-weighted sum of the neighbours' rows, per head p of P (algorithm.md 1.5): (B, P, M - 1).

        The first M - 1 columns of the table are the summed values q; the last one is the neighbour's half of the logit,
        al.q. ``right_BP`` is the node's own half, ar.q. The weights are the softmax over the neighbours of
        LeakyReLU(left + right) with slope 0.2. A node without neighbours gets zeros.
        """


def load_backend(name: Literal["torch", "dgl"]) -> Backend:
    """The backend of that name. Raises ModelError where dgl is chosen and not installed."""
    if name == "dgl":
        from hilander_dist.lander.backends import dgl_backend

        return dgl_backend
    from hilander_dist.lander.backends import torch_backend

    return torch_backend
