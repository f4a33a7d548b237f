"""The level path over shards: clusters merge by the map equation, level by level, each from the clusters of the one before.

Level l adds the shift of its place to the log-odds of all edges. In a pass over its edges each shard brings its labels up to date, looks
how the rows fare in the clusters of the level before, and adds up the weights between clusters at the new shift. One task merges
(``merge_by_map_equation``) and says which clusters are others now; where there are more pairs than it holds, rounds over the shards
go first. So between tasks travel sums by cluster, never edges. Each level's moves are saved, with a marker: a killed run goes on at
the level in which it was.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from hilander_dist.cluster.hierarchy.roots import find_roots
from hilander_dist.cluster.memory import merge_bytes, mergeable_pairs
from hilander_dist.cluster.partition.codelength import cluster_terms, codelength
from hilander_dist.cluster.partition.edge_sums import sum_edges
from hilander_dist.cluster.partition.level_choice import LevelStats
from hilander_dist.cluster.partition.log_odds import MOST, mean_probability, probabilities, weights
from hilander_dist.cluster.partition.map_equation import merge_by_map_equation, sum_pairs
from hilander_dist.cluster.sharded import merge_rounds
from hilander_dist.cluster.sharded.labels import NO_MOVES, Moves, apply_moves, relabel
from hilander_dist.exchange import Starts, as_list, concat_blocks, partition_rows, unpack
from hilander_dist.lander.inference import Inference
from hilander_dist.monitor.log import logger
from hilander_dist.run import Run
from hilander_dist.tasks import Block, Ref, Tasks

PAIRS_AT_ONCE = 16_000_000
"""Pairs of clusters that one task merges, fewer where no node has the 4 GB. 1.8 million took 6.4 s; a round over the shards
looks at all pairs and takes some ten tasks a shard."""


@dataclass(frozen=True)
class ScoredGraph:
    """A level's graph with scores and seeds; lists are per shard."""

    starts: Starts
    local: list[Ref]
    """nbr_NK as rows of the shard's table (``scoring.halo``)."""
    scores: list[Ref]
    """step_NK int16 (``partition.log_odds``), and density_N float32."""
    seeds: list[Ref]
    """Labels (``sharded.labels``): the trees of sure links."""
    seed_count: int
    edges_Q: np.ndarray
    """Histogram of all edges' log-odds (``partition.log_odds``)."""
    linked: float
    """Share of the rows with edges that have one above one half; 0 where hardly any has a likely one (``Inference.least_sure``)."""

    @property
    def edges(self) -> int:
        """How many there are."""
        return int(self.edges_Q.sum())


class Path(NamedTuple):
    """The levels of the path, by ascending shift."""

    levels: list[LevelStats]
    moves: list[Moves]
    """Of each level, from the clusters of the one before; the first one's from the seeds."""


class _Passed(NamedTuple):
    labels: list[Ref]
    sums: list[Ref]
    numbers: np.ndarray
    """int64: closed, above, below, inside; pairs; weight inside and of pairs."""


def merge_path(tasks: Tasks, run: Run | None, graph: ScoredGraph, inference: Inference, prefix: str) -> Path:
    """Merge level by level, until no edge is left between clusters or the shifts are through.

    Args:
        tasks: where to run.
        run: for the markers of finished levels; None in training, where nothing is resumed.
        graph: what is clustered.
        inference: shifts; whether the rule may ask for code lengths.
        prefix: where moves are saved.
    """
    shifts = inference.shifts()
    with_length = inference.shift is None and graph.linked < inference.least_linked and graph.edges > 0
    levels, moves = _finished(tasks, run, prefix, len(shifts))
    labels = graph.seeds
    pending = list(moves)
    clusters = levels[-1].clusters if levels else graph.seed_count
    with tasks.progress.stage(f"{prefix} merges", len(shifts)) as advance:
        advance(len(levels))
        for at in range(len(levels), len(shifts) + 1):
            if levels and levels[-1].inside == graph.edges:
                break
            measured = shifts[at - 1] if at > len(levels) else None
            if measured is None and at == len(shifts):
                break
            passed = _pass(tasks, graph, labels, pending, measured, shifts[at] if at < len(shifts) else None)
            labels, pending = passed.labels, []
            if measured is not None:
                length = _codelength(tasks, graph, passed) if with_length else None
                closed, above, below, inside = passed.numbers[:4].tolist()
                expected = round(graph.edges * mean_probability(graph.edges_Q, measured))
                levels.append(LevelStats(measured, clusters, closed, above, below, inside, expected, length))
                if run is not None:
                    run.mark(f"{prefix}/path-{at - 1:02d}", {**levels[-1]._asdict(), "spread": moves[-1].spread})
                advance(1)
                if inside == graph.edges:
                    break
            if at < len(shifts):
                found, merged = _merge(tasks, graph, passed, f"{prefix}/path-{at:02d}")
                moves.append(found)
                pending = [found]
                clusters -= merged
    return Path(levels, moves)


