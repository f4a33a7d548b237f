"""What the package is judged against: Hi-LANDER by brute force, from algorithm.md alone, with no code of the package.

Notable: a level's nodes are rows in ascending id; an id is the input row number of the sample that stands for the node.
Similarities are float32(sum over ascending d of float64 products), so they can be compared bit for bit. The network
runs in float64; its results p0, p1 and density are rounded to float32 once and every decision is taken on the rounded
values. Why: exact ties of the model (copies of a row, symmetric neighbourhoods) are ties here too, whatever order a sum
ran in, and a float32 implementation differs from the oracle by its own error only (up to 6e-7 for the official code).
`margin` says where such an error could change a decision: assert that its minimum is above the error, or leave such
nodes out. With the GAT encoder exact ties are normal: a node's own row enters only through its attention logit, so two
nodes with the same neighbours can have the same embedding, and p1 towards them is equal.

Legend: N nodes of the level, M input rows, D dimensions, K = k - 1 neighbours (self excluded), P peaks, E edges,
H network width, A heads, I inputs and O outputs of a layer, C candidates of one node.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Weights = dict[str, Array]
Compat = Literal["default", "reference"]
Encoder = Literal["gcn", "gat"]

FIXED_POINT = 2.0**32


@dataclass(frozen=True)
class Level:
    """One level of the hierarchy. `nbr` holds positions 0..N-1 in `ids`; `parent` holds ids."""

    ids: Array  # int64[N], ascending
    x: Array  # float32[N, D] unit rows
    cluster: Array  # float32[N, D] mean of the unit rows of all input rows in the node
    nbr: Array  # int64[N, K], -1 pads
    sim: Array  # float32[N, K], 0 at pads
    p0: Array  # float32[N, K], 0 at pads
    p1: Array  # float32[N, K], 0 at pads
    density: Array  # float32[N]
    parent: Array  # int64[N] ids, a root is its own parent
    peak: Array  # int64[P] ids of the roots, ascending: the next level's `ids`
    label: Array  # int64[N], index into `peak` of the node's root
    sample_label: Array  # int64[M], index into `peak` of each input row's root
    edges: int  # N - P
    margin: Array  # float64[N], see `decode`
    gap: Array  # float64[N], see `knn`


@dataclass(frozen=True)
class TrainingLevel:
    """One level graph of training (algorithm.md 2.1, 2.2). As `Level`; density is the ground-truth density."""

    ids: Array
    y: Array  # int64[N], the node's class: its peak's
    x: Array
    cluster: Array
    nbr: Array
    sim: Array
    density: Array
    parent: Array
    margin: Array


def hierarchy(
    x_MD: Array, weights: Weights, k: int, tau: float, max_levels: int, early_stop: bool, compat: Compat = "default"
) -> list[Level]:
    """Run all levels on raw rows x_MD (any float dtype). algorithm.md 1.9, 1.10.

    A level that adds no edge (in `default` also one of a single node) is the last in the list. In `reference` a level
    of k nodes or fewer is not listed: the list is empty for M <= k. The early-stop rule always uses the given k.
    """
    unit_MD = unit_rows(x_MD)
    id_N = np.arange(len(unit_MD))
    sample_label_M = id_N
    cluster_ND = unit_MD
    levels: list[Level] = []
    edges_before = np.inf
    while len(levels) < max_levels:
        if compat == "reference" and len(id_N) <= k:
            break
        x_ND = unit_MD[id_N]
        nbr_NK, sim_NK, gap_N = knn(x_ND, id_N, min(k, len(id_N)))
        p0_NK, p1_NK, density_N = forward(weights, x_ND, cluster_ND, nbr_NK, sim_NK)
        parent_N, margin_N = decode(id_N, nbr_NK, p0_NK, p1_NK, density_N, tau, compat)
        label_N, peak_P = roots(parent_N)
        sample_label_M = label_N[sample_label_M]
        edges = len(id_N) - len(peak_P)
        graph = (id_N, x_ND, cluster_ND, nbr_NK, sim_NK, p0_NK, p1_NK, density_N, id_N[parent_N])
        levels.append(Level(*graph, id_N[peak_P], label_N, sample_label_M, edges, margin_N, gap_N))
        if edges == 0 or (early_stop and edges_before / edges < k - 1):
            break
        edges_before = edges
        id_N, cluster_ND = id_N[peak_P], cluster_means(unit_MD, sample_label_M)
    return levels


def training_hierarchy(x_MD: Array, y_M: Array, k: int, levels: int, merge_across_labels: bool) -> list[TrainingLevel]:
    """Level graphs of one (k, levels) pair; the parent is the most similar denser neighbour. algorithm.md 2.1, 2.2.

    Stops early before a level of k nodes or fewer (no graph is built there) and after one that adds no edge. With
    merge_across_labels False a node links only to a neighbour of its own class; the density is the same in both.
    """
    unit_MD = unit_rows(x_MD)
    id_N = np.arange(len(unit_MD))
    sample_label_M = id_N
    cluster_ND = unit_MD
    graphs: list[TrainingLevel] = []
    while len(graphs) < levels and len(id_N) > k:
        x_ND, y_N = unit_MD[id_N], y_M[id_N]
        nbr_NK, sim_NK, _ = knn(x_ND, id_N, k)
        density_N = gt_density(y_N, nbr_NK, sim_NK)
        same_NK = y_N[nbr_NK] == y_N[:, None]
        candidate_NK = np.where(merge_across_labels | same_NK, nbr_NK, -1)
        parent_N, margin_N = _choose(id_N, candidate_NK, 1 - sim_NK.astype(np.float64), 1.0, -sim_NK, density_N, True)
        graph = (id_N, y_N, x_ND, cluster_ND, nbr_NK, sim_NK, density_N, id_N[parent_N], margin_N)
        graphs.append(TrainingLevel(*graph))
        label_N, peak_P = roots(parent_N)
        sample_label_M = label_N[sample_label_M]
        if len(peak_P) == len(id_N):
            break
        id_N, cluster_ND = id_N[peak_P], cluster_means(unit_MD, sample_label_M)
    return graphs


def unit_rows(x_MD: Array) -> Array:
    """float32(row / norm), both in float64. Rows whose norm is 1 within 2^-22 are unit already and keep their bits."""
    x_MD = np.asarray(x_MD, dtype=np.float32)
    norm_M: Array = np.sqrt((x_MD.astype(np.float64) ** 2).sum(1))
    if not (np.isfinite(norm_M) & (norm_M > 0)).all():
        raise ValueError("a row is zero or not finite")
    norm_M[np.abs(norm_M - 1) < 2.0**-22] = 1.0
    unit_MD: Array = (x_MD / norm_M[:, None]).astype(np.float32)
    return unit_MD


def pair_sims(x_AD: Array, y_BD: Array) -> Array:
    """float32[A, B] similarities: float64 products added in ascending d, rounded once."""
    a_AD, b_DB = x_AD.astype(np.float64), np.ascontiguousarray(y_BD.T, dtype=np.float64)
    total_AB = np.zeros((len(x_AD), len(y_BD)))
    for d in range(len(b_DB)):
        total_AB += a_AD[:, d, None] * b_DB[d]
    return total_AB.astype(np.float32)


def knn(x_ND: Array, id_N: Array, k: int) -> tuple[Array, Array, Array]:
    """K = k - 1 neighbours: nbr_NK int64 positions (-1 pads), sim_NK float32 (0 at pads), gap_N. algorithm.md 1.3.

    Self is excluded by position, only sim > 0 is kept, the order is (sim desc, id asc). gap_N (float64) is how far the
    kept sims are from the best one left out and from 0: an error of the sims below half of it leaves the set of
    neighbours as it is. It is 0 where the list was cut between equal sims, by id.
    """
    N, K = len(x_ND), k - 1
    nbr_NK = np.full((N, K), -1, dtype=np.int64)
    sim_NK = np.zeros((N, K), dtype=np.float32)
    gap_N = np.full(N, np.inf)
    for start in range(0, N, 32):
        for i, sim_N in enumerate(pair_sims(x_ND[start : start + 32], x_ND), start):
            sim_N[i] = -np.inf
            least = np.partition(sim_N, -(K + 1))[-(K + 1)] if K + 1 < N else -np.inf
            near_C = np.flatnonzero(sim_N >= least)  # the best K + 1 and all that tie with the last of them
            near_C = near_C[np.lexsort((id_N[near_C], -sim_N[near_C]))]
            kept_C = near_C[:K][sim_N[near_C[:K]] > 0]
            nbr_NK[i, : len(kept_C)] = kept_C
            sim_NK[i, : len(kept_C)] = sim_N[kept_C]
            last = float(sim_N[kept_C[-1]]) if len(kept_C) else np.inf
            out = float(sim_N[near_C[len(kept_C)]]) if len(kept_C) < len(near_C) else -np.inf
            if K > 0:
                gap_N[i] = last - max(out, 0.0) if len(kept_C) == K else min(last, -out)
    return nbr_NK, sim_NK, gap_N


def forward(
    weights: Weights, x_ND: Array, cluster_ND: Array, nbr_NK: Array, sim_NK: Array
) -> tuple[Array, Array, Array]:
    """LANDER on one level graph: p0_NK, p1_NK (float32, 0 at pads), density_N (float32). algorithm.md 1.2, 1.4-1.7.

    Computed in float64, rounded at the end. Encoder, depth, heads and the use of cluster features are read off the
    keys and shapes of the weights.
    """
    w = {key: value.astype(np.float64) for key, value in weights.items()}
    real_NK, sim_NK = nbr_NK >= 0, sim_NK.astype(np.float64)
    gat = "conv.0.gcn_layer.fc.weight" in w
    inputs = w["conv.0.gcn_layer.fc.weight"].shape[1] if gat else w["conv.0.gcn_layer.mlp.weight"].shape[1] // 2
    h_NI = np.concatenate([x_ND, cluster_ND] if inputs == 2 * x_ND.shape[1] else [x_ND], axis=1).astype(np.float64)
    for depth in range(4):
        layer = {key[len("conv.0.") :]: value for key, value in w.items() if key.startswith(f"conv.{depth}.")}
        if layer and gat:
            h_NI = _gat_layer(layer, h_NI, nbr_NK, real_NK)
        elif layer:
            h_NI = _gcn_layer(layer, h_NI, nbr_NK, real_NK, sim_NK)

    source_NH = _linear(w, "src_mlp", h_NI)
    target_NH = _linear(w, "dst_mlp", h_NI)
    i_E, column_E = np.nonzero(real_NK)
    u_EH = source_NH[nbr_NK[i_E, column_E]] + target_NH[i_E]
    u_EH = _linear(w, "classifier_conn.1", _prelu(u_EH, w["classifier_conn.0.weight"]))
    logit_E2 = _linear(w, "classifier_conn.3", _prelu(u_EH, w["classifier_conn.2.weight"]))
    power_E2 = np.exp(logit_E2 - logit_E2.max(1, keepdims=True))
    p_NK2 = np.zeros((*nbr_NK.shape, 2))
    p_NK2[i_E, column_E] = power_E2 / power_E2.sum(1, keepdims=True)
    p0_NK, p1_NK = p_NK2[..., 0], p_NK2[..., 1]
    density_N = (sim_NK * (p1_NK - p0_NK)).sum(1) / np.maximum(real_NK.sum(1), 1)
    return p0_NK.astype(np.float32), p1_NK.astype(np.float32), density_N.astype(np.float32)


def decode(
    id_N: Array, nbr_NK: Array, p0_NK: Array, p1_NK: Array, density_N: Array, tau: float, compat: Compat
) -> tuple[Array, Array]:
    """Each node's one parent, positions int64[N] (a root: itself), and margin_N float64. algorithm.md 1.8, section 4.

    `reference`: among strictly denser neighbours with p0 < 1 - tau, the least p0, ties to the smaller id. `default`:
    denser, or as dense with a smaller id; the same p0 < 1 - tau; the highest p1, ties to the smaller id. 1 - tau is
    rounded to float32, the type of p0. margin_N is the largest error of each p and density that leaves the parent
    certain: 0 at an exact tie, inf without neighbours.
    """
    key_NK = p0_NK if compat == "reference" else -p1_NK
    return _choose(id_N, nbr_NK, p0_NK, float(np.float32(1 - tau)), key_NK, density_N, compat == "reference")


def roots(parent_N: Array) -> tuple[Array, Array]:
    """label_N int64, 0..P-1 by ascending root, and peak_P, the roots' positions. Raises ValueError on a cycle."""
    root_N = parent_N
    for _ in range(len(parent_N)):
        if (parent_N[root_N] == root_N).all():
            peak_P = np.unique(root_N)
            return np.searchsorted(peak_P, root_N), peak_P
        root_N = parent_N[root_N]
    raise ValueError("the parents contain a cycle")


