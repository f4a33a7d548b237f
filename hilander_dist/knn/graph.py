"""The k-NN graph of a level over its shards: one quantizer, multi-probe, exact within the probed cells.

A shard's queries go to every cell that they probe, wherever it lives: the task holds its own rows and fetches the other
shards one after another. How many cells to probe is read off a sample, the recall off another one (recall.py).
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hilander_dist.errors import ClusterError
from hilander_dist.exchange import Starts
from hilander_dist.knn.device import search_part_on_device
from hilander_dist.knn.kernel import search_part
from hilander_dist.knn.layout import Level, assign_cells, has_one_cell, is_small, move_rows, probes_paths, read_whole
from hilander_dist.knn.quantizer import Quantizer, nearest_cells
from hilander_dist.knn.ranking import empty_candidates, finish
from hilander_dist.knn.recall import (
    NO_GAP,
    Probing,
    choose_probing,
    found_share,
    mean_interval,
    sample_truth,
    samples_all,
    share_of,
    truth_path,
)
from hilander_dist.storage import Storage
from hilander_dist.tasks import Block, Lazy, Loader, Ref, Tasks


@dataclass(frozen=True)
class GraphOptions:
    """How a graph is searched; fields as in ``config.Config``."""

    k: int
    target_recall: float
    seed: int
    device: str = "cpu"
    quantizer: Storage | None = None
    """Of an earlier run, for level 0."""

    @property
    def gpus(self) -> int:
        """GPUs that a search needs."""
        return int(self.device != "cpu")


@dataclass(frozen=True)
class GraphStats:
    """How a level's graph was searched, for the manifest."""

    nlist: int
    nprobe: int
    """Most cells that a node probes."""
    probe_gap: float | None
    """See ``recall.Probing``; None where every node probes ``nprobe`` cells."""
    crowds_cut: bool
    """See ``recall.Probing``."""
    rows_compared: float
    """Rows that a node was compared with, on average over the sampled nodes that chose the probing."""
    recall: float
    """Share of the exact neighbours that are in the graph, on average over sampled nodes other than those that chose the probing:
    it may come out below ``target_recall``. 1 where all cells were searched; NaN where no such node has a neighbour."""
    recall_low: float
    """Lower end of its 95% confidence interval."""
    recall_sample: int
    """Nodes that it was measured on; 0 where all cells were searched, and nothing had to be estimated."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON: a recall that was not measured is None."""
        return {name: None if value != value else value for name, value in asdict(self).items()}


def knn_graph(
    tasks: Tasks, parts: Sequence[Loader], n: int, dim: int, shards: int, options: GraphOptions, prefix: str
) -> tuple[Level, list[Ref], GraphStats]:
    """Lay out the nodes of a level and find each one's k - 1 nearest others.

    Args:
        tasks: where to run.
        parts: read blocks with at least id_N and x_ND, in source order. Each is read two or three times.
        n: number of nodes in all parts together.
        dim: number of dimensions.
        shards: number of shards wanted.
        options: of the search.
        prefix: where the level's blocks are saved.

    Returns:
        The nodes in canonical order; per shard a block of nbr_NK int64 positions (-1 pads) and sim_NK float32 (0 pads),
        each row by similarity descending, then id; and how it was searched.
    """
    if options.quantizer is None and is_small(n, shards):
        level = read_whole(tasks, parts, n, dim, prefix)
        tasks.wait(level.nodes, f"{prefix} layout")
        return level, *search_level(tasks, level, None, options, prefix)
    exact = options.target_recall == 1 or samples_all(n) or (options.quantizer is None and has_one_cell(n))
    # What an earlier attempt has probed needs no rows.
    finished = tasks.saved.issuperset(probes_paths(prefix, len(parts)) + ([] if exact else [truth_path(prefix)]))
    loaded = [None] * len(parts) if finished else [tasks.call(part) for part in parts]
    assignment = assign_cells(tasks, loaded, n, dim, options.seed, prefix, options.quantizer, options.gpus)
    # Submitted behind the training of the quantizer, which leaves the other cores idle.
    truth = None if exact else sample_truth(tasks, loaded, n, options.k, options.seed, prefix)
    del loaded
    tasks.wait([assignment.cell_start, *([] if exact else [truth])], f"{prefix} cells")
    # A task that waits for a block gives its CPU up, and Ray starts another worker: seconds. So blocks come first.
    level = move_rows(tasks, parts, assignment, n, shards, prefix)
    del assignment
    graph, stats = search_level(tasks, level, truth, options, prefix)
    return level, graph, stats


