"""What a relational checkpoint is told when its network is trained: on held-out classes its temperature, and the F to expect."""

from typing import Any

import numpy as np
import ray
import torch

from hilander_dist.config import Config
from hilander_dist.lander.checkpoint import load_checkpoint, save_checkpoint
from hilander_dist.lander.relational import RelationalLander
from hilander_dist.monitor.log import logger
from hilander_dist.tasks import Ref, Tasks
from hilander_dist.training.episode_course import read_episode
from hilander_dist.training.episodes import same_class
from hilander_dist.training.loop import TrainedModel
from hilander_dist.training.meta_training import Episodes
from hilander_dist.training.validation import score_episode, score_graph

TEMPERATURES = tuple(2.0 ** (step / 4) for step in range(9))
"""From 1 up: what is too sure of itself on held-out classes is softened; sharpening does not transfer (LOG 2026-11-25, temperature)."""


def calibrate(
    tasks: Tasks, trained: TrainedModel, episodes: Episodes, map_DD: np.ndarray | None, config: Config
) -> tuple[bytes, dict[str, Any]]:
    """Choose the temperature on the held-out episodes of all data sets, each set counting alike, and score the clusters there.

    The temperature has the least cross-entropy; it is worked into the last layer's weights.

    Args:
        tasks: where to run.
        trained: the network.
        episodes: of training and validation.
        map_DD: what the episodes' vectors went through; it goes with the checkpoint.
        config: of the training.

    Returns:
        The checkpoint, and what was found, for the manifest.
    """
    model = load_checkpoint(trained.checkpoint, "the trained model", config.model)
    assert isinstance(model, RelationalLander)
    ref = ray.put(model)
    mean_T = _mean_over_sets(
        tasks, [[tasks.call(_entropies, ref, uri) for uri in uris] for uris in episodes.validation]
    )
    temperature = TEMPERATURES[int(mean_T.argmin())]
    with torch.no_grad():
        model.head.weight.div_(temperature)
        model.head.bias.div_(temperature)
    ref = ray.put(model)
    pairwise, bcubed = _mean_over_sets(
        tasks, [[tasks.call(_score, ref, uri) for uri in uris] for uris in episodes.validation]
    ).tolist()
    numbers = {
        "temperature": round(temperature, 4),
        "base_rate": model.inference.base_rate,
        "pairwise_f": round(pairwise, 4),
        "bcubed_f": round(bcubed, 4),
    }
    if map_DD is not None:
        model.set_map(torch.tensor(map_DD))
    logger.info("calibrated", **{name: numbers[name] for name in ("temperature", "pairwise_f", "bcubed_f")})
    return save_checkpoint(model, {"epochs": str(len(trained.history)), "seed": str(config.seed)}), numbers


def _score(model: RelationalLander, uri: str) -> tuple[float, float]:
    return score_episode(model, read_episode(uri))


def _entropies(model: RelationalLander, uri: str) -> np.ndarray:
    """Mean cross-entropy of an episode's edges at each of TEMPERATURES; 0 without any."""
    episode = read_episode(uri)
    logit_NK, _ = score_graph(model, episode)
    same_NK, real_NK = same_class(episode)
    if not real_NK.any():
        return np.zeros(len(TEMPERATURES))
    signed_E = np.where(same_NK[real_NK], 1.0, -1.0) * logit_NK[real_NK]
    return np.array([np.logaddexp(0, -signed_E / temperature).mean() for temperature in TEMPERATURES])


def _mean_over_sets(tasks: Tasks, found: list[list[Ref]]) -> np.ndarray:
    return np.asarray(np.mean([np.mean(tasks.get(domain), axis=0) for domain in found], axis=0))
