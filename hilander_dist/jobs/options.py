"""Options that a job or a checkpoint does not go with: refused, or warned of where the job would only not use them."""

from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel

from hilander_dist.config import Config
from hilander_dist.errors import ConfigError
from hilander_dist.lander.checkpoint import AnyLander
from hilander_dist.monitor.log import logger

Job = Literal["graph", "cluster", "tune", "train"]

_LEVELS = {"tau", "max_levels", "early_stop", "compat"}
WITHOUT_EFFECT: dict[Job, set[str]] = {
    "graph": {*_LEVELS, "model", "train"},
    "cluster": set(),
    "tune": _LEVELS,
    "train": {*_LEVELS, "k", "quantizer"},
}
"""By job, for both kinds of model. Not ``train.*`` of the jobs that use a checkpoint: they may share a file with the training."""


def check_options(config: Config, job: Job) -> None:
    """Warn of what this job would not use.

    Raises:
        ConfigError: a target of recall beside ``compat: reference``.
    """
    given = set(given_keys(config))
    if config.compat == "reference" and "target_recall" in given and config.target_recall < 1:
        raise ConfigError("target_recall: compat=reference searches exactly: leave target_recall out")
    unused = {key for key in given if key.partition(".")[0] in WITHOUT_EFFECT[job]}
    if job == "train" and config.model.features == "relational":
        unused |= given & {"num_shards", "target_recall", "knn_device"}
    if unused:
        logger.warning("options without effect here", job=job, options=", ".join(sorted(unused)))


def check_model_options(config: Config, model: AnyLander, name: str) -> None:
    """Refuse what does not apply to a model that is to be used.

    Raises:
        ConfigError: a kind or a shape that is not the model's, or ``compat: reference`` with a relational one.
    """
    if model.config.features == "relational" and config.compat == "reference":
        raise ConfigError(
            f"compat: {name} is a relational model, which the reference does not know: leave compat out, "
            "or give --model a raw one"
        )
    given = config.model.model_fields_set - {"backend"}
    # The kind first: only models of one kind have all options in common.
    for field in sorted(given, key=lambda field: (field != "features", field)):
        asked, has = getattr(config.model, field), getattr(model.config, field)
        if asked != has:
            raise ConfigError(
                f"model.{field}: {asked} is asked for, the checkpoint {name} has {has}: leave it out, the checkpoint tells"
            )


def given_keys(options: BaseModel, prefix: str = "") -> Iterator[str]:
    """The dotted keys that somebody set."""
    for name in options.model_fields_set:
        value = getattr(options, name)
        if isinstance(value, BaseModel):
            yield from given_keys(value, f"{prefix}{name}.")
        else:
            yield prefix + name
