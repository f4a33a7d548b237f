"""The relational model, which reads relations between neighbours: for embeddings of any encoder and dimension."""

from typing import Literal

from pydantic import Field

from hilander_dist.config.options import Options, WorkerOptions


class RelationalModel(Options):
    """The shape of a relational LANDER."""

    features: Literal["relational"] = "relational"
    """What the network is told: numbers of edges (similarity against what is usual, shared neighbours, local means), which
    transfer to embeddings of any encoder."""

    hidden: int = Field(default=32, ge=2, multiple_of=2)
    """Width H of the states of nodes and edges."""

    num_conv: int = Field(default=2, ge=1, le=4)
    """Rounds in which nodes hear of their neighbours."""


class RelationalTrain(WorkerOptions):
    """Meta-training of a relational model on episodes, by AdamW."""

    epochs: int = Field(default=8, ge=1)
    """Of 48 steps of two episodes each, of 96 with several data sets."""

    episodes: int = Field(default=256, ge=1)
    """Number of small sets that are drawn from each data set to train on. With 48, each is met so often that it is learnt by
    heart: F on sets left out fell by .05."""

    holdout: float = Field(default=0.2, gt=0, lt=1)
    """Share of each data set's classes that are kept for validation and calibration."""

    patience: int = Field(default=5, ge=1)
    """Epochs without a better clustering of the held-out classes after which training stops; they count in the last quarter of
    ``epochs``, of which the best is kept."""

    lr: float = Field(default=0.003, gt=0)
    """Peak learning rate; a cosine takes it up and down again."""

    weight_decay: float = Field(default=0.001, ge=0)
    """AdamW's decay."""
