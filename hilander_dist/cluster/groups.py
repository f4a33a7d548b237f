"""Trees of a level: their sizes, and how those that belong together become one: the root of each links to the densest root of its
group."""

from typing import Any

import numpy as np

from hilander_dist.cluster.decode import densest_of_groups
from hilander_dist.cluster.flow_rounds import answers_for, serve_placed
from hilander_dist.exchange import Starts, concat_blocks, fetch_rows, partition_rows, shuffle
from hilander_dist.tasks import Block, Ref, Tasks


def link_groups(
    tasks: Tasks, links: list[Ref], pointers: list[Ref], own: list[Ref], groups: list[Ref], starts: Starts
) -> list[Ref]:
    """Links with every tree's root linked to the densest root of its group; lists are per shard.

    Args:
        tasks: where to run.
        links: as of ``links.Links``.
        pointers: pointer_N, each node's root.
        own: density_N and id_N.
        groups: pointer_N, which leads from each root to its group.
        starts: how the nodes are cut into shards.
    """
    S = len(starts) - 1
    roots = [tasks.call(_roots, pointers[s], own[s], groups[s], starts[s]) for s in range(S)]
    best = [tasks.call(_best_of_shard, block, starts, returns=S) for block in roots]
    densest = [tasks.call(_densest, inbox, starts[s]) for s, inbox in enumerate(shuffle(best, S))]
    needs, answers = fetch_rows(
        tasks, [tasks.call(_group_keys, block) for block in roots], densest, starts, serve_placed
    )
    return [tasks.call(_join_roots, links[s], roots[s], needs[s], answers[s], starts[s]) for s in range(S)]


def cluster_sizes(tasks: Tasks, pointers: list[Ref], starts: Starts) -> list[Ref]:
    """Per shard a block of its roots, at_C (rows of the shard, ascending), and their trees' nodes, size_C; int64.

    Args:
        tasks: where to run.
        pointers: per shard pointer_N, each node's root.
        starts: how the nodes are cut into shards.
    """
    S = len(starts) - 1
    counts = [tasks.call(_count_members, block, starts, returns=S) for block in pointers]
    return [tasks.call(_add_sizes, inbox, starts[s]) for s, inbox in enumerate(shuffle(counts, S))]


def _count_members(pointers: Block, starts: Starts) -> Any:
    root_R, count_R = np.unique(pointers["pointer_N"], return_counts=True)
    return partition_rows({"root_R": root_R, "count_R": count_R}, root_R, starts)


def _add_sizes(inbox: list[Block], start: int) -> Block:
    parts = concat_blocks(inbox)
    root_C, at = np.unique(parts["root_R"], return_inverse=True)
    size_C = np.zeros(len(root_C), dtype=np.int64)
    np.add.at(size_C, at, parts["count_R"])
    return {"at_C": root_C - start, "size_C": size_C}


def _roots(pointers: Block, own: Block, groups: Block, start: int) -> Block:
    at = np.flatnonzero(pointers["pointer_N"] == start + np.arange(len(pointers["pointer_N"])))
    group_R = groups["pointer_N"][at]
    return {"position_R": start + at, "density_R": own["density_N"][at], "id_R": own["id_N"][at], "group_R": group_R}


def _best_of_shard(roots: Block, starts: Starts) -> Any:
    best = densest_of_groups(roots)
    return partition_rows(best, best["group_R"], starts)


def _densest(inbox: list[Block], start: int) -> Block:
    best = densest_of_groups(concat_blocks(inbox))
    return {"at_C": best["group_R"] - start, "position_C": best["position_R"]}


def _group_keys(roots: Block) -> np.ndarray:
    return roots["group_R"]


def _join_roots(forest: Block, roots: Block, needs: list[np.ndarray], answers: list[Block], start: int) -> Block:
    parent_N = forest["parent_N"].copy()
    parent_N[roots["position_R"] - start] = answers_for(roots["group_R"], needs, answers)["position_C"]
    return {**forest, "parent_N": parent_N}
