"""How much to probe, and what recall that has: read off a sample of nodes that are also searched exactly.

Some of the sampled nodes choose the probing, others report the recall: what is reported was not chosen by the same nodes
(LOG 2026-11-28, recall-sample).

M sampled nodes, K neighbours kept, C cells, P probes. A neighbour counts as found where it is as similar as the K-th
exact one, to TIE: among near-duplicates any K will do, and to look for particular ones would mean to compare all with all.
So neither the exact neighbours' ids nor their cells are needed: their similarities are enough, they can be searched in
the input's parts while the quantizer is trained, and what each probed cell is worth is counted once the nodes are laid out.
"""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hilander_dist.exchange import concat_blocks, take_rows
from hilander_dist.knn.kernel import count_near, search_rows
from hilander_dist.knn.layout import PROBES_KEPT, Level, sample_rows
from hilander_dist.knn.near_duplicates import CROWD_LIMIT, CROWD_RUN, CROWD_RUNS
from hilander_dist.knn.quantizer import CELLS_AROUND, Quantizer, nearest_cells
from hilander_dist.knn.ranking import empty_candidates, finish
from hilander_dist.tasks import Block, Ref, Tasks

CHOOSING = 500
"""Nodes that choose the probing: at a recall of .98 the 95% interval is about +- .006."""

REPORTING = 250
"""Nodes that report the recall: the interval is about +- .009."""

SAMPLE_SALT = 0x5EED
"""Keeps the recall sample apart from the quantizer's training sample."""

TIE = 1e-5
"""Similarities nearer than this are as good as equal."""


NO_GAP = 4.0
"""Larger than any difference of two cosines: all cells are probed."""


@dataclass(frozen=True)
class Probing:
    """Which cells a node probes: of its nearest ones those that are nearly as near as the first."""

    nprobe: int
    """At most so many."""
    gap: float
    """Those whose centroid is less similar than the nearest one's by at most this. It looks at 40% fewer rows than a fixed
    number of probes of the same recall (LOG 2026-11-23, probing)."""
    rows: float
    """Rows that a node which chooses is compared with, on average, as if a cell that is a crowd held no other rows."""
    crowds_cut: bool
    """Whether a crowd of near-duplicates offers only a few of its rows, see ``crowds.CROWD_LIMIT``."""


def truth_path(prefix: str) -> str:
    """Where a level's truth is saved."""
    return f"{prefix}/truth.safetensors"


def samples_all(n: int) -> bool:
    """Whether all nodes of a level would be in the sample: to probe all cells is then no more work, and nothing to estimate."""
    return n <= CHOOSING + REPORTING


def sample_truth(tasks: Tasks, parts: Sequence[Ref], n: int, k: int, seed: int, prefix: str) -> Ref:
    """Similarities of the exact neighbours of sampled nodes.

    Args:
        tasks: where to run.
        parts: blocks with id_N and x_ND of all nodes.
        n: number of nodes.
        k: neighbours including the node itself.
        seed: of the sample.
        prefix: where the level's blocks are saved.

    Returns:
        A block of id_N, x_ND, chooses_N (bool, see ``share_of``) and sim_NK float32, descending, 0 where there is no further
        neighbour; ascending in id. Of n nodes CHOOSING choose and REPORTING report, on average; both are drawn by the ids' hashes, so
        that they are the same nodes however the level is cut. Fewer nodes are divided in the same proportion.
    """
    if truth_path(prefix) in tasks.saved:
        return tasks.load(truth_path(prefix))
    of = max(n, CHOOSING + REPORTING)
    picked = [tasks.call(sample_rows, part, (CHOOSING + REPORTING) / of, seed ^ SAMPLE_SALT) for part in parts]
    sample = tasks.call(_divided_sample, picked, CHOOSING / of, seed ^ SAMPLE_SALT)
    found = [tasks.call(_search_exactly, sample, part, k - 1) for part in parts]
    return tasks.call(merge_truth, sample, found, save=truth_path(prefix))


def share_of(truth: Block, choosing: bool) -> Block:
    """The sampled nodes that choose the probing, or those that report the recall; none is in both."""
    return take_rows(truth, truth["chooses_N"] == choosing)


