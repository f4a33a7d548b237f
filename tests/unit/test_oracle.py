"""The oracle against examples worked out by hand, known values of metrics, and what holds for every hierarchy."""

import math
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
from numpy.typing import NDArray

from tests import oracle, points

Array = NDArray[Any]

SETS = points.SETS


def constant_weights(dim: int, p1: float) -> oracle.Weights:
    """A network that gives every edge the same p1."""
    w = oracle.random_weights(np.random.default_rng(0), dim, 4, "gcn")
    w["classifier_conn.3.weight"][:] = 0
    w["classifier_conn.3.bias"][:] = (0, math.log(p1 / (1 - p1)))
    return w


def f32(values: Any) -> Array:
    return np.array(values, dtype=np.float32)


# kNN


def test_knn_by_hand() -> None:
    # Sims: 0-1 0.6, 0-2 0, 0-3 -1, 1-2 0.8, 1-3 -0.6, 2-3 0. Only positive ones are kept.
    x_ND = f32([[1, 0], [0.6, 0.8], [0, 1], [-1, 0]])
    nbr_NK, sim_NK, gap_N = oracle.knn(x_ND, np.arange(4), 3)
    assert nbr_NK.tolist() == [[1, -1], [2, 0], [1, -1], [-1, -1]]
    np.testing.assert_array_equal(sim_NK, f32([[0.6, 0], [0.8, 0.6], [0.8, 0], [0, 0]]))
    # Rows 0, 2 and 3 have a sim of exactly 0, next to the limit; row 1 keeps 0.6 and the next one counts as 0.
    np.testing.assert_allclose(gap_N, [0, 0.6, 0, 0], atol=1e-7)


def test_knn_breaks_ties_by_id_and_excludes_self_by_position() -> None:
    nbr_NK, sim_NK, gap_N = oracle.knn(points.all_equal(5, 3), np.array([50, 10, 40, 20, 30]), 3)
    # By ascending id the positions are 1, 3, 4, 2, 0.
    assert nbr_NK.tolist() == [[1, 3], [3, 4], [1, 3], [1, 4], [1, 3]]
    assert (sim_NK > 0.999).all()
    assert (gap_N == 0).all()


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("k", [1, 2, 10])
def test_knn_equals_sorting_all_pairs(name: str, k: int) -> None:
    x_ND = oracle.unit_rows(SETS[name]())
    id_N = np.random.default_rng(0).permutation(len(x_ND)) * 3
    nbr_NK, sim_NK, _ = oracle.knn(x_ND, id_N, k)
    for i in range(len(x_ND)):
        pairs = []
        for j in range(len(x_ND)):
            total = 0.0
            for a, b in zip(x_ND[i].tolist(), x_ND[j].tolist(), strict=True):
                total += a * b
            pairs.append((-np.float32(total), id_N[j], j))
        kept = [(j, -sim) for sim, _, j in sorted(pairs) if j != i and sim < 0][: k - 1]
        pads = k - 1 - len(kept)
        assert nbr_NK[i].tolist() == [j for j, _ in kept] + [-1] * pads
        assert sim_NK[i].tolist() == [sim for _, sim in kept] + [0.0] * pads


def test_gap_is_the_error_that_changes_a_neighbour_list() -> None:
    x_ND = points.random_rows(0, 60, 8)
    nbr_NK, _, gap_N = oracle.knn(x_ND, np.arange(60), 6)
    noise_ND = np.random.default_rng(1).normal(size=x_ND.shape) * 1e-3
    moved_ND = (x_ND + noise_ND).astype(np.float32)
    error_N = np.abs(oracle.pair_sims(moved_ND, moved_ND) - oracle.pair_sims(x_ND, x_ND)).max(1)
    moved_NK = oracle.knn(moved_ND, np.arange(60), 6)[0]
    same_N = (np.sort(nbr_NK) == np.sort(moved_NK)).all(1)
    assert same_N[error_N < gap_N / 2].all()
    assert (error_N < gap_N / 2).sum() > 20
    assert not same_N.all()


def test_unit_rows() -> None:
    x_MD = np.array([[3, 4], [0, -2]])
    np.testing.assert_array_equal(oracle.unit_rows(x_MD), f32([[0.6, 0.8], [0, -1]]))
    x_MD = f32(np.random.default_rng(0).normal(size=(500, 33)))
    for unit_ND in (oracle.unit_rows(x_MD), x_MD / np.linalg.norm(x_MD, axis=1, keepdims=True)):
        assert unit_ND.dtype == np.float32
        np.testing.assert_array_equal(oracle.unit_rows(unit_ND), unit_ND)
    for bad in (0.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="zero or not finite"):
            oracle.unit_rows(np.array([[1.0, 0.0], [bad, 0.0]]))


