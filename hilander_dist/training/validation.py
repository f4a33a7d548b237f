"""How good a network clusters a held-out episode, by the code of the jobs."""

import numpy as np
import torch

from hilander_dist.cluster.local import cluster_graph, f_scores
from hilander_dist.lander.relational import RelationalLander, edge_density
from hilander_dist.tasks import Block
from hilander_dist.training.episode_course import episode_tensors


def score_episode(model: RelationalLander, episode: Block) -> tuple[float, float]:
    """Pairwise and BCubed F of the clusters of a labelled episode."""
    logit_NK, density_N = score_graph(model, episode)
    path = cluster_graph(episode["nbr_NK"], logit_NK, density_N, model.inference)
    return f_scores(path.label_LN[path.chosen], episode["label_N"])


def score_graph(model: RelationalLander, episode: Block) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds of the edges, logit_NK float32, and density_N float32 of an episode (``training.episodes``)."""
    inputs_NKF, nbr_NK = episode_tensors(episode)
    with torch.inference_mode():
        logit_NK = model(inputs_NKF, nbr_NK)
        density_N = edge_density(logit_NK.sigmoid(), torch.from_numpy(episode["sim_NK"]), nbr_NK)
    return logit_NK.numpy(), density_N.numpy()
