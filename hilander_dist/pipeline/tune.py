"""The tuning job: a relational checkpoint's tau anew, from a few hundred labelled items of the data at hand.

One graph and one forward over all the data; only the merges are repeated for each tau. What F to expect is told by classes
that the choice of tau did not see: each fifth of the classes is scored with the tau that is best on the others.
"""

import hashlib
import json
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from hilander_dist.cluster.flow_links import Forest, cluster_forest, score_forest, with_base_rate
from hilander_dist.cluster.local import f_scores
from hilander_dist.cluster.memory import bytes_per_row, check_memory, task_bytes
from hilander_dist.cluster.roots import find_roots
from hilander_dist.config import Calibration, Config
from hilander_dist.errors import InputError, ModelError
from hilander_dist.exchange import concat_blocks
from hilander_dist.ingest import Ingested, ingest, load_ids
from hilander_dist.knn.graph import GraphOptions, knn_graph
from hilander_dist.knn.layout import Level
from hilander_dist.lander.checkpoint import model_hash, save_checkpoint
from hilander_dist.lander.relational import RelationalLander
from hilander_dist.monitor.log import logger
from hilander_dist.monitor.progress import Progress
from hilander_dist.pipeline.calibration import TAUS, best_tau
from hilander_dist.pipeline.cluster import (
    by_clusters,
    check_device,
    check_dim,
    choose_shards,
    load_model,
    manifest_head,
    prepare_parts,
    run_fingerprint,
    settled,
)
from hilander_dist.pipeline.evaluate import read_labels
from hilander_dist.run import Run
from hilander_dist.runtime import ray_session
from hilander_dist.source import open_source
from hilander_dist.storage import Storage
from hilander_dist.tasks import Block, Loader, Ref, Tasks

FOLDS = 5