# Decode, roots, collapse


def test_decode_by_hand() -> None:
    # tau 0.8. Node 0: 3 is surest but less dense, 2 is surer than 1. Node 1: nobody is denser. Node 2: p1 = tau is not
    # enough. Nodes 3 and 4 are as dense as each other. Node 5: 1 and 2 are equally sure, the smaller id wins.
    density_N = f32([0.5, 0.7, 0.6, 0.4, 0.4, 0.1])
    nbr_NK = np.array([[1, 2, 3], [0, 2, -1], [1, -1, -1], [0, 4, -1], [3, -1, -1], [2, 1, -1]])
    p1_NK = np.array([[0.9, 0.95, 0.99], [0.9, 0.9, 0], [0.8, 0, 0], [0.3, 0.9, 0], [0.9, 0, 0], [0.9, 0.9, 0]])
    p0_NK, p1_NK = np.where(nbr_NK >= 0, 1 - p1_NK, 0).astype(np.float32), p1_NK.astype(np.float32)
    reference_N, margin_N = oracle.decode(np.arange(6), nbr_NK, p0_NK, p1_NK, density_N, 0.8, "reference")
    assert reference_N.tolist() == [2, 1, 2, 3, 4, 1]
    # Node 0: 1 overtakes 2 at (0.95 - 0.9) / 2. Node 1: 2 is let in at (0.7 - 0.6) / 2. The others are exact ties.
    np.testing.assert_allclose(margin_N, [0.025, 0.05, 0, 0, 0, 0], atol=1e-7)
    default_N, _ = oracle.decode(np.arange(6), nbr_NK, p0_NK, p1_NK, density_N, 0.8, "default")
    assert default_N.tolist() == [2, 1, 2, 3, 3, 1]
    # Ties go by id, not by position.
    default_N, _ = oracle.decode(np.arange(6)[::-1], nbr_NK, p0_NK, p1_NK, density_N, 0.8, "default")
    assert default_N.tolist() == [2, 1, 2, 4, 4, 2]


def test_decode_of_saturated_p1() -> None:
    # Both p1 round to 1: p0 still tells them apart (reference), p1 does not (default: the smaller id).
    nbr_NK, p1_NK = np.array([[1, 2], [-1, -1], [-1, -1]]), f32([[1, 1], [0, 0], [0, 0]])
    p0_NK = f32([[1e-9, 1e-10], [0, 0], [0, 0]])
    graph = np.arange(3), nbr_NK, p0_NK, p1_NK, f32([0, 1, 1]), 0.5
    assert oracle.decode(*graph, "reference")[0].tolist() == [2, 1, 2]
    assert oracle.decode(*graph, "default")[0].tolist() == [1, 1, 2]


@pytest.mark.parametrize("compat", ["default", "reference"])
@pytest.mark.parametrize("seed", range(5))
def test_errors_below_the_margin_change_no_parent(compat: oracle.Compat, seed: int) -> None:
    rng = np.random.default_rng(seed)
    nbr_NK = np.array([rng.choice(80, 5, replace=False) for _ in range(80)])
    nbr_NK[rng.random((80, 5)) < 0.2] = -1
    p1_NK, density_N = rng.random((80, 5)), rng.random(80)
    parent_N, margin_N = oracle.decode(np.arange(80), nbr_NK, 1 - p1_NK, p1_NK, density_N, 0.5, compat)
    changed = 0
    for size in np.geomspace(1e-3, 0.3, 20):
        error_NK, error_N = rng.choice([-size, size], (80, 5)), rng.choice([-size, size], 80)
        noisy_NK = p1_NK + error_NK
        noisy_N, _ = oracle.decode(np.arange(80), nbr_NK, 1 - noisy_NK, noisy_NK, density_N + error_N, 0.5, compat)
        # 1e-7: 1 - tau is rounded to float32.
        assert (noisy_N == parent_N)[size + 1e-7 < margin_N].all()
        changed += int((noisy_N != parent_N).sum())
    assert changed > 20


def test_roots() -> None:
    label_N, peak_P = oracle.roots(np.array([3, 1, 0, 3, 1, 2]))  # 5 -> 2 -> 0 -> 3, 4 -> 1
    assert (label_N.tolist(), peak_P.tolist()) == ([1, 0, 1, 1, 0, 1], [1, 3])
    chain_N = np.maximum(np.arange(50) - 1, 0)
    assert (oracle.roots(chain_N)[0] == 0).all()
    with pytest.raises(ValueError, match="cycle"):
        oracle.roots(np.array([1, 2, 0]))


