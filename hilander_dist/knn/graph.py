"""The k-NN graph of a level over its shards: one quantizer, multi-probe, exact within the probed cells.

A shard's queries go to every cell that they probe, wherever it lives: the task holds its own rows and fetches the other
shards one after another. How many cells to probe is read off a sample: for sampled nodes the exact neighbours are searched
in all shards, and the rank at which each one's cell is probed gives the recall of every ``nprobe`` at once.
"""

import bisect
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hilander_dist.errors import ClusterError
from hilander_dist.exchange import Starts, concat_blocks
from hilander_dist.knn.kernel import Candidates, empty_candidates, finish, search_part, search_rows
from hilander_dist.knn.layout import PROBES_KEPT, Level, sample_rows
from hilander_dist.knn.quantizer import CELLS_AROUND, Quantizer, nearest_cells
from hilander_dist.tasks import Block, Lazy, Ref, Tasks

RECALL_SAMPLE = 500
"""Nodes searched exactly, a tenth of the work at 200k points: at a recall of .98 the 95% interval is about +- .006."""

SAMPLE_SALT = 0x5EED
"""Keeps the recall sample apart from the quantizer's training sample."""


@dataclass(frozen=True)
class Probing:
    """Which cells a node probes: of its nearest ones those that are nearly as near as the first."""

    nprobe: int
    """At most so many."""
    gap: float
    """Those whose centroid is less similar than the nearest one's by at most this. Adaptive probing looks at 40% fewer
    rows than a fixed number of probes of the same recall (200k x 256, k 10 and 80)."""
    rows: float
    """Rows that a sampled node is compared with, on average."""


