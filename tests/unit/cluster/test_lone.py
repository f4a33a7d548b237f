"""Nodes left alone, against the rule node by node, and over shards."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hilander_dist.cluster.flow_links import link_by_relations
from hilander_dist.cluster.lone import least_log_odds, taken_in
from hilander_dist.cluster.roots import find_roots
from hilander_dist.config import Calibration, RelationalModel
from hilander_dist.lander.relational import RelationalLander
from hilander_dist.tasks import Block
from tests.local_tasks import LocalTasks, put
from tests.points import with_duplicates
from tests.unit.cluster.small import joined, laid_out, same_bytes

K = 12


def linked(shards: int, lone_rate: float) -> Block:
    """Links, roots and ids of a level in which many nodes have no weighty edge."""
    x_ND, _ = with_duplicates(0, 1100, 12)
    torch.manual_seed(3)
    model = RelationalLander(RelationalModel(hidden=8))
    with torch.no_grad():
        model.head.weight *= 20
    tasks = LocalTasks()
    level, graph = laid_out(tasks, {"id_N": np.arange(len(x_ND))[::-1].copy(), "x_ND": x_ND}, shards, K)
    calibration = Calibration(forest_tau=0.95, rest=0.5, lone_rate=lone_rate)
    links = link_by_relations(model, put(model), calibration, K, 0.95)(tasks, level, graph, "level-0")
    root_N = joined(tasks, find_roots(tasks, links.blocks, level.starts))["pointer_N"]
    return {**joined(tasks, links.blocks), "root_N": root_N, "id_N": joined(tasks, level.nodes)["id_N"]}


def test_the_share_of_training_needs_an_edge_of_one_half() -> None:
    assert least_log_odds(10, 100, 0.1) == 0
    # With a third alone an edge of .84, with a fiftieth one of .16.
    assert least_log_odds(1, 3, 0.09) == pytest.approx(math.log(0.5 / (0.09 / 0.91)))
    assert least_log_odds(2, 100, 0.1) == pytest.approx(-math.log(0.98 / 0.02 / 9))
    assert least_log_odds(0, 100, 0.1) < -4 < 4 < least_log_odds(100, 100, 0.1)
    assert least_log_odds(5, 100, 0.0) == least_log_odds(0, 0, 0.1) == math.inf


@given(st.integers(0, 1000), st.integers(1, 30), st.integers(1, 6), st.floats(-3, 3))
@settings(max_examples=50, deadline=None)
def test_a_lone_node_goes_where_its_most_probable_edge_leads(seed: int, n: int, k: int, least: float) -> None:
    rng = np.random.default_rng(seed)
    logit_NK = np.round(rng.normal(0, 2, (n, k)), 1).astype(np.float32)  # Some are equal.
    real_NK = np.arange(k) < rng.integers(0, k + 1, n)[:, None]
    lone_N, lone_NK = rng.random(n) < 0.5, rng.random((n, k)) < 0.3
    row_L, rank_L = taken_in(logit_NK, real_NK, lone_N, lone_NK, least)
    goes = dict(zip(row_L.tolist(), rank_L.tolist(), strict=True))
    for i in range(n):
        edges = [(-float(logit_NK[i, j]), j) for j in range(k) if real_NK[i, j]]
        best = min(edges, default=(math.inf, 0))
        if lone_N[i] and -best[0] > least and not lone_NK[i, best[1]]:
            assert goes.pop(i) == best[1]
    assert not goes


@pytest.mark.parametrize("lone_rate", [0.0, 0.05, 0.9])
def test_nodes_that_are_taken_in_are_the_same_bytes_for_any_sharding(lone_rate: float) -> None:
    one, other = linked(1, lone_rate), linked(3, lone_rate)
    for name, array in one.items():
        assert same_bytes(other[name], array), name


def test_only_lone_nodes_move_and_trees_lead_to_denser_nodes() -> None:
    before, after = linked(2, 0.0), linked(2, 0.9)
    lone_N = np.bincount(before["root_N"], minlength=len(before["root_N"]))[before["root_N"]] == 1
    still_N = np.bincount(after["root_N"], minlength=len(after["root_N"]))[after["root_N"]] == 1
    assert 20 < lone_N.sum() < len(lone_N) - 20
    assert not (still_N & ~lone_N).any()
    assert still_N.sum() < lone_N.sum()
    # What was together stays together, and what was apart stays apart.
    old_M, new_M = before["root_N"][~lone_N], after["root_N"][~lone_N]
    assert len(np.unique(old_M)) == len(np.unique(new_M)) == len(np.unique(np.stack([old_M, new_M]), axis=1).T)
    parent_N, density_N, id_N = after["parent_N"], after["density_N"], after["id_N"]
    child = np.flatnonzero(parent_N != np.arange(len(parent_N)))
    for i, j in zip(child.tolist(), parent_N[child].tolist(), strict=True):
        assert (density_N[j], -id_N[j]) > (density_N[i], -id_N[i])
