"""The tuning job: the level that is the answer, chosen by a few hundred labelled items of the data at hand.

One path over all the data has all levels. What F to expect is told by classes that the choice did not see: each fifth of the classes
is scored at the level that is best on the others.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from hilander_dist.cluster.hierarchy.levels import Nodes
from hilander_dist.cluster.local import f_scores
from hilander_dist.cluster.memory import bytes_per_row, check_memory, task_bytes
from hilander_dist.cluster.relational import score_rows
from hilander_dist.cluster.sharded.labels import own_labels
from hilander_dist.cluster.sharded.path import labels_by_level, merge_path
from hilander_dist.config import Config, InputConfig
from hilander_dist.errors import InputError, ModelError
from hilander_dist.evaluate import known_labels
from hilander_dist.exchange import concat_blocks
from hilander_dist.ingest import Ingested, ingest, load_ids
from hilander_dist.jobs.job import choose_shards, open_job, open_output
from hilander_dist.jobs.models import check_dim, load_model, prepare_parts, settled
from hilander_dist.jobs.options import check_options
from hilander_dist.jobs.quantizer import frozen_quantizer
from hilander_dist.knn.graph import GraphOptions
from hilander_dist.knn.layout import Level
from hilander_dist.lander.checkpoint import model_hash, save_checkpoint
from hilander_dist.lander.relational import RelationalLander
from hilander_dist.monitor.log import logger
from hilander_dist.source import open_source, read_labels
from hilander_dist.storage import Storage
from hilander_dist.tasks import Block, Loader, Ref, Tasks

FOLDS = 5


def run_tune_job(
    input_uris: str | Sequence[str],
    labels_uri: str,
    model_uri: str | None,
    output_uri: str,
    config: Config,
    address: str | None = None,
    debug: bool = False,
    restart: bool = False,
) -> dict[str, Any]:
    """Write a checkpoint with the level that suits the labelled items best, and the F to expect.

    Args:
        input_uris: the data to be clustered, as of ``run_cluster_job``; all of it, not the labelled items alone.
        labels_uri: Parquet with ids and labels of some of the items, in columns that are called as those of the input.
        model_uri: a relational checkpoint; None for the general one.
        output_uri: a new directory, or that of the same run, killed: then it goes on.
        config: all options.
        address: Ray cluster; see ``runtime.ray_session``.
        debug: show the workers' log.
        restart: discard a run that the output directory holds.

    Returns:
        The manifest; ``tuning`` has the shift of the level, the F to expect, and F by level.

    Raises:
        UserError: the input, the labels, the model or the output cannot be used.
        ClusterError: the cluster cannot do it.
    """
    output = open_output(output_uri, input_uris)
    check_options(config, "tune")
    source = open_source(input_uris, config.input)
    model = load_model(model_uri, config)
    if not isinstance(model, RelationalLander):
        raise ModelError(f"{model_uri}: a raw model has no tuning; use a relational one")
    check_dim(model, model_uri, source)
    config = settled(config, model)
    labels = labelled_items(labels_uri, config.input)
    frozen = frozen_quantizer(config, source.dim, model)
    about = {"model": model_hash(model), "inference": model.inference.model_dump(), "labels": hash_table(labels)}
    with open_job("tune", output, [source], config, about, address, debug, restart, frozen) as job:
        run = job.run
        shards = choose_shards(run, source, config)
        check_memory(source.rows, source.dim, shards, model, config)
        row_bytes = bytes_per_row(source.dim, config.k, model)
        tasks = job.tasks.asking(task_bytes(-(-source.rows // shards), row_bytes))
        data = ingest(tasks, run, source, config.vectors)
        row_M, class_M = find_labelled(tasks, run.work, data, labels, labels_uri)
        options = GraphOptions(config.k, config.target_recall, config.seed, config.knn_device, frozen)
        parts, _ = prepare_parts(tasks, run, data, model, shards, options)
        nodes = Nodes(parts, data.rows, source.dim, source.rows)
        level, graph, _ = score_rows(tasks, nodes, shards, options, model, ray.put(model), "level-0")
        path = merge_path(tasks, run, graph, model.inference, "level-0")
        row_ref = ray.put(row_M)
        found_LM = np.stack(
            [_clusters(tasks, level, labels, row_ref) for labels in labels_by_level(tasks, graph, path)]
        )
        tuning = choose_by_labels(found_LM, class_M, [stats.shift for stats in path.levels])
        model.inference = model.inference.model_copy(update={"shift": tuning["shift"], "k": config.k})
        output.put("model.safetensors", save_checkpoint(model, {"tuned_on": str(len(row_M))}))
        output.put("metrics.json", json.dumps(tuning).encode())
        manifest = {
            **job.manifest_head(),
            "counts": {"rows": source.rows, "clustered": data.rows, "bad": data.bad, "labelled": len(row_M)},
            "tuning": tuning,
        }
        run.succeed(manifest)
    logger.info(
        "done", output=output.uri, **{key: tuning[key] for key in ("shift", "expected_pairwise_f", "expected_bcubed_f")}
    )
    return manifest


def labelled_items(uri: str, columns: InputConfig) -> pa.Table:
    """The items with a label: id, int64 or string, and class, int64.

    Raises:
        InputError: files that cannot be read, columns of other types, a null or repeated id, or labels that tell nothing.
    """
    known = known_labels(read_labels(uri, columns), uri)
    items = pa.table({"id": known.id_M, "class": known.code_M}).filter(pa.array(known.code_M >= 0))
    _check_classes(items["class"].to_numpy(), f"{uri}: {len(items)} items have a label")
    return items


def hash_table(table: pa.Table) -> str:
    """SHA-256 (hex) over a table's schema and values."""
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return hashlib.sha256(stream.getvalue()).hexdigest()


