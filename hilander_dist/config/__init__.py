"""Every option of hilander_dist: pydantic models from which the CLI flags, the YAML keys and the defaults come.

A model is of one of two kinds, ``raw`` or ``relational`` (the default), which ``model.features`` tells; each has options of its own
under ``model`` and ``train``. Order of precedence: defaults, then the YAML file, then ``--set key=value``, then flags of their own
(``--tau``). Nested keys are written with dots: ``--set model.hidden=64``.
"""

from hilander_dist.config.load import config_schema, config_yaml, load_config, parse_config
from hilander_dist.config.options import WorkerOptions
from hilander_dist.config.raw import RawModel, RawTrain
from hilander_dist.config.relational import RelationalModel, RelationalTrain
from hilander_dist.config.run import (
    ClusterConfig,
    Config,
    InputConfig,
    ModelConfig,
    TrainConfig,
)

__all__ = [
    "ClusterConfig",
    "Config",
    "InputConfig",
    "ModelConfig",
    "RawModel",
    "RawTrain",
    "RelationalModel",
    "RelationalTrain",
    "TrainConfig",
    "WorkerOptions",
    "config_schema",
    "config_yaml",
    "load_config",
    "parse_config",
]