def cluster_means(unit_MD: Array, label_M: Array) -> Array:
    """float32[P, D] mean row of each label: int64 sums of rint(x * 2^32), divided in float64. algorithm.md 4."""
    fixed_MD = np.rint(unit_MD.astype(np.float64) * FIXED_POINT).astype(np.int64)
    sum_PD = np.zeros((label_M.max() + 1, unit_MD.shape[1]), dtype=np.int64)
    np.add.at(sum_PD, label_M, fixed_MD)
    means_PD: Array = sum_PD / np.bincount(label_M)[:, None] / FIXED_POINT
    return means_PD.astype(np.float32)


def gt_density(y_N: Array, nbr_NK: Array, sim_NK: Array) -> Array:
    """float32[N]: sims of same-class neighbours minus the others', divided by K (pads count as 0). algorithm.md 2.1."""
    sign_NK = np.where(y_N[nbr_NK] == y_N[:, None], 1.0, -1.0)
    density_N: Array = (sim_NK.astype(np.float64) * sign_NK).sum(1) / nbr_NK.shape[1]
    return density_N.astype(np.float32)


def metrics(label_N: Array, y_N: Array) -> dict[str, float]:
    """Pairwise, BCubed and arithmetic NMI of clusters label_N and classes y_N, from all N x N pairs. algorithm.md 2.7.

    Pairwise precision (recall) and F are NaN without pairs to judge; NMI is 1 where both sides are a single group.
    """
    cluster_NN = label_N[:, None] == label_N[None]
    class_NN = y_N[:, None] == y_N[None]
    other_NN = ~np.eye(len(y_N), dtype=bool)
    both, clustered, classed = ((a_NN & other_NN).sum() for a_NN in (cluster_NN & class_NN, cluster_NN, class_NN))
    pairwise_p = both / clustered if clustered else np.nan
    pairwise_r = both / classed if classed else np.nan
    hit_N = (cluster_NN & class_NN).sum(1)
    bcubed_p, bcubed_r = (hit_N / cluster_NN.sum(1)).mean(), (hit_N / class_NN.sum(1)).mean()
    # The probability of each item's cell, cluster and class: a mean over items is a sum over cells weighted by n / N.
    joint_N, cluster_N, class_N = (a_NN.mean(1) for a_NN in (cluster_NN & class_NN, cluster_NN, class_NN))
    entropy = -(np.log(cluster_N).mean() + np.log(class_N).mean()) / 2
    information = np.log(joint_N / (cluster_N * class_N)).mean()
    values = {
        "pairwise_precision": pairwise_p,
        "pairwise_recall": pairwise_r,
        "pairwise_f": _harmonic(pairwise_p, pairwise_r),
        "bcubed_precision": bcubed_p,
        "bcubed_recall": bcubed_r,
        "bcubed_f": _harmonic(bcubed_p, bcubed_r),
        "nmi": information / entropy if entropy > 0 else 1.0,
    }
    return {name: float(value) for name, value in values.items()}


