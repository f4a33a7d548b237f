"""Small levels in any number of shards, and models with random weights, for the tests of this folder."""

import itertools
from typing import Any

import numpy as np
import torch

from hilander_dist.cluster.hierarchy.levels import LevelOptions
from hilander_dist.cluster.partition.log_odds import quantise
from hilander_dist.cluster.scoring.halo import plan_halo
from hilander_dist.cluster.sharded.labels import own_labels
from hilander_dist.cluster.sharded.path import ScoredGraph
from hilander_dist.cluster.sharded.seeds import scored_graph
from hilander_dist.config import RawModel
from hilander_dist.exchange import even_starts
from hilander_dist.knn.graph import GraphOptions, knn_graph
from hilander_dist.knn.layout import Level
from hilander_dist.lander.inference import Inference
from hilander_dist.lander.model import Lander
from hilander_dist.local_tasks import LocalTasks, held, put_all
from hilander_dist.tasks import Block
from tests import oracle

INFERENCE = Inference()


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


def random_scores(seed: int, n: int, classes: int, neighbours: int = 6) -> Block:
    """A graph with log-odds that tell most classes apart: id_N, nbr_NK with some pads, logit_NK, density_N with some ties."""
    rng = np.random.default_rng(seed)
    class_N = rng.integers(classes, size=n)
    nbr_NK = np.full((n, neighbours), -1)
    for node in range(n):
        near = rng.permutation(np.flatnonzero((class_N == class_N[node]) & (np.arange(n) != node)))
        other = rng.permutation(np.flatnonzero(class_N != class_N[node]))[: int(rng.integers(3))]
        found = np.r_[near[: neighbours - len(other)], other][: int(rng.integers(neighbours + 1))]
        nbr_NK[node, : len(found)] = found
    same_NK = class_N[nbr_NK] == class_N[:, None]
    logit_NK = (rng.normal(0, 2, nbr_NK.shape) + np.where(same_NK, 2.0, -3.0)).astype(np.float32)
    return {
        "id_N": rng.permutation(n),
        "nbr_NK": nbr_NK,
        "logit_NK": np.where(nbr_NK < 0, np.float32(0), logit_NK),
        "density_N": rng.choice(np.linspace(-1, 1, max(n // 2, 1)), n).astype(np.float32),
    }


def scored_shards(tasks: LocalTasks, scores: Block, shards: int, inference: Inference = INFERENCE) -> ScoredGraph:
    """The graph of ``random_scores`` in shards, with its seeds."""
    n = len(scores["id_N"])
    starts = even_starts(n, shards)

    def cut(**columns: np.ndarray) -> list[Any]:
        return put_all([{name: column[a:b] for name, column in columns.items()} for a, b in itertools.pairwise(starts)])

    level = Level(n, starts, cut(id_N=scores["id_N"]), None, None)
    graph = cut(nbr_NK=scores["nbr_NK"])
    found = cut(step_NK=quantise(scores["logit_NK"]), density_N=scores["density_N"])
    return scored_graph(tasks, level, graph, plan_halo(tasks, level, graph), found, inference)


def row_labels(tasks: LocalTasks, labels: list[Any], starts: tuple[int, ...]) -> np.ndarray:
    """The cluster of each row of all shards, from their labels (``sharded.labels``)."""
    blocks = zip(tasks.get(labels), itertools.pairwise(starts), strict=True)
    return np.concatenate([own_labels(block, stop - start) for block, (start, stop) in blocks])


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
