"""The training job: labelled embeddings in, ``model.safetensors`` out: a relational model by episodes
(``meta_training``), a raw one by level graphs (algorithm.md 2)."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from hilander_dist.cluster.hierarchy.label_links import link_by_labels
from hilander_dist.cluster.hierarchy.levels import LevelOptions, Nodes, run_levels
from hilander_dist.cluster.memory import bytes_per_row, check_memory
from hilander_dist.config import Config, RawModel, RawTrain, RelationalModel
from hilander_dist.errors import ConfigError, InputError
from hilander_dist.ingest import Ingested, ingest
from hilander_dist.jobs.job import choose_shards, open_job, open_output
from hilander_dist.jobs.options import check_options
from hilander_dist.monitor.log import logger
from hilander_dist.run import Run
from hilander_dist.source import open_source
from hilander_dist.storage import Storage
from hilander_dist.tasks import Tasks
from hilander_dist.training.calibration import calibrate
from hilander_dist.training.class_whitening import whiten_by_classes
from hilander_dist.training.level_course import LevelCourse
from hilander_dist.training.level_graphs import LevelGraph, load_level_graph
from hilander_dist.training.loop import Epoch, check_resources, fit
from hilander_dist.training.meta_training import class_sizes, draw_episodes, make_course


def run_train_job(
    input_uris: str | Sequence[str],
    output_uri: str,
    config: Config,
    address: str | None = None,
    debug: bool = False,
    restart: bool = False,
) -> dict[str, Any]:
    """Meta-train LANDER on labelled embeddings.

    Args:
        input_uris: each as the input of ``run_cluster_job``, with labels. Several, of any dimensions, for a
            relational model only.
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
    uris = [input_uris] if isinstance(input_uris, str) else list(input_uris)
    relational = isinstance(config.model, RelationalModel)
    if len(uris) > 1 and not relational:
        raise ConfigError(
            f"model.features: raw is for one encoder, and there are {len(uris)} inputs: leave it out, or give one --input"
        )
    output = open_output(output_uri, uris)
    check_options(config, "train")
    sources = [open_source(uri, config.input, need_label=True) for uri in uris]
    with open_job("train", output, sources, config, {}, address, debug, restart) as job:
        run, tasks = job.run, job.tasks
        check_resources(config.train, config.cluster.wait_s)
        inputs = [
            ingest(tasks, run if len(uris) == 1 else run.part(f"{number:03d}"), source, config.vectors)
            for number, source in enumerate(sources)
        ]
        if relational:
            checkpoint, history, numbers = _train_relational(tasks, run, inputs, config)
        else:
            checkpoint, history, numbers = _train_raw(tasks, run, inputs[0], config)
        output.put("model.safetensors", checkpoint)
        output.put("metrics.jsonl", ("\n".join(map(json.dumps, history)) + "\n").encode())
        bad = sum((Counter(data.bad) for data in inputs), Counter[str]())
        manifest = {
            **job.manifest_head(),
            "counts": {
                "rows": sum(source.rows for source in sources),
                "trained_on": sum(data.rows for data in inputs),
                "classes": numbers.pop("classes"),
                "bad": dict(bad),
            },
            **numbers,
            "loss": history[-1]["loss"],
        }
        run.succeed(manifest)
    logger.info("done", epochs=len(history), loss=round(history[-1]["loss"], 4), output=output.uri)
    return manifest


Trained = tuple[bytes, list[Epoch], dict[str, Any]]
"""A checkpoint, the epochs' numbers, and what else goes to the manifest."""


def _train_relational(tasks: Tasks, run: Run, inputs: list[Ingested], config: Config) -> Trained:
    sizes = [class_sizes(tasks, data) for data in inputs]
    map_DD, whitening = None, None
    if len(inputs) == 1:
        data, map_DD, whitening = whiten_by_classes(tasks, inputs[0], sizes[0].size_C, config)
        inputs = [data]
    episodes = draw_episodes(tasks, run, inputs, sizes, config)
    logger.info("training", epochs=config.train.epochs, data_sets=len(inputs), workers=config.train.num_workers)
    trained = fit(make_course(episodes, config), run.work.child("train").uri, "lander", config.cluster.wait_s)
    checkpoint, numbers = calibrate(tasks, trained, episodes, map_DD, config)
    found = {"classes": episodes.classes, "calibration": numbers, "whitening": whitening}
    return checkpoint, trained.history, found


def _train_raw(tasks: Tasks, run: Run, data: Ingested, config: Config) -> Trained:
    assert isinstance(config.model, RawModel)
    assert isinstance(config.train, RawTrain)
    source = data.source
    shards = choose_shards(run, source, config)
    check_memory(source.rows, source.dim, shards, None, config)
    classes = len(tasks.get(data.classes))
    if classes < 2:
        raise InputError(f"{source.uri}: {classes} class: at least two are needed to learn what to keep apart")
    graphs = _level_graphs(tasks, run, data, config, shards)
    logger.info("training", epochs=config.train.epochs, level_graphs=len(graphs), workers=config.train.num_workers)
    course = LevelCourse(load_graphs, graphs, source.dim, config.model, config.train, config.seed)
    trained = fit(course, run.work.child("train").uri, "lander", config.cluster.wait_s)
    return trained.checkpoint, trained.history, {"shards": shards, "classes": classes, "level_graphs": len(graphs)}


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
    assert isinstance(config.train, RawTrain)
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
