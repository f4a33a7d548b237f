"""The training job: labelled embeddings in, ``model.safetensors`` out (algorithm.md 2)."""

import json
import time
from typing import Any

from hilander_dist.cluster.levels import LevelOptions, Nodes, run_levels
from hilander_dist.cluster.memory import bytes_per_row, check_memory
from hilander_dist.cluster.truth import link_by_labels
from hilander_dist.config import Config
from hilander_dist.errors import InputError
from hilander_dist.ingest import Ingested, ingest
from hilander_dist.lander.level_graphs import LevelGraph, load_level_graph
from hilander_dist.lander.training import check_resources, fit
from hilander_dist.monitor.log import logger
from hilander_dist.monitor.progress import Progress
from hilander_dist.pipeline.cluster import check_device, choose_shards, manifest_head, run_fingerprint
from hilander_dist.run import Run
from hilander_dist.runtime import ray_session
from hilander_dist.source import open_source
from hilander_dist.storage import Storage
from hilander_dist.tasks import Tasks


def run_train_job(
    input_uri: str,
    output_uri: str,
    config: Config,
    address: str | None = None,
    debug: bool = False,
    restart: bool = False,
) -> dict[str, Any]:
    """Meta-train LANDER on labelled embeddings.

    Args:
        input_uri: as of ``run_cluster_job``, with labels.
        output_uri: a new directory, or that of the same run, killed: then it goes on.
        config: all options.
        address: Ray cluster; see ``runtime.ray_session``.
        debug: show the workers' log.
        restart: discard a run that the output directory holds.

    Returns:
        The manifest.

    Raises:
        UserError: the input or the output cannot be used.
        ClusterError: the cluster cannot do it.
    """
    began = time.time()
    output = Storage(output_uri)
    output.check_writable()
    source = open_source(input_uri, config.input, need_label=True)
    fingerprint = run_fingerprint("train", config, source)
    run = Run(output, fingerprint, restart)
    with ray_session(address, debug):
        check_resources(config.train)
        check_device(config)
        shards = choose_shards(run, source, config)
        check_memory(source.rows, source.dim, shards, None, config)
        tasks = Tasks(run.work, run.saved, Progress())
        data = ingest(tasks, run, source, need_label=True, vectors=config.vectors)
        classes = len(tasks.get(data.classes))
        if classes < 2:
            raise InputError(f"{input_uri}: {classes} class: at least two are needed to learn what to keep apart")
        graphs = _level_graphs(tasks, run, data, config, shards)
        logger.info("training", epochs=config.train.epochs, level_graphs=len(graphs), workers=config.train.num_workers)
        trained = fit(
            load_graphs,
            graphs,
            source.dim,
            config.model,
            config.train,
            config.seed,
            storage_path=run.work.child("train").uri,
            run_name="lander",
        )
    output.put("model.safetensors", trained.checkpoint)
    lines = [json.dumps({"epoch": epoch + 1, "loss": loss}) for epoch, loss in enumerate(trained.loss_E)]
    output.put("metrics.jsonl", ("\n".join(lines) + "\n").encode())
    manifest = {
        **manifest_head("train", config, fingerprint, began),
        "shards": shards,
        "counts": {"rows": source.rows, "trained_on": data.rows, "classes": classes, "bad": data.bad},
        "level_graphs": len(graphs),
        "loss": trained.loss_E[-1],
    }
    run.succeed(manifest)
    logger.info("done", epochs=len(trained.loss_E), loss=round(trained.loss_E[-1], 4), output=output.uri)
    return manifest


def load_graphs(uris: list[str]) -> list[LevelGraph]:
    """Read level graphs, each from the blocks of its shards; runs in the training workers."""
    graphs = []
    for uri in uris:
        where = Storage(uri)
        blocks = [info.path for info in where.list() if info.path.startswith("train-")]
        graphs.append(load_level_graph([where.read_block(path) for path in blocks]))
    return graphs


def _level_graphs(tasks: Tasks, run: Run, data: Ingested, config: Config, shards: int) -> list[str]:
    """Build the training hierarchies; the URIs of their levels, level 0 of the first one first."""
    link = link_by_labels(config.train.merge_across_labels)
    uris = []
    for number, (k, count) in enumerate(zip(config.train.level_k, config.train.level_counts, strict=True)):
        options = LevelOptions(
            k,
            count,
            False,
            "default",
            config.target_recall,
            config.seed,
            shards,
            config.knn_device,
            row_bytes=bytes_per_row(data.source.dim, k, None),
        )
        nodes = Nodes(data.parts, data.rows, data.source.dim, data.source.rows)
        prefix = f"hierarchy-{number}/"
        levels = run_levels(tasks, run, nodes, options, link, prefix)
        uris += [run.work.child(f"{prefix}level-{index}").uri for index in range(len(levels))]
    return uris
