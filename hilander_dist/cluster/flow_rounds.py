"""Merges by the map equation over shards: the same partition as ``flow.merge_flow`` makes of all clusters in one task.

A cluster lives in the shard of its position (the smallest of its trees' roots), with its sums and a row for each partner;
so in rounds a pair of clusters has a row at either end. In a round each shard asks for its partners' sums, names for each cluster the
partner that saves most, asks whether that one names it in turn, asks what its partners became, and sends what merged to its
new owner. Sums are int64 and of equal savings the smallest partner counts, so no byte depends on the sharding.

Shapes: C clusters of a shard, E rows ascending by (own_E, other_E), S shards.
"""

from typing import Any, NamedTuple

import numpy as np

from hilander_dist.cluster.flow import best_of_rows, renewed, sum_keyed, sum_pairs
from hilander_dist.cluster.memory import gigabytes, merge_bytes
from hilander_dist.cluster.pairs import Clusters
from hilander_dist.errors import ClusterError
from hilander_dist.exchange import (
    Starts,
    as_list,
    concat_blocks,
    fetch_rows,
    partition_rows,
    serve_rows,
    take_rows,
    unpack,
)
from hilander_dist.tasks import Block, Ref, Tasks

_SUMS = ("total_C", "size_C", "count_C", "chance_C")
_COLUMNS = ("weight_E", "count_E", "chance_E")


class Share(NamedTuple):
    """The clusters of all shards; lists are per shard."""

    clusters: list[Ref]
    """Blocks of id_C (positions, ascending), total_C (weight at the members' ends), size_C, count_C and chance_C (edges
    inside and their probabilities); int64."""
    rows: list[Ref]
    """Blocks of own_E, other_E, weight_E, count_E and chance_E; int64."""


def share_trees(tasks: Tasks, pairs: list[Ref], starts: Starts) -> Share:
    """Bring the sums of each tree and pair of trees to their shards; ``pairs`` per shard as of ``pair_up``.

    A pair has its row at its smaller end alone, which is all that one task needs; for rounds see ``at_both_ends``.
    """
    S = len(starts) - 1
    return _collect(tasks, [tasks.call(send_trees, block, starts, returns=2 * S) for block in pairs])


def at_both_ends(tasks: Tasks, share: Share, starts: Starts) -> Share:
    """The share of ``share_trees`` with a row at the larger end of each pair, too."""
    S = len(starts) - 1
    sent = [as_list(tasks.call(_send_back, block, starts, returns=S), S) for block in share.rows]
    rows = [tasks.call(sum_rows, [share.rows[s], *(pieces[s] for pieces in sent)]) for s in range(S)]
    return Share(share.clusters, rows)


def count_pairs(tasks: Tasks, share: Share) -> int:
    """Number of pairs of clusters with edges between them."""
    pairs: list[int] = tasks.get([tasks.call(_count_pairs, block) for block in share.rows])
    return sum(pairs)


def for_pairs(tasks: Tasks, count: int) -> Tasks:
    """Tasks that ask for the memory that ``count`` pairs of clusters take.

    Raises:
        ClusterError: no node offers it.
    """
    needed = merge_bytes(count)
    if needed > tasks.offered():
        raise ClusterError(
            f"not enough memory: the task that merges {count} pairs of clusters takes up to {gigabytes(needed)}, the largest"
            f" node of the Ray cluster offers {gigabytes(tasks.offered())}: use nodes with more memory, or a smaller --k"
        )
    return tasks.asking(needed)


def merge_round(
    tasks: Tasks, share: Share, starts: Starts, held: int | None
) -> tuple[Share, list[Ref] | None, int, bool]:
    """Merge all pairs of clusters that name each other.

    Args:
        tasks: where to run.
        share: the clusters, with rows at both ends.
        starts: how positions are cut into shards.
        held: of the rounds before, see ``flow.renewed``; None in the first.

    Returns:
        The clusters after it; per shard a block of at_C (place of each cluster in its shard) and into_C (position of the
        cluster that it is now), None where nothing merged; ``held`` for the next round; whether no merge saves anything.
    """
    S = len(starts) - 1
    partners = [tasks.call(_partners, block) for block in share.rows]
    sums = [tasks.call(_exits, share.clusters[s], share.rows[s], starts[s]) for s in range(S)]
    needs, answers = fetch_rows(tasks, partners, sums, starts, serve_placed)
    totals = tasks.get([tasks.call(_add_up, block) for block in sums])
    both, all_exit = (sum(column) for column in zip(*totals, strict=True))
    held = renewed(held, all_exit)
    named = [tasks.call(_name, sums[s], share.rows[s], needs[s], answers[s], (both, held), starts[s]) for s in range(S)]
    asked, told = fetch_rows(tasks, [tasks.call(_named, block) for block in named], named, starts, serve_placed)
    become = [tasks.call(_agree, named[s], asked[s], told[s], starts[s]) for s in range(S)]
    if not any(tasks.get([tasks.call(_any_merged, become[s], starts[s]) for s in range(S)])):
        return share, None, all_exit, held == all_exit
    renamed = serve_rows(tasks, needs, become, starts, serve_placed)
    sent = [
        tasks.call(
            _send_merged, share.clusters[s], share.rows[s], become[s], needs[s], renamed[s], starts, returns=2 * S
        )
        for s in range(S)
    ]
    return _collect(tasks, sent), become, held, False


