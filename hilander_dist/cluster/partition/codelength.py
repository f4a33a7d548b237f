"""The code length of a partition on a graph whose edges all weigh the same. Pure functions; C clusters."""

import numpy as np

BIT = 2.0**40
"""Fixed point of a bit: each cluster's term is rounded, so that the sum does not depend on its order."""


def cluster_terms(edges_C: np.ndarray, exits_C: np.ndarray, edges: int) -> int:
    """What clusters add to the code length, in bits times BIT.

    Args:
        edges_C: edges that each cluster's rows own.
        exits_C: those of them that lead to other clusters.
        edges: of the whole graph.
    """
    exit_C, flow_C = exits_C / edges, edges_C / edges
    return int(np.rint((_plogp(exit_C + flow_C) - 2 * _plogp(exit_C)) * BIT).astype(np.int64).sum())


def codelength(terms: int, exits: int, edges: int) -> int:
    """The code length of the partition, less what all partitions have in common.

    Args:
        terms: ``cluster_terms`` of all clusters.
        exits: edges between clusters.
        edges: of the whole graph.
    """
    return terms + round(float(_plogp(np.array([exits / edges]))[0]) * BIT)


def _plogp(p_C: np.ndarray) -> np.ndarray:
    return np.where(p_C > 0, p_C * np.log2(np.where(p_C > 0, p_C, 1.0)), 0.0)