def test_cluster_means_are_exact_in_any_order() -> None:
    rng = np.random.default_rng(0)
    x_MD, label_M = points.random_rows(0, 5000, 7), rng.integers(0, 4, 5000)
    label_M[:4] = np.arange(4)
    means_PD, order_M = oracle.cluster_means(x_MD, label_M), rng.permutation(5000)
    np.testing.assert_array_equal(oracle.cluster_means(x_MD[order_M], label_M[order_M]), means_PD)
    for label in range(4):
        np.testing.assert_allclose(means_PD[label], x_MD[label_M == label].astype(np.float64).mean(0), rtol=1e-6)
    halves_PD = oracle.cluster_means(f32([[1, 0], [0, 1]]), np.array([0, 0]))
    assert halves_PD.tolist() == [[0.5, 0.5]]


# Hierarchy


def test_hierarchy_by_hand() -> None:
    # Rows at 0, 10, 30, 180, 185 degrees, k = 3, all p1 = 0.9. density / 0.8: 0: (cos 10 + cos 30) / 2 = 0.925;
    # 1: (cos 10 + cos 20) / 2 = 0.962; 2: (cos 20 + cos 30) / 2 = 0.903; 3 and 4: cos 5 = 0.996 (one neighbour each).
    # 0 -> 1; 1 is a root; 2: both are denser and equally sure: the smaller id, 0; 3 and 4 are as dense as each other.
    x_ND = points.at_degrees(0, 10, 30, 180, 185)
    first, last = oracle.hierarchy(x_ND, constant_weights(2, 0.9), 3, 0.5, 10, False)
    cos5, cos10, cos20, cos30 = (math.cos(math.radians(angle)) for angle in (5, 10, 20, 30))
    expected = 0.8 * np.array([cos10 + cos30, cos10 + cos20, cos20 + cos30, 2 * cos5, 2 * cos5]) / 2
    np.testing.assert_allclose(first.density, expected, rtol=1e-6)
    assert first.parent.tolist() == [1, 1, 0, 3, 3]
    assert (first.peak.tolist(), first.sample_label.tolist(), first.edges) == ([1, 3], [0, 0, 0, 1, 1], 3)
    np.testing.assert_array_equal(first.cluster, first.x)
    # The peaks at 10 and 180 degrees have no positive similarity: no neighbour, no edge, the end.
    assert (last.ids.tolist(), last.nbr.tolist(), last.edges) == ([1, 3], [[-1], [-1]], 0)
    np.testing.assert_allclose(last.cluster, [x_ND[:3].mean(0), x_ND[3:].mean(0)], rtol=1e-6)
    np.testing.assert_array_equal(last.x, x_ND[[1, 3]])
    # The strict rule keeps 3 and 4 apart; 3 nodes are not more than k, so there is no second level.
    (only,) = oracle.hierarchy(x_ND, constant_weights(2, 0.9), 3, 0.5, 10, False, "reference")
    assert (only.parent.tolist(), only.sample_label.tolist()) == ([1, 1, 0, 3, 4], [0, 0, 0, 1, 2])


@pytest.mark.parametrize("encoder", ["gcn", "gat"])
def test_identical_rows_join_in_default_and_stay_apart_in_reference(encoder: oracle.Encoder) -> None:
    x_ND = points.all_equal(40, 8)
    weights = oracle.random_weights(np.random.default_rng(1), 8, 12, encoder)
    joined = oracle.hierarchy(x_ND, weights, 10, 0.0, 10, False)
    assert (joined[0].parent == 0).all()
    assert [level.edges for level in joined] == [39, 0]
    (apart,) = oracle.hierarchy(x_ND, weights, 10, 0.0, 10, False, "reference")
    np.testing.assert_array_equal(apart.sample_label, np.arange(40))