def middle_tau(x_MD: Array, weights: Weights, k: int) -> float:
    """A tau that half of the first level's edges pass, so that random weights build several levels (two decimals)."""
    unit_MD = unit_rows(x_MD)
    nbr_NK, sim_NK, _ = knn(unit_MD, np.arange(len(unit_MD)), k)
    p1_NK = forward(weights, unit_MD, unit_MD, nbr_NK, sim_NK)[1]
    return round(float(np.median(p1_NK[nbr_NK >= 0])), 2)


def random_weights(
    rng: np.random.Generator,
    dim: int,
    hidden: int,
    encoder: Encoder,
    num_conv: int = 1,
    heads: int = 1,
    cluster_features: bool = True,
) -> Weights:
    """Float32 weights under the official state-dict keys, large enough to spread p1. algorithm.md 1.5, 1.6, 1.12."""
    half = hidden // 2
    width_in = (2 * dim if cluster_features else dim, hidden, hidden, half)
    width_out = (hidden, hidden, half, half)

    def normal(*shape: int, std: float) -> Array:
        return rng.normal(0.0, std, shape).astype(np.float32)

    w: Weights = {}
    for layer in range(num_conv):
        name, wide, out = f"conv.{layer}", width_in[layer], width_out[layer]
        std = 1.0 if layer == 0 else wide**-0.5  # the rows that enter layer 0 have norm 1, not sqrt(wide)
        if encoder == "gcn":
            w[f"{name}.gcn_layer.mlp.weight"] = normal(out, 2 * wide, std=std)
            w[f"{name}.gcn_layer.mlp.bias"] = normal(out, std=0.1)
        else:
            w[f"{name}.bias"] = normal(heads, out, std=0.1)
            w[f"{name}.gcn_layer.attn_l"] = normal(1, heads, out, std=out**-0.5)
            w[f"{name}.gcn_layer.attn_r"] = normal(1, heads, out, std=out**-0.5)
            w[f"{name}.gcn_layer.bias"] = normal(heads * out, std=0.1)
            w[f"{name}.gcn_layer.fc.weight"] = normal(heads * out, wide, std=std)
    last = width_out[num_conv - 1]
    head = {"src_mlp": (last, half), "dst_mlp": (last, half), "classifier_conn.1": (half, half)}
    for name, (wide, out) in (head | {"classifier_conn.3": (half, 2)}).items():
        w[f"{name}.weight"] = normal(out, wide, std=(2 / wide) ** 0.5)
        w[f"{name}.bias"] = normal(out, std=0.1)
    for name in ("classifier_conn.0", "classifier_conn.2"):
        w[f"{name}.weight"] = (0.25 + normal(half, std=0.1)).astype(np.float32)
    return w


