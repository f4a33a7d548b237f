"""Splitting a level's clusters over its shards; what is split and why says ``halves``.

A cluster's members and the edges inside go to the shard of its root, so each is looked at whole, in one place; clusters too large
or too small to be split stay where they are. First every shard cuts its clusters and the medians over all cuts are taken, then
each decides, and the members of new clusters get new links: to the densest of them, unless their parent is among them.

Shapes: N nodes of a shard, K neighbours, M members and E edges that came to a shard, S shards.
"""

from typing import Any, NamedTuple

import numpy as np

from hilander_dist.cluster.decode import densest_of_groups
from hilander_dist.cluster.flow_rounds import answers_for, serve_placed
from hilander_dist.cluster.forward import Halo, make_table
from hilander_dist.cluster.groups import cluster_sizes
from hilander_dist.cluster.halves import (
    LEAST_MEMBERS,
    Cuts,
    Members,
    cut_clusters,
    most_members,
    nearest,
    split_clusters,
    usual_numbers,
)
from hilander_dist.cluster.pairs import CHANCE_ONE
from hilander_dist.cluster.relations import chances
from hilander_dist.cluster.roots import find_roots
from hilander_dist.exchange import (
    Starts,
    as_list,
    concat_blocks,
    fetch_rows,
    partition_rows,
    shuffle,
    take_rows,
)
from hilander_dist.lander.relational import RelationalLander
from hilander_dist.tasks import Block, Ref, Tasks


class Scored(NamedTuple):
    """A level's scores; lists are per shard."""

    model_ref: Ref
    """The network in the object store."""
    own: list[Ref]
    """density_N and id_N."""
    scores: list[Ref]
    """logit_NK."""
    halo: Halo
    k: int
    """Length of the neighbour lists, the node itself included."""
    shift: float
    """Log-odds to add for the level's base rate."""


def cut_links(tasks: Tasks, scored: Scored, links: list[Ref]) -> list[list[Ref]]:
    """A level's clusters of a fit size cut in two, per shard of their roots: members, cuts and the cuts' numbers.

    Args:
        tasks: where to run.
        scored: the level's scores.
        links: per shard as of ``links.Links``.
    """
    own, scores, halo, k, shift = scored.own, scored.scores, scored.halo, scored.k, scored.shift
    S, starts = len(links), halo.starts
    pointers = find_roots(tasks, links, starts)
    placed = [tasks.call(_place, block, starts[s]) for s, block in enumerate(pointers)]
    sizes = cluster_sizes(tasks, pointers, starts)
    needs, answers = fetch_rows(tasks, [tasks.call(_roots, block) for block in placed], sizes, starts, serve_placed)
    away = halo.tables(tasks, placed)
    sent = []
    for s in range(S):
        fit = tasks.call(_fit, placed[s], needs[s], answers[s], k - 1)
        nodes = tasks.call(_send_members, placed[s], fit, links[s], own[s], starts, returns=S)
        edges = tasks.call(_send_edges, placed[s], away[s], fit, halo.local[s], scores[s], shift, starts, returns=S)
        sent.append(as_list(nodes, S) + as_list(edges, S))
    return [
        tasks.call(_cut, [pieces[s] for pieces in sent], [pieces[S + s] for pieces in sent], k - 1, returns=3)
        for s in range(S)
    ]


def usual_cuts(tasks: Tasks, cuts: list[list[Ref]]) -> Ref:
    """What is usual for the cuts of a level (``halves.usual_numbers``)."""
    return tasks.call(_medians, [numbers for *_, numbers in cuts])


def split_links(tasks: Tasks, scored: Scored, links: list[Ref], cuts: list[list[Ref]], usual: Ref) -> list[Ref]:
    """A level's links with its clusters split, per shard.

    Args:
        tasks: where to run.
        scored: the level's scores.
        links: per shard as of ``links.Links``.
        cuts: of their clusters, ``cut_links``.
        usual: ``usual_cuts``.
    """
    S, starts = len(links), scored.halo.starts
    moved = [
        tasks.call(_split, scored.model_ref, block, found, scored.k - 1, usual, starts, returns=S)
        for block, found, _ in cuts
    ]
    return [tasks.call(_relink, links[s], inbox, starts[s]) for s, inbox in enumerate(shuffle(moved, S))]


def gather_members(nodes: Block, edges: Block) -> tuple[Block, Members]:
    """Nodes in the order of their clusters and positions, and the edges between them by their places in it.

    Args:
        nodes: root_M and position_M, int64, and any other column.
        edges: own_E and other_E (positions, int64), chance_E int32, near_E bool.
    """
    nodes = take_rows(nodes, np.lexsort((nodes["position_M"], nodes["root_M"])))
    by_position = np.argsort(nodes["position_M"])
    sorted_M = nodes["position_M"][by_position]
    own_E, other_E = (by_position[np.searchsorted(sorted_M, edges[name])] for name in ("own_E", "other_E"))
    group_M = np.unique(nodes["root_M"], return_inverse=True)[1]
    return nodes, Members(group_M, own_E, other_E, edges["chance_E"], edges["near_E"])


