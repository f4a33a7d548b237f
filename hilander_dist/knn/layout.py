"""A level's canonical order: cell-major, cut into chunks and shards (architecture.md, invariants 1 and 2).

The nodes of a level come in any parts, in a source order that does not depend on the cluster. They are put in the order
(cell of the global quantizer, source order); a node's *position* is its place in it. A chunk is CHUNK positions, a shard
is a run of whole chunks. Only counts per cell are compared across parts, never the rows: a row's position is its cell's
start, plus the cell's rows in earlier parts, plus those before it in its own.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hilander_dist.errors import InputError
from hilander_dist.exchange import Starts, concat_blocks, even_starts, partition_rows, shuffle
from hilander_dist.knn.quantizer import (
    Quantizer,
    choose_nlist,
    flat_quantizer,
    nearest_cells,
    quantizer_of_block,
    train_quantizer,
    training_sample_size,
)
from hilander_dist.storage import Storage
from hilander_dist.tasks import Block, Loader, Ref, Tasks

CHUNK = 512
"""Rows of the fixed unit of numeric work: at 512 x 1024 x 512 a product on one thread is near the peak of the core."""


WAVES = 2
"""In so many the rows move to their shards: the pieces then take half of what the vectors do. A wave reads all parts."""

ONE_WAVE_BELOW = 8
"""Shards. Where there are fewer the level is small."""

PROBES_KEPT = 8
"""Cells that each node keeps from its assignment, nearest first: the search then ranks no cells again. 64 bytes a node."""


Space = Literal["plain", "whitened", "declined"]
"""Of vectors: as they are; whitened (``cluster.whitening``); as they are since whitening was tried and did not pay."""


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


@dataclass(frozen=True)
class Assignment:
    """Where each row of each part goes."""

    quantizer: Ref
    cell_start: Ref
    """See ``Level``, also the one above."""
    probes: list[Ref]
    """Per part a block of probe_NP and gap_NP."""
    offsets: list[Ref]
    """Per part int64 [C]: the position of its first row in each cell."""


def assign_cells(
    tasks: Tasks,
    parts: Sequence[Ref],
    n: int,
    dim: int,
    seed: int,
    prefix: str,
    frozen: Storage | None = None,
    gpus: int = 0,
) -> Assignment:
    """Train the level's quantizer and find the cell and the position of each row.

    Args:
        tasks: where to run.
        parts: blocks with at least id_N and x_ND, in source order.
        n: number of nodes in all parts together.
        dim: number of dimensions D.
        seed: of the quantizer's training and its sample.
        prefix: where the level's blocks are saved, for example ``level-0``.
        frozen: the file of an earlier run's quantizer, to be used again; None trains one.
        gpus: GPUs for the training.
    """
    nlist = choose_nlist(n)
    if frozen is not None:
        trained = tasks.call(load_quantizer, frozen, dim, save=quantizer_path(prefix))
    elif quantizer_path(prefix) in tasks.saved:
        trained = tasks.load(quantizer_path(prefix))
    elif nlist > 1:
        share = min(1.0, training_sample_size(nlist) / n)
        sample = [tasks.call(sample_rows, part, share, seed) for part in parts]
        trained = tasks.call(_train, sample, nlist, seed, gpus > 0, save=quantizer_path(prefix), gpus=gpus)
    else:
        trained = tasks.call(_one_cell, dim, save=quantizer_path(prefix))
    quantizer = tasks.call(quantizer_of_block, trained)
    probes = [
        tasks.call(_probe_cells, part, quantizer, save=path)
        for part, path in zip(parts, probes_paths(prefix, len(parts)), strict=True)
    ]
    counts = [tasks.call(_count_cells, block, quantizer) for block in probes]
    placed = tasks.call(place_cells, counts, returns=1 + len(parts))
    return Assignment(quantizer, placed[0], probes, placed[1:])


def move_rows(tasks: Tasks, parts: Sequence[Loader], assignment: Assignment, n: int, shards: int, prefix: str) -> Level:
    """Bring the rows into canonical order; returns when they are.

    The rows of a wave of shards are in pieces, one for each part and shard, and then in the shards: at most all shards
    and one wave's pieces are in the object store at once. With more waves the parts are read more often.

    Args:
        tasks: where to run.
        parts: those of ``assign_cells``, read anew: nothing holds them meanwhile.
        assignment: of their rows.
        n: number of nodes.
        shards: number of shards wanted; fewer where there are fewer chunks.
        prefix: where the level's blocks are saved.
    """
    starts = even_starts(n, shards, CHUNK)
    S = len(starts) - 1
    waves = even_starts(S, WAVES if S >= ONE_WAVE_BELOW else 1)
    nodes: list[Ref] = []
    for first, stop in itertools.pairwise(waves):
        paths = [f"{prefix}/nodes-{s:05d}.safetensors" for s in range(first, stop)]
        inboxes: list[list[Ref]] = [[]] * len(paths)
        if not tasks.saved.issuperset(paths):
            pieces = [
                tasks.call(_send_to_shards, part, probes, offset, starts[first : stop + 1], returns=stop - first)
                for part, probes, offset in zip(parts, assignment.probes, assignment.offsets, strict=True)
            ]
            inboxes = shuffle(pieces, stop - first)
            del pieces
        for s, path in zip(range(first, stop), paths, strict=True):
            nodes.append(tasks.call(_fill_shard, inboxes[s - first], starts[s], starts[s + 1], save=path))
        del inboxes
        tasks.wait(nodes[first:], f"{prefix} layout")
    return Level(n, starts, nodes, assignment.quantizer, assignment.cell_start)


def has_one_cell(n: int) -> bool:
    """Whether a level has one cell, unless it gets the quantizer of an earlier run: its search is exact."""
    return choose_nlist(n) == 1


def is_small(n: int, shards: int) -> bool:
    """Whether a level has one cell and one shard: its canonical order is the source order."""
    return has_one_cell(n) and len(even_starts(n, shards, CHUNK)) == 2


def read_whole(tasks: Tasks, parts: Sequence[Loader], n: int, dim: int, prefix: str) -> Level:
    """Lay out a small level: in one task, as tasks that exchange rows cost more than what they do."""
    quantizer = tasks.call(quantizer_of_block, tasks.call(_one_cell, dim, save=quantizer_path(prefix)))
    nodes = tasks.call(_join_parts, list(parts), save=f"{prefix}/nodes-00000.safetensors")
    return Level(n, (0, n), [nodes], quantizer, tasks.call(_whole, n))


def load_quantizer(file: Storage, dim: int) -> Block:
    """Read a saved quantizer.

    Raises:
        InputError: the file is none, or of another number of dimensions.
    """
    block = {name: array for name, array in file.read_block().items() if name not in ("map_DD", "declined_1")}
    if set(block) != set(Quantizer._fields):
        raise InputError(f"{file.uri}: not a quantizer; give the quantizer.safetensors of a complete run")
    if block["centroid_CD"].shape[1] != dim:
        raise InputError(
            f"{file.uri}: a quantizer of {block['centroid_CD'].shape[1]} dimensions, the input has {dim}; "
            "use that of a run on embeddings of the same encoder"
        )
    return block


def load_space(file: Storage) -> tuple[Space, Block]:
    """In which space a saved quantizer's cells are, and for ``whitened`` the block of ``map_DD`` that leads there."""
    block = file.read_block()
    if "map_DD" in block:
        return "whitened", {"map_DD": block["map_DD"]}
    return ("declined" if "declined_1" in block else "plain"), {}


