"""The clustering job: embeddings and a checkpoint in, a run directory out."""

from collections.abc import Sequence
from typing import Any

import ray

from hilander_dist.cluster.hierarchy.levels import Hierarchy, LevelOptions, Nodes, run_levels
from hilander_dist.cluster.hierarchy.links import link_by_model
from hilander_dist.cluster.memory import bytes_per_row, check_memory, task_bytes
from hilander_dist.cluster.output import write_outputs
from hilander_dist.cluster.relational import cluster_rows
from hilander_dist.config import Config
from hilander_dist.ingest import ingest
from hilander_dist.jobs.job import choose_shards, open_job, open_output
from hilander_dist.jobs.models import check_dim, inference_of, load_model, prepare_parts, settled
from hilander_dist.jobs.options import check_options
from hilander_dist.jobs.quantizer import frozen_quantizer, keep_quantizer
from hilander_dist.knn.graph import GraphOptions
from hilander_dist.lander.checkpoint import model_hash
from hilander_dist.lander.model import Lander
from hilander_dist.lander.relational import RelationalLander
from hilander_dist.monitor.log import logger
from hilander_dist.run import Run
from hilander_dist.source import open_source
from hilander_dist.tasks import Tasks

RAW_LEVELS = 10
"""``Config.max_levels`` of a raw model, as in the paper."""


def run_cluster_job(
    input_uris: str | Sequence[str],
    model_uri: str | None,
    output_uri: str,
    config: Config,
    address: str | None = None,
    debug: bool = False,
    restart: bool = False,
) -> dict[str, Any]:
    """Cluster the input and write a run directory; see architecture.md for its files.

    Args:
        input_uris: Parquet files, directories or globs, or .npy; local or s3://. Several are one input: ids must differ.
        model_uri: ``model.safetensors``, the directory that holds it, or an official ``.pth`` state dict; None for the
            general checkpoint, which comes with the package.
        output_uri: a new directory, or that of the same run, killed: then it goes on.
        config: all options.
        address: Ray cluster; see ``runtime.ray_session``.
        debug: show the workers' log.
        restart: discard a run that the output directory holds.

    Returns:
        The manifest.

    Raises:
        UserError: the input, the model or the output cannot be used; before any work where that can be known.
        ClusterError: the cluster cannot do it.
    """
    output = open_output(output_uri, input_uris)
    source = open_source(input_uris, config.input)
    check_options(config, "cluster")
    model = load_model(model_uri, config)
    config = settled(config, model)
    check_dim(model, model_uri, source)
    frozen = frozen_quantizer(config, source.dim, model)
    about = {"model": model_hash(model), "inference": inference_of(model)}
    with open_job("cluster", output, [source], config, about, address, debug, restart, frozen) as job:
        run, tasks = job.run, job.tasks
        shards = choose_shards(run, source, config)
        check_memory(source.rows, source.dim, shards, model, config)
        data = ingest(tasks, run, source, config.vectors)
        search = GraphOptions(config.k, config.target_recall, config.seed, config.knn_device, frozen)
        if isinstance(model, RelationalLander):
            parts, whitening = prepare_parts(tasks, run, data, model, shards, search)
            nodes = Nodes(parts, data.rows, source.dim, source.rows)
            asking = tasks.asking(task_bytes(-(-data.rows // shards), bytes_per_row(source.dim, config.k, model)))
            levels = config.max_levels or data.rows
            found = cluster_rows(asking, run, nodes, shards, search, model, ray.put(model), levels)
        else:
            whitening = None
            found = cluster_raw(
                tasks, run, Nodes(data.parts, data.rows, source.dim, source.rows), model, config, shards, search
            )
        write_outputs(tasks, output, run.work, data, found)
        keep_quantizer(run, whitening)
        manifest = {
            **job.manifest_head(),
            "shards": shards,
            "counts": {"rows": source.rows, "clustered": data.rows, "bad": data.bad},
            "recall": found.numbers.pop("graph"),
            "whitening": whitening,
            "levels": [level.numbers for level in found.levels],
            "chosen_level": found.chosen,
            **found.numbers,
            "stages": tasks.progress.seconds,
            "clusters": found.levels[found.chosen].clusters,
        }
        run.succeed(manifest)
    logger.info("done", clusters=manifest["clusters"], levels=len(found.levels), chosen=found.chosen, output=output.uri)
    return manifest


def cluster_raw(
    tasks: Tasks, run: Run, nodes: Nodes, model: Lander, config: Config, shards: int, search: GraphOptions
) -> Hierarchy:
    """The paper's loop; its answer is the last level."""
    options = LevelOptions(
        config.k,
        config.max_levels or RAW_LEVELS,
        config.early_stop,
        config.compat,
        config.target_recall,
        config.seed,
        shards,
        config.knn_device,
        search.quantizer,
        bytes_per_row(nodes.dim, config.k, model),
    )
    link = link_by_model(model, ray.put(model), config.tau, config.compat)
    levels = run_levels(tasks, run, nodes, options, link)
    return Hierarchy(levels, len(levels) - 1, None, {"graph": levels[0].numbers["graph"]})
