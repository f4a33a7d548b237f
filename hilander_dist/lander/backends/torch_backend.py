"""Message passing in plain torch: embedding_bag, the fastest of the ways measured, which also keeps the rank order.

No array of shape B x K x M is made. In every bag the rows are added from the first rank to the last, so the bits of a
node's sum depend on nothing but its own neighbours.
"""

import torch
from torch import Tensor
from torch.nn import functional

from hilander_dist.lander.neighbours import neighbour_rows, rank_sum


def weighted_sum(table_TM: Tensor, nbr_BK: Tensor, weight_BK: Tensor) -> Tensor:
    """See ``Backend.weighted_sum``."""
    real_BK = nbr_BK >= 0
    ends_B = real_BK.sum(1).cumsum(0)
    starts_B = torch.cat([ends_B.new_zeros(1), ends_B[:-1]])[: len(ends_B)]
    nbr_E, weight_E = nbr_BK[real_BK], weight_BK[real_BK]
    return functional.embedding_bag(nbr_E, table_TM, starts_B, mode="sum", per_sample_weights=weight_E)


def attention_sum(table_TPM: Tensor, right_BP: Tensor, nbr_BK: Tensor) -> Tensor:
    """See ``Backend.attention_sum``."""
    (T, P, M), (B, K) = table_TPM.shape, nbr_BK.shape
    pad_BK1 = (nbr_BK < 0)[:, :, None]
    logit_BKP = functional.leaky_relu(neighbour_rows(table_TPM[:, :, -1], nbr_BK) + right_BP[:, None, :], 0.2)
    alpha_BKP = _softmax_over_ranks(logit_BKP.masked_fill(pad_BK1, float("-inf")))
    # One bag per (node, head) over the table's (row, head) pairs: the heads need no copy of the table.
    heads_P = torch.arange(P, device=nbr_BK.device)
    nbr_BPK = (nbr_BK[:, None, :] * P + heads_P[None, :, None]).masked_fill(nbr_BK[:, None, :] < 0, -1)
    alpha_BPK = alpha_BKP.transpose(1, 2)
    total = weighted_sum(table_TPM.reshape(T * P, M), nbr_BPK.reshape(B * P, K), alpha_BPK.reshape(B * P, K))
    return total.reshape(B, P, M)[:, :, :-1]


def _softmax_over_ranks(logit_BKP: Tensor) -> Tensor:
    """Softmax over axis 1 with the sum in rank order; a logit of -inf (a pad) gets 0, and all pads give zeros."""
    if logit_BKP.shape[1] == 0:
        return logit_BKP
    top_B1P = logit_BKP.detach().amax(1, keepdim=True)
    power_BKP = torch.exp(logit_BKP - top_B1P.masked_fill(top_B1P == float("-inf"), 0.0))
    total_BP = rank_sum(power_BKP)
    return power_BKP / total_BP.masked_fill(total_BP == 0, 1.0)[:, None, :]