def search_level(
    tasks: Tasks, level: Level, truth: Ref | None, options: GraphOptions, prefix: str
) -> tuple[list[Ref], GraphStats]:
    """Search a level that is laid out; see ``knn_graph``. Without a ``truth`` all cells are probed."""
    nlist = tasks.get(tasks.call(_count_cells, level.quantizer))
    probing = Probing(nlist, NO_GAP, float(level.n), False)
    chosen = f"{prefix}/probing.json"
    if truth is not None and chosen in tasks.saved:
        probing = Probing(**tasks.store.read_json(chosen))
    elif truth is not None:
        with tasks.progress.stage(f"{prefix} probing", 1) as advance:
            probing = choose_probing(tasks, level, truth, nlist, options.target_recall)
            advance(1)
        tasks.store.write_json(chosen, asdict(probing))
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
            options.k - 1,
            options.device,
            save=f"{prefix}/graph-{s:05d}.safetensors",
            gpus=options.gpus,
        )
        for s in range(level.shards)
    ]
    tasks.wait(graph, f"{prefix} knn graph")
    recall, low, sample = 1.0, 1.0, 0
    if truth is not None:
        found = [tasks.call(_found, truth, nodes, block) for nodes, block in zip(level.nodes, graph, strict=True)]
        # In one order of addition for any sharding.
        foreseen, measured = (np.sort(np.concatenate(shares)) for shares in zip(*tasks.get(found), strict=True))
        chosen_for = mean_interval(foreseen)[0]
        if chosen_for < options.target_recall:
            raise ClusterError(
                f"{prefix}: the k-NN graph has a recall of {chosen_for:.4f} on the nodes for which its probing was chosen, below"
                f" target_recall={options.target_recall}; this should not happen: run with --target-recall 1, and report it"
            )
        sample = len(measured)
        recall, low = mean_interval(measured) if sample else (math.nan, math.nan)
    gap = probing.gap if probing.gap < NO_GAP else None
    return graph, GraphStats(nlist, probing.nprobe, gap, probing.crowds_cut, probing.rows, recall, low, sample)


def search_shard(
    shard: int,
    everything: Lazy,
    starts: Starts,
    quantizer: Quantizer,
    cell_start: np.ndarray,
    probing: Probing,
    K: int,
    device: str,
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
        device: ``cpu``, or a torch device.
    """
    own = everything.get(shard)
    query_ND, id_N = own["x_ND"], own["id_N"]
    candidates = empty_candidates(len(id_N), K)
    if probing.gap == NO_GAP:  # All cells are as good as one cell that holds everything.
        probe_NP, cell_start = np.zeros((len(id_N), 1), np.int32), np.array([0, starts[-1]])
    else:
        probe_NP = probed_cells(own, quantizer, probing)
    cells = np.unique(probe_NP)
    cells = cells[cells >= 0]
    filled = cells[cell_start[cells] < cell_start[cells + 1]]
    first = np.searchsorted(starts, cell_start[filled], side="right") - 1
    last = np.searchsorted(starts, cell_start[filled + 1] - 1, side="right") - 1
    touched = {int(d) for lo, hi in zip(first, last, strict=True) for d in range(lo, hi + 1)}
    crowd_CD = quantizer.centroid_CD if probing.crowds_cut else None
    search: Callable[..., None] = search_part
    if device != "cpu":
        search = functools.partial(search_part_on_device, device=device)
    # The own shard first: it holds most neighbours, and their similarities let later blocks be filtered early.
    for d in [shard, *sorted(touched - {shard})]:
        part = own if d == shard else everything.get(d)
        search(query_ND, id_N, probe_NP, part["x_ND"], part["id_N"], starts[d], cell_start, candidates, crowd_CD)
    nbr_NK, sim_NK = finish(candidates)
    return {"nbr_NK": nbr_NK, "sim_NK": sim_NK}


def probed_cells(nodes: Block, quantizer: Quantizer, probing: Probing) -> np.ndarray:
    """The cells that each node of a shard probes, [N, nprobe] int32, nearest first; -1 where it probes fewer."""
    if probing.nprobe <= nodes["probe_NP"].shape[1]:
        probe_NP, gap_NP = nodes["probe_NP"][:, : probing.nprobe], nodes["gap_NP"][:, : probing.nprobe]
    else:
        probe_NP, gap_NP = nearest_cells(nodes["x_ND"], quantizer, probing.nprobe)
    return np.where(gap_NP <= probing.gap, probe_NP, np.int32(-1))


def _count_cells(quantizer: Quantizer) -> int:
    return quantizer.cells


def _found(truth: Block, nodes: Block, graph: Block) -> list[np.ndarray]:
    """``found_share`` of the sampled nodes that chose the probing, and of the others."""
    return [found_share(share_of(truth, choosing), nodes["id_N"], graph) for choosing in (True, False)]