def inside_edges(
    own_N: Block, table_T: Block, fit_N: np.ndarray, local_NK: np.ndarray, logit_NK: np.ndarray, shift: float
) -> tuple[np.ndarray, Block]:
    """The edges of nodes to others of their cluster: the row of each one's owner, and its columns as of ``gather_members``.

    Args:
        own_N: root_M and position_M of the nodes.
        table_T: the same of the nodes and their halo.
        fit_N: bool, nodes whose edges count.
        local_NK: neighbours as rows of the table, -1 pads.
        logit_NK: log-odds of the edges.
        shift: of the level's base rate.
    """
    inside_NK = (local_NK >= 0) & fit_N[:, None]
    inside_NK &= table_T["root_M"][np.maximum(local_NK, 0)] == own_N["root_M"][:, None]
    row_E, rank_E = np.nonzero(inside_NK)
    chance_E = np.rint(chances(logit_NK[inside_NK], shift) * CHANCE_ONE).astype(np.int32)
    return row_E, {
        "own_E": own_N["position_M"][row_E],
        "other_E": table_T["position_M"][local_NK[inside_NK]],
        "chance_E": chance_E,
        "near_E": rank_E < nearest(local_NK.shape[1]),
    }


def _place(pointers: Block, start: int) -> Block:
    root_N = pointers["pointer_N"]
    return {"root_M": root_N, "position_M": start + np.arange(len(root_N))}


def _roots(placed: Block) -> np.ndarray:
    return placed["root_M"]


def _fit(placed: Block, needs: list[np.ndarray], answers: list[Block], neighbours: int) -> np.ndarray:
    """Whether each node's cluster may be split."""
    size_N = answers_for(placed["root_M"], needs, answers)["size_C"]
    return np.asarray((size_N >= LEAST_MEMBERS) & (size_N <= most_members(neighbours)))


def _send_members(placed: Block, fit_N: np.ndarray, links: Block, own: Block, starts: Starts) -> Any:
    nodes = {"parent_M": links["parent_N"], "density_M": own["density_N"], "id_M": own["id_N"]}
    block = take_rows({**placed, **nodes}, fit_N)
    return partition_rows(block, block["root_M"], starts)


def _send_edges(
    placed: Block,
    away: list[Block],
    fit_N: np.ndarray,
    local_NK: np.ndarray,
    scores: Block,
    shift: float,
    starts: Starts,
) -> Any:
    row_E, edges = inside_edges(placed, make_table(placed, away), fit_N, local_NK, scores["logit_NK"], shift)
    return partition_rows(edges, placed["root_M"][row_E], starts)


def _cut(nodes: list[Block], edges: list[Block], neighbours: int) -> tuple[Block, Block, np.ndarray]:
    members, found = gather_members(concat_blocks(nodes), concat_blocks(edges))
    cuts = cut_clusters(found, neighbours)
    return {**members, **found._asdict()}, cuts._asdict(), cuts.numbers_CF


def _medians(numbers: list[np.ndarray]) -> np.ndarray:
    return usual_numbers(np.concatenate(numbers))


def _split(
    model: RelationalLander, block: Block, cut: Block, neighbours: int, usual: np.ndarray, starts: Starts
) -> Any:
    members = Members(*(block[name] for name in Members._fields))
    part_M = split_clusters(model.split, members, neighbours, Cuts(**cut), usual)
    moved = new_parents(block, members.group_M, part_M)
    return partition_rows(moved, moved["position_P"], starts)


def new_parents(nodes: Block, group_M: np.ndarray, part_M: np.ndarray) -> Block:
    """The links that change where clusters are split: position_P and parent_P, int64.

    Args:
        nodes: position_M, parent_M, density_M and id_M, by cluster and position; parents are of the same cluster.
        group_M: cluster of each.
        part_M: part of it (``halves.split_clusters``).
    """
    position_M = nodes["position_M"]
    new_M = np.unique(group_M * (part_M.max(initial=0) + 1) + part_M, return_inverse=True)[1]
    densest = densest_of_groups(
        {"group_R": new_M, "density_R": nodes["density_M"], "id_R": nodes["id_M"], "position_R": position_M}
    )
    by_position = np.argsort(position_M)
    parent_at_M = by_position[np.searchsorted(position_M[by_position], nodes["parent_M"])]
    away_M = new_M[parent_at_M] != new_M
    return {"position_P": position_M[away_M], "parent_P": densest["position_R"][new_M[away_M]]}


def _relink(links: Block, inbox: list[Block], start: int) -> Block:
    moved = concat_blocks(inbox)
    at = moved["position_P"] - start
    parent_N, confidence_N = links["parent_N"].copy(), links["confidence_N"].copy()
    parent_N[at] = moved["parent_P"]
    confidence_N[at] = np.nan
    return {**links, "parent_N": parent_N, "confidence_N": confidence_N}
