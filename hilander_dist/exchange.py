"""Reading rows that live in other shards: the one way in which shards talk.

A table of N rows is cut into shards by ascending ``starts`` (shard d holds rows ``starts[d]`` to ``starts[d + 1] - 1``).
Each shard lists the row numbers that it needs; each owner answers every asker once, with each row once. The halo of a
level, pointer jumping, label look-ups and the composition of levels are all this. S shards exchange at most S x S blocks.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hilander_dist.tasks import Block, Ref, Tasks

Starts = tuple[int, ...]
"""Length S + 1, ascending: where each shard of a table begins, and the table's end."""


def fetch_rows(
    tasks: Tasks,
    keys: Sequence[Ref],
    tables: Sequence[Ref],
    starts: Starts,
    serve: Callable[..., Any],
) -> tuple[list[list[Ref]], list[list[Ref]]]:
    """Ask the owners of a table for rows.

    Args:
        tasks: where to run.
        keys: per asker a ref to int64 row numbers, any order, repeats and negative ones (pads, left out) allowed.
        tables: per owner a ref to what ``serve`` reads.
        starts: how the table's rows are cut over the owners.
        serve: ``serve(table, local_rows)``: the answer for int64 rows counted from the owner's first one.

    Returns:
        ``needs[a]`` and ``answers[a]``: for asker a, per owner, the ascending row numbers and what was served for them.
    """
    owners = len(tables)
    needs = [as_list(tasks.call(split_keys, key, starts, returns=owners), owners) for key in keys]
    return needs, serve_rows(tasks, needs, tables, starts, serve)


def serve_rows(
    tasks: Tasks, needs: list[list[Ref]], tables: Sequence[Ref], starts: Starts, serve: Callable[..., Any]
) -> list[list[Ref]]:
    """Answer needs that are already split per owner; see ``fetch_rows``."""
    askers = len(needs)
    served = [
        as_list(
            tasks.call(_serve_all, serve, table, starts[d], [needs[a][d] for a in range(askers)], returns=askers),
            askers,
        )
        for d, table in enumerate(tables)
    ]
    return [[served[d][a] for d in range(len(tables))] for a in range(askers)]


def split_keys(keys: np.ndarray, starts: Starts) -> Any:
    """Distinct ascending row numbers (pads dropped), cut per owner."""
    flat = np.unique(keys)
    flat = flat[flat >= 0]
    cuts = np.searchsorted(flat, np.asarray(starts[1:-1], dtype=np.int64))
    return unpack(np.split(flat, cuts))


def take_rows(block: Block, rows: np.ndarray) -> Block:
    """The plainest ``serve``: those rows of every array."""
    return {name: array[rows] for name, array in block.items()}


def concat_blocks(blocks: Sequence[Block]) -> Block:
    """Blocks with the same columns, one after another."""
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def look_up(keys: np.ndarray, needs: Sequence[np.ndarray], values: Sequence[np.ndarray]) -> np.ndarray:
    """For each key the value served for it; every key must be among the needs."""
    known, table = np.concatenate(list(needs)), np.concatenate(list(values))
    return np.asarray(table[np.searchsorted(known, keys)])


def shuffle(pieces: Sequence[Any], receivers: int) -> list[list[Ref]]:
    """Transpose the outputs of S partition tasks: for each receiver the pieces meant for it, in sender order."""
    rows = [as_list(piece, receivers) for piece in pieces]
    return [[row[r] for row in rows] for r in range(receivers)]


def partition_rows(block: Block, keys: np.ndarray, starts: Starts) -> Any:
    """Cut a block by the owner of each row's key; row order is kept within a piece."""
    owner = np.searchsorted(np.asarray(starts[1:-1], dtype=np.int64), keys, side="right")
    order = np.argsort(owner, kind="stable")
    cuts = np.searchsorted(owner[order], np.arange(1, len(starts) - 1))
    return unpack([take_rows(block, rows) for rows in np.split(order, cuts)])


def even_starts(n: int, shards: int, unit: int = 1) -> Starts:
    """Cut n rows into at most ``shards`` runs of whole units, as even as can be."""
    units = -(-n // unit)
    shards = max(1, min(shards, units))
    return (*(units * s // shards * unit for s in range(shards)), n)


def fixed_starts(n: int, width: int) -> Starts:
    """Cut n rows into runs of a fixed width, the last one shorter: what a cluster's size must not change."""
    return (*range(0, max(n, 1), width), n)


def _serve_all(serve: Callable[..., Any], table: Any, start: int, needs: list[np.ndarray]) -> Any:
    return unpack([serve(table, need - start) for need in needs])


def as_list(refs: Any, count: int) -> list[Ref]:
    """The refs of a task with ``returns=count``, as a list also where it is one."""
    return [refs] if count == 1 else list(refs)


def unpack(items: Sequence[Any]) -> Any:
    """What a task with ``returns=len(items)`` must return."""
    return items[0] if len(items) == 1 else tuple(items)
