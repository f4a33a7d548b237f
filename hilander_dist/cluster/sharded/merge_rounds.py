"""Merges by the map equation over shards, while there are more pairs of clusters than one task holds: the same partition as
``merge_by_map_equation`` makes of all clusters in one task.

A cluster lives in the shard of its position, with its volume and a row for each partner, so a pair of clusters has a row at
either end. In a round each shard asks for its partners' sums, names for each cluster the partner that gains most, asks whether that
one names it in turn, asks what its partners became, and sends what merged to its new owner. Sums are int64 and of equal gains the
smallest partner counts, so no byte depends on the sharding.

Shapes: C clusters of a shard, E rows ascending by (own_E, other_E), S shards.
"""

from typing import Any, NamedTuple

import numpy as np

from hilander_dist.cluster.partition.map_equation import best_of_rows, refresh_exit, sum_keyed
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


class ShardedClusterGraph(NamedTuple):
    """The clusters of all shards that have an edge to another one; lists are per shard."""

    clusters: list[Ref]
    """Blocks of id_C (positions, ascending) and volume_C (weight at the members' ends); int64."""
    rows: list[Ref]
    """Blocks of own_E, other_E and weight_E; int64."""


def scatter(tasks: Tasks, sums: list[Ref], starts: Starts) -> ShardedClusterGraph:
    """Bring the sums of each cluster and pair to their shards; ``sums`` per shard as of ``path._pass_shard``."""
    S = len(starts) - 1
    return _collect(tasks, [tasks.call(_scatter, block, starts, returns=2 * S) for block in sums])


def merge_round(
    tasks: Tasks, graph: ShardedClusterGraph, starts: Starts, total_flow: int, stale_exit: int | None
) -> tuple[ShardedClusterGraph, list[Ref] | None, int, bool]:
    """Merge all pairs of clusters that name each other.

    Args:
        tasks: where to run.
        graph: the clusters.
        starts: how positions are cut into shards.
        total_flow: volume of all clusters.
        stale_exit: of the rounds before, see ``map_equation.refresh_exit``; None in the first.

    Returns:
        The clusters after it; per shard a block of at_C (place of each cluster in its shard) and into_C (position of the
        cluster that it is now), None where nothing merged; ``stale_exit`` for the next round; whether no merge gains anything.
    """
    S = len(starts) - 1
    partners = [tasks.call(_partners, block) for block in graph.rows]
    sums = [tasks.call(_exits, graph.clusters[s], graph.rows[s], starts[s]) for s in range(S)]
    needs, answers = fetch_rows(tasks, partners, sums, starts, serve_placed)
    all_exit = sum(tasks.get([tasks.call(_all_exit, block) for block in sums]))
    stale_exit = refresh_exit(stale_exit, all_exit)
    named = [
        tasks.call(_name, sums[s], graph.rows[s], needs[s], answers[s], (total_flow, stale_exit), starts[s])
        for s in range(S)
    ]
    asked, told = fetch_rows(tasks, [tasks.call(_named, block) for block in named], named, starts, serve_placed)
    become = [tasks.call(_agree, named[s], asked[s], told[s], starts[s]) for s in range(S)]
    if not any(tasks.get([tasks.call(_any_merged, become[s], starts[s]) for s in range(S)])):
        return graph, None, all_exit, stale_exit == all_exit
    renamed = serve_rows(tasks, needs, become, starts, serve_placed)
    sent = [
        tasks.call(
            _send_merged, graph.clusters[s], graph.rows[s], become[s], needs[s], renamed[s], starts, returns=2 * S
        )
        for s in range(S)
    ]
    return _collect(tasks, sent), become, stale_exit, False


def count_pairs(tasks: Tasks, graph: ShardedClusterGraph) -> int:
    """Number of pairs of clusters with a weight between them."""
    pairs: list[int] = tasks.get([tasks.call(_count_pairs, block) for block in graph.rows])
    return sum(pairs)


def gather(clusters: list[Block], rows: list[Block]) -> tuple[np.ndarray, ...]:
    """All clusters in one process: id_C, volume_C, and u_E, v_E (places in id_C) and weight_E of their pairs."""
    every, row = concat_blocks(clusters), concat_blocks(rows)
    row = take_rows(row, row["own_E"] < row["other_E"])
    u_E, v_E = (np.searchsorted(every["id_C"], row[name]) for name in ("own_E", "other_E"))
    return every["id_C"], every["volume_C"], u_E, v_E, row["weight_E"]


def point(parents: Block, become: Block) -> Block:
    """Parents (dense, parent_N) after a round."""
    parent_N = parents["parent_N"].copy()
    parent_N[become["at_C"]] = become["into_C"]
    return {"parent_N": parent_N}


