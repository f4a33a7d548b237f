"""The peers of ``quality.py``: each tuned on labelled points of training classes, and run on points of other classes.

A method is a pair of functions: the candidates of its parameters for some points, and the clustering with one of them.
HDBSCAN, DBSCAN, HAC and k-means see the vectors, Infomap a k-NN graph whose edges are thresholded, FINCH its first
neighbours. Points left alone are clusters of their own. Parameters are chosen by the mean of pairwise and BCubed F.
"""

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import faiss
import numpy as np
from sklearn.cluster import HDBSCAN, KMeans

from benchmarks.baselines import run_dbscan, run_hac, tune_dbscan, tune_hac
from hilander_dist.evaluate import contingency, scores

INFOMAP_K = (10, 20, 40, 80)
INFOMAP_QUANTILES = (0, 0.1, 0.25, 0.4, 0.55, 0.7, 0.8, 0.9)


class Peer(NamedTuple):
    """A method to compare with."""

    tune: Callable[[np.ndarray, np.ndarray], Any]
    """Parameters for unit rows x_ND with classes label_N."""
    run: Callable[[np.ndarray, Any], np.ndarray]
    """Cluster numbers of unit rows, with parameters."""


def best_of(
    candidates: Iterator[Any], run: Callable[[np.ndarray, Any], np.ndarray], x_ND: np.ndarray, label_N: np.ndarray
) -> Any:
    """The candidate with the largest sum of pairwise and BCubed F."""

    def goodness(parameters: Any) -> float:
        found = scores(contingency(run(x_ND, parameters), label_N))
        return float(np.nan_to_num(found.pairwise.f)) + found.bcubed.f

    return max(candidates, key=goodness)


def alone(cluster_N: np.ndarray) -> np.ndarray:
    """Points without a cluster (negative) become clusters of their own."""
    cluster_N = cluster_N.astype(np.int64)
    single = np.flatnonzero(cluster_N < 0)
    cluster_N[single] = cluster_N.max(initial=-1) + 1 + np.arange(len(single))
    return cluster_N


def run_infomap(x_ND: np.ndarray, parameters: tuple[int, float]) -> np.ndarray:
    """Two-level Infomap on the k-NN graph, weighted by similarity, without edges up to a threshold."""
    import infomap

    k, threshold = parameters
    sim_NK, nbr_NK = _neighbours(x_ND, k)
    row_E, rank_E = np.nonzero(sim_NK > max(threshold, 0))  # Infomap refuses weights below 0.
    network = infomap.Infomap("--two-level --silent --seed 1")
    network.add_nodes(range(len(x_ND)))
    network.add_links(np.stack([row_E, nbr_NK[row_E, rank_E], sim_NK[row_E, rank_E]], 1))
    network.run()
    cluster_N = np.full(len(x_ND), -1)
    for node, module in network.get_modules().items():  # type: ignore[no-untyped-call]
        cluster_N[node] = module
    return alone(cluster_N)


def tune_infomap(x_ND: np.ndarray, label_N: np.ndarray) -> tuple[int, float]:
    """List length and threshold."""
    found = ((k, _neighbours(x_ND, k)[0]) for k in INFOMAP_K)
    pairs = ((k, float(np.quantile(sim_NK, q))) for k, sim_NK in found for q in INFOMAP_QUANTILES)
    return best_of(pairs, run_infomap, x_ND, label_N)  # type: ignore[no-any-return]


def run_hdbscan(x_ND: np.ndarray, parameters: tuple[int, int, str]) -> np.ndarray:
    """HDBSCAN on unit rows."""
    size, samples, method = parameters
    model = HDBSCAN(min_cluster_size=size, min_samples=samples, cluster_selection_method=method, copy=True)
    return alone(model.fit_predict(x_ND))


def tune_hdbscan(x_ND: np.ndarray, label_N: np.ndarray) -> tuple[int, int, str]:
    """Smallest cluster, smoothing, and the way clusters are chosen from the tree."""
    grid = ((size, samples, method) for size in (2, 5, 10, 20) for samples in (1, 5) for method in ("eom", "leaf"))
    return best_of(grid, run_hdbscan, x_ND, label_N)  # type: ignore[no-any-return]


def run_finch(x_ND: np.ndarray, level: int) -> np.ndarray:
    """The partition of a level of FINCH, the last one where it has fewer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It recommends pynndescent when it is imported.
        from finch import FINCH  # type: ignore[import-untyped]
    with contextlib.redirect_stdout(io.StringIO()):
        partition_NL, _, _ = FINCH(x_ND, distance="cosine", ensure_early_exit=True, verbose=False)
    return np.asarray(partition_NL[:, min(level, partition_NL.shape[1] - 1)])


def tune_finch(x_ND: np.ndarray, label_N: np.ndarray) -> int:
    """Level."""
    return best_of(iter(range(6)), run_finch, x_ND, label_N)  # type: ignore[no-any-return]


def run_kmeans(x_ND: np.ndarray, parameters: tuple[int, int]) -> np.ndarray:
    """k-means of (clusters, seed); it is told the true number."""
    clusters, seed = parameters
    return np.asarray(KMeans(clusters, n_init=3, random_state=seed).fit_predict(x_ND))


PEERS = {
    "HDBSCAN": Peer(tune_hdbscan, run_hdbscan),
    "DBSCAN": Peer(tune_dbscan, run_dbscan),
    "HAC average": Peer(tune_hac, run_hac),
    "FINCH": Peer(tune_finch, run_finch),
    "Infomap": Peer(tune_infomap, run_infomap),
}


def _neighbours(x_ND: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Similarities and rows of the k - 1 nearest other points (exact)."""
    k = min(k, len(x_ND))
    sim_NK, nbr_NK = faiss.knn(x_ND, x_ND, k, metric=faiss.METRIC_INNER_PRODUCT)
    own_NK = nbr_NK == np.arange(len(x_ND))[:, None]
    own_NK[~own_NK.any(1), -1] = True
    return sim_NK[~own_NK].reshape(len(x_ND), k - 1), nbr_NK[~own_NK].reshape(len(x_ND), k - 1)