def _gcn_layer(layer: Weights, h_NI: Array, nbr_NK: Array, real_NK: Array, sim_NK: Array) -> Array:
    row_N = sim_NK.sum(1)
    affine_NK = sim_NK / np.where(row_N > 0, row_N, 1.0)[:, None]
    around_NI = np.zeros_like(h_NI)
    for c in range(nbr_NK.shape[1]):
        around_NI += (affine_NK * real_NK)[:, c, None] * h_NI[nbr_NK[:, c]]
    out_NO: Array = np.maximum(_linear(layer, "gcn_layer.mlp", np.concatenate([h_NI, around_NI], axis=1)), 0.0)
    return out_NO


def _gat_layer(layer: Weights, h_NI: Array, nbr_NK: Array, real_NK: Array) -> Array:
    heads, width = layer["bias"].shape
    q_NAH = (h_NI @ layer["gcn_layer.fc.weight"].T).reshape(-1, heads, width)
    source_NA = (q_NAH * layer["gcn_layer.attn_l"]).sum(2)
    target_NA = (q_NAH * layer["gcn_layer.attn_r"]).sum(2)
    e_NKA = source_NA[nbr_NK] + target_NA[:, None]
    e_NKA = np.where(e_NKA > 0, e_NKA, 0.2 * e_NKA)
    e_NKA = np.where(real_NK[..., None], e_NKA, -np.inf)
    power_NKA = np.exp(e_NKA - np.maximum(e_NKA.max(1, keepdims=True, initial=-np.inf), -1e300))
    total_NA = power_NKA.sum(1)
    alpha_NKA = power_NKA / np.where(total_NA > 0, total_NA, 1.0)[:, None]
    out_NAH = np.zeros_like(q_NAH) + layer["gcn_layer.bias"].reshape(heads, width) + layer["bias"]
    for c in range(nbr_NK.shape[1]):
        out_NAH += alpha_NKA[:, c, :, None] * q_NAH[nbr_NK[:, c]]
    out_NH: Array = np.maximum(out_NAH.mean(1), 0.0)
    return out_NH