def serve_placed(table: Block, places: np.ndarray) -> Block:
    """The columns of a table for places that it has in at_C, ascending; both counted from the shard's first position."""
    at = np.searchsorted(table["at_C"], places)
    return {name: column[at] for name, column in table.items() if name != "at_C"}


def _answers_for(keys: np.ndarray, needs: list[np.ndarray], answers: list[Block]) -> Block:
    """For each key the columns that were served for it."""
    return take_rows(concat_blocks(answers), np.searchsorted(np.concatenate(needs), keys))


def _collect(tasks: Tasks, sent: list[list[Ref]]) -> ShardedClusterGraph:
    S = len(sent)
    clusters = [tasks.call(_sum_clusters, [pieces[s] for pieces in sent]) for s in range(S)]
    rows = [tasks.call(_sum_rows, [pieces[S + s] for pieces in sent]) for s in range(S)]
    return ShardedClusterGraph(clusters, rows)


def _scatter(sums: Block, starts: Starts) -> Any:
    u_E, v_E, weight_E = sums["u_E"], sums["v_E"], sums["weight_E"]
    rows = {"own_E": np.r_[u_E, v_E], "other_E": np.r_[v_E, u_E], "weight_E": np.r_[weight_E, weight_E]}
    # An edge adds to the volume at both of its ends; one inside a cluster has both there.
    id_C = np.concatenate([sums["id_C"], rows["own_E"]])
    clusters = {"id_C": id_C, "volume_C": np.concatenate([2 * sums["weight_C"], rows["weight_E"]])}
    return _send(_sum_clusters([clusters]), rows, starts)


def _send(clusters: Block, rows: Block, starts: Starts) -> Any:
    S = len(starts) - 1
    pieces = as_list(partition_rows(clusters, clusters["id_C"], starts), S)
    return unpack([*pieces, *as_list(partition_rows(rows, rows["own_E"], starts), S)])


def _sum_clusters(inbox: list[Block]) -> Block:
    parts = concat_blocks(inbox)
    id_C, at = np.unique(parts["id_C"], return_inverse=True)
    volume_C = np.zeros(len(id_C), dtype=np.int64)
    np.add.at(volume_C, at, parts["volume_C"])
    return {"id_C": id_C, "volume_C": volume_C}


def _sum_rows(inbox: list[Block]) -> Block:
    parts = concat_blocks(inbox)
    names = ("own_E", "other_E", "weight_E")
    return dict(zip(names, sum_keyed(*(parts[name] for name in names)), strict=True))


def _partners(rows: Block) -> np.ndarray:
    return rows["other_E"]


def _count_pairs(rows: Block) -> int:
    return int(np.count_nonzero(rows["own_E"] < rows["other_E"]))


def _exits(clusters: Block, rows: Block, start: int) -> Block:
    exit_C = np.zeros(len(clusters["id_C"]), dtype=np.int64)
    np.add.at(exit_C, np.searchsorted(clusters["id_C"], rows["own_E"]), rows["weight_E"])
    return {"at_C": clusters["id_C"] - start, "volume_C": clusters["volume_C"], "exit_C": exit_C}


def _all_exit(sums: Block) -> int:
    return int(sums["exit_C"].sum())


def _name(
    sums: Block, rows: Block, needs: list[np.ndarray], answers: list[Block], everywhere: tuple[int, int], start: int
) -> Block:
    """The partner that each cluster names, itself where no merge gains anything."""
    id_C = sums["at_C"] + start
    other = _answers_for(rows["other_E"], needs, answers)
    row_C = best_of_rows(
        sums["volume_C"],
        sums["exit_C"],
        np.searchsorted(id_C, rows["own_E"]),
        other["volume_C"],
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
    mutual_C = _answers_for(partner_C, asked, told)["partner_C"] == id_C
    return {"at_C": named["at_C"], "into_C": np.where(mutual_C, np.minimum(id_C, partner_C), id_C)}


def _any_merged(become: Block, start: int) -> bool:
    return bool((become["into_C"] != become["at_C"] + start).any())


def _send_merged(
    clusters: Block, rows: Block, become: Block, needs: list[np.ndarray], renamed: list[Block], starts: Starts
) -> Any:
    at_E = np.searchsorted(clusters["id_C"], rows["own_E"])
    own_E, other_E = become["into_C"][at_E], _answers_for(rows["other_E"], needs, renamed)["into_C"]
    merged = {**clusters, "id_C": become["into_C"]}
    return _send(merged, take_rows({**rows, "own_E": own_E, "other_E": other_E}, own_E != other_E), starts)