@dataclass(frozen=True)
class GraphStats:
    """How a level's graph was searched, for the manifest."""

    nlist: int
    nprobe: int
    """Most cells that a node probes."""
    probe_gap: float | None
    """See ``Probing.gap``; None where every node probes ``nprobe`` cells."""
    rows_compared: float
    """Rows that a node was compared with, on average over the sample."""
    recall: float
    """Share of the sampled nodes' exact neighbours that are in the graph."""
    recall_low: float
    """Lower end of its 95% confidence interval."""
    recall_sample: int
    """Nodes in the sample that have a neighbour."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def build_graph(
    tasks: Tasks, level: Level, k: int, target_recall: float, seed: int, prefix: str
) -> tuple[list[Ref], GraphStats]:
    """Find each node's k - 1 nearest other nodes.

    Args:
        tasks: where to run.
        level: the nodes.
        k: neighbours including the node itself.
        target_recall: recall to reach, by probing as many cells as that takes; 1 probes all cells.
        seed: of the recall sample.
        prefix: where the level's blocks are saved.

    Returns:
        Per shard a block of nbr_NK int64 positions (-1 pads) and sim_NK float32 (0 pads), each row by similarity
        descending, then id; and how it was searched.
    """
    truth = _sample_truth(tasks, level, k, seed)
    nlist = tasks.get(tasks.call(_count_cells, level.quantizer))
    probing = Probing(nlist, math.inf, level.n)
    if nlist > 1 and target_recall < 1:
        probing = tasks.get(tasks.call(choose_probing, truth, level.quantizer, level.cell_start, target_recall))
    # A task that waits for a block gives its CPU up, and Ray starts another worker: seconds. So blocks come first.
    tasks.wait(level.nodes, f"{prefix} layout")
    everything = Lazy(tuple(level.nodes))
    graph = [
        tasks.call(
            search_shard,
            s,
            everything,
            level.starts,
            level.quantizer,
            level.cell_start,
            probing,
            k - 1,
            save=f"{prefix}/graph-{s:05d}.safetensors",
        )
        for s in range(level.shards)
    ]
    tasks.wait(graph, f"{prefix} knn graph")
    hits = [tasks.call(_count_hits, truth, block, level.starts[s]) for s, block in enumerate(graph)]
    per_node = np.sort(np.concatenate(tasks.get(hits)))  # one order of addition for any sharding
    recall, low = mean_interval(per_node)
    if recall < target_recall and len(per_node):
        raise ClusterError(
            f"{prefix}: the k-NN graph has a recall of {recall:.4f}, below target_recall={target_recall}; "
            "this should not happen: run with --target-recall 1, and report it"
        )
    gap = probing.gap if math.isfinite(probing.gap) else None
    return graph, GraphStats(nlist, probing.nprobe, gap, probing.rows, recall, low, len(per_node))


def search_shard(
    shard: int,
    everything: Lazy,
    starts: Starts,
    quantizer: Quantizer,
    cell_start: np.ndarray,
    probing: Probing,
    K: int,
) -> Block:
    """Neighbours of one shard's nodes in the cells that they probe.

    Args:
        shard: index of the shard.
        everything: all shards' nodes, fetched one at a time.
        starts: how the positions are cut into shards.
        quantizer: of the level.
        cell_start: int64 [nlist + 1].
        probing: which cells each node probes.
        K: neighbours kept.
    """
    own = everything.get(shard)
    query_ND, id_N = own["x_ND"], own["id_N"]
    candidates = empty_candidates(len(id_N), K)
    if probing.nprobe == quantizer.cells:
        for d in [shard, *(d for d in range(len(starts) - 1) if d != shard)]:
            part = own if d == shard else everything.get(d)
            search_rows(query_ND, id_N, np.arange(len(id_N)), part["x_ND"], part["id_N"], starts[d], candidates)
        return _graph_block(candidates)
    probe_NP = probed_cells(own, quantizer, probing)
    cells = np.unique(probe_NP)
    cells = cells[cells >= 0]
    filled = cells[cell_start[cells] < cell_start[cells + 1]]
    first = np.searchsorted(starts, cell_start[filled], side="right") - 1
    last = np.searchsorted(starts, cell_start[filled + 1] - 1, side="right") - 1
    touched = {int(d) for lo, hi in zip(first, last, strict=True) for d in range(lo, hi + 1)}
    # The own shard first: it holds most neighbours, and their similarities let later blocks be filtered early.
    for d in [shard, *sorted(touched - {shard})]:
        part = own if d == shard else everything.get(d)
        search_part(query_ND, id_N, probe_NP, part["x_ND"], part["id_N"], starts[d], cell_start, candidates)
    return _graph_block(candidates)


def _graph_block(candidates: Candidates) -> Block:
    nbr_NK, sim_NK = finish(candidates)
    return {"nbr_NK": nbr_NK, "sim_NK": sim_NK}


def probed_cells(nodes: Block, quantizer: Quantizer, probing: Probing) -> np.ndarray:
    """The cells that each node of a shard probes, [N, nprobe] int32, nearest first; -1 where it probes fewer."""
    if probing.nprobe <= nodes["probe_NP"].shape[1]:
        probe_NP, gap_NP = nodes["probe_NP"][:, : probing.nprobe], nodes["gap_NP"][:, : probing.nprobe]
    else:
        probe_NP, gap_NP = nearest_cells(nodes["x_ND"], quantizer, probing.nprobe)
    return np.where(gap_NP <= probing.gap, probe_NP, np.int32(-1))


def choose_probing(truth: Block, quantizer: Quantizer, cell_start: np.ndarray, target_recall: float) -> Probing:
    """The least probing whose recall on the sample reaches the target with its whole confidence interval.

    It is the smallest gap among the cells that every node keeps; where all of those together do not reach the target,
    among more of them.

    Args:
        truth: sampled nodes with their exact neighbours, see ``merge_truth``.
        quantizer: of the level.
        cell_start: int64 [nlist + 1].
        target_recall: the recall to reach.
    """
    nlist = quantizer.cells
    real_MK = truth["nbr_NK"] >= 0
    some_M = real_MK.any(axis=1)
    wanted_M = real_MK.sum(axis=1)[some_M]

    def reached(found_M: np.ndarray) -> bool:
        return mean_interval(found_M / wanted_M)[1] >= target_recall

    size_C = np.diff(cell_start)
    count = min(nlist, PROBES_KEPT)
    while True:
        cell_MP, gap_MP = nearest_cells(truth["x_ND"], quantizer, count)
        found_MP = _found_by_rank(truth, cell_start, cell_MP)[some_M]
        if reached(found_MP.sum(axis=1)) or count == nlist:
            gaps = np.unique(gap_MP[some_M])
            at = bisect.bisect_left(
                gaps, True, key=lambda gap: reached((found_MP * (gap_MP[some_M] <= gap)).sum(axis=1))
            )
            gap = float(gaps[min(at, len(gaps) - 1)]) if len(gaps) else 0.0
            return Probing(count, gap, float((size_C[cell_MP] * (gap_MP <= gap)).sum(axis=1).mean()))
        # Beyond what the nodes keep: what a quantizer of several groups finds cheaply, then from all cells.
        count = min(nlist, max(CELLS_AROUND // 2, 4 * count))


def _found_by_rank(truth: Block, cell_start: np.ndarray, cell_MP: np.ndarray) -> np.ndarray:
    """How many exact neighbours of each sampled node lie in its nearest, second nearest ... cell, [M, P]."""
    real_MK = truth["nbr_NK"] >= 0
    nbr_cell_MK = np.searchsorted(cell_start, truth["nbr_NK"], side="right") - 1
    counts = [((nbr_cell_MK == cell_MP[:, rank, None]) & real_MK).sum(axis=1) for rank in range(cell_MP.shape[1])]
    return np.stack(counts, axis=1)


def mean_interval(values_M: np.ndarray) -> tuple[float, float]:
    """Mean, and the lower end of its 95% interval (normal approximation over nodes); 1 for no values."""
    if len(values_M) == 0:
        return 1.0, 1.0
    mean = float(values_M.mean())
    return mean, max(0.0, mean - 1.96 * float(values_M.std()) / math.sqrt(len(values_M)))


def _count_cells(quantizer: Quantizer) -> int:
    return quantizer.cells


def _sample_truth(tasks: Tasks, level: Level, k: int, seed: int) -> Ref:
    """Exact neighbours of sampled nodes over all shards."""
    share = RECALL_SAMPLE / level.n
    picked = [
        tasks.call(sample_rows_at, nodes, share, seed, start)
        for nodes, start in zip(level.nodes, level.starts[:-1], strict=True)
    ]
    sample = tasks.call(_sorted_sample, picked)
    found = [
        tasks.call(_search_exactly, sample, nodes, start, k - 1)
        for nodes, start in zip(level.nodes, level.starts[:-1], strict=True)
    ]
    return tasks.call(merge_truth, sample, found)


def sample_rows_at(nodes: Block, share: float, seed: int, start: int) -> Block:
    """The sampled nodes of a shard with their positions."""
    picked = sample_rows({**nodes, "x_ND": np.arange(len(nodes["id_N"]))}, share, seed ^ SAMPLE_SALT)["x_ND"]
    return {"id_N": nodes["id_N"][picked], "x_ND": nodes["x_ND"][picked], "position_N": picked + start}


def _sorted_sample(picked: list[Block]) -> Block:
    sample = concat_blocks(picked)
    order = np.argsort(sample["id_N"])
    return {name: array[order] for name, array in sample.items()}


def _search_exactly(sample: Block, nodes: Block, start: int, K: int) -> Block:
    """The K nearest rows of one shard, all of them looked at."""
    M = len(sample["id_N"])
    candidates = empty_candidates(M, K)
    search_rows(sample["x_ND"], sample["id_N"], np.arange(M), nodes["x_ND"], nodes["id_N"], start, candidates)
    nbr_NK, sim_NK = finish(candidates)
    id_NK = np.where(nbr_NK >= 0, nodes["id_N"][np.maximum(nbr_NK - start, 0)], np.iinfo(np.int64).max)
    return {"nbr_NK": nbr_NK, "sim_NK": sim_NK, "id_NK": id_NK}


def merge_truth(sample: Block, found: list[Block]) -> Block:
    """The K best of the shards' exact neighbours, by (similarity descending, id ascending)."""
    sim, ids, nbr = (np.concatenate([block[name] for block in found], axis=1) for name in ("sim_NK", "id_NK", "nbr_NK"))
    best = np.lexsort((ids, -sim), axis=1)[:, : found[0]["nbr_NK"].shape[1]]
    return {**sample, "nbr_NK": np.take_along_axis(nbr, best, axis=1)}


def _count_hits(truth: Block, graph: Block, start: int) -> np.ndarray:
    """Share of the exact neighbours found, for each sampled node of this shard that has any."""
    local = truth["position_N"] - start
    here = (local >= 0) & (local < len(graph["nbr_NK"])) & (truth["nbr_NK"] >= 0).any(axis=1)
    found = graph["nbr_NK"][local[here]]
    want = truth["nbr_NK"][here]
    hit = ((want[:, :, None] == found[:, None, :]) & (want >= 0)[:, :, None]).any(axis=2)
    return np.asarray(hit.sum(axis=1) / (want >= 0).sum(axis=1))
