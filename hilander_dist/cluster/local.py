"""One graph clustered in one process as ``flow_links`` does it over shards: for validation, calibration and tests."""

from collections.abc import Sequence

import numpy as np
import torch

from hilander_dist.cluster.base_rate import FIRST_TAU, base_rate_shift, count_best, least_shift, moved_shift
from hilander_dist.cluster.decode import decode_links, densest_of_groups, parent_positions
from hilander_dist.cluster.flow import REST_TAU, rest_at
from hilander_dist.cluster.flow_links import merge_trees, sum_weights, tree_pairs
from hilander_dist.cluster.flow_rounds import whole_trees
from hilander_dist.cluster.halves import Members, cut_clusters, split_clusters, usual_numbers
from hilander_dist.cluster.joins import Neighbourhood, cluster_pairs, join_clusters, whole_neighbourhood
from hilander_dist.cluster.lone import least_log_odds, taken_in
from hilander_dist.cluster.relations import chances
from hilander_dist.cluster.roots import jump_inside
from hilander_dist.cluster.splits import gather_members, inside_edges
from hilander_dist.config import Calibration
from hilander_dist.evaluate import contingency, scores
from hilander_dist.lander.episode_course import episode_tensors
from hilander_dist.lander.relational import RelationalLander, edge_density
from hilander_dist.tasks import Block


def score_graph(model: RelationalLander, episode: Block) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds of the edges, logit_NK float32, and density_N float32 of an episode (``lander.episodes``)."""
    inputs_NKF, nbr_NK = episode_tensors(episode)
    with torch.inference_mode():
        logit_NK = model(inputs_NKF, nbr_NK)
        density_N = edge_density(logit_NK.sigmoid(), torch.from_numpy(episode["sim_NK"]), nbr_NK)
    return logit_NK.numpy(), density_N.numpy()


def label_graph(
    nbr_NK: np.ndarray,
    logit_NK: np.ndarray,
    density_N: np.ndarray,
    model: RelationalLander,
    calibration: Calibration,
    taus: Sequence[float],
) -> np.ndarray:
    """The cluster of each node by checkpoints with each tau, int64 (T, N).

    Args:
        nbr_NK: neighbours, -1 pads.
        logit_NK: log-odds of the edges.
        density_N: of the nodes.
        model: with its heads.
        calibration: forest_tau, join_tau, rest, lone_rate and base_rate count.
        taus: edges with a corrected probability up to this carry no weight.
    """
    nbr_NK = nbr_NK.astype(np.int64)
    root_N = tree_roots(nbr_NK, logit_NK, density_N, calibration)
    first_shift = mean_shift(nbr_NK, logit_NK, calibration)
    label_N = _merge(model, nbr_NK, logit_NK, root_N, calibration, first_shift, FIRST_TAU)
    real_NK = nbr_NK >= 0
    inside_E = (label_N[:, None] == label_N[np.maximum(nbr_NK, 0)])[real_NK]
    share = float(inside_E.mean()) if len(inside_E) else 0.5
    shift = moved_shift(first_shift, share, calibration.base_rate, _least(nbr_NK, logit_NK))
    found = []
    for tau in taus:
        weight, at_rest_tau = sum_weights(logit_NK[real_NK], shift, (tau, REST_TAU)).tolist()
        rested = calibration.model_copy(update={"rest": rest_at(calibration.rest, weight, at_rest_tau)})
        merged_N = _merge(model, nbr_NK, logit_NK, root_N, rested, shift, tau)
        joined_N = _split_and_join(model, nbr_NK, logit_NK, density_N, shift, merged_N, calibration.join_tau)
        found.append(_place_lone(nbr_NK, logit_NK, joined_N, calibration.lone_rate))
    return np.stack(found)


def tree_roots(nbr_NK: np.ndarray, logit_NK: np.ndarray, density_N: np.ndarray, calibration: Calibration) -> np.ndarray:
    """The root of each node's tree of sure links, int64 (N)."""
    id_N, at_NK = np.arange(len(nbr_NK)), np.maximum(nbr_NK, 0)
    p0_NK = chances(-logit_NK).astype(np.float32)
    limit = 1 - calibration.forest_tau
    rank_N = decode_links(p0_NK, nbr_NK, density_N, id_N, density_N[at_NK], id_N[at_NK], limit, "default")
    return jump_inside(parent_positions(rank_N, nbr_NK, 0), 0)["pointer_N"]


def mean_shift(nbr_NK: np.ndarray, logit_NK: np.ndarray, calibration: Calibration) -> float:
    """``base_rate_shift`` of the mean probability of a whole graph, not below ``least_shift``."""
    logit_E = logit_NK[nbr_NK >= 0]
    shift = base_rate_shift(float(chances(logit_E).mean()) if len(logit_E) else 0.5, calibration.base_rate)
    return max(shift, _least(nbr_NK, logit_NK))


def graph_pairs(
    nbr_NK: np.ndarray, logit_NK: np.ndarray, root_N: np.ndarray, shift: float, tau: float, rest: float
) -> Block:
    """``flow_links.tree_pairs`` of a whole graph."""
    real_NK = nbr_NK >= 0
    own_E = np.broadcast_to(root_N[:, None], nbr_NK.shape)[real_NK]
    return tree_pairs(root_N, own_E, root_N[nbr_NK[real_NK]], logit_NK[real_NK], shift, tau, rest)


