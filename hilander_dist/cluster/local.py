"""One graph clustered in one process as ``flow_links`` does it over shards: for validation, calibration and tests."""

import numpy as np
import torch

from hilander_dist.cluster.decode import decode_links, parent_positions
from hilander_dist.cluster.flow import edge_weights, sum_pairs
from hilander_dist.cluster.flow_links import base_rate_shift, merge_trees
from hilander_dist.cluster.relations import chances
from hilander_dist.cluster.roots import jump_inside
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
    nbr_NK: np.ndarray, logit_NK: np.ndarray, density_N: np.ndarray, calibration: Calibration
) -> np.ndarray:
    """The cluster of each node: the node that stands for it, int64 (N).

    Args:
        nbr_NK: neighbours, -1 pads.
        logit_NK: log-odds of the edges.
        density_N: of the nodes.
        calibration: tau, forest_tau and base_rate count.
    """
    nbr_NK = nbr_NK.astype(np.int64)
    real_NK = nbr_NK >= 0
    id_N, at_NK = np.arange(len(nbr_NK)), np.maximum(nbr_NK, 0)
    p0_NK = chances(-logit_NK).astype(np.float32)
    limit = 1 - calibration.forest_tau
    rank_N = decode_links(p0_NK, nbr_NK, density_N, id_N, density_N[at_NK], id_N[at_NK], limit, "default")
    root_N = jump_inside(parent_positions(rank_N, nbr_NK, 0), 0)["pointer_N"]
    p1_E = chances(logit_NK[real_NK])
    shift = base_rate_shift(float(p1_E.mean()) if len(p1_E) else 0.5, calibration.base_rate)
    weight_E = edge_weights(chances(logit_NK[real_NK], shift), calibration.tau)
    own_E = np.broadcast_to(root_N[:, None], nbr_NK.shape)[real_NK]
    kept_E = weight_E > 0
    u_E, v_E, weight_E = sum_pairs(own_E[kept_E], root_N[nbr_NK[real_NK]][kept_E], weight_E[kept_E])
    position_R = np.flatnonzero(root_N == id_N)
    root = {"position_R": position_R, "density_R": density_N[position_R], "id_R": position_R}
    parent_R = position_R[merge_trees(root, {"u_E": u_E, "v_E": v_E, "weight_E": weight_E})]
    label_N: np.ndarray = parent_R[np.searchsorted(position_R, root_N)]
    return label_N


def f_scores(label_N: np.ndarray, class_N: np.ndarray) -> tuple[float, float]:
    """Pairwise and BCubed F; 0 where there is no pair."""
    found = scores(contingency(label_N, class_N))
    return (float(np.nan_to_num(found.pairwise.f)), float(np.nan_to_num(found.bcubed.f)))


def score_episode(model: RelationalLander, episode: Block, calibration: Calibration) -> tuple[float, float]:
    """Pairwise and BCubed F of the clusters of a labelled episode."""
    logit_NK, density_N = score_graph(model, episode)
    return f_scores(label_graph(episode["nbr_NK"], logit_NK, density_N, calibration), episode["label_N"])
