"""Another cut of a finished run: its assignments with the clusters of another level, without computing anything anew."""

import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hilander_dist.cluster.partition.average_linkage import cut as cut_tree
from hilander_dist.config import Config
from hilander_dist.errors import ConfigError, InputError, OutputError
from hilander_dist.jobs.job import MANIFEST_VERSION
from hilander_dist.monitor.log import logger
from hilander_dist.monitor.progress import Progress
from hilander_dist.run import SUCCESS, Run, code_version
from hilander_dist.runtime import ray_session
from hilander_dist.source import refuse_overlap
from hilander_dist.storage import Storage
from hilander_dist.tasks import Tasks

SURETY = ("confidence", "margin")
"""Columns that are of the run's own answer."""


def run_cut_job(
    run_uri: str,
    output_uri: str,
    level: int | None = None,
    clusters: int | None = None,
    shift: float | None = None,
    address: str | None = None,
    debug: bool = False,
    restart: bool = False,
) -> dict[str, Any]:
    """Write ``assignments/`` and ``clusters/`` of another cut.

    Args:
        run_uri: output directory of `hilander cluster`, finished.
        output_uri: a new directory, or that of the same cut, killed: then it goes on.
        level: a level of the run.
        clusters: so many clusters: of the dendrogram, exactly, up to the number of the run's own answer; above it those of the
            written level that has the next number.
        shift: the written level of the path with the nearest shift.
        address: Ray cluster; see ``runtime.ray_session``.
        debug: show the workers' log.
        restart: discard a cut that the output directory holds.

    Returns:
        The manifest.

    Raises:
        UserError: the run or the output cannot be used, or not exactly one of level, clusters and shift is given.
    """
    began = time.time()
    source = Storage(run_uri)
    manifest = finished_run(source)
    cut = choose_cut(manifest, level, clusters, shift, with_tree=source.is_directory("tree"))
    try:
        refuse_overlap([run_uri], output_uri)
    except OutputError:
        raise OutputError(f"{output_uri}: stands in the run {run_uri}: choose an --output beside it") from None
    output = Storage(output_uri)
    output.check_writable()
    fingerprint = {"job": "cut", "run": manifest["fingerprint"], "cut": cut, "code": code_version()}
    with Run(output, fingerprint, restart) as run, ray_session(address, debug, Config().cluster.wait_s):
        tasks = Tasks(run.work, run.saved, Progress())
        plan = tasks.call(_plan_cut, source, cut, manifest["chosen_level"])
        files = [info.path for info in source.list("assignments")]
        written = [tasks.call(_cut_file, source, output, path, plan, cut, manifest["chosen_level"]) for path in files]
        made = tasks.call(_write_clusters, output, plan)
        tasks.wait([*written, made], "cut")
        count = tasks.get(made)
        found = {
            "schema_version": MANIFEST_VERSION,
            "job": "cut",
            "run": run_uri,
            "run_fingerprint": manifest["fingerprint"],
            "cut": cut,
            "clusters": count,
            "counts": {"rows": sum(tasks.get(written))},
            "seconds": round(time.time() - began, 3),
            "code": fingerprint["code"],
        }
        run.succeed(found)
    logger.info("done", clusters=count, output=output.uri)
    return found


def finished_run(source: Storage) -> dict[str, Any]:
    """The manifest of a run of `hilander cluster` that is complete.

    Raises:
        InputError: it is not there, not complete, or of another job or version.
    """
    if not source.child(SUCCESS).exists():
        raise InputError(f"{source.uri}: no finished run: name the output directory of `hilander cluster`")
    manifest: dict[str, Any] = source.read_json("manifest.json")
    if manifest.get("job") != "cluster":
        raise InputError(f"{source.uri}: the output of `hilander {manifest.get('job')}`, not of `hilander cluster`")
    if manifest["schema_version"] != MANIFEST_VERSION:
        raise InputError(f"{source.uri}: written by another version of hilander_dist: cluster anew")
    return manifest


