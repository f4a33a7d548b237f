"""Two classic clusterings to compare with: DBSCAN and average-linkage agglomeration (HAC), both on cosine distance.

Both work on the full N x N matrix of distances (float64), so they are for up to about 12,000 points: 1.2 GB, and
about three times that at the peak. Parameters are tuned on labelled points of training classes, by the mean of the
pairwise and the BCubed F.
"""

from collections.abc import Iterable
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from sklearn.cluster import DBSCAN

from hilander_dist.evaluate.contingency import Int64, contingency
from hilander_dist.evaluate.metrics import scores

Float64 = NDArray[np.float64]
P = TypeVar("P")


class DbscanParameters(NamedTuple):
    """Radius (cosine distance, 0 to 2) and the neighbours within it, itself included, that make a point a core."""

    eps: float
    min_samples: int


def tune_dbscan(x_ND: NDArray[np.floating], label_N: Int64) -> DbscanParameters:
    """The best DBSCAN parameters on labelled points.

    The radii tried for each ``min_samples`` are quantiles of the distance to that many-th neighbour: the range in which
    anything changes, whatever the scale of the distances.

    Args:
        x_ND: float, vectors that are not zero; they are scaled to unit length.
        label_N: int64 classes.
    """
    distance_NN = _cosine_distance(x_ND)
    tried: list[tuple[DbscanParameters, Int64]] = []
    for min_samples in (2, 4, 8, 16):
        if min_samples > len(distance_NN):
            break
        reach_N = np.partition(distance_NN, min_samples - 1, axis=1)[:, min_samples - 1]
        for eps in np.unique(np.quantile(reach_N, np.linspace(0.05, 0.95, 13))).tolist():
            # scikit-learn accepts no radius of 0, which copies of a point have.
            parameters = DbscanParameters(max(eps, 1e-9), min_samples)
            tried.append((parameters, _dbscan(distance_NN, parameters)))
    return _best(tried, label_N)


def run_dbscan(x_ND: NDArray[np.floating], parameters: DbscanParameters) -> Int64:
    """Cluster numbers (int64, N); every noise point is a cluster of its own."""
    return _dbscan(_cosine_distance(x_ND), parameters)


def tune_hac(x_ND: NDArray[np.floating], label_N: Int64) -> float:
    """The best height (cosine distance) at which to cut the average-linkage tree, of 200 evenly spaced ones.

    Args:
        x_ND: float, vectors that are not zero; they are scaled to unit length.
        label_N: int64 classes.
    """
    tree = _average_linkage(x_ND)
    heights: list[float] = np.linspace(0, tree[:, 2].max(), 201)[1:].tolist()
    return _best(((height, _cut(tree, height)) for height in heights), label_N)


def run_hac(x_ND: NDArray[np.floating], height: float) -> Int64:
    """Cluster numbers (int64, N) of the average-linkage tree cut at ``height``."""
    return _cut(_average_linkage(x_ND), height)


def _best(tried: Iterable[tuple[P, Int64]], label_N: Int64) -> P:
    def goodness(cluster_N: Int64) -> float:
        score = scores(contingency(cluster_N, label_N))
        return score.pairwise.f + score.bcubed.f

    return max(tried, key=lambda pair: goodness(pair[1]))[0]


def _cosine_distance(x_ND: NDArray[np.floating]) -> Float64:
    unit_ND = x_ND.astype(np.float64)
    unit_ND /= np.linalg.norm(unit_ND, axis=1, keepdims=True)
    distance_NN = unit_ND @ unit_ND.T
    np.subtract(1, distance_NN, out=distance_NN)
    np.maximum(distance_NN, 0, out=distance_NN)
    np.fill_diagonal(distance_NN, 0)
    return distance_NN


def _dbscan(distance_NN: Float64, parameters: DbscanParameters) -> Int64:
    model = DBSCAN(eps=parameters.eps, min_samples=parameters.min_samples, metric="precomputed")
    cluster_N: Int64 = model.fit_predict(distance_NN).astype(np.int64)
    noise = np.flatnonzero(cluster_N < 0)
    cluster_N[noise] = cluster_N.max() + 1 + np.arange(len(noise))
    return cluster_N


def _average_linkage(x_ND: NDArray[np.floating]) -> Float64:
    # The two triangles of the product may differ in the last bit, hence no check of symmetry.
    tree: Float64 = linkage(squareform(_cosine_distance(x_ND), checks=False), "average")
    return tree


def _cut(tree: Float64, height: float) -> Int64:
    cluster_N: Int64 = fcluster(tree, height, "distance").astype(np.int64)
    return cluster_N
