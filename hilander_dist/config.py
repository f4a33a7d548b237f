"""Every option of hilander_dist: pydantic models from which the CLI flags, the YAML keys and the defaults come.

Order of precedence: defaults, then the YAML file, then ``--set key=value``, then flags of their own (``--tau``).
Nested keys are written with dots: ``--set model.encoder=gat``.
"""

import difflib
import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hilander_dist.errors import ConfigError


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class InputConfig(_Options):
    """How the input is read."""

    id_column: str = "id"
    """Column with the row's id (string or integer). A .npy file has none: its row numbers are the ids."""

    embedding_column: str = "embedding"
    """Column with the embedding: a list or fixed-size list of float16, float32 or float64."""

    label_column: str = "label"
    """Column with the class label (string or integer); needed to train, used for metrics where it exists."""

    max_bad_share: float = Field(default=0.01, ge=0, le=1)
    """Share of unusable rows above which the run stops before any work is done."""


class Calibration(_Options):
    """What training found out on held-out classes; it goes with the checkpoint, so that users need not choose it.

    Numbers of an older version that this one does not use any more are passed over.
    """

    model_config = ConfigDict(extra="ignore")

    tau: float = Field(default=0.5, ge=0, lt=1)
    """``Config.tau``."""

    k: int = Field(default=10, ge=2)
    """``Config.k``."""

    max_levels: int = Field(default=10, ge=1)
    """``Config.max_levels``."""

    early_stop: bool = False
    """``Config.early_stop``."""

    base_rate: float = Field(default=0.5, gt=0, lt=1)
    """Share of same-class edges in training."""

    whiten: bool = False
    """Relational: cluster twice, the second time in vectors whitened by the clusters of the first (``cluster.whitening``).
    Where the network was trained on several data sets: one of a single set takes other vectors for other classes (grocery
    .34 of pairwise F, .56 without), and learns its whitening from classes (``pipeline.class_whitening``)."""

    forest_tau: float = Field(default=0.95, gt=0, lt=1)
    """Relational: links above this probability join before any merge of clusters."""

    rest: float = Field(default=0.0, ge=0)
    """Relational: weight, in sure edges, with which the walk of the map equation stays at each node at a tau of .5; at another one it is
    in proportion to the weight of all edges (``cluster.flow.rest_at``). Else what is held by weak edges alone is merged as if they
    were strong."""

    join_tau: float = Field(default=0.6, gt=0, lt=1)
    """Relational: in the end, two clusters of up to three lists together join above this probability (``cluster.joins``). At .5, .6
    and .7 the mean F of four sets left out is .727/.757, .738/.769 and .737/.769, of the general checkpoint .777/.794, .776/.793 and
    .775/.791 (three networks each). A network of one set, which meets that domain alone, has .5: grocery 1.5, 1.8 and 2.0 clusters a
    class."""

    lone_rate: float = Field(default=0.0, ge=0, lt=1)
    """Relational: share of training's nodes that were the only one of their class. A node that is left alone goes to the cluster of its
    most probable neighbour where that is more probable than the share of such nodes allows (``cluster.lone``); with 0 it stays alone."""


