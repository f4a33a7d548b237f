"""Random small level graphs for the tests of this folder."""

import numpy as np

from hilander_dist.lander.level_graphs import FloatArray, IntArray, LevelGraph, ground_truth_density


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