def save_quantizer(file: Storage, block: Block, space: Space, map_DD: np.ndarray | None = None) -> None:
    """Write a quantizer for later runs, see ``load_quantizer`` and ``load_space``."""
    extra: Block = {"declined_1": np.ones(1, np.uint8)} if space == "declined" else {}
    if map_DD is not None:
        extra["map_DD"] = map_DD
    file.write_block("", {**block, **extra})


def quantizer_path(prefix: str) -> str:
    """Where the quantizer of a level is saved."""
    return f"{prefix}/quantizer.safetensors"


def probes_paths(prefix: str, parts: int) -> list[str]:
    """Where the probed cells of a level's rows are saved, by part."""
    return [f"{prefix}/probes-{part:05d}.safetensors" for part in range(parts)]


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


def _train(sample: list[Block], nlist: int, seed: int, use_gpu: bool) -> Block:
    id_N = np.concatenate([block["id_N"] for block in sample])
    x_ND = np.concatenate([block["x_ND"] for block in sample]).astype(np.float32, copy=False)
    return train_quantizer(x_ND[np.argsort(id_N)], nlist, seed, use_gpu).as_block()


def _one_cell(dim: int) -> Block:
    return flat_quantizer(dim).as_block()


def _join_parts(parts: list[Loader]) -> Block:
    nodes = concat_blocks([part() for part in parts])
    n = len(nodes["id_N"])
    return {**nodes, "probe_NP": np.zeros((n, 1), np.int32), "gap_NP": np.zeros((n, 1), np.float32)}


def _whole(n: int) -> np.ndarray:
    return np.array([0, n])


def _probe_cells(part: Block, quantizer: Quantizer) -> Block:
    probe_NP, gap_NP = nearest_cells(part["x_ND"], quantizer, min(PROBES_KEPT, quantizer.cells))
    return {"probe_NP": probe_NP, "gap_NP": gap_NP}


def _count_cells(probes: Block, quantizer: Quantizer) -> np.ndarray:
    return np.bincount(probes["probe_NP"][:, 0], minlength=quantizer.cells).astype(np.int64)


def _send_to_shards(part: Loader, probes: Block, offset_C: np.ndarray, starts: Starts) -> Any:
    """The part's rows that lie between the first and the last of `starts`, cut by shard."""
    position_N = positions_in_cells(probes["probe_NP"][:, 0], offset_C)
    columns = {**part(), **probes, "position_N": position_N}
    here = (position_N >= starts[0]) & (position_N < starts[-1])
    if not here.all():
        columns = {name: array[here] for name, array in columns.items()}
    return partition_rows(columns, columns["position_N"], starts)


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
