"""Random small level graphs for the tests of training."""

import numpy as np

from hilander_dist.training.level_graphs import FloatArray, IntArray, LevelGraph, ground_truth_density


def random_neighbours(rng: np.random.Generator, nodes: int, table: int, k: int) -> tuple[IntArray, FloatArray]:
    """nbr_NK and sim_NK: distinct rows of a table by descending similarity, pads at the end, some nodes with pads only."""
    nbr_NK = np.stack([rng.permutation(table)[:k] for _ in range(nodes)])
    sim_NK = np.sort(rng.uniform(0.05, 1, (nodes, k)))[:, ::-1].astype(np.float32)
    pad_NK = np.arange(k) >= rng.integers(0, k + 1, nodes)[:, None]
    return np.where(pad_NK, -1, nbr_NK), np.where(pad_NK, np.float32(0), sim_NK)


def random_graph(seed: int, nodes: int, dim: int = 5, k: int = 4, classes: int = 3) -> LevelGraph:
    """A graph of random vectors and neighbours."""
    rng = np.random.default_rng(seed)
    nbr_NK, sim_NK = random_neighbours(rng, nodes, nodes, k)
    label_N = rng.integers(0, classes, nodes)
    return LevelGraph(
        x_ND=rng.normal(size=(nodes, dim)).astype(np.float32),
        c_ND=rng.normal(size=(nodes, dim)).astype(np.float32),
        nbr_NK=nbr_NK,
        sim_NK=sim_NK,
        label_N=label_N,
        gt_density_N=ground_truth_density(nbr_NK, sim_NK, label_N, label_N[nbr_NK]),
    )


def graph_of_clusters(nodes: int, seed: int) -> LevelGraph:
    """Points of 8 dimensions around 10 centres, with their exact 5 nearest neighbours."""
    rng = np.random.default_rng(seed)
    label_N = np.sort(rng.integers(0, 10, nodes))
    x_ND = rng.normal(size=(10, 8))[label_N] + 0.8 * rng.normal(size=(nodes, 8))
    x_ND = (x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)).astype(np.float32)
    sim_NN = x_ND @ x_ND.T
    np.fill_diagonal(sim_NN, -np.inf)
    nbr_NK = np.argsort(-sim_NN, axis=1)[:, :5]
    sim_NK = np.take_along_axis(sim_NN, nbr_NK, axis=1)
    nbr_NK, sim_NK = np.where(sim_NK > 0, nbr_NK, -1), np.maximum(sim_NK, 0)
    gt_density_N = ground_truth_density(nbr_NK, sim_NK, label_N, label_N[nbr_NK])
    return LevelGraph(x_ND, x_ND, nbr_NK, sim_NK, label_N, gt_density_N)


def load_two_levels(uris: list[str]) -> list[LevelGraph]:
    """Level graphs for a ``LevelCourse``. The second has 129 nodes: of its last batch of one node, one of two workers gets nothing."""
    return [graph_of_clusters(300, 0), graph_of_clusters(129, 1)]
