"""Which rows of other shards a shard reads, and products on fixed chunks of rows.

A *table* is a shard's own rows followed by its halo: the rows of other shards that its edges point to. The halo is planned once a
level.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hilander_dist.exchange import Starts, serve_rows, split_keys, take_rows, unpack
from hilander_dist.knn.layout import CHUNK, Level
from hilander_dist.tasks import Block, Ref, Tasks


@dataclass(frozen=True)
class Halo:
    """Which rows each shard reads from which other, for one level's graph."""

    starts: Starts
    local: list[Ref]
    """Per shard nbr_NK int64 as rows of its table, -1 pads."""
    needs: list[list[Ref]]
    """needs[a][d]: ascending positions that shard a reads from shard d; none from itself."""

    def tables(
        self, tasks: Tasks, blocks: list[Ref], serve: Callable[[Block, np.ndarray], Block] = take_rows
    ) -> list[list[Ref]]:
        """Per shard the halo rows of a column block, in the order of its needs."""
        if len(blocks) == 1:
            return [[]]
        return serve_rows(tasks, self.needs, blocks, self.starts, serve)


def plan_halo(tasks: Tasks, level: Level, graph: list[Ref]) -> Halo:
    """Find out which rows travel."""
    S = level.shards
    local, needs = [], []
    for s, block in enumerate(graph):
        first, *rest = tasks.call(_plan_shard, block, s, level.starts, returns=1 + S)
        local.append(first)
        needs.append(rest)
    return Halo(level.starts, local, needs)


def plan_shard(nbr_NK: np.ndarray, shard: int, starts: Starts) -> tuple[np.ndarray, list[np.ndarray]]:
    """Neighbour positions as rows of the shard's table, and the positions that it reads from each shard.

    The table is the shard's own rows, then the rows read from shard 0, 1, ... in ascending order.
    """
    start, stop = starts[shard], starts[shard + 1]
    own_NK = (nbr_NK >= start) & (nbr_NK < stop)
    away = np.unique(nbr_NK[(nbr_NK >= 0) & ~own_NK])
    local_NK = np.where(own_NK, nbr_NK - start, stop - start + np.searchsorted(away, nbr_NK))
    needs = split_keys(away, starts)
    return np.where(nbr_NK < 0, -1, local_NK), [needs] if len(starts) == 2 else list(needs)


def make_table(own: Block, halo: list[Block]) -> Block:
    """The shard's own rows followed by its halo."""
    return {name: np.concatenate([rows, *(block[name] for block in halo)]) for name, rows in own.items()}


def in_chunks(function: Callable[..., Any], *columns: np.ndarray) -> list[np.ndarray]:
    """Apply a model's function to chunks of a shard's rows, the last one padded to the full size.

    A shard starts on a chunk's boundary, so a chunk's rows and their places in it are the same for any sharding.
    Integer columns (neighbours) are padded with -1, others with 0.
    """
    n = len(columns[0])
    outputs: list[np.ndarray] = []
    with torch.inference_mode():
        for at in range(0, n, CHUNK):
            rows = min(CHUNK, n - at)
            padded = []
            for column in columns:
                chunk = np.full((CHUNK, *column.shape[1:]), -1 if column.dtype.kind == "i" else 0, dtype=column.dtype)
                chunk[:rows] = column[at : at + rows]
                padded.append(to_tensor(chunk))
            result = function(*padded)
            tensors = result if isinstance(result, tuple) else (result,)
            if not outputs:
                outputs = [np.empty((n, *tensor.shape[1:]), dtype=tensor.numpy().dtype) for tensor in tensors]
            for output, tensor in zip(outputs, tensors, strict=True):
                output[at : at + rows] = tensor[:rows].numpy()
    return outputs


def to_tensor(array: np.ndarray) -> Tensor:
    """The array as a tensor, without a copy; nothing here writes to one."""
    with warnings.catch_warnings():
        # Arrays from the object store are read-only, which torch mentions.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)


def _plan_shard(graph: Block, shard: int, starts: Starts) -> Any:
    local_NK, needs = plan_shard(graph["nbr_NK"], shard, starts)
    return unpack([local_NK, *needs])
