"""Options that a job would take and not use: refused where they belong to the other kind of model, else warned of."""

from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel

from hilander_dist.config import Config, ModelConfig
from hilander_dist.errors import ConfigError
from hilander_dist.lander.checkpoint import AnyLander
from hilander_dist.monitor.log import logger

Job = Literal["graph", "cluster", "tune", "train"]

RAW_ONLY = {
    *("model.encoder", "model.cluster_features", "model.heads", "model.backend"),
    *("train.level_k", "train.level_counts", "train.merge_across_labels"),
    *("train.batch_size", "train.momentum", "train.balance"),
}
RELATIONAL_ONLY = {"train.episodes", "train.holdout", "train.patience"}

_LEVELS = {"tau", "max_levels", "early_stop", "compat"}
WITHOUT_EFFECT: dict[Job, set[str]] = {
    "graph": {*_LEVELS, "model", "train"},
    "cluster": set(),
    "tune": _LEVELS,
    "train": {*_LEVELS, "k", "quantizer"},
}
"""By job, for both kinds of model. Not ``train.*`` of the jobs that use a checkpoint: they may share a file with the training."""


def check_options(config: Config, job: Job) -> None:
    """Refuse or warn of what this job would not use.

    Raises:
        ConfigError: training options of the other kind of model, or a target of recall beside ``compat: reference``.
    """
    given = set(given_keys(config))
    if config.compat == "reference" and "target_recall" in given and config.target_recall < 1:
        raise ConfigError("target_recall: compat=reference searches exactly: leave target_recall out")
    unused = {key for key in given if key.partition(".")[0] in WITHOUT_EFFECT[job]}
    if job == "train":
        other, theirs = ("raw", RAW_ONLY) if config.model.features == "relational" else ("relational", RELATIONAL_ONLY)
        for key in sorted(given & theirs):
            raise ConfigError(
                f"{key}: only a model of {other} features has it, and model.features is {config.model.features}: "
                f"leave it out, or set model.features={other}"
            )
        if config.model.features == "relational":
            unused |= given & {"num_shards", "target_recall", "knn_device"}
    if unused:
        logger.warning("options without effect here", job=job, options=", ".join(sorted(unused)))


def check_model_options(config: Config, model: AnyLander, name: str) -> None:
    """Refuse what does not apply to a model that is to be used.

    Raises:
        ConfigError: a shape that is not the model's, or ``compat: reference`` with relational features.
    """
    if model.config.features == "relational" and config.compat == "reference":
        raise ConfigError(
            f"compat: {name} has relational features, which the reference does not know: leave compat out, "
            "or give --model a checkpoint of raw features"
        )
    given = config.model.model_fields_set
    if config.model.features == "relational":  # these come with it where nobody set them
        given -= {name for name in ("hidden", "num_conv") if getattr(config.model, name) == _usual(name)}
    for field in sorted(given - {"backend"}):
        asked, has = getattr(config.model, field), getattr(model.config, field)
        if asked != has:
            raise ConfigError(
                f"model.{field}: {asked} is asked for, the checkpoint {name} has {has}: leave it out, the checkpoint tells"
            )
    if "backend" in given and model.config.features == "relational":
        raise ConfigError(f"model.backend: {name} has relational features, which pass messages by torch: leave it out")


def given_keys(options: BaseModel, prefix: str = "") -> Iterator[str]:
    """The dotted keys that somebody set."""
    for name in options.model_fields_set:
        value = getattr(options, name)
        if isinstance(value, BaseModel):
            yield from given_keys(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def _usual(name: str) -> object:
    return getattr(ModelConfig(features="relational"), name)