@pytest.mark.parametrize("compat", ["default", "reference"])
@pytest.mark.parametrize(("encoder", "num_conv"), [("gcn", 1), ("gcn", 3), ("gat", 1)])
@pytest.mark.parametrize("name", SETS)
def test_what_holds_for_every_hierarchy(
    name: str, encoder: oracle.Encoder, num_conv: int, compat: oracle.Compat
) -> None:
    x_ND = SETS[name]()
    weights = oracle.random_weights(np.random.default_rng(3), x_ND.shape[1], 12, encoder, num_conv, 2)
    levels = oracle.hierarchy(x_ND, weights, 10, 0.3, 10, False, compat)
    assert bool(levels) == (compat == "default" or len(x_ND) > 10)
    unit_ND, before_M, next_ids = oracle.unit_rows(x_ND), np.arange(len(x_ND)), np.arange(len(x_ND))
    for depth, level in enumerate(levels):
        np.testing.assert_array_equal(level.ids, next_ids)
        np.testing.assert_array_equal(level.x, unit_ND[level.ids])
        assert level.edges == (level.parent != level.ids).sum() == len(level.ids) - len(level.peak)
        at = {int(node): row for row, node in enumerate(level.ids)}
        for row, node in enumerate(level.ids):
            up = int(level.parent[row])
            if up != node:  # a neighbour, sure enough and better
                column = level.nbr[row].tolist().index(at[up])
                assert level.p0[row, column] < 0.7
                ahead = level.density[at[up]] - level.density[row]
                assert ahead > 0 or (compat == "default" and ahead == 0 and up < node)
            for _ in range(len(level.ids)):  # reaches a root: no cycle
                node, up = up, int(level.parent[at[up]])
            assert node == up == level.peak[level.label[row]]
        assert (np.diff(level.peak) > 0).all()
        np.testing.assert_array_equal(level.sample_label, level.label[before_M])
        if depth > 0:
            for row in range(len(level.ids)):
                np.testing.assert_allclose(level.cluster[row], unit_ND[before_M == row].mean(0), atol=1e-6)
        before_M, next_ids = level.sample_label, level.peak
    assert all(level.edges > 0 for level in levels[:-1])
    if levels and compat == "default":
        assert levels[-1].edges == 0 or len(levels) == 10


@pytest.mark.parametrize(("seed", "low"), [(3, 9), (34, 8)])  # just above and just below k - 1 = 9 times fewer edges
def test_early_stop_and_max_levels_cut_the_same_hierarchy(seed: int, low: int) -> None:
    x_ND = points.clustered(0, 400, 16, 40)[0]
    weights = oracle.random_weights(np.random.default_rng(seed), 16, 12, "gcn")
    tau = oracle.middle_tau(x_ND, weights, 10)
    full = oracle.hierarchy(x_ND, weights, 10, tau, 10, False)
    stopped = oracle.hierarchy(x_ND, weights, 10, tau, 10, True)
    edges = [level.edges for level in full]
    assert len(edges) > 3
    assert low < edges[0] / edges[1] < low + 1
    # The rule by hand: the first level, from the second on, whose edges are more than a ninth of the level before.
    cut = next(n for n in range(1, len(edges)) if edges[n] == 0 or edges[n - 1] < 9 * edges[n])
    assert [level.edges for level in stopped] == edges[: cut + 1]
    assert len(stopped) < len(full)
    np.testing.assert_array_equal(stopped[-1].sample_label, full[cut].sample_label)
    assert len(oracle.hierarchy(x_ND, weights, 10, tau, 1, False)) == 1


def test_rows_of_real_data_are_clustered() -> None:
    x_ND, y_N = points.real("clinc150_minilm", 300, 1)
    assert (x_ND.shape, x_ND.dtype, len(np.unique(y_N))) == ((300, 384), np.dtype(np.float32), 2)
    sure = oracle.hierarchy(x_ND, constant_weights(x_ND.shape[1], 0.9), 10, 0.5, 10, False)
    assert oracle.metrics(sure[0].sample_label, y_N)["pairwise_precision"] > 0.9


# Training


def test_training_hierarchy_by_hand() -> None:
    # Rows at 0, 10, 30, 180, 185 degrees, classes 0 0 1 2 2, k = 3. Densities: 0: (cos 10 - cos 30) / 2 = 0.059;
    # 1: (cos 10 - cos 20) / 2 = 0.023; 2: -(cos 20 + cos 30) / 2 = -0.903; 3 and 4: cos 5 / 2, with one neighbour each.
    x_ND, y_N = points.at_degrees(0, 10, 30, 180, 185), np.array([0, 0, 1, 2, 2])
    cos5, cos10, cos20, cos30 = (math.cos(math.radians(angle)) for angle in (5, 10, 20, 30))
    expected = np.array([cos10 - cos30, cos10 - cos20, -cos20 - cos30, cos5, cos5]) / 2
    # 1 -> 0; 2 -> 1, its most similar denser neighbour, of another class; 3 and 4 tie: apart. 3 nodes make no graph.
    (across,) = oracle.training_hierarchy(x_ND, y_N, 3, 4, True)
    np.testing.assert_allclose(across.density, expected, atol=1e-6)
    assert across.parent.tolist() == [0, 0, 1, 3, 4]
    # Inside classes only: 2 stays, so 4 nodes make a second graph, in which nobody has a neighbour of its class.
    first, second = oracle.training_hierarchy(x_ND, y_N, 3, 4, False)
    assert first.parent.tolist() == [0, 0, 2, 3, 4]
    assert (second.ids.tolist(), second.y.tolist()) == ([0, 2, 3, 4], [0, 1, 2, 2])
    np.testing.assert_allclose(second.density, np.array([-cos30, -cos30, cos5, cos5]) / 2, atol=1e-6)
    np.testing.assert_allclose(second.cluster[0], x_ND[:2].mean(0), atol=1e-6)


