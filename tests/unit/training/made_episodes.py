"""Small episodes for the tests of training."""

from pathlib import Path

import numpy as np

from hilander_dist.storage import Storage
from hilander_dist.training.episodes import Plan, build_episode
from tests.points import clustered


def write_episodes(folder: Path) -> list[str]:
    """URIs of five episodes of 60 to 64 rows in 6 classes."""
    for number in range(5):
        x_ND, label_N = clustered(number, 60 + number, 8, 6)
        plan = Plan(number, 6, np.zeros(0, int), np.zeros(0), 0.0, 1.0)
        episode = build_episode(x_ND, label_N, plan, np.random.default_rng(number))
        Storage(str(folder)).write_block(f"{number}.safetensors", episode)
    return [str(folder / f"{number}.safetensors") for number in range(5)]
