import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hilander_dist.config import RawTrain
from hilander_dist.training.batches import learning_rate, make_batch, target_batches
from tests.unit.training.made_graphs import random_graph

CPU = torch.device("cpu")


@given(nodes=st.integers(1, 50), size=st.integers(1, 60), seed=st.integers(0, 5), graph=st.integers(0, 5))
def test_each_pass_meets_each_node_once(nodes: int, size: int, seed: int, graph: int) -> None:
    batches = -(-nodes // size)
    stream = target_batches(nodes, size, seed, graph, 0)
    for _ in range(3):
        taken = list(itertools.islice(stream, batches))
        assert [len(batch) for batch in taken[:-1]] == [size] * (batches - 1)
        assert sorted(np.concatenate(taken)) == list(range(nodes))


@given(nodes=st.integers(1, 50), size=st.integers(1, 60), start=st.integers(0, 40))
def test_a_stream_can_start_anywhere(nodes: int, size: int, start: int) -> None:
    late = list(itertools.islice(target_batches(nodes, size, 3, 1, start), 12))
    whole = list(itertools.islice(target_batches(nodes, size, 3, 1, 0), start, start + 12))
    for one, other in zip(late, whole, strict=True):
        np.testing.assert_array_equal(one, other)


def test_passes_seeds_and_graphs_have_their_own_order() -> None:
    def first(seed: int, graph: int, start: int) -> tuple[int, ...]:
        return tuple(next(target_batches(100, 100, seed, graph, start)))

    assert len({first(0, 0, 0), first(0, 0, 1), first(0, 1, 0), first(1, 0, 0)}) == 4


@pytest.mark.parametrize("balance", [True, False])
@settings(max_examples=20, deadline=None)
@given(workers=st.integers(1, 5), seed=st.integers(0, 100), step=st.integers(0, 100), count=st.integers(1, 40))
def test_workers_share_one_batch(balance: bool, workers: int, seed: int, step: int, count: int) -> None:
    graph = random_graph(seed, 40)
    target_T = np.random.default_rng(step).permutation(40)[:count]
    config = RawTrain(balance=balance)

    def part(rank: int, of: int) -> Any:
        return make_batch(graph, target_T, 1, config, seed, step, rank, of, CPU)

    whole = part(0, 1)
    assert whole.denominators == (count, int(whole.mask_BK.sum()))
    for rank in range(workers):
        mine, targets = part(rank, workers), target_T[rank::workers]
        assert mine.denominators == whole.denominators
        assert mine.sizes[0] == len(targets)
        np.testing.assert_array_equal(mine.x_SD[: len(targets)], graph.x_ND[targets])
        np.testing.assert_array_equal(mine.gt_density_B, graph.gt_density_N[targets])
        np.testing.assert_array_equal(mine.mask_BK, whole.mask_BK[rank::workers])
        np.testing.assert_array_equal(mine.same_BK, whole.same_BK[rank::workers])


def test_learning_rate_is_a_cosine_to_1e_5() -> None:
    assert learning_rate(0, 100, 0.01) == pytest.approx(0.01)
    assert learning_rate(50, 100, 0.01) == pytest.approx((0.01 + 1e-5) / 2)
    assert learning_rate(100, 100, 0.01) == pytest.approx(1e-5)