def labels_by_level(tasks: Tasks, graph: ScoredGraph, path: Path) -> Iterator[list[Ref]]:
    """The labels of each level, per shard, each from those of the one below."""
    labels = graph.seeds
    for moves in path.moves:
        labels = relabel(tasks, labels, [moves], graph.starts)
        yield labels


def labels_at(tasks: Tasks, graph: ScoredGraph, path: Path, level: int) -> list[Ref]:
    """The labels of a level, per shard."""
    return relabel(tasks, graph.seeds, path.moves[: level + 1], graph.starts)


def _finished(tasks: Tasks, run: Run | None, prefix: str, levels: int) -> tuple[list[LevelStats], list[Moves]]:
    """The levels that an earlier attempt finished."""
    stats, moves = [], []
    for at in range(levels):
        numbers = run.marker(f"{prefix}/path-{at:02d}") if run is not None else None
        if numbers is None:
            break
        spread = numbers.pop("spread")
        stats.append(LevelStats(**numbers))
        # An attempt with other memory may have left blocks of the other kind.
        kind = "pointers" if spread else "moves"
        paths = [path for path in sorted(tasks.saved) if path.startswith(f"{prefix}/path-{at:02d}/{kind}")]
        moves.append(Moves([tasks.load(path) for path in paths], spread))
    return stats, moves


def _pass(
    tasks: Tasks,
    graph: ScoredGraph,
    labels: list[Ref],
    pending: list[Moves],
    measured: float | None,
    shift: float | None,
) -> _Passed:
    together = [block for moves in pending for block in moves.blocks]
    if any(moves.spread for moves in pending):
        labels, together = relabel(tasks, labels, pending, graph.starts), []
    found = [
        tasks.call(_pass_shard, labels[s], together, graph.local[s], graph.scores[s], measured, shift, returns=3)
        for s in range(len(graph.starts) - 1)
    ]
    numbers = np.sum(tasks.get([numbers for _, _, numbers in found]), axis=0)
    return _Passed([block for block, _, _ in found], [sums for _, sums, _ in found], numbers)


def _pass_shard(
    labels: Block, moves: list[Block], local_NK: np.ndarray, scores: Block, measured: float | None, shift: float | None
) -> tuple[Block, Block, np.ndarray]:
    """A shard's labels after the moves, its sums of edges, and numbers as of ``_Passed``.

    The sums are a block of id_C, its clusters, with weight_C inside, edges_C and exits_C, and u_E, v_E and weight_E, the pairs of
    clusters with a weight between them; int64.
    """
    labels = apply_moves(labels, moves)
    nothing_Q = np.zeros(2 * MOST + 1, dtype=np.int64)
    sums = sum_edges(
        labels["at_T"],
        len(labels["label_U"]),
        local_NK,
        scores["step_NK"],
        nothing_Q if measured is None else probabilities(measured),
        nothing_Q if shift is None else weights(shift),
    )
    here_U = sums.edges_U > 0
    label_U = labels["label_U"]
    block = {
        "id_C": label_U[here_U],
        "weight_C": sums.weight_U[here_U],
        "edges_C": sums.edges_U[here_U],
        "exits_C": sums.exits_U[here_U],
        "u_E": label_U[sums.u_E],
        "v_E": label_U[sums.v_E],
        "weight_E": sums.weight_E,
    }
    inside, between = int(sums.weight_U.sum()), int(sums.weight_E.sum())
    return labels, block, np.r_[sums.row_4, len(sums.u_E), inside, between]


def _merge(tasks: Tasks, graph: ScoredGraph, passed: _Passed, prefix: str) -> tuple[Moves, int]:
    """The moves of a level, and how many clusters fewer there are after it."""
    pairs, inside, between = passed.numbers[4:].tolist()
    path = f"{prefix}/moves.safetensors"
    if pairs == 0:
        return NO_MOVES, 0
    total_flow = 2 * (inside + between)
    # Pairs with both ends in one shard are there twice.
    at_once = min(PAIRS_AT_ONCE, mergeable_pairs(tasks.offered()))
    if pairs <= at_once:
        ref = tasks.asking(merge_bytes(pairs)).call(_merge_all, passed.sums, total_flow, save=path)
        moves = Moves([ref], False)
        merged = tasks.get(tasks.call(_count_moves, ref))
    else:
        blocks = _merge_by_rounds(tasks, graph.starts, passed.sums, total_flow, at_once, prefix)
        moves = Moves(blocks, True)
        merged = sum(
            tasks.get(
                [tasks.call(_count_moved, block, start) for block, start in zip(blocks, graph.starts, strict=False)]
            )
        )
    return moves, merged


