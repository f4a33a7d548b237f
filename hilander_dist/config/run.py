"""The options of a run."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationInfo, field_validator

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
    """Neighbours per node in the k-NN graph, the node itself included. Default: 10 of a raw model, what its checkpoint says of a
    relational one."""

    tau: float = Field(default=0.5, ge=0, le=1)
    """Raw: a link needs a predicted probability above this."""

    max_levels: int | None = Field(default=None, ge=1)
    """Levels that a run writes at most. Default: 10 of a raw model, all up to one root of a relational one."""

    early_stop: bool = False
    """Raw: stop once a level adds more than 1 / (k - 1) of the previous level's links (the paper's rule)."""

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
