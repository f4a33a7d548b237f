"""The graph job: embeddings in, their k-NN graph out."""

from collections.abc import Sequence
from typing import Any

from hilander_dist.cluster.memory import bytes_per_row, check_memory, task_bytes
from hilander_dist.config import Config
from hilander_dist.ingest import ingest
from hilander_dist.jobs.job import choose_shards, open_job, open_output
from hilander_dist.jobs.options import check_options
from hilander_dist.jobs.quantizer import frozen_quantizer, keep_quantizer
from hilander_dist.knn.export import write_graph
from hilander_dist.knn.graph import GraphOptions, knn_graph
from hilander_dist.monitor.log import logger
from hilander_dist.source import open_source


def run_graph_job(
    input_uris: str | Sequence[str],
    output_uri: str,
    config: Config,
    address: str | None = None,
    debug: bool = False,
    restart: bool = False,
) -> dict[str, Any]:
    """Build the k-NN graph of the input and write ``graph/*.parquet``.

    Args:
        input_uris: as of ``run_cluster_job``.
        output_uri: a new directory, or that of the same run, killed: then it goes on.
        config: ``k``, ``target_recall``, ``num_shards``, ``seed``, ``vectors``, ``quantizer``, ``knn_device`` and ``input``
            matter here.
        address: Ray cluster; see ``runtime.ray_session``.
        debug: show the workers' log.
        restart: discard a run that the output directory holds.

    Returns:
        The manifest.
    """
    output = open_output(output_uri, input_uris)
    check_options(config, "graph")
    source = open_source(input_uris, config.input)
    frozen = frozen_quantizer(config, source.dim, None)
    with open_job("graph", output, [source], config, {}, address, debug, restart, frozen) as job:
        run = job.run
        shards = choose_shards(run, source, config)
        check_memory(source.rows, source.dim, shards, None, config)
        row_bytes = bytes_per_row(source.dim, config.k, None)
        tasks = job.tasks.asking(task_bytes(-(-source.rows // shards), row_bytes))
        data = ingest(tasks, run, source, config.vectors)
        options = GraphOptions(config.k, config.target_recall, config.seed, config.knn_device, frozen)
        level, graph, stats = knn_graph(tasks, data.parts, data.rows, source.dim, shards, options, "level-0")
        rows = write_graph(tasks, output, run.work, data, level, graph)
        keep_quantizer(run)
        assert rows == data.rows, f"{rows} rows written for {data.rows} good rows"
        manifest = {
            **job.manifest_head(),
            "shards": shards,
            "counts": {"rows": source.rows, "in_graph": data.rows, "bad": data.bad},
            "recall": stats.as_dict(),
        }
        run.succeed(manifest)
    logger.info("done", rows=rows, recall=round(stats.recall, 4), output=output.uri)
    return manifest