def choose_probing(tasks: Tasks, level: Level, truth: Ref, nlist: int, target_recall: float) -> Probing:
    """The least probing whose recall on the nodes that choose reaches the target with its whole confidence interval.

    It is the smallest gap among the cells that every node keeps; where all of those together do not reach the target,
    among more of them; and at the end of the same without cutting crowds, all cells.

    Args:
        tasks: where to run.
        level: the nodes.
        truth: from ``sample_truth``.
        nlist: cells of the level's quantizer.
        target_recall: the recall to reach.
    """
    choosing = tasks.call(share_of, truth, True)
    for crowds_cut in (True, False):
        count = min(nlist, PROBES_KEPT)
        while True:
            probes = tasks.call(_sample_probes, choosing, level.quantizer, count)
            near = [
                tasks.call(
                    _count_near,
                    choosing,
                    probes,
                    nodes,
                    start,
                    level.cell_start,
                    level.quantizer if crowds_cut else None,
                )
                for nodes, start in zip(level.nodes, level.starts[:-1], strict=True)
            ]
            chosen = tasks.call(least_probing, choosing, probes, near, level.cell_start, target_recall, crowds_cut)
            probing: Probing | None = tasks.get(chosen)
            if probing is not None:
                return probing
            if count == nlist or (crowds_cut and count >= CELLS_AROUND // 2):
                break
            # Beyond what the nodes keep: what a quantizer of several groups finds cheaply, then from all cells.
            count = min(nlist, max(CELLS_AROUND // 2, 4 * count))
    return Probing(nlist, NO_GAP, float(level.n), False)


def least_probing(
    truth: Block,
    probes: Block,
    near: list[np.ndarray],
    cell_start: np.ndarray,
    target_recall: float,
    crowds_cut: bool,
) -> Probing | None:
    """The smallest gap that reaches the target, or None where these probes do not.

    Args:
        truth: the nodes that choose.
        probes: cell_NP and gap_NP of these nodes, nearest first.
        near: per shard int64 [M, P], rows of each probed cell that are as similar as the K-th exact neighbour.
        cell_start: int64 [C + 1].
        target_recall: the recall to reach.
        crowds_cut: see ``Probing``.
    """
    some_M = truth["sim_NK"][:, :1].any(axis=1)
    wanted_M = (truth["sim_NK"][some_M] > 0).sum(axis=1)
    near_MP, gap_MP = np.sum(near, axis=0)[some_M], probes["gap_NP"]

    def reached(gap: float) -> bool:
        found_M = (near_MP * (gap_MP[some_M] <= gap)).sum(axis=1)
        return mean_interval(np.minimum(found_M / wanted_M, 1))[1] >= target_recall

    if not reached(math.inf):
        return None
    gaps = np.unique(gap_MP[some_M])
    gap = float(gaps[bisect.bisect_left(gaps, True, key=reached)]) if len(gaps) else 0.0
    size_C = np.diff(cell_start)
    if crowds_cut:
        size_C = np.where(size_C > CROWD_LIMIT, CROWD_RUNS * CROWD_RUN, size_C)
    rows = float((size_C[probes["cell_NP"]] * (gap_MP <= gap)).sum(axis=1).mean())
    return Probing(gap_MP.shape[1], gap, rows, crowds_cut)


def found_share(truth: Block, id_N: np.ndarray, graph: Block) -> np.ndarray:
    """Share of the exact neighbours found, for each sampled node of a shard that has any.

    Args:
        truth: the sampled nodes, or one ``share_of`` them.
        id_N: ids of the shard's nodes.
        graph: the shard's sim_NK.
    """
    at = np.searchsorted(truth["id_N"], id_N)
    here_N = np.append(truth["id_N"], -1)[at] == id_N
    exact_MK = truth["sim_NK"][at[here_N]]
    wanted_M = (exact_MK > 0).sum(axis=1)
    found_M = (graph["sim_NK"][here_N] >= _threshold(exact_MK)[:, None]).sum(axis=1)
    return np.asarray(np.minimum(found_M, wanted_M)[wanted_M > 0] / wanted_M[wanted_M > 0])


def mean_interval(values_M: np.ndarray) -> tuple[float, float]:
    """Mean, and the lower end of its 95% interval (normal approximation over nodes); 1 for no values."""
    if len(values_M) == 0:
        return 1.0, 1.0
    mean = float(values_M.mean())
    return mean, max(0.0, mean - 1.96 * float(values_M.std()) / math.sqrt(len(values_M)))


def merge_truth(sample: Block, found: list[np.ndarray]) -> Block:
    """The K highest of the parts' similarities."""
    K = found[0].shape[1]
    return {**sample, "sim_NK": -np.sort(-np.concatenate(found, axis=1), axis=1)[:, :K]}


def _threshold(exact_MK: np.ndarray) -> np.ndarray:
    """Similarity from which a row counts as one of the neighbours, float32 > 0; of nodes without neighbours: any > 0."""
    last_M = np.where(exact_MK > 0, exact_MK, np.float32(np.inf)).min(axis=1, initial=np.float32(np.inf))
    last_M[np.isinf(last_M)] = 0
    return np.asarray(np.maximum(last_M - np.float32(TIE), np.finfo(np.float32).tiny))


def _divided_sample(picked: list[Block], share: float, salt: int) -> Block:
    """The sample in ascending order of ids; those choose that a sample of ``share`` of all nodes would have picked."""
    sample = concat_blocks(picked)
    sample = take_rows(sample, np.argsort(sample["id_N"]))
    return {**sample, "chooses_N": np.isin(sample["id_N"], sample_rows(sample, share, salt)["id_N"])}


def _search_exactly(sample: Block, part: Block, K: int) -> np.ndarray:
    """Similarities of the K nearest rows of one part, all of them looked at."""
    M = len(sample["id_N"])
    candidates = empty_candidates(M, K)
    search_rows(sample["x_ND"], sample["id_N"], np.arange(M), part["x_ND"], part["id_N"], 0, candidates)
    return finish(candidates)[1]


def _sample_probes(truth: Block, quantizer: Quantizer, count: int) -> Block:
    cell_NP, gap_NP = nearest_cells(truth["x_ND"], quantizer, count)
    return {"cell_NP": cell_NP, "gap_NP": gap_NP}


def _count_near(
    truth: Block, probes: Block, nodes: Block, start: int, cell_start: np.ndarray, crowds: Quantizer | None
) -> np.ndarray:
    near_MP: np.ndarray = count_near(
        truth["x_ND"],
        truth["id_N"],
        probes["cell_NP"],
        nodes["x_ND"],
        nodes["id_N"],
        start,
        cell_start,
        None if crowds is None else crowds.centroid_CD,
        _threshold(truth["sim_NK"]),
    )
    return near_MP
