"""The clustering job: embeddings and a checkpoint in, a run directory out."""

import hashlib
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import ray

import hilander_dist
from hilander_dist.cluster.flow_links import link_by_relations, link_first
from hilander_dist.cluster.levels import ROWS_WORTH_A_SHARD, LevelOptions, Nodes, run_levels
from hilander_dist.cluster.links import Linker, link_by_model
from hilander_dist.cluster.memory import bytes_per_row, check_memory
from hilander_dist.cluster.output import write_outputs
from hilander_dist.cluster.whitening import MAP, whiten, whitened_parts
from hilander_dist.config import Calibration, Config, calibrated
from hilander_dist.errors import ClusterError, ConfigError, InputError, ModelError
from hilander_dist.ingest import Ingested, ingest
from hilander_dist.knn.graph import GraphOptions
from hilander_dist.knn.layout import Space, load_quantizer, load_space, quantizer_path, save_quantizer
from hilander_dist.knn.shared import MOST_NEIGHBOURS
from hilander_dist.lander.checkpoint import AnyLander, load_checkpoint, model_hash
from hilander_dist.lander.model import Lander
from hilander_dist.lander.relational import RelationalLander
from hilander_dist.monitor.log import logger
from hilander_dist.monitor.progress import Progress
from hilander_dist.pipeline.options import check_model_options, check_options
from hilander_dist.run import Run, code_version
from hilander_dist.runtime import cluster_cpus, ray_session
from hilander_dist.source import Source, open_source, refuse_overlap
from hilander_dist.storage import Storage
from hilander_dist.tasks import Loader, Tasks
from hilander_dist.waiting import wait_for

BYTES_PER_SHARD = 64 * 2**20
"""A shard's vectors, float32, are no larger unless asked for or there are more than MANY_SHARDS. A task holds about
twice as much of its own (README, memory)."""

MANY_SHARDS = 256
"""Above so many, shards grow instead, as S shards exchange S x S objects; up to MOST_BYTES_PER_SHARD."""

MOST_BYTES_PER_SHARD = 512 * 2**20

GENERAL = Path(hilander_dist.__file__).parent / "models" / "general.safetensors"
"""The checkpoint for embeddings of any kind, see the model card beside it."""

QUANTIZER = "quantizer.safetensors"

MANIFEST_VERSION = 1
SOFTWARE = ("hilander-dist", "ray", "torch", "numpy", "pyarrow", "numba")


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
    began = time.time()
    output = open_output(output_uri, input_uris)
    source = open_source(input_uris, config.input)
    check_options(config, "cluster")
    model = load_model(model_uri, config)
    config = settled(config, model)
    check_dim(model, model_uri, source)
    frozen = frozen_quantizer(config, source.dim, model)
    fingerprint = run_fingerprint("cluster", config, source, quantizer=frozen) | {
        "model": model_hash(model),
        "calibration": model.calibration and model.calibration.model_dump(),
    }
    with Run(output, fingerprint, restart) as run, ray_session(address, debug, config.cluster.wait_s):
        check_device(config)
        shards = choose_shards(run, source, config)
        check_memory(source.rows, source.dim, shards, model, config)
        tasks = Tasks(run.work, run.saved, Progress())
        data = ingest(tasks, run, source, config.vectors)
        options = LevelOptions(
            config.k,
            config.max_levels,
            config.early_stop,
            config.compat,
            config.target_recall,
            config.seed,
            shards,
            config.knn_device,
            frozen,
            bytes_per_row(source.dim, config.k, model),
        )
        search = GraphOptions(config.k, config.target_recall, config.seed, config.knn_device, frozen)
        parts, whitening = prepare_parts(tasks, run, data, model, shards, search)
        link = choose_linker(model, config, by_clusters(whitening))
        nodes = Nodes(parts, data.rows, source.dim, source.rows)
        levels = run_levels(tasks, run, nodes, options, link)
        write_outputs(tasks, output, run.work, data, levels)
        keep_quantizer(run, whitening)
        manifest = {
            **manifest_head("cluster", config, fingerprint, [source], began),
            "shards": shards,
            "counts": {"rows": source.rows, "clustered": data.rows, "bad": data.bad},
            "recall": levels[0].numbers["graph"],
            "whitening": whitening,
            "levels": [level.numbers for level in levels],
            "stages": tasks.progress.seconds,
            "clusters": levels[-1].clusters,
        }
        run.succeed(manifest)
    logger.info("done", clusters=levels[-1].clusters, levels=len(levels), output=output.uri)
    return manifest


