"""The options of a run, and what a checkpoint's calibration adds to them."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from hilander_dist.config.options import Options
from hilander_dist.config.raw import RawModel, RawTrain
from hilander_dist.config.relational import RelationalModel, RelationalTrain

ModelConfig = RawModel | RelationalModel
TrainConfig = RawTrain | RelationalTrain

KINDS: dict[str, tuple[type[ModelConfig], type[TrainConfig]]] = {
    "relational": (RelationalModel, RelationalTrain),
    "raw": (RawModel, RawTrain),
}
"""The options of each kind of model, by ``model.features``."""

USUAL_KIND = "relational"


class InputConfig(Options):
    """How the input is read."""

    id_column: str = "id"
    """Column with the row's id (string or integer). A .npy file has none: its row numbers are the ids."""

    embedding_column: str = "embedding"
    """Column with the embedding: a list or fixed-size list of float16, float32 or float64."""

    label_column: str = "label"
    """Column with the class label (string or integer); needed to train, used for metrics where it exists."""

    max_bad_share: float = Field(default=0.01, ge=0, le=1)
    """Share of unusable rows above which the run stops before any work is done."""


class Calibration(Options):
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


class ClusterConfig(Options):
    """The Ray cluster that a run has; its result does not depend on it."""

    wait_s: float = Field(default=600, ge=0)
    """How long a job waits, in seconds, for nodes that it needs and that are not there: the autoscaler is asked for them."""


def _usual_train(given: dict[str, Any]) -> TrainConfig:
    model = given.get("model")
    return RelationalTrain() if model is None else KINDS[model.features][1]()


class Config(Options):
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

    model: ModelConfig = RelationalModel()
    """The kind of model and its shape: relational unless ``features`` is raw. A checkpoint of our own carries both; an official .pth
    state dict needs them."""

    train: TrainConfig = Field(default_factory=_usual_train)
    """Meta-training of the kind of model that ``model.features`` tells."""

    cluster: ClusterConfig = ClusterConfig()
    """The Ray cluster."""

    @field_validator("model", mode="before")
    @classmethod
    def _by_features(cls, given: Any) -> Any:
        if isinstance(given, Mapping):
            return (RawModel if given.get("features") == "raw" else RelationalModel).model_validate(given)
        return given

    @field_validator("train", mode="before")
    @classmethod
    def _as_the_model(cls, given: Any, others: ValidationInfo) -> Any:
        model = others.data.get("model")
        if model is None:  # Its own error is told.
            return given
        train = KINDS[model.features][1]
        if isinstance(given, Mapping):
            return train.model_validate(given)
        if isinstance(given, BaseModel) and not isinstance(given, train):
            raise ValueError(f"{type(given).__name__} is not of a {model.features} model, as model.features tells")
        return given


def calibrated(config: Config, calibration: Calibration | None) -> Config:
    """The options of a run with a checkpoint: what the user has not set is taken from its calibration."""
    if calibration is None:
        return config
    values = {name: getattr(calibration, name) for name in ("k", "tau", "max_levels", "early_stop")}
    return config.model_copy(
        update={name: value for name, value in values.items() if name not in config.model_fields_set}
    )
