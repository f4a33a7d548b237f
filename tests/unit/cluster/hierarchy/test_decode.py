from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilander_dist.cluster.hierarchy.decode import Compat, decode_links, densest_of_groups, parent_positions

COMPATS: tuple[Compat, ...] = ("default", "reference")

# Few distinct values, so that ties of every kind are common; 1e-8 is p0 where p1 rounds to 1, -0.0 equals 0.0.
P0 = st.sampled_from([0.0, 1e-8, 2e-8, 0.25, 0.5, 0.50000006, 1.0])
DENSITY = st.sampled_from([-1.0, -0.0, 0.0, 0.5, 0.50000006, 1.0])


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, np.ndarray]:
    n, K = draw(st.integers(1, 12)), draw(st.integers(1, 6))
    id_N = np.array(draw(st.permutations(range(100, 100 + n))))
    rows = []
    for node in range(n):
        others = draw(st.permutations([j for j in range(n) if j != node]))[: draw(st.integers(0, K))]
        rows.append([*others, *[-1] * (K - len(others))])
    nbr_NK = np.array(rows, dtype=np.int64)
    p0 = draw(st.lists(P0, min_size=n * K, max_size=n * K))
    density = draw(st.lists(DENSITY, min_size=n, max_size=n))
    return {
        "p0_NK": np.array(p0, dtype=np.float32).reshape(n, K),
        "nbr_NK": nbr_NK,
        "density_N": np.array(density, dtype=np.float32),
        "id_N": id_N,
    }


def decode(graph: dict[str, np.ndarray], limit: float, compat: Compat) -> np.ndarray:
    """What stands at pads must not matter: here it is the best there can be."""
    nbr_NK = graph["nbr_NK"]
    return decode_links(
        np.where(nbr_NK < 0, np.float32(0), graph["p0_NK"]),
        nbr_NK,
        graph["density_N"],
        graph["id_N"],
        np.where(nbr_NK < 0, np.float32(9), graph["density_N"][nbr_NK]),
        np.where(nbr_NK < 0, 0, graph["id_N"][nbr_NK]),
        limit,
        compat,
    )


def naive(graph: dict[str, np.ndarray], limit: float, compat: Compat) -> list[int]:
    ranks = []
    for i, nbrs in enumerate(graph["nbr_NK"].tolist()):
        best: Any = None
        for rank, j in enumerate(nbrs):
            if j < 0:
                continue
            own, other = graph["density_N"][i], graph["density_N"][j]
            denser = other > own
            if compat == "default" and other == own:
                denser = graph["id_N"][j] < graph["id_N"][i]
            if denser and graph["p0_NK"][i, rank] < np.float32(limit):
                key = (graph["p0_NK"][i, rank], graph["id_N"][j], rank)
                best = key if best is None else min(best, key)
        ranks.append(-1 if best is None else best[2])
    return ranks


@given(graph=graphs(), limit=st.sampled_from([0.0, 1e-8, 0.25, 0.5, 0.6, 1.0]), compat=st.sampled_from(COMPATS))
def test_links_are_those_of_a_loop_over_nodes(graph: dict[str, np.ndarray], limit: float, compat: Compat) -> None:
    assert decode(graph, limit, compat).tolist() == naive(graph, limit, compat)


@given(graph=graphs(), compat=st.sampled_from(COMPATS), order=st.randoms(use_true_random=False))
def test_the_chosen_parent_does_not_depend_on_the_order_of_the_neighbours(
    graph: dict[str, np.ndarray], compat: Compat, order: Any
) -> None:
    n, K = graph["nbr_NK"].shape
    shuffled = {name: array.copy() for name, array in graph.items()}
    for i in range(n):
        columns = order.sample(range(K), K)
        for name in ("nbr_NK", "p0_NK"):
            shuffled[name][i] = graph[name][i, columns]
    parents = parent_positions(decode(graph, 0.6, compat), graph["nbr_NK"], 0)
    again = parent_positions(decode(shuffled, 0.6, compat), shuffled["nbr_NK"], 0)
    assert again.tolist() == parents.tolist()


