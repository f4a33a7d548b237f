"""The root of every node's tree by pointer jumping across shards (algorithm.md 1.8).

Within a shard pointers are doubled until each one stands on a root or outside the shard. Then each round asks, for the
distinct outside pointers that are not yet known to be roots, where they point in turn; only those numbers travel. A
pointer that is answered with itself is a root. Paths at least double per round, so rounds grow with the logarithm of the
number of shard borders that a path crosses.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hilander_dist.exchange import Starts, as_list, look_up, serve_rows, split_keys
from hilander_dist.tasks import Block, Ref, Tasks


def find_roots(tasks: Tasks, links: Sequence[Ref], starts: Starts) -> list[Ref]:
    """Resolve parents to roots.

    Args:
        tasks: where to run.
        links: per shard a block with parent_N int64 positions; a root is its own parent.
        starts: how the positions are cut into shards.

    Returns:
        Per shard a block of pointer_N int64, the position of each node's root, and open_N, all False.
    """
    S = len(links)
    # Each task returns its state, how many pointers are open, and what it asks of each shard.
    rounds = [tasks.call(_begin, block, starts[s], starts, returns=2 + S) for s, block in enumerate(links)]
    while S > 1 and sum(tasks.get([count for _, count, *_ in rounds])):
        state, needs = [round_[0] for round_ in rounds], [round_[2:] for round_ in rounds]
        answers = serve_rows(tasks, needs, state, starts, _serve_pointers)
        rounds = [
            tasks.call(_go_on, state[s], starts[s], starts, needs[s], answers[s], returns=2 + S) for s in range(S)
        ]
    return [round_[0] for round_ in rounds]


def jump_inside(pointer_N: np.ndarray, start: int) -> Block:
    """Double the pointers that stay in the shard until each stands on a root or outside."""
    stop = start + len(pointer_N)
    while True:
        inside_N = (pointer_N >= start) & (pointer_N < stop)
        further_N = pointer_N.copy()
        further_N[inside_N] = pointer_N[pointer_N[inside_N] - start]
        if np.array_equal(further_N, pointer_N):
            return {"pointer_N": pointer_N, "open_N": ~inside_N}
        pointer_N = further_N


def open_pointers(block: Block) -> np.ndarray:
    """The distinct outside positions that may not be roots."""
    return np.unique(block["pointer_N"][block["open_N"]])


def advance(block: Block, start: int, needs: list[np.ndarray], answers: list[np.ndarray]) -> Block:
    """Follow the answers; a pointer answered with itself has found its root."""
    asked = np.flatnonzero(block["open_N"])
    before = block["pointer_N"][asked]
    after = look_up(before, needs, answers)
    pointer_N = block["pointer_N"].copy()
    pointer_N[asked] = after
    # An answer may lead back into this shard: jump on from there. What was settled stays settled.
    settled_N = ~block["open_N"]
    settled_N[asked[after == before]] = True
    moved = jump_inside(pointer_N, start)
    return {"pointer_N": moved["pointer_N"], "open_N": moved["open_N"] & ~settled_N}


def _begin(links: Block, start: int, starts: Starts) -> Any:
    return _asking(jump_inside(links["parent_N"], start), starts)


def _go_on(block: Block, start: int, starts: Starts, needs: list[np.ndarray], answers: list[np.ndarray]) -> Any:
    return _asking(advance(block, start, needs, answers), starts)


def _asking(block: Block, starts: Starts) -> Any:
    asked = as_list(split_keys(open_pointers(block), starts), len(starts) - 1)
    return block, int(block["open_N"].sum()), *asked


def _serve_pointers(block: Block, rows: np.ndarray) -> np.ndarray:
    return np.asarray(block["pointer_N"][rows])
