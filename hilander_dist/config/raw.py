"""The paper's model, which reads coordinates: for embeddings of the encoder that it was trained on (algorithm.md 1.5, 1.6, 2)."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from hilander_dist.config.options import Options, WorkerOptions


class RawModel(Options):
    """The shape of the paper's LANDER (algorithm.md 1.5, 1.6)."""

    features: Literal["raw"] = "raw"
    """What the network is told: coordinates, as in the paper."""

    encoder: Literal["gcn", "gat"] = "gcn"
    """Message passing: `gcn` (similarity-weighted mean) or `gat` (attention)."""

    cluster_features: bool | None = None
    """Feed the cluster's mean beside its peak's vector. Default: yes for gcn, no for gat, as in the paper."""

    hidden: int = Field(default=512, ge=2, multiple_of=2)
    """Width H of the encoder."""

    num_conv: int = Field(default=1, ge=1, le=4)
    """Number of graph convolutions."""

    heads: int = Field(default=1, ge=1)
    """Attention heads of the GAT encoder."""

    backend: Literal["torch", "dgl"] = "torch"
    """Library that passes the messages; both give equal results. `dgl` needs the extra of that name."""

    def model_post_init(self, context: Any) -> None:
        """The kind counts as set by the user: nobody gets a raw model without asking for it."""
        del context
        self.model_fields_set.add("features")

    @property
    def uses_cluster_features(self) -> bool:
        """Whether the network's input is [x ; c] instead of x."""
        return self.encoder == "gcn" if self.cluster_features is None else self.cluster_features


class RawTrain(WorkerOptions):
    """Meta-training of a raw model on the levels of training hierarchies, by SGD (algorithm.md 2)."""

    level_k: tuple[int, ...] = (10, 5, 3)
    """One training hierarchy is built for each of these k (neighbours including self)."""

    level_counts: tuple[int, ...] = (2, 3, 4)
    """Number of levels of each of these hierarchies."""

    merge_across_labels: bool = False
    """Let nodes of different classes merge while the training hierarchy is built, as the reference does."""

    epochs: int = Field(default=250, ge=1)
    """Passes over the level-0 graph of the first hierarchy."""

    batch_size: int = Field(default=1024, ge=1)
    """Target nodes per optimiser step, over all workers together. (The paper's 4096 leaves small sets undertrained.)"""

    lr: float = Field(default=0.01, gt=0)
    """Peak learning rate; a cosine takes it to 1e-5."""

    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of SGD."""

    weight_decay: float = Field(default=1e-5, ge=0)
    """L2 penalty on all parameters."""

    balance: bool = True
    """Undersample the majority among same-class and different-class edges, per batch."""

    @model_validator(mode="after")
    def _one_count_per_k(self) -> Self:
        if len(self.level_k) != len(self.level_counts) or not self.level_k:
            raise ValueError("train.level_k and train.level_counts need one entry each per hierarchy")
        if min(self.level_k) < 2 or min(self.level_counts) < 1:
            raise ValueError("train.level_k must be at least 2 and train.level_counts at least 1")
        return self
