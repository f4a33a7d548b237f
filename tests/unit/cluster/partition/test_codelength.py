"""The code length against its definition (Rosvall and Bergstrom, PNAS 2008, eq. 1)."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilander_dist.cluster.partition.codelength import BIT, cluster_terms, codelength


def entropy(parts: list[float]) -> float:
    """In bits, times what the parts add up to."""
    whole = sum(parts)
    return -sum(p * math.log2(p / whole) for p in parts if p > 0)


def by_definition(edges: list[tuple[int, int]], cluster: list[int]) -> float:
    """A walker takes each edge equally often; words of the index codebook where it enters a cluster, and of the clusters' own."""
    visits = [0.0] * len(cluster)
    leave = dict.fromkeys(cluster, 0.0)
    for u, v in edges:
        visits[u] += 1 / len(edges)
        if cluster[u] != cluster[v]:
            leave[cluster[u]] += 1 / len(edges)
    length = entropy(list(leave.values()))
    for c, exit_ in leave.items():
        length += entropy([exit_, *(visit for node, visit in enumerate(visits) if cluster[node] == c)])
    return length


def counted(edges: list[tuple[int, int]], cluster: list[int]) -> tuple[np.ndarray, np.ndarray]:
    edges_C, exits_C = np.zeros((2, max(cluster) + 1), dtype=np.int64)
    for u, v in edges:
        edges_C[cluster[u]] += 1
        exits_C[cluster[u]] += cluster[u] != cluster[v]
    return edges_C, exits_C


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[tuple[int, int]], list[int]]:
    n = draw(st.integers(2, 8))
    node = st.integers(0, n - 1)
    edges = draw(st.lists(st.tuples(node, node).filter(lambda edge: edge[0] != edge[1]), min_size=1, max_size=30))
    return edges, draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))


@given(graphs())
def test_it_is_the_map_equation_less_what_all_partitions_have_in_common(
    graph: tuple[list[tuple[int, int]], list[int]],
) -> None:
    edges, cluster = graph
    edges_C, exits_C = counted(edges, cluster)
    found = codelength(cluster_terms(edges_C, exits_C, len(edges)), int(exits_C.sum()), len(edges)) / BIT
    visits = np.bincount([u for u, _ in edges], minlength=len(cluster)) / len(edges)
    common = entropy(visits.tolist())
    assert found + common == pytest.approx(by_definition(edges, cluster), abs=1e-9)


@given(graphs(), st.integers(0, 10**6), st.integers(0, 4))
def test_terms_of_parts_of_the_clusters_add_up_whatever_their_order(
    graph: tuple[list[tuple[int, int]], list[int]], seed: int, cut: int
) -> None:
    edges, cluster = graph
    edges_C, exits_C = counted(edges, cluster)
    order = np.random.default_rng(seed).permutation(len(edges_C))
    parts = [cluster_terms(edges_C[rows], exits_C[rows], len(edges)) for rows in (order[:cut], order[cut:])]
    assert sum(parts) == cluster_terms(edges_C, exits_C, len(edges))


def test_two_cliques_are_described_best_as_two_clusters() -> None:
    edges = [(u, v) for side in (0, 4) for u in range(side, side + 4) for v in range(side, side + 4) if u != v]
    edges += [(3, 4), (4, 3)]
    lengths = []
    for cluster in ([0] * 8, [0] * 4 + [1] * 4, [0, 0, 1, 1, 2, 2, 3, 3], list(range(8))):
        edges_C, exits_C = counted(edges, cluster)
        lengths.append(codelength(cluster_terms(edges_C, exits_C, len(edges)), int(exits_C.sum()), len(edges)))
    assert min(lengths) == lengths[1]
