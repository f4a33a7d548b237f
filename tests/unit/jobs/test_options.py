"""What goes with a job and with a checkpoint; options of the other kind of model are refused earlier (test_config.py)."""

from typing import Any

import pytest
import structlog

from hilander_dist.config import Config, RawModel, RelationalModel, load_config
from hilander_dist.errors import ConfigError
from hilander_dist.jobs.options import Job, check_model_options, check_options
from hilander_dist.lander.checkpoint import AnyLander
from hilander_dist.lander.model import Lander
from hilander_dist.lander.relational import RelationalLander

RAW = Lander(4, RawModel(hidden=16))
RELATIONAL = RelationalLander(RelationalModel(hidden=16))


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (RAW, []),
        (RAW, ["model.hidden=16"]),
        (RAW, ["model.features=raw", "model.encoder=gcn", "model.backend=dgl"]),
        (RAW, ["compat=reference"]),
        (RELATIONAL, []),
        (RELATIONAL, ["model.hidden=16", "model.num_conv=2"]),
        (RELATIONAL, ["model.features=relational"]),
        (RELATIONAL, ["train.episodes=9"]),
    ],
)
def test_what_agrees_with_the_checkpoint_may_be_said(model: AnyLander, options: list[str]) -> None:
    check_model_options(load_config(overrides=options), model, "m")


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (RAW, ["model.hidden=8"], "model.hidden: 8 is asked for, the checkpoint m has 16: leave it out"),
        (RAW, ["model.features=raw", "model.encoder=gat"], "model.encoder: gat is asked for, the checkpoint m has gcn"),
        (RAW, ["model.features=relational"], "model.features: relational is asked for, the checkpoint m has raw"),
        (RELATIONAL, ["model.hidden=8"], "model.hidden: 8 is asked for, the checkpoint m has 16"),
        (
            RELATIONAL,
            ["model.features=raw", "model.encoder=gat"],
            "model.features: raw is asked for, the checkpoint m has relational",
        ),
        (RELATIONAL, ["compat=reference"], "compat: m is a relational model, .*: leave compat out"),
    ],
)
def test_what_the_checkpoint_is_not_is_refused(model: AnyLander, options: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        check_model_options(load_config(overrides=options), model, "m")


def test_a_raw_model_asked_for_in_python_is_one_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"^model\.features: raw is asked for"):
        check_model_options(Config(model=RawModel()), RELATIONAL, "m")


@pytest.mark.parametrize(
    ("job", "options", "unused"),
    [
        ("cluster", ["tau=0.6", "train.epochs=3"], None),
        ("graph", ["tau=0.6", "model.hidden=8", "train.epochs=3"], "model.hidden, tau, train.epochs"),
        ("tune", ["tau=0.6"], "tau"),
        ("train", ["k=9", "num_shards=3"], "k, num_shards"),
        ("train", ["k=9", "num_shards=3", "model.features=raw"], "k"),
        ("train", ["train.episodes=9", "model.hidden=8"], None),
    ],
)
def test_what_a_job_does_not_use_is_warned_of(job: Job, options: list[str], unused: str | None) -> None:
    with structlog.testing.capture_logs() as said:
        check_options(load_config(overrides=options), job)
    expected: list[dict[str, Any]] = [
        {"event": "options without effect here", "job": job, "options": unused, "log_level": "warning"}
    ]
    assert said == (expected if unused else [])


def test_a_target_of_recall_is_refused_where_the_search_is_exact() -> None:
    with pytest.raises(ConfigError, match="target_recall: compat=reference searches exactly"):
        check_options(load_config(overrides=["compat=reference", "target_recall=0.9"]), "cluster")