def _merge_all(sums: list[Block], total_flow: int) -> Block:
    """The moves of a level (``labels.Moves``) from the sums of all shards."""
    u_E, v_E, weight_E = sum_pairs(
        *(np.concatenate([block[name] for block in sums]) for name in ("u_E", "v_E", "weight_E"))
    )
    id_C = np.union1d(u_E, v_E)
    u_E, v_E = np.searchsorted(id_C, u_E), np.searchsorted(id_C, v_E)
    volume_C = np.zeros(len(id_C), dtype=np.int64)
    np.add.at(volume_C, u_E, weight_E)
    np.add.at(volume_C, v_E, weight_E)
    for block in sums:
        at = np.minimum(np.searchsorted(id_C, block["id_C"]), len(id_C) - 1)
        known = id_C[at] == block["id_C"]
        volume_C[at[known]] += 2 * block["weight_C"][known]
    return _moves(id_C, merge_by_map_equation(volume_C, u_E, v_E, weight_E, total_flow))


def _moves(id_C: np.ndarray, group_C: np.ndarray) -> Block:
    into_C = id_C[group_C]
    changed_C = into_C != id_C
    return {"id_C": id_C[changed_C], "into_C": into_C[changed_C]}


def _merge_by_rounds(
    tasks: Tasks, starts: Starts, sums: list[Ref], total_flow: int, at_once: int, prefix: str
) -> list[Ref]:
    """Per shard pointer_N: what the cluster of each position is after the merges."""
    S = len(starts) - 1
    graph = merge_rounds.scatter(tasks, sums, starts)
    parents = [tasks.call(_alone, starts[s], starts[s + 1]) for s in range(S)]
    stale_exit, done = None, False
    while (count := merge_rounds.count_pairs(tasks, graph)) > at_once and not done:
        logger.info("merging over shards", pairs=count)
        graph, become, stale_exit, done = merge_rounds.merge_round(tasks, graph, starts, total_flow, stale_exit)
        if become is not None:
            parents = [tasks.call(merge_rounds.point, parents[s], become[s]) for s in range(S)]
    if not done:
        rest = tasks.asking(merge_bytes(count)).call(
            _merge_rest, graph.clusters, graph.rows, total_flow, stale_exit, starts, returns=S
        )
        parents = [tasks.call(merge_rounds.point, parents[s], become) for s, become in enumerate(as_list(rest, S))]
    pointers = find_roots(tasks, parents, starts)
    return [
        tasks.call(_pointers, block, save=f"{prefix}/pointers-{s:05d}.safetensors") for s, block in enumerate(pointers)
    ]


def _merge_rest(
    clusters: list[Block], rows: list[Block], total_flow: int, stale_exit: int | None, starts: Starts
) -> Any:
    """Per shard the clusters that it owns and that are others now, as at_C and into_C."""
    id_C, volume_C, u_E, v_E, weight_E = merge_rounds.gather(clusters, rows)
    moves = _moves(id_C, merge_by_map_equation(volume_C, u_E, v_E, weight_E, total_flow, stale_exit))
    pieces = as_list(partition_rows(moves, moves["id_C"], starts), len(starts) - 1)
    return unpack([{"at_C": piece["id_C"] - starts[s], "into_C": piece["into_C"]} for s, piece in enumerate(pieces)])


def _alone(start: int, stop: int) -> Block:
    return {"parent_N": np.arange(start, stop)}


def _pointers(roots: Block) -> Block:
    return {"pointer_N": roots["pointer_N"]}


def _count_moves(moves: Block) -> int:
    return len(moves["id_C"])


def _count_moved(pointers: Block, start: int) -> int:
    return int(np.count_nonzero(pointers["pointer_N"] != start + np.arange(len(pointers["pointer_N"]))))


def _codelength(tasks: Tasks, graph: ScoredGraph, passed: _Passed) -> int:
    """Of the clusters that a pass has looked at, on the graph with equal weights."""
    S = len(graph.starts) - 1
    sent = [as_list(tasks.call(_send_counts, block, graph.starts, returns=S), S) for block in passed.sums]
    terms = [tasks.call(_terms, [pieces[s] for pieces in sent], graph.edges) for s in range(S)]
    exits = graph.edges - int(passed.numbers[3])
    return codelength(sum(tasks.get(terms)), exits, graph.edges)


def _send_counts(sums: Block, starts: Starts) -> Any:
    return partition_rows({name: sums[name] for name in ("id_C", "edges_C", "exits_C")}, sums["id_C"], starts)


def _terms(inbox: list[Block], edges: int) -> int:
    parts = concat_blocks(inbox)
    at = np.unique(parts["id_C"], return_inverse=True)[1]
    edges_C, exits_C = (np.bincount(at, parts[name]) for name in ("edges_C", "exits_C"))
    return cluster_terms(edges_C, exits_C, edges)
