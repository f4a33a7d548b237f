"""Whitening: clusters of a first time tell in which directions members of one cluster differ; those are shortened, and the
whole is clustered anew.

An encoder that was not trained for the classes at hand spends much of its length on what they do not differ by (light, pose,
the hand that wrote). Within-class covariance normalisation (Hatch et al., Interspeech 2006) shortens it, here with clusters
in the place of classes and by less than all. The first time is on ROWS rows at most: of more, whole regions are taken, so that
clusters stay whole. Where members of one cluster do not stay each other's neighbours, vectors are left as they are.

Sums are integers, so the map does not depend on who adds what first. Shapes: N rows, D dimensions, P clusters, A regions.
"""

import functools
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
from torch import nn

from hilander_dist.cluster.hierarchy.features import FIXED_POINT, member_sums
from hilander_dist.cluster.hierarchy.levels import ROWS_WORTH_A_SHARD, Nodes
from hilander_dist.cluster.memory import gigabytes, task_bytes
from hilander_dist.cluster.scoring.halo import in_chunks, to_tensor
from hilander_dist.errors import ClusterError
from hilander_dist.ingest import normalise_rows
from hilander_dist.knn.graph import GraphOptions
from hilander_dist.knn.layout import Level, hash_ids, load_space, sample_rows
from hilander_dist.knn.quantizer import Quantizer, nearest_cells, one_group
from hilander_dist.lander.layers import Linear
from hilander_dist.run import Run
from hilander_dist.tasks import Block, Loader, Ref, Tasks

ROWS = 2**15
"""Of the first time: all up to so many, of more whole regions until there are so many, at most twice as many where regions are
small against that (from some ten million rows on one may be larger). A part of the rows gives as good a map as all (LOG 2026-11-26,
whitening)."""

REGIONS, MOST_REGIONS = 16, 1024
"""So many regions make up ROWS; and at most so many are made: each row is compared with all of them."""

POWER, RIDGE, RIDGE_BY_ROWS = 0.375, 0.3, 10.0
"""A direction is divided by the POWERth power of its variance within clusters, in units of the mean variance, plus a ridge:
RIDGE, and more where there are few rows for the dimensions, as clusters look thin in directions that no other row would
confirm (LOG 2026-11-26, whitening)."""

NEIGHBOURS, QUERIES = 10, 4096
"""Vectors are whitened if the nearest neighbours of some rows are still of their cluster."""

MOST_LOST = 1.04
"""So many times as many neighbours of another cluster are put up with, as clusters were made of plain vectors. It lies between the
sets that whitening harms and those that it does not (LOG 2026-11-26, when-to-whiten)."""

MAP = "whitening/map.safetensors"

_STAGE = "whitening"

_FIXED = 2.0**16
"""Of products: those of 2**12 rows are exact in a float64, those of 2**31 in an int64."""

_ROWS_AT_ONCE = 2**12

_FIT_BYTES = 40
"""For each row and dimension, of the task that fits the map: vectors, mapped ones, and the sums of clusters as they come, joined
and scaled."""


Clusterer = Callable[[Tasks, Nodes, int, GraphOptions, str], tuple[Level, list[Ref]]]
"""Clusters rows in so many shards; the level and, per shard, a block of label_N int64, the cluster of each row."""


