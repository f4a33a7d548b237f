import numpy as np
import pytest
from sklearn.cluster import DBSCAN, AgglomerativeClustering
from sklearn.datasets import load_digits
from sklearn.metrics import adjusted_rand_score

from benchmarks.baselines import DbscanParameters, run_dbscan, run_hac, tune_dbscan, tune_hac
from hilander_dist.evaluate import Scores, contingency, scores


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    digits = load_digits()
    return digits.data[:400], digits.target[:400].astype(np.int64)


def _score(cluster_N: np.ndarray, label_N: np.ndarray) -> Scores:
    return scores(contingency(cluster_N, label_N))


def _blobs(classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Tight, well separated directions of different lengths."""
    rng = np.random.default_rng(seed)
    label_N = np.repeat(np.arange(classes), 12)
    x_ND = 5 * np.eye(16)[label_N] + 0.3 * rng.standard_normal((len(label_N), 16))
    return x_ND * rng.uniform(0.1, 10, (len(label_N), 1)), label_N


def test_dbscan_equals_scikit_learn_on_cosine_distance(digits: tuple[np.ndarray, np.ndarray]) -> None:
    x_ND, _ = digits
    expected = DBSCAN(eps=0.08, min_samples=4, metric="cosine").fit_predict(x_ND)
    cluster_N = run_dbscan(x_ND, DbscanParameters(0.08, 4))
    noise = expected < 0
    assert 0 < noise.sum() < len(noise)
    assert adjusted_rand_score(expected[~noise], cluster_N[~noise]) == 1
    # Every noise point is alone, and no cluster has its number.
    assert np.all(np.bincount(cluster_N)[cluster_N[noise]] == 1)


def test_dbscan_can_find_only_noise() -> None:
    assert sorted(run_dbscan(np.eye(5), DbscanParameters(0.5, 2))) == [0, 1, 2, 3, 4]


def test_hac_equals_scikit_learn_on_cosine_distance(digits: tuple[np.ndarray, np.ndarray]) -> None:
    x_ND, _ = digits
    model = AgglomerativeClustering(n_clusters=None, metric="cosine", linkage="average", distance_threshold=0.25)
    cluster_N = run_hac(x_ND, 0.25)
    assert 1 < len(np.unique(cluster_N)) < len(x_ND)
    assert adjusted_rand_score(model.fit_predict(x_ND), cluster_N) == 1


def test_tuned_parameters_transfer_to_unseen_classes() -> None:
    (train_ND, train_N), (unseen_ND, unseen_N) = _blobs(8, 0), _blobs(5, 1)
    for cluster_N in (
        run_dbscan(unseen_ND, tune_dbscan(train_ND, train_N)),
        run_hac(unseen_ND, tune_hac(train_ND, train_N)),
    ):
        assert cluster_N.dtype == np.int64
        result = _score(cluster_N, unseen_N)
        assert result.pairwise.precision == 1
        assert result.bcubed.f > 0.9


def test_tuning_finds_the_best_of_a_denser_grid(digits: tuple[np.ndarray, np.ndarray]) -> None:
    x_ND, label_N = digits

    def goodness(cluster_N: np.ndarray) -> float:
        result = _score(cluster_N, label_N)
        return (result.pairwise.f + result.bcubed.f) / 2

    by_hand = max(goodness(run_dbscan(x_ND, DbscanParameters(eps, 4))) for eps in np.linspace(0.01, 0.3, 30).tolist())
    assert goodness(run_dbscan(x_ND, tune_dbscan(x_ND, label_N))) > by_hand - 0.03
    by_hand = max(goodness(run_hac(x_ND, height)) for height in np.linspace(0.01, 0.6, 30).tolist())
    assert goodness(run_hac(x_ND, tune_hac(x_ND, label_N))) > by_hand - 0.03


def test_copies_of_a_point_are_one_cluster() -> None:
    x_ND = np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)
    label_N = np.repeat(np.arange(3), 4)
    for cluster_N in (run_dbscan(x_ND, tune_dbscan(x_ND, label_N)), run_hac(x_ND, tune_hac(x_ND, label_N))):
        assert _score(cluster_N, label_N).pairwise.f == 1
