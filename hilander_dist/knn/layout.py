"""A level's canonical order: cell-major, cut into chunks and shards (architecture.md, invariants 1 and 2).

The nodes of a level come in any parts, in a source order that does not depend on the cluster. They are put in the order
(cell of the global quantizer, source order); a node's *position* is its place in it. A chunk is CHUNK positions, a shard
is a run of whole chunks. Only counts per cell are compared across parts, never the rows: a row's position is its cell's
start, plus the cell's rows in earlier parts, plus those before it in its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hilander_dist.exchange import Starts, even_starts, partition_rows, shuffle
from hilander_dist.knn.quantizer import (
    Quantizer,
    choose_nlist,
    flat_quantizer,
    nearest_cells,
    train_quantizer,
    training_sample_size,
)
from hilander_dist.tasks import Block, Ref, Tasks

CHUNK = 512
"""Rows of the fixed unit of numeric work: at 512 x 1024 x 512 a product on one thread is near the peak of the core."""


PROBES_KEPT = 12
"""Cells that each node keeps from its assignment, nearest first: the search then ranks no cells again. 96 bytes a node."""


@dataclass(frozen=True)
class Level:
    """The nodes of one level in canonical order, in shards."""

    n: int
    starts: Starts
    """Shard s holds the positions from ``starts[s]`` up to ``starts[s + 1]``."""
    nodes: list[Ref]
    """Per shard a block: id_N int64, x_ND float32, probe_NP int32 and gap_NP float32 (the PROBES_KEPT nearest cells, see
    ``quantizer.nearest_cells``), above level 0 sum_ND int64, count_N and rank_N int64, and class_N of labelled input."""
    quantizer: Ref
    """Its cells may be fewer or more than were wanted."""
    cell_start: Ref
    """int64, length C + 1: position where each cell starts."""

    @property
    def shards(self) -> int:
        """Number of shards."""
        return len(self.nodes)


def lay_out(tasks: Tasks, parts: Sequence[Ref], n: int, dim: int, shards: int, seed: int, prefix: str) -> Level:
    """Train the level's quantizer and bring the nodes into canonical order.

    Args:
        tasks: where to run.
        parts: blocks with at least id_N and x_ND, in source order.
        n: number of nodes in all parts together.
        dim: number of dimensions D.
        shards: number of shards wanted; fewer where there are fewer chunks.
        seed: of the quantizer's training and its sample.
        prefix: where the level's blocks are saved, for example ``level-0``.
    """
    nlist = choose_nlist(n)
    if nlist > 1:
        share = min(1.0, training_sample_size(nlist) / n)
        sample = [tasks.call(sample_rows, part, share, seed) for part in parts]
        quantizer = tasks.call(_train, sample, nlist, seed)
    else:
        quantizer = tasks.call(flat_quantizer, dim)
    assigned = [tasks.call(_probe_and_count, part, quantizer, returns=2) for part in parts]
    placed = tasks.call(place_cells, [counts for _, counts in assigned], returns=1 + len(parts))
    cell_start, offsets = placed[0], placed[1:]
    starts = even_starts(n, shards, CHUNK)
    pieces = [
        tasks.call(_send_to_shards, part, probes, offset, starts, returns=len(starts) - 1)
        for part, (probes, _), offset in zip(parts, assigned, offsets, strict=True)
    ]
    nodes = [
        tasks.call(_fill_shard, inbox, starts[s], starts[s + 1], save=f"{prefix}/nodes-{s:05d}.safetensors")
        for s, inbox in enumerate(shuffle(pieces, len(starts) - 1))
    ]
    return Level(n, starts, nodes, quantizer, cell_start)


def sample_rows(part: Block, share: float, salt: int) -> Block:
    """The rows whose id's hash is below ``share``: the same rows however the level is cut."""
    picked = np.flatnonzero(hash_ids(part["id_N"], salt) < np.uint64(min(share, 1.0) * (2**64 - 2048)))
    return {"id_N": part["id_N"][picked], "x_ND": part["x_ND"][picked]}


def hash_ids(id_N: np.ndarray, salt: int) -> np.ndarray:
    """The splitmix64 finaliser over salted ids, as uint64: a counter-based random number per id."""
    with np.errstate(over="ignore"):
        z = id_N.astype(np.uint64) + np.uint64((salt + 1) * 0x9E3779B97F4A7C15 % 2**64)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))


def place_cells(counts: list[np.ndarray]) -> Any:
    """Exclusive scan of the rows per cell over parts.

    Args:
        counts: per part int64 [C], its rows in each cell.

    Returns:
        ``cell_start`` int64 [C + 1], then per part int64 [C]: the position of its first row in each cell.
    """
    counts_PC = np.stack(counts)
    cell_start = np.concatenate([[0], np.cumsum(counts_PC.sum(axis=0))])
    before_PC = np.cumsum(counts_PC, axis=0) - counts_PC
    return [cell_start, *(cell_start[:-1] + before_PC)]


def positions_in_cells(cell_N: np.ndarray, offset_C: np.ndarray) -> np.ndarray:
    """Position of each row of a part: rows of a cell stand in the part's order."""
    order = np.argsort(cell_N, kind="stable")
    grouped = cell_N[order]
    first_in_cell = np.searchsorted(grouped, grouped)
    position_N = np.empty(len(cell_N), dtype=np.int64)
    position_N[order] = offset_C[grouped] + np.arange(len(cell_N)) - first_in_cell
    return position_N


def _train(sample: list[Block], nlist: int, seed: int) -> Quantizer:
    id_N = np.concatenate([block["id_N"] for block in sample])
    x_ND = np.concatenate([block["x_ND"] for block in sample])
    return train_quantizer(x_ND[np.argsort(id_N)], nlist, seed)


def _probe_and_count(part: Block, quantizer: Quantizer) -> tuple[Block, np.ndarray]:
    probe_NP, gap_NP = nearest_cells(part["x_ND"], quantizer, min(PROBES_KEPT, quantizer.cells))
    counts = np.bincount(probe_NP[:, 0], minlength=quantizer.cells).astype(np.int64)
    return {"probe_NP": probe_NP, "gap_NP": gap_NP}, counts


def _send_to_shards(part: Block, probes: Block, offset_C: np.ndarray, starts: Starts) -> Any:
    position_N = positions_in_cells(probes["probe_NP"][:, 0], offset_C)
    return partition_rows({**part, **probes, "position_N": position_N}, position_N, starts)


def _fill_shard(inbox: list[Block], start: int, stop: int) -> Block:
    shard = {}
    for name, like in inbox[0].items():
        if name == "position_N":
            continue
        rows = np.empty((stop - start, *like.shape[1:]), dtype=like.dtype)
        for block in inbox:
            rows[block["position_N"] - start] = block[name]
        shard[name] = rows
    return shard