def whiten(
    tasks: Tasks, run: Run | None, nodes: Nodes, shards: int, search: GraphOptions, row_bytes: int, cluster: Clusterer
) -> tuple[list[Loader], dict[str, Any]]:
    """The parts of the nodes with whitened vectors, or as they are where that is worse; and what told the map, for the manifest.

    Args:
        tasks: where to run.
        run: the run directory, for the marker; None where nothing is resumed.
        nodes: of level 0.
        shards: of level 0.
        search: of level 0. Where its quantizer is of an earlier run, what that run decided holds, with its map: vectors of
            both runs agree.
        row_bytes: memory that a task takes for each row of its shard, see ``cluster.memory``.
        cluster: makes the clusters of the first time.
    """
    numbers = run.marker(_STAGE) if run is not None else None
    if numbers is None:
        if search.quantizer is not None:
            space, frozen = load_space(search.quantizer)
            if frozen:
                tasks.store.write_block(MAP, frozen)
            numbers = {"learned_from": "earlier run", "kept": space == "whitened"}
        else:
            _check_memory(tasks, min(nodes.n, ROWS), nodes.dim)
            parts, n = pick_regions(tasks, nodes, search.seed)
            _check_memory(tasks, n, nodes.dim)
            cut = max(-(-shards * n // nodes.n), min(shards, -(-n // ROWS_WORTH_A_SHARD)))
            asking = tasks.asking(task_bytes(-(-n // cut), row_bytes))
            plain = GraphOptions(search.k, search.target_recall, search.seed, search.device)
            rows = Nodes(parts, n, nodes.dim, nodes.id_stop)
            level, labels = cluster(asking, rows, cut, plain, _STAGE)
            products = [asking.call(sum_products, block) for block in level.nodes]
            # One task has all rows and the sums of all clusters, of which there may be as many.
            fitting = tasks.asking(task_bytes(n, _FIT_BYTES * nodes.dim))
            learned = fitting.call(learn_map, products, level.nodes, labels, save=MAP)
            tasks.wait([learned], "whitening map")
            before, after, clusters = tasks.get(fitting.call(_told, learned))
            numbers = {
                "learned_from": "first clusters",
                "rows": n,
                "clusters": clusters,
                "same_cluster_plain": round(before, 4),
                "same_cluster_whitened": round(after, 4),
                "kept": 1 - after <= MOST_LOST * (1 - before),
            }
        if run is not None:
            run.mark(_STAGE, numbers)
    return whitened_parts(tasks, nodes.parts) if numbers["kept"] else nodes.parts, numbers


def whitened_parts(tasks: Tasks, parts: list[Loader]) -> list[Loader]:
    """The parts with their vectors mapped by the block MAP of the run's storage."""
    return [functools.partial(load_whitened, part, tasks.loader(MAP)) for part in parts]


def load_whitened(part: Loader, whitening: Loader) -> Block:
    """A part with its vectors mapped, unit rows of their dtype."""
    block = part()
    return {**block, "x_ND": map_rows(block["x_ND"], whitening()["map_DD"])}


def map_rows(x_ND: np.ndarray, map_DD: np.ndarray) -> np.ndarray:
    """Mapped rows, of length 1 and the dtype of ``x_ND``."""
    if len(x_ND) == 0:
        return x_ND
    linear = Linear(len(map_DD), len(map_DD), bias=False)
    linear.weight = nn.Parameter(to_tensor(map_DD), requires_grad=False)
    # In chunks, with which equal rows get equal bits however the input is cut: copies stay copies.
    (mapped_ND,) = in_chunks(lambda rows: linear(rows.float()), x_ND)
    return normalise_rows(mapped_ND).astype(x_ND.dtype, copy=False)


def pick_regions(tasks: Tasks, nodes: Nodes, seed: int) -> tuple[list[Loader], int]:
    """Parts of about ROWS rows in whole regions, and how many rows; all parts where there are no more than ROWS.

    A region is what lies nearest to one of some rows, drawn by their ids' hashes.
    """
    if nodes.n <= ROWS:
        return nodes.parts, nodes.n
    regions = min(MOST_REGIONS, REGIONS * nodes.n // ROWS)
    drawn = [tasks.call(_draw, part, regions / nodes.n, seed) for part in nodes.parts]
    centres = tasks.call(_centres, drawn, seed)
    cells = [tasks.call(_regions_of, part, centres) for part in nodes.parts]
    count_A = sum(tasks.get([tasks.call(_count, cell_N, centres) for cell_N in cells]))
    chosen_A = choose_regions(count_A)
    paths = [f"{_STAGE}/rows-{number:05d}.safetensors" for number in range(len(nodes.parts))]
    taken = [
        tasks.call(_take, part, cell_N, chosen_A, save=path)
        for part, cell_N, path in zip(nodes.parts, cells, paths, strict=True)
    ]
    tasks.wait(taken, "whitening rows")
    return [tasks.loader(path) for path in paths], int(count_A[chosen_A].sum())


def choose_regions(count_A: np.ndarray) -> np.ndarray:
    """Regions in their order until they have ROWS rows, but none with which they had more than twice as many: bool (A).

    At least one: the smallest that has a row.
    """
    chosen_A = np.zeros(len(count_A), dtype=bool)
    taken = 0
    for a, count in enumerate(count_A.tolist()):
        if taken < ROWS and 0 < count <= 2 * ROWS - taken:
            chosen_A[a] = True
            taken += count
    if taken == 0:
        chosen_A[int(np.where(count_A > 0, count_A, count_A.max() + 1).argmin())] = True
    return chosen_A


def sum_products(nodes: Block) -> np.ndarray:
    """Sum over rows of the products of their coordinates, int64 (D, D) in units of 2**-32."""
    D = nodes["x_ND"].shape[1]
    sum_DD = np.zeros((D, D), dtype=np.int64)
    for start in range(0, len(nodes["x_ND"]), _ROWS_AT_ONCE):
        fixed_BD = np.rint(nodes["x_ND"][start : start + _ROWS_AT_ONCE].astype(np.float64) * _FIXED)
        sum_DD += (fixed_BD.T @ fixed_BD).astype(np.int64)
    return sum_DD


def learn_map(products: list[np.ndarray], nodes: list[Block], labels: list[Block]) -> Block:
    """The map, ``map_DD``, the number of clusters, and without the map and with it the share of rows' nearest neighbours of their
    cluster, ``same_2``.

    Args:
        products: ``sum_products`` of all shards.
        nodes: per shard x_ND.
        labels: per shard label_N, the cluster of each row.
    """
    label_N = np.unique(np.concatenate([block["label_N"] for block in labels]), return_inverse=True)[1]
    x_ND = np.concatenate([block["x_ND"] for block in nodes]).astype(np.float32, copy=False)
    clusters = int(label_N.max(initial=-1)) + 1
    map_DD = fit_map(products, *member_sums({"x_ND": x_ND}, label_N, clusters))
    same = [same_share(vectors_ND, label_N) for vectors_ND in (x_ND, map_rows(x_ND, map_DD))]
    return {"map_DD": map_DD, "same_2": np.array(same), "clusters_1": np.array([clusters])}


def same_share(x_ND: np.ndarray, label_N: np.ndarray) -> float:
    """Share of the NEIGHBOURS nearest rows of QUERIES rows that have the row's label; 0 without neighbours."""
    N = len(x_ND)
    if N < 2:
        return 0.0
    query_Q = np.unique(np.linspace(0, N - 1, QUERIES).astype(np.int64))
    found = min(NEIGHBOURS + 1, N)
    nbr_QF = faiss.knn(x_ND[query_Q], x_ND, found, metric=faiss.METRIC_INNER_PRODUCT)[1]
    other_QF = nbr_QF != query_Q[:, None]
    other_QF[other_QF.all(1), -1] = False  # A row with many copies may not be among its own neighbours.
    same_QF = (label_N[nbr_QF] == label_N[query_Q][:, None]) & other_QF
    return float(same_QF.sum() / other_QF.sum())


def fit_map(products: list[np.ndarray], sum_PD: np.ndarray, count_P: np.ndarray) -> np.ndarray:
    """The map from the scatter within clusters: ``map_DD`` float32, symmetric.

    Args:
        products: ``sum_products`` of all shards.
        sum_PD: int64 fixed-point sums of the clusters' members (``features.member_sums``).
        count_P: int64, how many each has.
    """
    scatter_DD = np.sum(products, axis=0).astype(np.float64) / _FIXED**2
    # Cut in the same places however many shards there are.
    for start in range(0, len(sum_PD), _ROWS_AT_ONCE):
        at = slice(start, start + _ROWS_AT_ONCE)
        scaled_BD = sum_PD[at] / (np.sqrt(count_P[at])[:, None] * FIXED_POINT)
        scatter_DD -= scaled_BD.T @ scaled_BD
    return whitening_map(scatter_DD, int(count_P.sum()) - len(count_P))


def whitening_map(scatter_DD: np.ndarray, freedom: int) -> np.ndarray:
    """Divide directions by a power of their variance: float32, symmetric; the identity where nothing differs.

    Args:
        scatter_DD: within clusters, float64, of any scale.
        freedom: rows less clusters.
    """
    D = len(scatter_DD)
    variance_D, basis_DD = np.linalg.eigh((scatter_DD + scatter_DD.T) / 2)
    variance_D = np.maximum(variance_D, 0)
    # What clusters of copies leave is rounding.
    if freedom < 1 or variance_D.sum() < 1e-6 * freedom:
        return np.eye(D, dtype=np.float32)
    ridge = RIDGE + RIDGE_BY_ROWS * D / freedom
    scale_D = (variance_D / variance_D.mean() + ridge) ** -POWER
    return np.asarray((basis_DD * scale_D) @ basis_DD.T, dtype=np.float32)


def _check_memory(tasks: Tasks, rows: int, dim: int) -> None:
    needed = task_bytes(rows, _FIT_BYTES * dim)
    if needed > tasks.offered():
        raise ClusterError(
            f"not enough memory: the task that fits the whitening of {rows} rows of {dim} dimensions takes up to"
            f" {gigabytes(needed)}, the largest node of the Ray cluster offers {gigabytes(tasks.offered())}: use nodes with"
            " more memory, or reduce the dimensions (a PCA)"
        )


def _told(learned: Block) -> tuple[float, float, int]:
    return (*learned["same_2"].tolist(), int(learned["clusters_1"][0]))


def _draw(part: Loader, share: float, seed: int) -> Block:
    return sample_rows(part(), share, seed)


def _centres(drawn: list[Block], seed: int) -> Quantizer:
    """The regions' centres, in the order of their hashes."""
    id_A = np.concatenate([block["id_N"] for block in drawn])
    x_AD = np.concatenate([block["x_ND"] for block in drawn]).astype(np.float32, copy=False)
    return one_group(np.ascontiguousarray(x_AD[np.argsort(hash_ids(id_A, seed))]))


def _regions_of(part: Loader, centres: Quantizer) -> np.ndarray:
    return nearest_cells(part()["x_ND"].astype(np.float32, copy=False), centres, 1)[0][:, 0]


def _count(cell_N: np.ndarray, centres: Quantizer) -> np.ndarray:
    return np.bincount(cell_N, minlength=centres.cells)


def _take(part: Loader, cell_N: np.ndarray, chosen_A: np.ndarray) -> Block:
    return {name: column[chosen_A[cell_N]] for name, column in part().items()}