def find_labelled(
    tasks: Tasks, work: Storage, data: Ingested, labels: pa.Table, uri: str
) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of the labelled items (``labelled_items``), ascending, and their classes as integers.

    Raises:
        InputError: fewer than two classes, or no class of two items, are among the data's good rows.
    """
    number = ray.put(labels)
    blocks = tasks.get(
        [
            tasks.call(_labelled_rows, work, unit.index, part, number)
            for unit, part in zip(data.source.units, data.parts, strict=True)
        ]
    )
    found = concat_blocks(blocks)
    order = np.argsort(found["row_M"])
    row_M, class_M = found["row_M"][order], found["class_M"][order]
    _check_classes(
        class_M, f"{uri}: {len(row_M)} of its {len(labels)} items are in the input, whose ids they must have"
    )
    return row_M, class_M


def _check_classes(class_M: np.ndarray, what: str) -> None:
    count_C = np.unique(class_M, return_counts=True)[1]
    if len(count_C) < 2 or count_C.max() < 2:
        raise InputError(
            f"{what}, of {len(count_C)} classes: at least two classes, one of them with two items, are needed"
        )


def choose_by_labels(found_LM: np.ndarray, class_M: np.ndarray, shifts: Sequence[float]) -> dict[str, Any]:
    """The best level, and the F to expect of it.

    Args:
        found_LM: cluster of each labelled item at each level.
        class_M: its class.
        shifts: of the levels.
    """
    f_L2 = np.array([f_scores(found_M, class_M) for found_M in found_LM])
    classes = np.unique(class_M)
    fold_C = np.random.default_rng(0).permutation(len(classes)) % FOLDS
    fold_M = fold_C[np.searchsorted(classes, class_M)]
    # Merges with items of other folds count: each item among all of them, in the clusters of the level of the other folds.
    counts_M3 = np.zeros((len(class_M), 3))
    for fold in np.unique(fold_M):
        rest_M = fold_M != fold
        at = best_level(np.array([f_scores(found_M[rest_M], class_M[rest_M]) for found_M in found_LM]))
        counts_M3[~rest_M] = item_counts(found_LM[at], class_M)[~rest_M]
    expected = expected_f(counts_M3)
    return {
        "shift": shifts[best_level(f_L2)],
        "expected_pairwise_f": round(expected[0], 4),
        "expected_bcubed_f": round(expected[1], 4),
        "labelled": len(class_M),
        "classes": len(classes),
        "by_level": [
            {"shift": shift, "pairwise_f": round(f[0], 4), "bcubed_f": round(f[1], 4)}
            for shift, f in zip(shifts, f_L2.tolist(), strict=True)
        ],
    }


def best_level(f_L2: np.ndarray) -> int:
    """The level with the highest mean of both F, with those of its neighbours counting half."""
    f_L = f_L2.mean(1)
    padded = np.pad(f_L, 1, mode="edge")
    return int((padded[:-2] + 2 * f_L + padded[2:]).argmax())


def item_counts(cluster_M: np.ndarray, class_M: np.ndarray) -> np.ndarray:
    """Of each item the number of items in its cluster, in its class and in both, itself included: int64 (M, 3)."""
    keys = cluster_M, class_M, np.unique(cluster_M, return_inverse=True)[1] * (class_M.max() + 1) + class_M
    found = (np.unique(key_M, return_inverse=True, return_counts=True)[1:] for key_M in keys)
    return np.stack([count_G[at_M] for at_M, count_G in found], 1)


def expected_f(counts_M3: np.ndarray) -> tuple[float, float]:
    """Pairwise and BCubed F of items that may each come from another clustering, by their ``item_counts``.

    From one clustering they are its own (``evaluate.scores``).
    """
    clusters, classes, both = (counts_M3 - 1).sum(0).tolist()
    pairwise = both / clusters if clusters else 1.0, both / classes if classes else 1.0
    bcubed = (counts_M3[:, 2:] / counts_M3[:, :2]).mean(0).tolist()
    return _harmonic_mean(*pairwise), _harmonic_mean(*bcubed)


def _harmonic_mean(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _clusters(tasks: Tasks, level: Level, labels: list[Ref], row_M: Ref) -> np.ndarray:
    """The cluster of each labelled item, as its label, by the labels of a level."""
    found = concat_blocks(
        tasks.get([tasks.call(_labels_of, level.nodes[s], labels[s], row_M) for s in range(level.shards)])
    )
    label_M: np.ndarray = found["label_M"][np.argsort(found["row_M"])]
    return label_M


def _labelled_rows(work: Storage, unit: int, part: Loader, number: pa.Table) -> Block:
    ids = load_ids(work, unit, ["row", "id"])
    ids = ids.filter(pc.is_in(ids["row"], pa.array(part()["id_N"])))  # Rows of a repeated id are set aside.
    at = pc.index_in(ids["id"].cast(pa.string()), value_set=number["id"].cast(pa.string()).combine_chunks())
    known = pc.is_valid(at)
    class_N = number["class"].to_numpy()[at.filter(known).to_numpy()]
    return {"row_M": ids["row"].filter(known).to_numpy().astype(np.int64), "class_M": class_N.astype(np.int64)}


def _labels_of(nodes: Block, labels: Block, row_M: np.ndarray) -> Block:
    here_N = np.isin(nodes["id_N"], row_M)
    return {"row_M": nodes["id_N"][here_N], "label_M": own_labels(labels, len(here_N))[here_N]}
