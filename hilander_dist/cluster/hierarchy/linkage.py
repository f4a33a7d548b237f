"""Above the path: whole clusters are joined by average linkage of their means, which is that of all their members' pairs.

One task has the clusters of the answer. Those that a level of the path joins are joined first, so that levels stay nested; then the
clusters of the last level, up to one root. Each level has half the clusters of the one below.

Shapes: C clusters of the answer, T of the path's last level, M merges.
"""

from typing import Any, NamedTuple

import numpy as np

from hilander_dist.cluster.hierarchy.features import member_sums
from hilander_dist.cluster.hierarchy.levels import LevelOutput
from hilander_dist.cluster.hierarchy.nested import densest, describe
from hilander_dist.cluster.memory import PROCESS
from hilander_dist.cluster.partition.average_linkage import average_linkage, heights, scipy_linkage
from hilander_dist.exchange import concat_blocks, unpack
from hilander_dist.tasks import Block, Ref, Tasks

MOST_CLUSTERS = 65_536
"""Of the path's last level: each is compared with all, a minute of a core at 256 dimensions."""

_BYTES = 40
"""A dimension and cluster of the answer, of the task that joins them: sums as they come, in order, and as means."""


class Linkage(NamedTuple):
    """What the joined clusters are."""

    levels: list[LevelOutput]
    tree: Ref
    """A block of first_M, second_M, distance_M, count_M, as scipy's linkage columns, and level_M, the level that the merge is
    part of, counted from the bottom."""


def link_means(
    tasks: Tasks, answer: list[Ref], above: list[LevelOutput], clusters: int, top: int, dim: int, levels: int, most: int
) -> Linkage | None:
    """Join the clusters above the path.

    Args:
        tasks: where to run.
        answer: clusters of the level that is the answer (``nested.group_level``).
        above: the levels of the path above it.
        clusters: of the answer.
        top: clusters of the last level.
        dim: number of dimensions.
        levels: how many there are below the first one that is made here.
        most: levels that may be made.

    Returns:
        None where there are too many clusters for one task.
    """
    needed = PROCESS + _BYTES * dim * clusters
    if top > MOST_CLUSTERS or needed > tasks.offered():
        return None
    counts = halved(top)[:most]
    members = [block for level in above for block in level.members]
    sizes = [len(level.members) for level in above]
    returns = 1 + 2 * len(counts)
    found = tasks.asking(needed).call(_link, answer, members, sizes, counts, levels, returns=returns)
    found = [found] if returns == 1 else list(found)
    return Linkage(
        [
            LevelOutput((), count, [found[1 + 2 * at]], [found[2 + 2 * at]], {"clusters": count})
            for at, count in enumerate(counts)
        ],
        found[0],
    )


def halved(top: int) -> list[int]:
    """Clusters of the levels above one of ``top`` clusters, to 1."""
    counts = []
    while top > 1:
        top = -(-top // 2)
        counts.append(top)
    return counts


def _link(answer: list[Block], members: list[Block], sizes: list[int], counts: list[int], levels: int) -> Any:
    every = concat_blocks(answer)
    order = np.argsort(every["rank_N"])
    nodes = {name: column[order] for name, column in every.items()}
    C = len(order)
    groups, at_C = [], np.arange(C)
    blocks = iter(members)
    for size in sizes:
        level = concat_blocks([next(blocks) for _ in range(size)])
        at_C = level["label_N"][np.argsort(level["at_N"])][at_C]
        groups.append(at_C)
    merges = average_linkage(nodes["sum_ND"], nodes["count_N"], groups)
    # Levels of the path have so many clusters, in the order in which they were joined.
    below = [C, *(len(np.unique(group_C)) for group_C in groups)]
    ends_M = [C - count for count in [*below, *counts]]
    first_level = levels - len(groups)
    made_M = np.searchsorted(np.array(ends_M[1:]), np.arange(C - 1), side="right") + first_level
    table = scipy_linkage(merges, C)
    order_M = np.argsort(heights(merges, C), kind="stable")
    tree = {
        "first_M": table[:, 0].astype(np.int64),
        "second_M": table[:, 1].astype(np.int64),
        "distance_M": table[:, 2],
        "count_M": table[:, 3].astype(np.int64),
        "level_M": made_M[order_M],
    }
    out: list[Block] = [tree]
    label_C = at_C  # of the level below the one that is made: its rank
    clusters, rank_T = _grouped(nodes, at_C, below[-1]), np.arange(below[-1])
    group_of = np.arange(2 * C - 1)
    similarity = np.full(2 * C - 1, np.nan)
    similarity[C:] = merges.similarity_M
    done = 0
    for count in counts:
        for m in range(done, C - count):
            group_of[merges.first_M[m]] = group_of[merges.second_M[m]] = C + m
        done = C - count
        root_C = _roots(group_of, C)
        key_C, to_C = np.unique(root_C, return_inverse=True)
        # A cluster of the level below is where any of its own clusters is.
        to_T = np.empty(len(rank_T), dtype=np.int64)
        to_T[label_C] = to_C
        upper = _grouped(clusters, to_T, len(key_C))
        rank_G = np.argsort(np.argsort(upper["id_N"]))
        member = {"at_N": rank_T, "label_N": rank_G[to_T]}
        upper = {name: column[np.argsort(rank_G)] for name, column in upper.items()}
        upper["rank_N"] = np.arange(len(key_C))
        tree_rows = {**describe(upper), "similarity_N": similarity[key_C][np.argsort(rank_G)].astype(np.float32)}
        out += [member, tree_rows]
        clusters, rank_T, label_C = upper, np.arange(len(key_C)), rank_G[to_C]
    return unpack(out)


def _grouped(nodes: Block, group_N: np.ndarray, groups: int) -> Block:
    sum_ND, count_N = member_sums(nodes, group_N, groups)
    peak = densest(group_N, nodes["density_N"], nodes["id_N"])
    return {"sum_ND": sum_ND, "count_N": count_N, "id_N": nodes["id_N"][peak], "density_N": nodes["density_N"][peak]}


def _roots(group_of: np.ndarray, clusters: int) -> np.ndarray:
    root = group_of.copy()
    while True:
        further = root[root]
        if np.array_equal(further, root):
            return np.asarray(root[:clusters])
        root = further