def choose_cut(
    manifest: dict[str, Any], level: int | None, clusters: int | None, shift: float | None, with_tree: bool
) -> dict[str, int]:
    """Which level is cut, as ``{"level": L}``, or the number of clusters of the dendrogram, as ``{"clusters": N}``.

    Raises:
        ConfigError: not exactly one is given, or there is no such level, or no level has a shift.
    """
    if sum(given is not None for given in (level, clusters, shift)) != 1:
        raise ConfigError("give one of --level, --clusters and --shift")
    counts = [numbers["clusters"] for numbers in manifest["levels"]]
    if level is not None:
        if not 0 <= level < len(counts):
            raise ConfigError(f"--level {level}: the run has levels 0 to {len(counts) - 1}")
        return {"level": level}
    if clusters is not None:
        if clusters < 1:
            raise ConfigError(f"--clusters {clusters}: at least 1")
        if clusters <= manifest["clusters"] and with_tree:
            return {"clusters": clusters}
        return {"level": min(range(len(counts)), key=lambda at: abs(counts[at] - clusters))}
    shifts = {at: numbers["shift"] for at, numbers in enumerate(manifest["levels"]) if "shift" in numbers}
    if not shifts:
        raise ConfigError("--shift: the run is of a raw model, whose levels have none: use --level or --clusters")
    return {"level": min(shifts, key=lambda at: abs(shifts[at] - (shift or 0.0)))}


def _plan_cut(source: Storage, cut: dict[str, int], chosen: int) -> pa.Table:
    """The clusters of the cut: cluster_id (of the level that is cut, or of the run's answer), to_id (in the cut), peak_id, size."""
    level = cut.get("level", chosen)
    paths = [info.path for info in source.list("clusters") if info.path.startswith(f"clusters/level-{level:02d}-")]
    table = pa.concat_tables(source.read_table(path) for path in sorted(paths)).sort_by("cluster_id")
    columns = {name: table[name] for name in ("cluster_id", "peak_id", "size", "cohesion")}
    if "clusters" not in cut:
        return pa.table({**columns, "to_id": table["cluster_id"], "is_peak": pa.array(np.ones(len(table), dtype=bool))})
    tree = pa.concat_tables(source.read_table(info.path) for info in source.list("tree"))
    first_M, second_M, level_M = (tree[name].to_numpy() for name in ("first", "second", "level"))
    label_C = cut_tree(first_M, second_M, level_M, cut["clusters"])
    peak_C = _densest(source, table, label_C)
    # Clusters are numbered by the rows of their peaks, as the run's own are.
    first_G = np.flatnonzero(peak_C)[np.argsort(label_C[peak_C])]
    to_G = np.argsort(np.argsort(first_G))
    del columns["cohesion"]
    return pa.table({**columns, "to_id": to_G[label_C], "is_peak": peak_C})


def _densest(source: Storage, table: pa.Table, label_C: np.ndarray) -> np.ndarray:
    """Which clusters of the run's answer have the densest row of their new cluster: bool (C)."""
    density_C = np.empty(len(table), dtype=np.float32)
    for info in source.list("assignments"):
        rows = source.read_table(info.path, columns=["cluster_id", "density", "is_peak"])
        rows = rows.filter(rows["is_peak"])
        density_C[rows["cluster_id"].to_numpy()] = rows["density"].to_numpy()
    order = np.lexsort((np.arange(len(table)), -density_C, label_C))
    first = np.r_[True, label_C[order][1:] != label_C[order][:-1]]
    peak_C = np.zeros(len(table), dtype=bool)
    peak_C[order[first]] = True
    return peak_C


def _cut_file(source: Storage, output: Storage, path: str, plan: pa.Table, cut: dict[str, int], chosen: int) -> int:
    rows = source.read_table(path)
    level = cut.get("level", chosen)
    own_N = rows[f"level_{level}"].to_numpy()
    cluster_N = plan["to_id"].to_numpy()[own_N]
    # The peak of the whole is the peak of one of its clusters.
    peaks = pc.equal(rows["id"], plan["peak_id"].take(pa.array(own_N)))
    is_peak = pc.and_(peaks, pa.array(plan["is_peak"].to_numpy(zero_copy_only=False)[own_N]))
    columns = {name: rows[name] for name in rows.column_names}
    columns["cluster_id"], columns["is_peak"] = pa.array(cluster_N), is_peak
    if cut != {"level": chosen}:
        columns = {name: column for name, column in columns.items() if name not in SURETY}
    output.write_table(path, pa.table(columns))
    return len(rows)


def _write_clusters(output: Storage, plan: pa.Table) -> int:
    size = plan.group_by("to_id").aggregate([("size", "sum")]).sort_by("to_id")
    peaks = plan.filter(plan["is_peak"]).sort_by("to_id")
    columns = {"cluster_id": peaks["to_id"], "size": size["size_sum"], "peak_id": peaks["peak_id"]}
    if "cohesion" in plan.column_names:
        columns["cohesion"] = peaks["cohesion"]
    output.write_table("clusters/part-00000.parquet", pa.table(columns))
    return len(peaks)
