"""The model of a job: read, checked against options and input, and what its rows go through before."""

from pathlib import Path
from typing import Any

import ray

import hilander_dist
from hilander_dist.cluster.hierarchy.levels import Nodes
from hilander_dist.cluster.relational import whitened_rows
from hilander_dist.cluster.whitening import MAP, whitened_parts
from hilander_dist.config import Config
from hilander_dist.errors import ConfigError, ModelError
from hilander_dist.ingest import Ingested
from hilander_dist.jobs.options import check_model_options
from hilander_dist.knn.graph import GraphOptions
from hilander_dist.knn.neighbour_overlap import MOST_NEIGHBOURS
from hilander_dist.lander.checkpoint import AnyLander, load_checkpoint
from hilander_dist.lander.relational import RelationalLander
from hilander_dist.run import Run
from hilander_dist.source import Source
from hilander_dist.storage import Storage
from hilander_dist.tasks import Loader, Tasks

GENERAL = Path(hilander_dist.__file__).parent / "models" / "general.safetensors"
"""The checkpoint for embeddings of any kind, see the model card beside it."""


def load_model(uri: str | None, config: Config) -> AnyLander:
    """Read a checkpoint file, or ``model.safetensors`` in a directory; without either the general checkpoint.

    Raises:
        ModelError: there is none, or it cannot be used.
        ConfigError: options that do not apply to it.
    """
    where = Storage(uri or str(GENERAL))
    if uri and not uri.endswith((".pth", ".safetensors")):
        where = where.child("model.safetensors")
    if not where.exists():
        raise ModelError(
            f"no model at {where.uri}: give --model a checkpoint, or the output directory of `hilander train`"
        )
    model = load_checkpoint(where.read_bytes(), where.uri, config.model)
    check_model_options(config, model, where.uri)
    return model


def settled(config: Config, model: AnyLander) -> Config:
    """The options of a run with a model: k comes from a relational one where the user has not set it.

    Raises:
        ConfigError: k is larger than relational features can count, or options that only a raw model has.
    """
    if not isinstance(model, RelationalLander):
        return config
    for name in ("tau", "early_stop"):
        if name in config.model_fields_set:
            raise ConfigError(
                f"{name}: only a raw model has it, and this one is relational: leave it out; `hilander tune` and `hilander cut` choose"
                " another level"
            )
    if "k" not in config.model_fields_set:
        config = config.model_copy(update={"k": model.inference.k})
    if config.k > MOST_NEIGHBOURS + 1:
        raise ConfigError(f"k={config.k}: relational features take up to {MOST_NEIGHBOURS + 1}; lower --k")
    return config


def check_dim(model: AnyLander, model_uri: str | None, source: Source) -> None:
    """Refuse a model of other embeddings.

    Raises:
        ModelError: their dimensions differ.
    """
    if model.dim not in (None, source.dim):
        raise ModelError(
            f"{source.uri} has embeddings of {source.dim} dimensions, the model {model_uri} takes {model.dim}: "
            "use a model trained on embeddings of the same encoder"
        )


def inference_of(model: AnyLander) -> dict[str, Any] | None:
    """What decides the clusters besides weights, for a fingerprint."""
    return model.inference.model_dump() if isinstance(model, RelationalLander) else None


def prepare_parts(
    tasks: Tasks, run: Run, data: Ingested, model: RelationalLander, shards: int, search: GraphOptions
) -> tuple[list[Loader], dict[str, Any] | None]:
    """The rows as they are, or whitened by the model's map or by clusters, with numbers of that."""
    if model.dim is not None:
        run.work.write_block(MAP, {"map_DD": model.map_DD.numpy()})
        return whitened_parts(tasks, data.parts), {"learned_from": "model", "kept": True}
    nodes = Nodes(data.parts, data.rows, data.source.dim, data.source.rows)
    return whitened_rows(tasks, run, nodes, model, ray.put(model), shards, search)