def open_output(output_uri: str, input_uris: str | Sequence[str]) -> Storage:
    """The output directory, which files can be written to.

    Raises:
        OutputError: it stands in an input.
        StorageError: nothing can be written there.
    """
    refuse_overlap([input_uris] if isinstance(input_uris, str) else input_uris, output_uri)
    output = Storage(output_uri)
    output.check_writable()
    return output


def settled(config: Config, model: AnyLander) -> Config:
    """The options of a run with a model: what the user has not set comes from its calibration.

    Raises:
        ConfigError: k is larger than relational features can count.
    """
    config = calibrated(config, model.calibration)
    if isinstance(model, RelationalLander) and config.k > MOST_NEIGHBOURS + 1:
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


def choose_linker(model: AnyLander, config: Config, whitened: bool) -> Linker:
    """The way from the model's scores to links, in vectors that were whitened by clusters or not."""
    if isinstance(model, Lander):
        return link_by_model(model, ray.put(model), config.tau, config.compat)
    calibration = model.calibration or Calibration()
    return link_by_relations(model, ray.put(model), calibration, config.k, config.tau, whitened)


def prepare_parts(
    tasks: Tasks, run: Run, data: Ingested, model: AnyLander, shards: int, search: GraphOptions
) -> tuple[list[Loader], dict[str, Any] | None]:
    """The parts of level 0: as they are, or whitened by the model's map or where its calibration says so, with numbers of
    that."""
    if not isinstance(model, RelationalLander):
        return data.parts, None
    if model.dim is not None:
        run.work.write_block(MAP, {"map_DD": model.map_DD.numpy()})
        return whitened_parts(tasks, data.parts), {"learned_from": "model", "kept": True}
    if model.calibration is None or not model.calibration.whiten:
        return data.parts, None
    nodes = Nodes(data.parts, data.rows, data.source.dim, data.source.rows)
    link = link_first(model, ray.put(model), model.calibration, search.k)
    row_bytes = bytes_per_row(data.source.dim, search.k, model)
    return whiten(tasks, run, nodes, shards, search, row_bytes, link)


def by_clusters(whitening: dict[str, Any] | None) -> bool:
    """Whether vectors were whitened by clusters, this run's or an earlier one's; ``whitening`` as of ``prepare_parts``."""
    return whitening is not None and whitening["kept"] and whitening["learned_from"] != "model"


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


def choose_shards(run: Run, source: Source, config: Config) -> int:
    """Shards of level 0: as asked, or from the size of the data and the CPUs. A resumed run keeps its number."""
    plan = run.marker("plan")
    if plan is None:
        plan = {"shards": config.num_shards or default_shards(source.rows, source.dim, cluster_cpus())}
        run.mark("plan", plan)
    shards: int = plan["shards"]
    return shards


