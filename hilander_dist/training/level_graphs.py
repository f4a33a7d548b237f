"""One level of a training hierarchy: arrays, ground truth (algorithm.md 2.1), and the subgraphs of its batches.

Shapes: N nodes, D dimensions, K = k - 1 neighbours kept, B target nodes, S nodes of a subgraph, R <= S nodes of it that
have neighbour rows. A -1 in ``nbr_NK`` is a pad.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class LevelGraph:
    """The nodes of one level with what training needs of them."""

    x_ND: FloatArray
    """Unit identity features."""

    c_ND: FloatArray
    """Cluster features: the mean of the cluster's level-0 vectors."""

    nbr_NK: IntArray
    """Positions of the neighbours, by descending similarity; -1 pads at the end."""

    sim_NK: FloatArray
    """Similarity to each neighbour; 0 at pads."""

    label_N: IntArray
    """Class of the node (of its peak, above level 0)."""

    gt_density_N: FloatArray
    """Ground-truth density, ``ground_truth_density``."""


@dataclasses.dataclass(frozen=True)
class Subgraph:
    """Inputs of ``Lander.forward`` for some target nodes: they come first, then their neighbours, then theirs."""

    x_SD: FloatArray
    c_SD: FloatArray
    nbr_RK: IntArray
    sim_RK: FloatArray
    sizes: list[int]
    """Nodes within 0, 1, ..., num_conv + 1 steps of the targets; the outermost, from R on, have no neighbour rows."""


def load_level_graph(blocks: Sequence[dict[str, npt.NDArray[np.generic]]]) -> LevelGraph:
    """Join the blocks of a level, in order of position. A block's keys are the names of ``LevelGraph``'s arrays."""

    def joined(name: str) -> npt.NDArray[Any]:
        return np.concatenate([block[name] for block in blocks])

    return LevelGraph(**{field.name: joined(field.name) for field in dataclasses.fields(LevelGraph)})


def same_label(label_N: IntArray, nbr_label_NK: IntArray) -> BoolArray:
    """Whether both ends of each edge have one label (algorithm.md 2.1). Give pads a label that no node has."""
    same_NK: BoolArray = label_N[:, None] == nbr_label_NK
    return same_NK


def ground_truth_density(nbr_NK: IntArray, sim_NK: FloatArray, label_N: IntArray, nbr_label_NK: IntArray) -> FloatArray:
    """Density that training aims at: (1 / K) sum over k of s * (+1 same label, -1 other), float32 (algorithm.md 2.1).

    The division is by K = k - 1 even where a node has fewer neighbours: a pad counts as a similarity of 0.
    """
    sign_NK = np.where(same_label(label_N, nbr_label_NK), 1.0, -1.0)
    total_N = np.where(nbr_NK >= 0, sim_NK * sign_NK, 0.0).sum(1, dtype=np.float64)
    g_N: FloatArray = (total_N / max(nbr_NK.shape[1], 1)).astype(np.float32)
    return g_N


def denser_mask(g_N: FloatArray, g_nbr_NK: FloatArray) -> BoolArray:
    """Edges that carry link loss: those to a neighbour of strictly higher density. Give pads a density of -inf."""
    return g_nbr_NK > g_N[:, None]


def edge_targets(graph: LevelGraph, target_B: IntArray) -> tuple[BoolArray, BoolArray]:
    """``same_label`` and ``denser_mask`` of the targets' edges, (B, K) each; both False at pads."""
    nbr_BK = graph.nbr_NK[target_B]
    real_BK = nbr_BK >= 0
    same_BK = same_label(graph.label_N[target_B], graph.label_N[nbr_BK]) & real_BK
    denser_BK = denser_mask(graph.gt_density_N[target_B], graph.gt_density_N[nbr_BK]) & real_BK
    return same_BK, denser_BK


def cut_subgraph(graph: LevelGraph, target_B: IntArray, num_conv: int) -> Subgraph:
    """Cut out what ``Lander.forward`` needs for the targets (distinct positions): num_conv + 1 steps around them.

    Neighbours keep their ranks and pads, so the logits are those of the whole graph.
    """
    place_N = np.full(len(graph.nbr_NK), -1)
    node_S, frontier, sizes = target_B, target_B, [len(target_B)]
    place_N[target_B] = np.arange(len(target_B))
    for _ in range(num_conv + 1):
        reached = np.unique(graph.nbr_NK[frontier])
        frontier = reached[(reached >= 0) & (place_N[reached] < 0)]
        place_N[frontier] = len(node_S) + np.arange(len(frontier))
        node_S = np.concatenate([node_S, frontier])
        sizes.append(len(node_S))
    inner_R = node_S[: sizes[-2]]
    nbr_RK = graph.nbr_NK[inner_R]
    return Subgraph(
        x_SD=graph.x_ND[node_S],
        c_SD=graph.c_ND[node_S],
        nbr_RK=np.where(nbr_RK >= 0, place_N[nbr_RK], -1),
        sim_RK=graph.sim_NK[inner_R],
        sizes=sizes,
    )