def test_training_never_merges_classes_unless_asked() -> None:
    x_ND, y_N = points.clustered(0, 400, 8, 25, spread=1.2)
    inside = oracle.training_hierarchy(x_ND, y_N, 5, 3, False)
    across = oracle.training_hierarchy(x_ND, y_N, 5, 3, True)
    assert len(inside) > 1
    for graph in inside:
        np.testing.assert_array_equal(y_N[graph.parent], graph.y)
    assert (y_N[across[0].parent] != across[0].y).any()
    np.testing.assert_array_equal(across[0].density, inside[0].density)


# Metrics


def test_metrics_by_hand() -> None:
    # Predicted pairs 01 23, true pairs 01 02 12: one in common. BCubed by item: P 1, 1, 1/2, 1/2; R 2/3, 2/3, 1/3, 1.
    values = oracle.metrics(np.array([0, 0, 1, 1]), np.array([0, 0, 0, 1]))
    pairwise = [values[f"pairwise_{name}"] for name in ("precision", "recall", "f")]
    bcubed = [values[f"bcubed_{name}"] for name in ("precision", "recall", "f")]
    assert pairwise == pytest.approx([1 / 2, 1 / 3, 2 / 5])
    assert bcubed == pytest.approx([3 / 4, 2 / 3, 12 / 17])


@pytest.mark.parametrize("seed", range(6))
def test_metrics_equal_sklearn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    y_N = rng.integers(0, 5, 60)
    label_N = np.where(rng.random(60) < 0.6, y_N, rng.integers(0, 1 + seed, 60))
    values = oracle.metrics(label_N, y_N)
    (_, wrong), (missed, hit) = sklearn.metrics.pair_confusion_matrix(y_N, label_N)
    assert values["pairwise_precision"] == pytest.approx(hit / (hit + wrong))
    assert values["pairwise_recall"] == pytest.approx(hit / (hit + missed))
    assert values["nmi"] == pytest.approx(sklearn.metrics.normalized_mutual_info_score(y_N, label_N))


def test_metrics_at_the_edges() -> None:
    apart, together = np.arange(5), np.zeros(5, dtype=int)
    assert math.isnan(oracle.metrics(apart, together)["pairwise_f"])
    assert oracle.metrics(together, together)["nmi"] == 1.0
    assert oracle.metrics(apart, together)["nmi"] == 0.0
    assert oracle.metrics(np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1]))["pairwise_f"] == 0.0
    perfect = oracle.metrics(np.array([3, 3, 1, 1]), np.array([0, 0, 7, 7]))
    assert set(perfect.values()) == {1.0}


# Point sets: what their docstrings promise


def test_point_sets() -> None:
    x_ND, group_N = points.with_duplicates(0, 200, 16)
    assert np.bincount(group_N + 1).tolist() == [163, 2, 3, 7, 25]
    copies_NN = oracle.pair_sims(x_ND, x_ND) > 0.99999
    assert (copies_NN == ((group_N[:, None] == group_N) & (group_N >= 0) | np.eye(200, dtype=bool))).all()
    assert len(np.unique(oracle.unit_rows(points.scaled_rows(0, 120, 6, 7)), axis=0)) == 7
    assert (oracle.knn(points.negative_only(14), np.arange(15), 10)[0] == -1).all()
    x_ND, y_N = points.antipodal(0, 90, 12)
    assert ((oracle.pair_sims(x_ND, x_ND) > 0) == (y_N[:, None] == y_N)).all()
    _, y_N = points.clustered(0, 300, 16, 20)
    assert np.bincount(y_N).min() >= 1
    assert np.bincount(y_N).argmax() == 0
