"""The temperature has the least cross-entropy on held-out episodes, each set counting alike, and is worked into the weights."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hilander_dist.config import Config, RelationalModel
from hilander_dist.jobs.models import GENERAL
from hilander_dist.lander.checkpoint import load_checkpoint, save_checkpoint
from hilander_dist.lander.inference import Inference
from hilander_dist.lander.relational import RelationalLander
from hilander_dist.local_tasks import LocalTasks, put
from hilander_dist.storage import Storage
from hilander_dist.training.calibration import TEMPERATURES, calibrate
from hilander_dist.training.episode_course import read_episode
from hilander_dist.training.episodes import Plan, build_episode, same_class
from hilander_dist.training.loop import TrainedModel
from hilander_dist.training.meta_training import Episodes
from hilander_dist.training.validation import score_episode, score_graph
from tests.points import clustered, random_rows


@pytest.fixture
def episodes(tmp_path: Path) -> Episodes:
    """Of two sets, one with twice as many as the other; and an episode without any edge."""
    plan = Plan(0, 10, np.zeros(0, int), np.zeros(0), 0.0, 1.0)
    uris = []
    for number in range(3):
        x_ND, label_N = clustered(number, 90, 12, 8, spread=0.7 + 0.3 * number)
        Storage(str(tmp_path)).write_block(
            f"{number}.safetensors", build_episode(x_ND, label_N, plan, np.random.default_rng(number))
        )
        uris.append(str(tmp_path / f"{number}.safetensors"))
    alone = build_episode(random_rows(0, 1, 12), np.zeros(1, int), plan, np.random.default_rng(0))
    Storage(str(tmp_path)).write_block("alone.safetensors", alone)
    return Episodes((), ((uris[0], uris[1], str(tmp_path / "alone.safetensors")), (uris[2],)), 8, 0.5)


def sharpened(times: float) -> RelationalLander:
    """The general network, so many times as sure of itself."""
    model = load_checkpoint(GENERAL.read_bytes(), "general", RelationalModel())
    assert isinstance(model, RelationalLander)
    model.inference = Inference(base_rate=0.125)
    with torch.no_grad():
        model.head.weight.mul_(times)
        model.head.bias.mul_(times)
    return model


def entropy(model: RelationalLander, uri: str, temperature: float) -> float:
    episode = read_episode(uri)
    same_NK, real_NK = same_class(episode)
    p_E = 1 / (1 + np.exp(-score_graph(model, episode)[0][real_NK].astype(np.float64) / temperature))
    return float(-np.log(np.where(same_NK[real_NK], p_E, 1 - p_E)).mean()) if real_NK.any() else 0.0


@pytest.mark.parametrize("times", [0.25, 2.0, 3.0])
def test_a_network_too_sure_of_itself_is_softened_and_no_other(
    times: float, episodes: Episodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.put", put)
    model = sharpened(times)
    trained = TrainedModel(save_checkpoint(model, {}), [{}, {}])
    data, numbers = calibrate(LocalTasks(), trained, episodes, None, Config(seed=3))
    mean_T = [
        np.mean([np.mean([entropy(model, uri, t) for uri in uris]) for uris in episodes.validation])
        for t in TEMPERATURES
    ]
    temperature = TEMPERATURES[int(np.argmin(mean_T))]
    assert numbers["temperature"] == round(temperature, 4)
    assert (temperature > 1) == (times > 1)
    found = load_checkpoint(data, "found", RelationalModel())
    assert isinstance(found, RelationalLander)
    torch.testing.assert_close(found.head.weight, model.head.weight / temperature)
    torch.testing.assert_close(found.head.bias, model.head.bias / temperature)
    assert found.dim is None
    assert found.inference == model.inference
    assert numbers["base_rate"] == 0.125
    scores = np.mean(
        [np.mean([score_episode(found, read_episode(uri)) for uri in uris], 0) for uris in episodes.validation], 0
    )
    assert [numbers["pairwise_f"], numbers["bcubed_f"]] == pytest.approx(scores.tolist(), abs=1e-4)


def test_the_map_of_the_vectors_goes_with_the_checkpoint(episodes: Episodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.put", put)
    map_DD = np.diag(np.arange(1, 13)).astype(np.float32)
    trained = TrainedModel(save_checkpoint(sharpened(1.0), {}), [])
    data, _ = calibrate(LocalTasks(), trained, episodes, map_DD, Config())
    found = load_checkpoint(data, "found", RelationalModel())
    assert isinstance(found, RelationalLander)
    assert found.dim == 12
    np.testing.assert_array_equal(found.map_DD.numpy(), map_DD)
