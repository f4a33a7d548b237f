"""Small levels in any number of shards, and models with random weights, for the tests of this folder."""

from typing import Any

import numpy as np
import torch

from hilander_dist.cluster.levels import LevelOptions
from hilander_dist.config import RawModel
from hilander_dist.knn.graph import GraphOptions, knn_graph
from hilander_dist.knn.layout import Level
from hilander_dist.lander.model import Lander
from hilander_dist.tasks import Block
from tests import oracle
from tests.local_tasks import LocalTasks, held


def random_model(dim: int, encoder: oracle.Encoder, num_conv: int = 1, cluster_features: bool = True) -> Lander:
    """A model of width 8."""
    weights = oracle.random_weights(
        np.random.default_rng(7), dim, 8, encoder, num_conv, cluster_features=cluster_features
    )
    shape: dict[str, Any] = {"encoder": encoder, "num_conv": num_conv, "cluster_features": cluster_features}
    model = Lander(dim, RawModel(hidden=8, **shape))
    model.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})
    return model


def laid_out(tasks: LocalTasks, nodes: Block, shards: int, k: int) -> tuple[Level, list[Any]]:
    """A level with its exact graph."""
    n, dim = nodes["x_ND"].shape
    level, graph, _ = knn_graph(tasks, held([nodes]), n, dim, shards, GraphOptions(k, 1.0, 0), "level-0")
    return level, graph


def joined(tasks: LocalTasks, refs: list[Any]) -> Block:
    """The blocks of all shards, one after another."""
    blocks = tasks.get(refs)
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def options(**changed: Any) -> LevelOptions:
    """Options of the loop: 4 neighbours, one shard, no early stop."""
    given: dict[str, Any] = {
        "k": 5,
        "max_levels": 10,
        "early_stop": False,
        "compat": "default",
        "target_recall": 1.0,
        "seed": 0,
        "shards": 1,
    }
    return LevelOptions(**{**given, **changed})


def same_bytes(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether type, shape and every bit are equal (NaN too)."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