class ModelConfig(_Options):
    """The shape of LANDER (algorithm.md 1.5, 1.6)."""

    features: Literal["raw", "relational"] = "raw"
    """What the network is told: `raw` coordinates as in the paper, or `relational` numbers of edges (similarity against
    what is usual, shared neighbours, local means), which transfer to embeddings of any encoder."""

    encoder: Literal["gcn", "gat"] = "gcn"
    """Message passing: `gcn` (similarity-weighted mean) or `gat` (attention)."""

    cluster_features: bool | None = None
    """Feed the cluster's mean beside its peak's vector. Default: yes for gcn, no for gat, as in the paper."""

    hidden: int = Field(default=512, ge=2, multiple_of=2)
    """Width H of the encoder; 32 by default for relational features."""

    num_conv: int = Field(default=1, ge=1, le=4)
    """Number of graph convolutions; 2 by default for relational features."""

    heads: int = Field(default=1, ge=1)
    """Attention heads of the GAT encoder."""

    backend: Literal["torch", "dgl"] = "torch"
    """Library that passes the messages; both give equal results. `dgl` needs the extra of that name."""

    @model_validator(mode="before")
    @classmethod
    def _relational_defaults(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and given.get("features") == "relational":
            return {"hidden": 32, "num_conv": 2, **given}
        return given

    @property
    def uses_cluster_features(self) -> bool:
        """Whether the network's input is [x ; c] instead of x."""
        return self.encoder == "gcn" if self.cluster_features is None else self.cluster_features


class TrainConfig(_Options):
    """Meta-training (algorithm.md 2)."""

    level_k: tuple[int, ...] = (10, 5, 3)
    """One training hierarchy is built for each of these k (neighbours including self)."""

    level_counts: tuple[int, ...] = (2, 3, 4)
    """Number of levels of each of these hierarchies."""

    merge_across_labels: bool = False
    """Let nodes of different classes merge while the training hierarchy is built, as the reference does."""

    epochs: int = Field(default=250, ge=1)
    """Passes over the level-0 graph of the first hierarchy. Relational: 8 by default, of 48 steps of two episodes each, of 96
    with several data sets."""

    episodes: int = Field(default=256, ge=1)
    """Relational: number of small sets that are drawn from each data set to train on. With 48, each is met so often that it is
    learnt by heart: F on sets left out fell by .05."""

    holdout: float = Field(default=0.2, gt=0, lt=1)
    """Relational: share of each data set's classes that are kept for validation and calibration."""

    patience: int = Field(default=5, ge=1)
    """Relational: epochs without a better clustering of the held-out classes after which training stops; they count in the last
    quarter of ``epochs``, of which the best is kept."""

    batch_size: int = Field(default=1024, ge=1)
    """Target nodes per optimiser step, over all workers together. (The paper's 4096 leaves small sets undertrained.)"""

    lr: float = Field(default=0.01, gt=0)
    """Peak learning rate of SGD; a cosine takes it to 1e-5. Relational: of AdamW, 0.003 by default."""

    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of SGD."""

    weight_decay: float = Field(default=1e-5, ge=0)
    """L2 penalty on all parameters. Relational: AdamW's decay, 0.001 by default."""

    balance: bool = True
    """Undersample the majority among same-class and different-class edges, per batch."""

    num_workers: int = Field(default=1, ge=1)
    """DDP workers."""

    min_workers: int | None = Field(default=None, ge=1)
    """Train with as few workers as that while the cluster has no room for more, and with more when it has. Default: no fewer
    than num_workers."""

    use_gpu: bool = False
    """Train on GPUs, one per worker (NCCL); otherwise on CPUs (gloo)."""

    @model_validator(mode="after")
    def _one_count_per_k(self) -> Self:
        if len(self.level_k) != len(self.level_counts) or not self.level_k:
            raise ValueError("train.level_k and train.level_counts need one entry each per hierarchy")
        if min(self.level_k) < 2 or min(self.level_counts) < 1:
            raise ValueError("train.level_k must be at least 2 and train.level_counts at least 1")
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError("train.min_workers must be at most train.num_workers")
        return self


class ClusterConfig(_Options):
    """The Ray cluster that a run has; its result does not depend on it."""

    wait_s: float = Field(default=600, ge=0)
    """How long a job waits, in seconds, for nodes that it needs and that are not there: the autoscaler is asked for them."""


class Config(_Options):
    """All options of a run. The first ones are those that people meet first."""

    k: int = Field(default=10, ge=2)
    """Neighbours per node in the k-NN graph, the node itself included. A checkpoint's calibration brings its own default,
    also for tau, max_levels and early_stop."""

    tau: float = Field(default=0.5, ge=0, le=1)
    """A link needs a predicted probability above this."""

    max_levels: int = Field(default=10, ge=1)
    """Number of levels after which the run stops."""

    early_stop: bool = False
    """Stop once a level adds more than 1 / (k - 1) of the previous level's links (the paper's rule)."""

    compat: Literal["default", "reference"] = "default"
    """`reference` reproduces the official code: flat search, strict density order, stop at k nodes."""

    num_shards: int | None = Field(default=None, ge=1)
    """Shards of level 0. Default: chosen from the data's size and the cluster. The result does not depend on it."""

    target_recall: float = Field(default=0.98, gt=0, le=1)
    """Recall of the k-NN graph against exact search that a run must reach; 1 searches exactly."""

    vectors: Literal["float32", "float16"] = "float32"
    """How unit rows are kept in memory and on disk. float16 halves both, and changes similarities by less than 0.001."""

    quantizer: str | None = None
    """Partition into cells of an earlier run (its output directory) for level 0, in the place of a newly trained one."""

    knn_device: Literal["cpu", "cuda"] = "cpu"
    """Where the k-NN graph is searched. `cuda` gives the same graph up to ties within 1e-5 of similarity."""

    seed: int = Field(default=0, ge=0)
    """Seed of everything that is random."""

    input: InputConfig = InputConfig()
    """How the input is read."""

    model: ModelConfig = ModelConfig()
    """The shape of LANDER. A checkpoint of our own carries it; an official .pth state dict needs it."""

    train: TrainConfig = TrainConfig()
    """Meta-training."""

    cluster: ClusterConfig = ClusterConfig()
    """The Ray cluster."""

    @model_validator(mode="before")
    @classmethod
    def _relational_defaults(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and _features_of(given.get("model")) == "relational":
            defaults = {"epochs": 8, "lr": 0.003, "weight_decay": 0.001}
            train = given.get("train", {})
            if isinstance(train, TrainConfig):
                train = train.model_dump(exclude_unset=True)
            return {**given, "train": {**defaults, **train}}
        return given


def _features_of(model: Any) -> Any:
    return model.get("features") if isinstance(model, Mapping) else getattr(model, "features", None)


def calibrated(config: Config, calibration: Calibration | None) -> Config:
    """The options of a run with a checkpoint: what the user has not set is taken from its calibration."""
    if calibration is None:
        return config
    values = {name: getattr(calibration, name) for name in ("k", "tau", "max_levels", "early_stop")}
    return config.model_copy(
        update={name: value for name, value in values.items() if name not in config.model_fields_set}
    )


def load_config(
    file: Path | None = None, overrides: Iterable[str] = (), flags: Mapping[str, Any] | None = None
) -> Config:
    """Build the effective configuration.

    Args:
        file: YAML file with (some of) the keys.
        overrides: ``key=value`` strings; the value is read as YAML.
        flags: dotted keys to values, applied last; None values are left out.

    Raises:
        ConfigError: a file that is no YAML mapping, an unknown key (the nearest known one is named), a bad value.
    """
    raw: dict[str, Any] = {}
    if file is not None:
        raw = _read_yaml(file)
    for item in overrides:
        key, sign, value = item.partition("=")
        if not sign or not key:
            raise ConfigError(f"--set {item!r}: write it as key=value, for example --set tau=0.7")
        try:
            _put(raw, key.strip(), yaml.safe_load(value))
        except yaml.YAMLError:
            raise ConfigError(f"--set {item!r}: the value is not valid YAML") from None
    for key, value in (flags or {}).items():
        if value is not None:
            _put(raw, key, value)
    return parse_config(raw)


def parse_config(raw: Mapping[str, Any]) -> Config:
    """Validate a mapping of options; see ``load_config`` for the errors."""
    _refuse_unknown(raw, Config, "")
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "configuration"
        raise ConfigError(f"{key}: {first['msg']} (got {first['input']!r})") from None


def config_yaml(config: Config) -> str:
    """The configuration as YAML, every key present; those that nobody set as comments, as a checkpoint may bring other values."""
    given = config.model_dump(mode="json", exclude_unset=True)
    return "".join(_yaml_lines(config.model_dump(mode="json"), given, ""))


def _yaml_lines(values: Mapping[str, Any], given: Mapping[str, Any], indent: str) -> Iterator[str]:
    for key, value in values.items():
        mark = "" if given.get(key, {}) != {} else "# "
        if isinstance(value, Mapping):
            yield f"{mark}{indent}{key}:\n"
            yield from _yaml_lines(value, given.get(key, {}), f"{indent}  ")
        else:
            line = yaml.safe_dump({key: value}, width=1000)
            yield textwrap.indent(line, mark + indent, lambda _: True)


def config_schema() -> str:
    """The JSON schema of the configuration."""
    return json.dumps(Config.model_json_schema(), indent=2)


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(file.read_text())
    except OSError as error:
        raise ConfigError(f"config file {file}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {file}: not valid YAML ({' '.join(str(error).split())})") from None
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise ConfigError(f"config file {file}: expected a mapping of keys to values")
    return raw


def _put(raw: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        nested = raw.setdefault(parent, {})
        if not isinstance(nested, dict):
            raise ConfigError(f"{dotted}: {parent} is a single value, not a group of keys")
        raw = nested
    raw[last] = value


def _refuse_unknown(raw: Mapping[str, Any], model: type[BaseModel], prefix: str) -> None:
    known = model.model_fields
    for key, value in raw.items():
        if key not in known:
            everything = _all_keys(Config, "")
            near = difflib.get_close_matches(prefix + str(key), everything, n=1, cutoff=0.0)
            raise ConfigError(
                f"unknown option {prefix}{key}: did you mean {near[0]}? `hilander config` lists all options"
            )
        nested = known[key].annotation
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{prefix}{key}: expected a group of keys ({', '.join(nested.model_fields)})")
            _refuse_unknown(value, nested, f"{prefix}{key}.")


def _all_keys(model: type[BaseModel], prefix: str) -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            keys += _all_keys(nested, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys
