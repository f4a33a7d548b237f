"""What a run depends on, and which options come from the model."""

import time
from pathlib import Path

import numpy as np
import pytest

from hilander_dist.config import ClusterConfig, Config, InputConfig, RawModel, RelationalModel, load_config
from hilander_dist.errors import ConfigError
from hilander_dist.jobs.job import manifest_head, run_fingerprint
from hilander_dist.jobs.models import settled
from hilander_dist.lander.inference import Inference
from hilander_dist.lander.model import Lander
from hilander_dist.lander.relational import RelationalLander
from hilander_dist.source import open_source


def test_the_time_to_wait_for_nodes_is_no_part_of_the_fingerprint(tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", np.eye(4, dtype=np.float32))
    source = open_source(str(tmp_path / "in.npy"), InputConfig())
    patient, other = Config(cluster=ClusterConfig(wait_s=9000)), Config(seed=1)
    fingerprint = run_fingerprint("graph", patient, source)
    assert fingerprint == run_fingerprint("graph", Config(), source)
    assert fingerprint != run_fingerprint("graph", other, source)
    assert manifest_head("graph", patient, fingerprint, [source], time.time())["config"]["cluster"] == {"wait_s": 9000}


def test_a_relational_model_brings_its_list_length_unless_one_is_asked_for() -> None:
    model = RelationalLander(RelationalModel(hidden=8))
    model.inference = Inference(k=40)
    assert settled(Config(seed=3), model) == Config(k=40, seed=3)
    assert settled(Config(k=10), model).k == 10
    assert settled(Config(tau=0.3), Lander(4, RawModel(hidden=8))) == Config(tau=0.3)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("tau=0.6", "tau: only a raw model has it"),
        ("early_stop=true", "early_stop: only a raw model has it"),
        ("k=300", "k=300: relational features take up to"),
    ],
)
def test_a_relational_model_refuses_what_it_cannot_use(option: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settled(load_config(overrides=[option]), RelationalLander(RelationalModel(hidden=8)))
