"""The head of halves learns from clusters of episodes that were cut in two."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hilander_dist.config import ModelConfig
from hilander_dist.lander.checkpoint import load_checkpoint
from hilander_dist.lander.episodes import Plan, build_episode
from hilander_dist.lander.relational import HALF_INPUTS, RelationalLander, split_head
from hilander_dist.pipeline.cluster import GENERAL
from hilander_dist.pipeline.head_training import fit_head
from hilander_dist.pipeline.split_training import join_examples, split_examples
from hilander_dist.storage import Storage
from tests.points import clustered

NOTHING = np.zeros(0, dtype=np.int64)


@pytest.fixture
def model() -> RelationalLander:
    model = load_checkpoint(GENERAL.read_bytes(), "general", ModelConfig())
    assert isinstance(model, RelationalLander)
    return model


def episode(where: Path, rows: int, k: int, group: float = 0.0) -> str:
    """Blurred classes of 15 on average."""
    x_ND, label_N = clustered(0, rows, 12, rows // 15)
    plan = Plan(0, k, NOTHING, np.zeros(0), 0.8, 1.0, group)
    Storage(str(where)).write_block("e.safetensors", build_episode(x_ND, label_N, plan, np.random.default_rng(0)))
    return str(where / "e.safetensors")


@pytest.mark.parametrize("group", [0.0, 3.0])
def test_examples_are_cuts_of_clusters(model: RelationalLander, tmp_path: Path, group: float) -> None:
    uri = episode(tmp_path, 1200, 40, group)
    examples = split_examples(model, uri)
    assert examples["inputs_EF"].shape == (len(examples["same_E"]), HALF_INPUTS)
    assert 0 < examples["same_E"].mean() < 1
    assert (examples["weight_E"] >= 1).all()
    again = split_examples(model, uri)
    assert all(np.array_equal(again[name], column) for name, column in examples.items())


def test_examples_of_joins_are_pairs_of_clusters(model: RelationalLander, tmp_path: Path) -> None:
    uri = episode(tmp_path, 900, 40)
    examples = join_examples(model, uri, 0)
    assert examples["inputs_EF"].shape == (len(examples["same_E"]), HALF_INPUTS)
    assert 0 < examples["same_E"].mean() < 0.5
    again = join_examples(model, uri, 0)
    assert all(np.array_equal(again[name], column) for name, column in examples.items())


@pytest.mark.parametrize(("rows", "k"), [(40, 40), (400, 12)])
def test_small_episodes_give_none(model: RelationalLander, tmp_path: Path, rows: int, k: int) -> None:
    uri = episode(tmp_path, rows, k)
    assert len(split_examples(model, uri)["same_E"]) == len(join_examples(model, uri, 0)["same_E"]) == 0


def test_too_few_examples_leave_clusters_whole() -> None:
    inputs_EF = np.random.default_rng(0).normal(size=(9, HALF_INPUTS)).astype(np.float32)
    examples = {"inputs_EF": inputs_EF, "same_E": np.zeros(9, bool), "weight_E": np.ones(9, np.float32)}
    with torch.inference_mode():
        assert (fit_head([examples], split_head(), 0)(torch.from_numpy(inputs_EF)) > 10).all()