@given(graph=graphs(), compat=st.sampled_from(COMPATS))
def test_the_parents_form_a_forest(graph: dict[str, np.ndarray], compat: Compat) -> None:
    parents = parent_positions(decode(graph, 1.0, compat), graph["nbr_NK"], 0)
    node = np.arange(len(parents))
    for _ in range(len(parents)):
        node = parents[node]
    np.testing.assert_array_equal(parents[node], node)


@pytest.mark.parametrize(("compat", "peaks"), [("default", 1), ("reference", 5)])
def test_copies_join_unless_the_reference_is_reproduced(compat: Compat, peaks: int) -> None:
    nbr_NK = np.array([[j for j in range(5) if j != i] for i in range(5)])
    graph = {
        "p0_NK": np.zeros((5, 4), dtype=np.float32),
        "nbr_NK": nbr_NK,
        "density_N": np.full(5, 0.7, dtype=np.float32),
        "id_N": np.array([4, 2, 9, 3, 7]),
    }
    rank_N = decode(graph, 0.5, compat)
    assert (rank_N < 0).sum() == peaks
    if compat == "default":  # all to the smallest id
        assert parent_positions(rank_N, nbr_NK, 0).tolist() == [1, 1, 1, 1, 1]


def test_an_edge_at_the_limit_is_not_kept() -> None:
    graph = {
        "p0_NK": np.array([[0.2], [0.0]], dtype=np.float32),
        "nbr_NK": np.array([[1], [-1]]),
        "density_N": np.array([0.1, 0.2], dtype=np.float32),
        "id_N": np.array([0, 1]),
    }
    # tau = 0.8: p1 must be above it. 1 - 0.8 in float64 is a little below 0.2.
    assert decode(graph, 1 - 0.8, "default").tolist() == [-1, -1]
    assert decode({**graph, "p0_NK": np.nextafter(graph["p0_NK"], np.float32(0))}, 1 - 0.8, "default").tolist() == [
        0,
        -1,
    ]


def test_p0_decides_where_p1_rounds_to_one() -> None:
    graph = {
        "p0_NK": np.array([[3e-9, 2e-9], [0, 0], [0, 0]], dtype=np.float32),
        "nbr_NK": np.array([[1, 2], [-1, -1], [-1, -1]]),
        "density_N": np.array([0.1, 0.2, 0.2], dtype=np.float32),
        "id_N": np.array([0, 1, 2]),
    }
    assert ((1 - graph["p0_NK"][0]) == 1).all()
    assert decode(graph, 0.2, "default").tolist() == [1, -1, -1]


def test_parent_positions_of_a_shard_count_from_its_start() -> None:
    nbr_NK = np.array([[3, 901], [-1, -1], [512, 4]])
    assert parent_positions(np.array([1, -1, 0]), nbr_NK, 512).tolist() == [901, 513, 512]


def test_a_shard_without_edges_is_all_peaks() -> None:
    graph = {
        "p0_NK": np.zeros((3, 2), dtype=np.float32),
        "nbr_NK": np.full((3, 2), -1),
        "density_N": np.zeros(3, dtype=np.float32),
        "id_N": np.arange(3),
    }
    assert decode(graph, 1.0, "default").tolist() == [-1, -1, -1]


def test_the_densest_node_of_a_group_is_the_first_by_id() -> None:
    nodes = {
        "group_R": np.array([0, 1, 0, 1, 0]),
        "density_R": np.array([0.5, 0.2, 0.7, 0.2, 0.7], dtype=np.float32),
        "id_R": np.array([1, 9, 8, 3, 4]),
        "position_R": np.arange(5),
    }
    assert densest_of_groups(nodes)["position_R"].tolist() == [4, 3]
    assert len(densest_of_groups({name: column[:0] for name, column in nodes.items()})["group_R"]) == 0