def pair_up(
    root_N: np.ndarray,
    own_E: np.ndarray,
    other_E: np.ndarray,
    weight_E: np.ndarray,
    chance_E: np.ndarray,
    rest: int = 0,
) -> Block:
    """Edges by the pair of trees at their ends, and the trees' sizes.

    Args:
        root_N: int64 root of each node.
        own_E: root of each edge's owner.
        other_E: root of its neighbour.
        weight_E: int64 weights.
        chance_E: int64 probabilities in units of 2**-20.
        rest: weight that each node has at its end besides.

    Returns:
        root_M, size_M and rest_M of the trees; u_E <= v_E (equal for edges inside a tree), weight_E, count_E, chance_E.
    """
    ones_E = np.ones(len(own_E), dtype=np.int64)
    u_E, v_E, weight_E, count_E, chance_E = sum_pairs(own_E, other_E, weight_E, ones_E, chance_E)
    root_M, size_M = np.unique(root_N, return_counts=True)
    pairs = {"u_E": u_E, "v_E": v_E, "weight_E": weight_E, "count_E": count_E, "chance_E": chance_E}
    return {**pairs, "root_M": root_M, "size_M": size_M, "rest_M": size_M * rest}


def send_trees(pairs: Block, starts: Starts) -> Any:
    """A shard's part of all sums: per shard blocks of clusters, then per shard blocks of rows."""
    id_C = np.unique(np.concatenate([pairs["root_M"], pairs["u_E"], pairs["v_E"]]))
    at_M, at_u_E, at_v_E = (np.searchsorted(id_C, pairs[name]) for name in ("root_M", "u_E", "v_E"))
    sums = {name: np.zeros(len(id_C), dtype=np.int64) for name in _SUMS}
    np.add.at(sums["size_C"], at_M, pairs["size_M"])
    np.add.at(sums["total_C"], at_M, pairs["rest_M"])
    for at_E in (at_u_E, at_v_E):  # An edge inside a tree has both ends there.
        np.add.at(sums["total_C"], at_E, pairs["weight_E"])
    inside_E = at_u_E == at_v_E
    np.add.at(sums["count_C"], at_u_E[inside_E], pairs["count_E"][inside_E])
    np.add.at(sums["chance_C"], at_u_E[inside_E], pairs["chance_E"][inside_E])
    apart = take_rows({name: pairs[name] for name in ("u_E", "v_E", *_COLUMNS)}, ~inside_E)
    rows = {"own_E": apart["u_E"], "other_E": apart["v_E"], **{name: apart[name] for name in _COLUMNS}}
    return _send({"id_C": id_C, **sums}, rows, starts)


def sum_clusters(inbox: list[Block]) -> Block:
    """A shard's clusters from what all shards sent of them."""
    parts = concat_blocks(inbox)
    id_C, at = np.unique(parts["id_C"], return_inverse=True)
    sums = {name: np.zeros(len(id_C), dtype=np.int64) for name in _SUMS}
    for name, sum_C in sums.items():
        np.add.at(sum_C, at, parts[name])
    return {"id_C": id_C, **sums}


def sum_rows(inbox: list[Block]) -> Block:
    """A shard's rows from what all shards sent of them."""
    parts = concat_blocks(inbox)
    names = ("own_E", "other_E", *_COLUMNS)
    return dict(zip(names, sum_keyed(*(parts[name] for name in names)), strict=True))


def whole(clusters: list[Block], rows: list[Block]) -> tuple[np.ndarray, np.ndarray, Clusters, np.ndarray]:
    """All clusters in one process: id_C, total_C, the clusters by their place in id_C, and weight_E of their pairs."""
    every, row = concat_blocks(clusters), concat_blocks(rows)
    row = take_rows(row, row["own_E"] < row["other_E"])
    u_E, v_E = (np.searchsorted(every["id_C"], row[name]) for name in ("own_E", "other_E"))
    inside = every["size_C"], every["count_C"], every["chance_C"]
    found = Clusters(*inside, u_E, v_E, row["count_E"], row["chance_E"])
    return every["id_C"], every["total_C"], found, row["weight_E"]


def whole_trees(pairs: Block) -> tuple[np.ndarray, Clusters, np.ndarray]:
    """total_C, trees and weight_E of a graph in one process, from its ``pair_up``; trees ascend by root."""
    clusters, rows = send_trees(pairs, (0, 0))
    return whole([sum_clusters([clusters])], [sum_rows([rows])])[1:]


def alone(start: int, stop: int) -> Block:
    """Parents of a shard's nodes where each is its own."""
    return {"parent_N": np.arange(start, stop)}


