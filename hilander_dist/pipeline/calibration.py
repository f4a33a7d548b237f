"""What a relational checkpoint is told when its network is trained: its heads,
and on held-out classes the temperature and tau.

One forward per episode and wave: its probabilities are kept, and only the clustering is repeated for each tau.
"""

from typing import Any

import numpy as np
import ray
import torch

from hilander_dist.cluster.local import f_scores, label_graph, score_graph
from hilander_dist.config import Config
from hilander_dist.lander.checkpoint import load_checkpoint, save_checkpoint
from hilander_dist.lander.episode_course import read_episode
from hilander_dist.lander.episodes import same_class
from hilander_dist.lander.relational import RelationalLander
from hilander_dist.lander.training import TrainedModel
from hilander_dist.monitor.log import logger
from hilander_dist.pipeline.head_training import LEAST_CLASSES
from hilander_dist.pipeline.meta_training import Episodes
from hilander_dist.pipeline.pair_training import train_pairs
from hilander_dist.pipeline.split_training import train_joins, train_splits
from hilander_dist.tasks import Ref, Tasks

TAUS = tuple(round(0.5 + 0.05 * step, 2) for step in range(-4, 5))
"""Around .5. Higher ones suit handwriting and faces, lower ones groceries and classes that are small against the lists: left out, at
.4, .45, .5 and .55, seed 0, omniglot has .614/.727, .630/.733, .654/.737 and .672/.740 with 1.4 to 2.2 clusters a class, ten texts a
class (in one process) .818/.858, .814/.846, .806/.830 and .777/.806. Mean of four sets left out and three networks: .719/.761 at .35,
.733/.767 at .45, .744/.767 at .55."""

MARGIN = 0.05
"""Smaller differences of F between two taus are noise of the few held-out classes: seeds differ by .02 to .05. At .03 a general
checkpoint took .6, by which grocery's unseen classes lost .03."""

TEMPERATURES = tuple(2.0 ** (step / 4) for step in range(9))
"""From 1 up: what is too sure of itself on held-out classes is softened. Sharpening (0.7 would be the choice, as episodes are
blurred and held-out ones are not) cost .05 of F on two of four sets left out."""


def calibrate(
    tasks: Tasks, trained: TrainedModel, episodes: Episodes, map_DD: np.ndarray | None, config: Config
) -> tuple[bytes, dict[str, Any]]:
    """Train the heads; choose temperature and tau on the held-out episodes of all data sets, each set counting alike.

    The temperature has the least cross-entropy; it is worked into the head's weights. Tau: see ``best_tau``.

    Args:
        tasks: where to run.
        trained: the network.
        episodes: of training and validation.
        map_DD: what the episodes' vectors went through; it goes with the checkpoint.
        config: of the training.

    Returns:
        The checkpoint with its calibration, and what was found, for the manifest.
    """
    model = load_checkpoint(trained.checkpoint, "the trained model", config.model)
    assert isinstance(model, RelationalLander)
    assert model.calibration is not None
    ref = ray.put(model)
    mean_T = _mean_over_sets(
        tasks, [[tasks.call(_entropies, ref, uri) for uri in uris] for uris in episodes.validation]
    )
    temperature = TEMPERATURES[int(mean_T.argmin())]
    with torch.no_grad():
        model.head.weight.div_(temperature)
        model.head.bias.div_(temperature)
    if episodes.classes >= LEAST_CLASSES:
        model.pair = train_pairs(tasks, model, episodes, config.seed)
        model.split = train_splits(tasks, model, episodes, config.seed)
        model.join = train_joins(tasks, model, episodes, config.seed)
    else:
        logger.info("few classes: clusters will be those of the map equation", classes=episodes.classes)
    ref = ray.put(model)
    f_T2 = _mean_over_sets(tasks, [[tasks.call(sweep_taus, ref, uri) for uri in uris] for uris in episodes.validation])
    at = best_tau(f_T2)
    model.calibration = model.calibration.model_copy(update={"tau": TAUS[at]})
    numbers = {
        "temperature": round(temperature, 4),
        "tau": TAUS[at],
        "base_rate": model.calibration.base_rate,
        "pairwise_f": round(float(f_T2[at, 0]), 4),
        "bcubed_f": round(float(f_T2[at, 1]), 4),
        "f_by_tau": dict(zip(map(str, TAUS), np.round(f_T2.mean(1), 4).tolist(), strict=True)),
    }
    if map_DD is not None:
        model.set_map(torch.tensor(map_DD))
    logger.info("calibrated", **{name: numbers[name] for name in ("tau", "temperature", "pairwise_f", "bcubed_f")})
    return save_checkpoint(model, {"epochs": str(len(trained.history)), "seed": str(config.seed)}), numbers


def sweep_taus(model: RelationalLander, uri: str) -> np.ndarray:
    """Pairwise and BCubed F of an episode's clusters at each of TAUS, (T, 2)."""
    episode = read_episode(uri)
    logit_NK, density_N = score_graph(model, episode)
    assert model.calibration is not None
    label_TN = label_graph(episode["nbr_NK"], logit_NK, density_N, model, model.calibration, TAUS)
    return np.array([f_scores(label_N, episode["label_N"]) for label_N in label_TN])


def best_tau(f_T2: np.ndarray) -> int:
    """Index of the tau nearest to the middle of TAUS whose F is within MARGIN of the best; F is the mean over both columns
    and over the tau and its two neighbours."""
    middle = len(TAUS) // 2
    smooth = {at: _smooth(f_T2, at) for at in range(1, len(TAUS) - 1)}
    good = [at for at, f in smooth.items() if f >= max(smooth.values()) - MARGIN]
    return min(good, key=lambda at: (abs(at - middle), -smooth[at]))


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


def _smooth(f_T2: np.ndarray, at: int) -> float:
    return float(f_T2[at - 1 : at + 2].mean())