def default_shards(n: int, dim: int, cpus: int) -> int:
    """Shards of level 0 for n rows of dim float32 on so many CPUs."""
    size = n * dim * 4
    # Two tasks a CPU even out shards that take longer.
    wanted = max(2 * cpus, min(MANY_SHARDS, -(-size // BYTES_PER_SHARD)), -(-size // MOST_BYTES_PER_SHARD))
    return min(-(-n // ROWS_WORTH_A_SHARD), wanted)


def frozen_quantizer(config: Config, dim: int, model: AnyLander | None) -> Storage | None:
    """The file of the quantizer that the configuration names: itself, or in an earlier run's output directory.

    Raises:
        InputError: it cannot be used, see ``layout.load_quantizer``, or is of other vectors than this run's.
        StorageError: it is not there.
    """
    if config.quantizer is None:
        return None
    file = Storage(config.quantizer)
    if not config.quantizer.endswith(".safetensors"):
        file = file.child(QUANTIZER)
    load_quantizer(file, dim)
    _check_space(file, model)
    return file


def _check_space(file: Storage, model: AnyLander | None) -> None:
    space, block = load_space(file)
    if not isinstance(model, RelationalLander) or not (model.dim or (model.calibration and model.calibration.whiten)):
        if space == "whitened":
            raise InputError(
                f"{file.uri}: its cells are of whitened vectors, and this run takes vectors as they are: use the quantizer "
                "of `hilander graph` or of a run with a model that does not whiten"
            )
    elif model.dim is not None:
        if space != "whitened" or not np.array_equal(block["map_DD"], model.map_DD.numpy()):
            raise InputError(
                f"{file.uri}: its cells are not of vectors that this model whitened: use the quantizer of a run with it"
            )
    elif space == "plain":
        raise InputError(
            f"{file.uri}: its cells are of vectors as they are, and this model whitens them where that pays: use the "
            "quantizer of a run with it"
        )


def keep_quantizer(run: Run, whitening: dict[str, Any] | None = None) -> None:
    """Put level 0's quantizer among the results, with what became of whitening (as of ``prepare_parts``) and its map: a
    later run can use both again when ``_work/`` is gone."""
    block = run.work.read_block(quantizer_path("level-0"))
    kept = whitening is not None and whitening["kept"]
    space: Space = "plain" if whitening is None else "whitened" if kept else "declined"
    map_DD = run.work.read_block(MAP)["map_DD"] if kept else None
    save_quantizer(run.output.child(QUANTIZER), block, space, map_DD)


def check_device(config: Config) -> None:
    """Refuse a search on GPUs where the cluster has none: its tasks would wait for ever.

    Raises:
        ClusterError: there is none, and none comes in time.
    """
    if config.knn_device == "cuda" and not wait_for({"CPU": 1, "GPU": 1}, config.cluster.wait_s):
        raise ClusterError(
            "knn_device is cuda and no node of the Ray cluster has a GPU, and a CPU beside it: add a GPU node, or set knn_device=cpu"
        )


def run_fingerprint(job: str, config: Config, *sources: Source, quantizer: Storage | None = None) -> dict[str, Any]:
    """What the blocks and the result depend on; a run directory with another fingerprint is not gone on with."""
    entries = [source.fingerprint() for source in sources]
    return {
        "job": job,
        "config": config.model_dump(mode="json", exclude={"cluster"}),  # Another patience gives the same bytes.
        "quantizer": quantizer and hashlib.sha256(quantizer.read_bytes()).hexdigest(),
        "input": entries[0] if len(entries) == 1 else entries,
        "code": code_version(),
    }


def manifest_head(
    job: str, config: Config, fingerprint: dict[str, Any], sources: Sequence[Source], began: float
) -> dict[str, Any]:
    """The part of a manifest that every job has."""
    ended = time.time()
    digest = hashlib.sha256(repr(sorted(fingerprint.items())).encode()).hexdigest()
    return {
        "schema_version": MANIFEST_VERSION,
        "job": job,
        "config": config.model_dump(mode="json"),
        "fingerprint": digest,
        "code": fingerprint["code"],
        "input": [source.summary() for source in sources],
        "model": fingerprint.get("model"),
        "started": datetime.fromtimestamp(began, UTC).isoformat(timespec="seconds"),
        "seconds": round(ended - began, 3),
        "software": {name: version(name) for name in SOFTWARE},
    }
