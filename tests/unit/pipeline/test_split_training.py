"""The head of halves learns from clusters of episodes that were cut in two."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hilander_dist.config import RelationalModel
from hilander_dist.lander.checkpoint import load_checkpoint
from hilander_dist.lander.episodes import Plan, build_episode
from hilander_dist.lander.relational import HALF_INPUTS, CarefulHead, RelationalLander, split_head
from hilander_dist.pipeline.cluster import GENERAL
from hilander_dist.pipeline.head_training import fit_careful, fit_head
from hilander_dist.pipeline.split_training import join_examples, split_examples
from hilander_dist.storage import Storage
from hilander_dist.tasks import Block
from tests.local_tasks import LocalTasks, put
from tests.points import clustered

NOTHING = np.zeros(0, dtype=np.int64)


@pytest.fixture
def model() -> RelationalLander:
    model = load_checkpoint(GENERAL.read_bytes(), "general", RelationalModel())
    assert isinstance(model, RelationalLander)
    return model


def episode(
    where: Path, rows: int, k: int, noise: float = 0.8, size: int = 15, dim: int = 12, parts: float = 0.0
) -> str:
    """Blurred classes of ``size`` on average."""
    x_ND, label_N = clustered(0, rows, dim, rows // size)
    plan = Plan(0, k, NOTHING, np.zeros(0), noise, 1.0, 0.0, parts=parts)
    Storage(str(where)).write_block("e.safetensors", build_episode(x_ND, label_N, plan, np.random.default_rng(0)))
    return str(where / "e.safetensors")


def test_examples_are_cuts_of_clusters(model: RelationalLander, tmp_path: Path) -> None:
    found = []
    for size, noise in ((40, 0.85), (15, 0.2)):  # As large as the lists, and small ones, of which several fill a list.
        uri = episode(tmp_path / str(size), 1200, 40, noise, size, dim=32)
        found.append(split_examples(model, uri))
        assert len(found[-1]["same_E"]) > 30
        assert found[-1]["inputs_EF"].shape == (len(found[-1]["same_E"]), HALF_INPUTS)
        assert (found[-1]["weight_E"] >= 1).all()
        again = split_examples(model, uri)
        assert all(np.array_equal(again[name], column) for name, column in found[-1].items())
    assert found[0]["same_E"].all()  # No clusters of several classes, so each cut goes through one.
    assert found[1]["same_E"].mean() < 0.5


def test_examples_of_joins_are_pairs_of_clusters(model: RelationalLander, tmp_path: Path) -> None:
    uri = episode(tmp_path, 900, 40, noise=0.5)
    examples = join_examples(model, uri, 0)
    assert examples["inputs_EF"].shape == (len(examples["same_E"]), HALF_INPUTS)
    assert 0 < examples["same_E"].mean() < 0.5
    again = join_examples(model, uri, 0)
    assert all(np.array_equal(again[name], column) for name, column in examples.items())


def test_episodes_with_classes_divided_give_no_examples(model: RelationalLander, tmp_path: Path) -> None:
    uri = episode(tmp_path, 900, 40, noise=0.5, parts=2.0)
    assert len(split_examples(model, uri)["same_E"]) == len(join_examples(model, uri, 0)["same_E"]) == 0


@pytest.mark.parametrize(("rows", "k"), [(40, 40), (400, 12)])
def test_small_episodes_give_none(model: RelationalLander, tmp_path: Path, rows: int, k: int) -> None:
    uri = episode(tmp_path, rows, k)
    assert len(split_examples(model, uri)["same_E"]) == len(join_examples(model, uri, 0)["same_E"]) == 0


def test_too_few_examples_leave_clusters_whole() -> None:
    inputs_EF = np.random.default_rng(0).normal(size=(9, HALF_INPUTS)).astype(np.float32)
    examples = {"inputs_EF": inputs_EF, "same_E": np.zeros(9, bool), "weight_E": np.ones(9, np.float32)}
    head = fit_head([examples], split_head(), 0)
    with torch.inference_mode():
        assert (head(torch.from_numpy(inputs_EF)) > 10).all()
    # A run that goes on makes it anew.
    other = split_head().state_dict()
    assert all(value.equal(other[name]) for name, value in head.state_dict().items())


def by_rule(seed: int, left: int, right: int) -> Block:
    """Examples that are of one class where one number is above another."""
    inputs_EF = np.random.default_rng(seed).normal(size=(4000, HALF_INPUTS)).astype(np.float32) * 5 + 3
    same_E = inputs_EF[:, left] > inputs_EF[:, right]
    return {"inputs_EF": inputs_EF, "same_E": same_E, "weight_E": np.ones(4000, np.float32)}


def joined(head: CarefulHead, inputs_EF: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return np.asarray(head(torch.from_numpy(inputs_EF)).numpy() > 0)


def test_the_head_of_one_set_learns_its_rule() -> None:
    examples = by_rule(0, 0, 1)
    head = fit_careful(LocalTasks(), [[put(examples)]], 0)
    assert (joined(head, examples["inputs_EF"]) == examples["same_E"]).mean() > 0.95
    few = {name: column[:5] for name, column in examples.items()}
    untrained = fit_careful(LocalTasks(), [[put(few)]], 0)
    assert not joined(untrained, examples["inputs_EF"]).any()


def test_the_head_of_several_sets_joins_what_the_others_of_each_would() -> None:
    sets = [by_rule(0, 0, 1), by_rule(1, 2, 3), by_rule(2, 0, 1)]
    tasks = LocalTasks()
    head = fit_careful(tasks, [[put(examples)] for examples in sets], 0)
    assert len(head.members) == 3
    # The second set's rule is unknown to one member, the others' is known to all.
    inputs_EF = by_rule(3, 0, 1)["inputs_EF"]
    known_E, found_E = inputs_EF[:, 0] > inputs_EF[:, 1], joined(head, inputs_EF)
    assert (found_E & ~known_E).sum() < 0.05 * known_E.sum()
    alone = fit_careful(tasks, [[put(sets[0])], [put(sets[2])]], 0)
    assert (joined(alone, inputs_EF) == known_E).mean() > 0.95
