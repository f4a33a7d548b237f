"""Message passing in DGL (the extra ``dgl``): the same two sums as blocks with update_all and edge_softmax."""

import os
import warnings
from typing import Any

from torch import Tensor
from torch.nn import functional

from hilander_dist.errors import ModelError

# Without it, the first import of dgl writes a configuration file into the home directory.
os.environ.setdefault("DGLBACKEND", "pytorch")
try:
    with warnings.catch_warnings():
        # dgl 1.1.3 is older than the libraries that it imports and uses names that they deprecate.
        warnings.simplefilter("ignore")
        import dgl
        import dgl.function as fn
except ImportError:
    raise ModelError(
        "model.backend=dgl: dgl is not installed: pip install 'hilander-dist[dgl]' (Python 3.11),"
        " or --set model.backend=torch"
    ) from None


def weighted_sum(table_TM: Tensor, nbr_BK: Tensor, weight_BK: Tensor) -> Tensor:
    """See ``Backend.weighted_sum``."""
    block = _block(len(table_TM), nbr_BK)
    block.srcdata["h"] = table_TM
    block.edata["w"] = weight_BK[nbr_BK >= 0]
    block.update_all(fn.u_mul_e("h", "w", "m"), fn.sum("m", "h"))
    total: Tensor = block.dstdata["h"]
    return total


def attention_sum(table_TPM: Tensor, right_BP: Tensor, nbr_BK: Tensor) -> Tensor:
    """See ``Backend.attention_sum``."""
    block = _block(len(table_TPM), nbr_BK)
    block.srcdata["q"], block.srcdata["left"] = table_TPM[:, :, :-1], table_TPM[:, :, -1:]
    block.dstdata["right"] = right_BP[:, :, None]
    block.apply_edges(fn.u_add_v("left", "right", "e"))
    block.edata["a"] = dgl.nn.functional.edge_softmax(block, functional.leaky_relu(block.edata["e"], 0.2))
    block.update_all(fn.u_mul_e("q", "a", "m"), fn.sum("m", "q"))
    total: Tensor = block.dstdata["q"]
    return total


def _block(num_rows: int, nbr_BK: Tensor) -> Any:
    real_BK = nbr_BK >= 0
    node_E = real_BK.nonzero()[:, 0]
    return dgl.create_block((nbr_BK[real_BK], node_E), num_src_nodes=num_rows, num_dst_nodes=len(nbr_BK))