def run_tune_job(
    input_uri: str,
    labels_uri: str,
    model_uri: str | None,
    output_uri: str,
    config: Config,
    address: str | None = None,
    debug: bool = False,
    restart: bool = False,
) -> dict[str, Any]:
    """Write a checkpoint with the tau that suits the labelled items best, and the F to expect.

    Args:
        input_uri: the data to be clustered, as of ``run_cluster_job``; all of it, not the labelled items alone.
        labels_uri: Parquet with columns id and label of some of the items.
        model_uri: a relational checkpoint; None for the general one.
        output_uri: a new directory, or that of the same run, killed: then it goes on.
        config: all options.
        address: Ray cluster; see ``runtime.ray_session``.
        debug: show the workers' log.
        restart: discard a run that the output directory holds.

    Returns:
        The manifest; ``tuning`` has tau, the F to expect, and F by tau.

    Raises:
        UserError: the input, the labels, the model or the output cannot be used.
        ClusterError: the cluster cannot do it.
    """
    began = time.time()
    output = Storage(output_uri)
    output.check_writable()
    source = open_source(input_uri, config.input)
    model = load_model(model_uri, config)
    if not isinstance(model, RelationalLander):
        raise ModelError(f"{model_uri}: raw features have no tuning; train with --set model.features=relational")
    check_dim(model, model_uri, source)
    calibration = model.calibration or Calibration()
    config = settled(config, model)
    labels = read_labels(labels_uri)
    fingerprint = run_fingerprint("tune", config, source) | {
        "model": model_hash(model),
        "calibration": calibration.model_dump(),
        "labels": hashlib.sha256(repr(labels.to_pydict()).encode()).hexdigest(),
    }
    run = Run(output, fingerprint, restart)
    with ray_session(address, debug):
        check_device(config)
        shards = choose_shards(run, source, config)
        check_memory(source.rows, source.dim, shards, model, config)
        row_bytes = bytes_per_row(source.dim, config.k, model)
        tasks = Tasks(run.work, run.saved, Progress()).asking(task_bytes(-(-source.rows // shards), row_bytes))
        data = ingest(tasks, run, source, need_label=False, vectors=config.vectors)
        row_M, class_M = find_labelled(tasks, run.work, data, labels, labels_uri)
        options = GraphOptions(config.k, config.target_recall, config.seed, config.knn_device, None)
        parts, whitening = prepare_parts(tasks, run, data, model, shards, options)
        level, graph, _ = knn_graph(tasks, parts, data.rows, source.dim, shards, options, "level-0")
        scored = score_forest(tasks, model, ray.put(model), calibration, config.k, level, graph, "level-0")
        forest = with_base_rate(tasks, scored, calibration.base_rate, by_clusters(whitening))
        found_TM = np.stack([_clusters(tasks, level, forest, row_M, tau) for tau in TAUS])
    tuning = choose_tau(found_TM, class_M)
    model.calibration = calibration.model_copy(update={"tau": tuning["tau"], "k": config.k})
    output.put("model.safetensors", save_checkpoint(model, {"tuned_on": str(len(row_M))}))
    output.put("metrics.json", json.dumps(tuning).encode())
    manifest = {
        **manifest_head("tune", config, fingerprint, began),
        "counts": {"rows": source.rows, "clustered": data.rows, "bad": data.bad, "labelled": len(row_M)},
        "tuning": tuning,
    }
    run.succeed(manifest)
    logger.info(
        "done", output=output.uri, **{key: tuning[key] for key in ("tau", "expected_pairwise_f", "expected_bcubed_f")}
    )
    return manifest


def find_labelled(
    tasks: Tasks, work: Storage, data: Ingested, labels: pa.Table, uri: str
) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of the labelled items, ascending, and their classes as integers.

    Raises:
        InputError: fewer than two classes, or no class of two items, are among the data's good rows.
    """
    labels = labels.filter(pc.is_valid(labels["label"]))
    number = pa.table({"id": labels["id"], "class": pc.dictionary_encode(labels["label"]).combine_chunks().indices})
    blocks = tasks.get(
        [
            tasks.call(_labelled_rows, work, unit.index, part, number)
            for unit, part in zip(data.source.units, data.parts, strict=True)
        ]
    )
    found = concat_blocks(blocks)
    order = np.argsort(found["row_M"])
    row_M, class_M = found["row_M"][order], found["class_M"][order]
    sizes = np.bincount(class_M) if len(class_M) else np.zeros(1, dtype=np.int64)
    if (sizes > 0).sum() < 2 or sizes.max() < 2:
        raise InputError(
            f"{uri}: {len(row_M)} of its {len(labels)} items are in the input, of {(sizes > 0).sum()} classes: at least two"
            " classes, one of them with two items, are needed; ids must be those of the input"
        )
    return row_M, class_M


def choose_tau(found_TM: np.ndarray, class_M: np.ndarray) -> dict[str, Any]:
    """The best tau, and the F to expect of it.

    Args:
        found_TM: cluster of each labelled item at each of TAUS.
        class_M: its class.
    """
    f_T2 = np.array([f_scores(found_M, class_M) for found_M in found_TM])
    classes = np.unique(class_M)
    fold_C = np.random.default_rng(0).permutation(len(classes)) % FOLDS
    fold_M = fold_C[np.searchsorted(classes, class_M)]
    # Merges with items of other folds count: all items are scored, each fold's with the tau of the others.
    mixed_M = np.full(len(class_M), -1, dtype=np.int64)
    for fold in np.unique(fold_M):
        rest_M = fold_M != fold
        at = best_tau(np.array([f_scores(found_M[rest_M], class_M[rest_M]) for found_M in found_TM]))
        mixed_M[~rest_M] = found_TM[at][~rest_M]
    expected = f_scores(mixed_M, class_M)
    return {
        "tau": TAUS[best_tau(f_T2)],
        "expected_pairwise_f": round(expected[0], 4),
        "expected_bcubed_f": round(expected[1], 4),
        "labelled": len(class_M),
        "classes": len(classes),
        "by_tau": [
            {"tau": tau, "pairwise_f": round(f[0], 4), "bcubed_f": round(f[1], 4)}
            for tau, f in zip(TAUS, f_T2.tolist(), strict=True)
        ],
    }


def _clusters(tasks: Tasks, level: Level, forest: Forest, row_M: np.ndarray, tau: float) -> np.ndarray:
    """The cluster of each labelled item, as its root's position, by a checkpoint with this tau."""
    pointers: list[Ref] = find_roots(tasks, cluster_forest(tasks, forest, tau, tau), level.starts)
    blocks = tasks.get([tasks.call(_roots_of, level.nodes[s], pointers[s], row_M) for s in range(level.shards)])
    found = concat_blocks(blocks)
    root_M: np.ndarray = found["root_M"][np.argsort(found["row_M"])]
    return root_M


def _labelled_rows(work: Storage, unit: int, part: Loader, number: pa.Table) -> Block:
    ids = load_ids(work, unit, ["row", "id"])
    ids = ids.filter(pc.is_in(ids["row"], pa.array(part()["id_N"])))  # Rows of a repeated id are set aside.
    at = pc.index_in(ids["id"].cast(pa.string()), value_set=number["id"].cast(pa.string()).combine_chunks())
    known = pc.is_valid(at)
    class_N = number["class"].to_numpy()[at.filter(known).to_numpy()]
    return {"row_M": ids["row"].filter(known).to_numpy().astype(np.int64), "class_M": class_N.astype(np.int64)}


def _roots_of(nodes: Block, pointers: Block, row_M: np.ndarray) -> Block:
    here_N = np.isin(nodes["id_N"], row_M)
    return {"row_M": nodes["id_N"][here_N], "root_M": pointers["pointer_N"][here_N]}
