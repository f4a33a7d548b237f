"""Two primitives over neighbour lists: gather rows, and sum over ranks in a fixed order.

Shapes: T rows of a table, B nodes, K neighbours of a node. A -1 in ``nbr_BK`` is a pad: no neighbour.
"""

import torch
from torch import Tensor


def neighbour_rows(table: Tensor, nbr_BK: Tensor) -> Tensor:
    """Rows of ``table`` (T, ...) at ``nbr_BK`` (int64): (B, K, ...). What stands at pads means nothing."""
    if table.shape[0] == 0:
        # All are pads. The zero row keeps the gradient's path: an empty batch of a DDP worker needs it.
        table = torch.cat([table, table.new_zeros((1, *table.shape[1:]))])
    return table[nbr_BK.clamp(min=0)]


def rank_sum(values: Tensor) -> Tensor:
    """Sum (B, K, ...) over the second axis, from the first rank to the last: one addition each, so no grouping varies.

    Trailing zeros (pads) do not change a bit of it.
    """
    total = values.new_zeros(values.shape[:1] + values.shape[2:])
    for column in values.unbind(1):
        total = total + column
    return total