def _linear(w: Weights, name: str, x_NI: Array) -> Array:
    out_NO: Array = x_NI @ w[f"{name}.weight"].T + w[f"{name}.bias"]
    return out_NO


def _prelu(x_EH: Array, slope_H: Array) -> Array:
    return np.where(x_EH > 0, x_EH, slope_H * x_EH)


def _choose(
    id_N: Array, nbr_NK: Array, distance_NK: Array, limit: float, key_NK: Array, density_N: Array, strict: bool
) -> tuple[Array, Array]:
    """Parent positions and margins: the least (key, id) among better neighbours with distance < limit."""
    parent_N = np.arange(len(id_N))
    margin_N = np.full(len(id_N), np.inf)
    for i in range(len(id_N)):
        column_C = np.flatnonzero(nbr_NK[i] >= 0)
        if len(column_C) == 0:
            continue
        j_C = nbr_NK[i, column_C]
        ahead_C = density_N[j_C].astype(np.float64) - float(density_N[i])
        below_C = limit - distance_NK[i, column_C].astype(np.float64)
        key_C = key_NK[i, column_C].astype(np.float64)
        better_C = (ahead_C > 0) | ((ahead_C == 0) & (id_N[j_C] < id_N[i]) & (not strict))
        open_C = better_C & (below_C > 0)
        # The error that lets each neighbour in. Two densities (or two keys) err against each other, the limit is exact.
        enter_C = np.maximum(np.where(better_C, 0.0, -ahead_C / 2), np.maximum(-below_C, 0.0))
        if not open_C.any():
            margin_N[i] = enter_C.min()
            continue
        best = min(np.flatnonzero(open_C), key=lambda c: (key_C[c], id_N[j_C[c]]))
        parent_N[i] = j_C[best]
        overtake_C = np.maximum(enter_C, np.maximum(key_C - key_C[best], 0.0) / 2)
        overtake_C[best] = min(ahead_C[best] / 2, below_C[best])
        margin_N[i] = overtake_C.min()
    return parent_N, margin_N


def _harmonic(a: float, b: float) -> float:
    return 2 * a * b / (a + b) if a + b != 0 else 0.0