def graph_members(
    nbr_NK: np.ndarray, logit_NK: np.ndarray, shift: float, label_N: np.ndarray
) -> tuple[np.ndarray, Members]:
    """The nodes of a whole graph by cluster, int64, and the clusters by their places in it; as ``splits`` gathers them."""
    nodes = {"root_M": label_N, "position_M": np.arange(len(label_N))}
    edges = inside_edges(nodes, nodes, np.ones(len(label_N), dtype=bool), nbr_NK, logit_NK, shift)[1]
    ordered, members = gather_members(nodes, edges)
    return ordered["position_M"], members


def part_labels(node_M: np.ndarray, members: Members, part_M: np.ndarray) -> np.ndarray:
    """The part of its cluster that each node is in, int64 (N), from 0 up without gaps; see ``halves.split_clusters``."""
    label_N = np.empty(len(node_M), dtype=np.int64)
    key_M = members.group_M * (part_M.max(initial=0) + 1) + part_M
    label_N[node_M] = np.unique(key_M, return_inverse=True)[1]
    return label_N


def graph_neighbourhood(nbr_NK: np.ndarray, logit_NK: np.ndarray, shift: float, label_N: np.ndarray) -> Neighbourhood:
    """The clusters of a whole graph, from 0 up, as ``joins`` sees them."""
    return whole_neighbourhood(cluster_pairs(label_N, label_N[np.maximum(nbr_NK, 0)], nbr_NK >= 0, logit_NK, shift))


def f_scores(label_N: np.ndarray, class_N: np.ndarray) -> tuple[float, float]:
    """Pairwise and BCubed F; 0 where there is no pair."""
    found = scores(contingency(label_N, class_N))
    return (float(np.nan_to_num(found.pairwise.f)), float(np.nan_to_num(found.bcubed.f)))


def score_episode(model: RelationalLander, episode: Block, calibration: Calibration) -> tuple[float, float]:
    """Pairwise and BCubed F of the clusters of a labelled episode."""
    logit_NK, density_N = score_graph(model, episode)
    label_TN = label_graph(episode["nbr_NK"], logit_NK, density_N, model, calibration, [calibration.tau])
    return f_scores(label_TN[0], episode["label_N"])


def _least(nbr_NK: np.ndarray, logit_NK: np.ndarray) -> float:
    return least_shift(count_best(logit_NK, nbr_NK >= 0))


def _merge(
    model: RelationalLander,
    nbr_NK: np.ndarray,
    logit_NK: np.ndarray,
    root_N: np.ndarray,
    calibration: Calibration,
    shift: float,
    tau: float,
) -> np.ndarray:
    """The cluster of each node with ``shift`` added to all log-odds, int64 (N)."""
    pairs = graph_pairs(nbr_NK, logit_NK, root_N, shift, tau, calibration.rest)
    group_R = merge_trees(model, nbr_NK.shape[1], *whole_trees(pairs))
    first_G = np.unique(group_R, return_index=True)[1]
    label_N: np.ndarray = pairs["root_M"][first_G][group_R][np.searchsorted(pairs["root_M"], root_N)]
    return label_N


def _split_and_join(
    model: RelationalLander,
    nbr_NK: np.ndarray,
    logit_NK: np.ndarray,
    density_N: np.ndarray,
    shift: float,
    label_N: np.ndarray,
    join_tau: float,
) -> np.ndarray:
    """The cluster of each node after ``halves`` and ``joins``, int64 (N), given that of the merges."""
    neighbours = nbr_NK.shape[1]
    node_M, members = graph_members(nbr_NK, logit_NK, shift, label_N)
    cuts = cut_clusters(members, neighbours)
    usual = usual_numbers(cuts.numbers_CF)
    split_N = part_labels(node_M, members, split_clusters(model.split, members, neighbours, cuts, usual))
    # Of equal pairs the first ones join: clusters stand in the order of their densest nodes, as over shards.
    id_N = np.arange(len(split_N))
    densest = densest_of_groups({"group_R": split_N, "density_R": density_N, "id_R": id_N, "position_R": id_N})
    split_N = np.argsort(np.argsort(densest["position_R"]))[split_N]
    found = graph_neighbourhood(nbr_NK, logit_NK, shift, split_N)
    return np.asarray(join_clusters(model.join, found, neighbours, usual, join_tau)[split_N])


def _place_lone(nbr_NK: np.ndarray, logit_NK: np.ndarray, label_N: np.ndarray, lone_rate: float) -> np.ndarray:
    """The cluster of each node after ``lone``, int64 (N)."""
    lone_N = np.bincount(label_N, minlength=1)[label_N] == 1
    least = least_log_odds(int(lone_N.sum()), len(label_N), lone_rate)
    row_L, rank_L = taken_in(logit_NK, nbr_NK >= 0, lone_N, lone_N[np.maximum(nbr_NK, 0)], least)
    label_N = label_N.copy()
    label_N[row_L] = label_N[nbr_NK[row_L, rank_L]]
    return label_N
