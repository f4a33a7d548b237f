"""The cluster of every row of a shard's table, by level: what merges change, and what they change it to.

A cluster is called by a position: that of the first of its seeds. A shard's *labels* are a block of label_U int64, ascending, the
clusters that its table has, and at_T int32, the place in it of each row of the table: the shard's own rows, then its halo.
"""

from typing import NamedTuple

import numpy as np

from hilander_dist.exchange import Starts, fetch_rows, look_up
from hilander_dist.tasks import Block, Ref, Tasks


class Moves(NamedTuple):
    """What a level's merges make of clusters."""

    blocks: list[Ref]
    """One block of id_C int64, ascending, and into_C, the cluster that each is now: of those that are another one. Or, where
    ``spread``, per shard pointer_N int64: of each position the cluster that it is now."""
    spread: bool


NO_MOVES = Moves([], False)


def make_labels(pointers: Block, away: list[Block]) -> Block:
    """The labels of a shard whose clusters are the trees of its links; ``away`` of the halo."""
    root_T = np.concatenate([pointers["pointer_N"], *(block["pointer_N"] for block in away)])
    label_U, at_T = np.unique(root_T, return_inverse=True)
    return {"label_U": label_U, "at_T": at_T.astype(np.int32)}


def relabel(tasks: Tasks, labels: list[Ref], moves: list[Moves], starts: Starts) -> list[Ref]:
    """The labels after some levels' moves, per shard."""
    together: list[Ref] = []
    for level in moves:
        if not level.spread:
            together += level.blocks
            continue
        if together:
            labels, together = [tasks.call(apply_moves, block, together) for block in labels], []
        keys = [tasks.call(_labels, block) for block in labels]
        needs, answers = fetch_rows(tasks, keys, level.blocks, starts, _serve)
        labels = [tasks.call(_apply_answers, block, needs[s], answers[s]) for s, block in enumerate(labels)]
    return [tasks.call(apply_moves, block, together) for block in labels] if together else labels


def apply_moves(labels: Block, moves: list[Block]) -> Block:
    """Labels after moves that one block a level holds."""
    for block in moves:
        if len(block["id_C"]):
            labels = renamed(labels, moved(labels["label_U"], block))
    return labels


def moved(label_U: np.ndarray, moves: Block) -> np.ndarray:
    """The clusters that these are after the moves of one block, int64 (U)."""
    at_U = np.minimum(np.searchsorted(moves["id_C"], label_U), len(moves["id_C"]) - 1)
    return np.where(moves["id_C"][at_U] == label_U, moves["into_C"][at_U], label_U)


def renamed(labels: Block, label_U: np.ndarray) -> Block:
    """Labels with other names, of which some may be equal now."""
    label_V, to_U = np.unique(label_U, return_inverse=True)
    return {"label_U": label_V, "at_T": to_U.astype(np.int32)[labels["at_T"]]}


def own_labels(labels: Block, rows: int) -> np.ndarray:
    """The cluster of each of the shard's own rows, int64."""
    return np.asarray(labels["label_U"][labels["at_T"][:rows]])


def _labels(labels: Block) -> np.ndarray:
    return labels["label_U"]


def _serve(pointers: Block, rows: np.ndarray) -> np.ndarray:
    return np.asarray(pointers["pointer_N"][rows])


def _apply_answers(labels: Block, needs: list[np.ndarray], answers: list[np.ndarray]) -> Block:
    return renamed(labels, look_up(labels["label_U"], needs, answers))
