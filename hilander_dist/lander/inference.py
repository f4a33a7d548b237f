"""What decides the clusters of a relational network besides its weights: it goes with the checkpoint, so that a checkpoint gives the
same clusters when defaults change."""

from pydantic import BaseModel, ConfigDict, Field


class Inference(BaseModel):
    """Numbers of the level path (``cluster.relational``)."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    k: int = Field(default=80, ge=2)
    """Neighbours per node in the k-NN graph, the node itself included: the default of ``Config.k``."""

    base_rate: float = Field(default=0.5, gt=0, lt=1)
    """Share of same-class edges in training."""

    whiten: bool = False
    """Cluster twice, the second time in vectors whitened by the clusters of the first (``cluster.whitening``); of a network of
    several data sets. One of a single set learns its whitening from classes."""

    shift: float | None = None
    """The level that is the answer, as ``hilander tune`` chose it; None for the rule (``cluster.partition.level_choice``)."""

    seed_probability: float = Field(default=0.95, gt=0.5, lt=1)
    """Links above it, to denser nodes, make the trees that the path begins with."""

    first_shift: float = -3.0
    """Added to all log-odds at the first level of the path."""

    last_shift: float = 8.0
    """Added at the last one: above it no edge gains any more."""

    shift_step: float = Field(default=0.5, gt=0)
    """From level to level."""

    closed_weight: float = Field(default=0.2, ge=0, le=1)
    """How much a row whose neighbours are all in its own cluster counts for a higher level, against one with more companions
    than its probabilities say."""

    closed_share: float = Field(default=0.999, gt=0.5, le=1)
    """Share of such rows from which on the clusters are the graph's components, which no higher level changes."""

    least_linked: float = Field(default=0.4, ge=0, le=1)
    """Share of rows with an edge above one half from which on the scores are taken as they are, where no level agrees with them."""

    least_sure: float = Field(default=0.1, ge=0, le=1)
    """Share of rows with an edge of log-odds 1 below which no row counts as linked: noise has 1 to 4%, real sets 18% and more."""

    kept_share: float = Field(default=0.8, gt=0, le=1)
    """A level is written if it has at most so many clusters against the written one below; the answer and the last are always."""

    def shifts(self) -> list[float]:
        """Of the levels of the path, ascending."""
        steps = round((self.last_shift - self.first_shift) / self.shift_step)
        return [self.first_shift + step * self.shift_step for step in range(steps + 1)]