def spread_groups(id_C: np.ndarray, group_C: np.ndarray, starts: Starts) -> Any:
    """Per shard the clusters that it owns, as at_C, and the position of the first cluster of each one's group, as into_C.

    Args:
        id_C: positions of all clusters, ascending.
        group_C: int64 group of each, from 0 up without gaps.
        starts: how positions are cut into shards.
    """
    first_G = np.unique(group_C, return_index=True)[1]
    S = len(starts) - 1
    pieces = as_list(partition_rows({"id_C": id_C, "into_C": id_C[first_G][group_C]}, id_C, starts), S)
    return unpack([{"at_C": piece["id_C"] - starts[s], "into_C": piece["into_C"]} for s, piece in enumerate(pieces)])


def point(parents: Block, become: Block) -> Block:
    """Parents (dense, parent_N) after a round."""
    parent_N = parents["parent_N"].copy()
    parent_N[become["at_C"]] = become["into_C"]
    return {"parent_N": parent_N}


def answers_for(keys: np.ndarray, needs: list[np.ndarray], answers: list[Block]) -> Block:
    """For each key the columns that were served for it."""
    return take_rows(concat_blocks(answers), np.searchsorted(np.concatenate(needs), keys))


def serve_placed(table: Block, places: np.ndarray) -> Block:
    """The columns of a table for places that it has in at_C, ascending; both counted from the shard's first position."""
    at = np.searchsorted(table["at_C"], places)
    return {name: column[at] for name, column in table.items() if name != "at_C"}


def _collect(tasks: Tasks, sent: list[list[Ref]]) -> Share:
    S = len(sent)
    clusters = [tasks.call(sum_clusters, [pieces[s] for pieces in sent]) for s in range(S)]
    return Share(clusters, [tasks.call(sum_rows, [pieces[S + s] for pieces in sent]) for s in range(S)])


def _send(clusters: Block, rows: Block, starts: Starts) -> Any:
    S = len(starts) - 1
    pieces = as_list(partition_rows(clusters, clusters["id_C"], starts), S)
    return unpack([*pieces, *as_list(partition_rows(rows, rows["own_E"], starts), S)])


def _partners(rows: Block) -> np.ndarray:
    return rows["other_E"]


def _send_back(rows: Block, starts: Starts) -> Any:
    return partition_rows({**rows, "own_E": rows["other_E"], "other_E": rows["own_E"]}, rows["other_E"], starts)


def _count_pairs(rows: Block) -> int:
    return int(np.count_nonzero(rows["own_E"] < rows["other_E"]))


def _exits(clusters: Block, rows: Block, start: int) -> Block:
    exit_C = np.zeros(len(clusters["id_C"]), dtype=np.int64)
    np.add.at(exit_C, np.searchsorted(clusters["id_C"], rows["own_E"]), rows["weight_E"])
    return {"at_C": clusters["id_C"] - start, "total_C": clusters["total_C"], "exit_C": exit_C}


def _add_up(sums: Block) -> tuple[int, int]:
    return int(sums["total_C"].sum()), int(sums["exit_C"].sum())


def _name(
    sums: Block, rows: Block, needs: list[np.ndarray], answers: list[Block], everywhere: tuple[int, int], start: int
) -> Block:
    """The partner that each cluster names, itself where no merge saves anything."""
    id_C = sums["at_C"] + start
    other = answers_for(rows["other_E"], needs, answers)
    row_C = best_of_rows(
        sums["total_C"],
        sums["exit_C"],
        np.searchsorted(id_C, rows["own_E"]),
        other["total_C"],
        other["exit_C"],
        rows["weight_E"],
        float(everywhere[0]),
        everywhere[1],
    )
    partner_C = id_C.copy()
    partner_C[row_C >= 0] = rows["other_E"][row_C[row_C >= 0]]
    return {"at_C": sums["at_C"], "partner_C": partner_C}


def _named(named: Block) -> np.ndarray:
    return named["partner_C"]


def _agree(named: Block, asked: list[np.ndarray], told: list[Block], start: int) -> Block:
    id_C, partner_C = named["at_C"] + start, named["partner_C"]
    mutual_C = answers_for(partner_C, asked, told)["partner_C"] == id_C
    return {"at_C": named["at_C"], "into_C": np.where(mutual_C, np.minimum(id_C, partner_C), id_C)}


def _any_merged(become: Block, start: int) -> bool:
    return bool((become["into_C"] != become["at_C"] + start).any())


def _send_merged(
    clusters: Block, rows: Block, become: Block, needs: list[np.ndarray], renamed: list[Block], starts: Starts
) -> Any:
    at_E = np.searchsorted(clusters["id_C"], rows["own_E"])
    own_E, other_E = become["into_C"][at_E], answers_for(rows["other_E"], needs, renamed)["into_C"]
    inside_E = own_E == other_E
    once_E = inside_E & (rows["own_E"] < rows["other_E"])  # The pair has a row at its other end, too.
    merged = {name: column.copy() for name, column in clusters.items()}
    np.add.at(merged["count_C"], at_E[once_E], rows["count_E"][once_E])
    np.add.at(merged["chance_C"], at_E[once_E], rows["chance_E"][once_E])
    merged["id_C"] = become["into_C"]
    return _send(merged, take_rows({**rows, "own_E": own_E, "other_E": other_E}, ~inside_E), starts)
