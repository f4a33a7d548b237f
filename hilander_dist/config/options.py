"""What all groups of options have in common."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Options(BaseModel):
    """A group of options: unknown keys are refused, values are fixed, docstrings of attributes go to the schema."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class WorkerOptions(Options):
    """On what a network of either kind is trained."""

    num_workers: int = Field(default=1, ge=1)
    """DDP workers."""

    min_workers: int | None = Field(default=None, ge=1)
    """Train with as few workers as that while the cluster has no room for more, and with more when it has. Default: no fewer
    than num_workers."""

    use_gpu: bool = False
    """Train on GPUs, one per worker (NCCL); otherwise on CPUs (gloo)."""

    @model_validator(mode="after")
    def _no_more_at_least_than_at_most(self) -> Self:
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError("train.min_workers must be at most train.num_workers")
        return self
