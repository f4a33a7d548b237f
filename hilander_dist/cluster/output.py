"""From levels to files: composed cluster ids per sample, clusters with parents, metrics.

Levels are composed once, at the end, from the top down: the clusters of a level know their parent's chain of ids before
their members ask for it. Files are cut by the input's units and by fixed ranges of cluster ids, and rows stand in input
order, so that the same input gives the same files whatever the number of shards.
"""

import functools
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hilander_dist.cluster.hierarchy.levels import Hierarchy, LevelOutput
from hilander_dist.evaluate import Contingency, contingency, merge, scores_json
from hilander_dist.exchange import concat_blocks, fetch_rows, fixed_starts, partition_rows, shuffle, take_rows
from hilander_dist.ingest import Ingested, load_ids, places, serve_ids
from hilander_dist.source import Unit
from hilander_dist.storage import Storage
from hilander_dist.tasks import Block, Ref, Tasks

CLUSTERS_PER_FILE = 262_144
"""Rows of a clusters file."""


def write_outputs(tasks: Tasks, output: Storage, work: Storage, data: Ingested, found: Hierarchy) -> None:
    """Write ``assignments/``, ``clusters/``, where there is one ``tree/``, and, when the input has labels, ``metrics.json``.

    Args:
        tasks: where to run.
        output: the run directory.
        work: its work area, with the ingested ids.
        data: the input.
        found: the levels, and which is the answer.
    """
    levels = found.levels
    tables = [_cluster_tables(tasks, levels, index) for index in range(len(levels))]
    chains = _compose(tasks, levels, tables, found.chosen)
    files = _write_clusters(tasks, output, work, data, levels, tables)
    if found.tree is not None:
        files.append(tasks.call(_write_tree, output, found.tree))
    units = _samples_by_unit(tasks, data, levels, chains)
    written = [
        tasks.call(write_assignments, output, work, unit, inbox, data.classes, len(levels), found.chosen, returns=2)
        for unit, inbox in zip(data.source.units, units, strict=True)
    ]
    tasks.wait([*files, *(rows for rows, _ in written)], "write outputs")
    rows = sum(tasks.get([rows for rows, _ in written]))
    assert rows == data.rows, f"{rows} assignments for {data.rows} good rows"
    if data.classes is not None:
        counts = [counts for _, counts in written]
        metrics = tasks.get(tasks.call(_metrics, counts, len(levels), found.chosen, rows))
        if metrics is not None:
            output.write_json("metrics.json", metrics)


def write_assignments(
    output: Storage,
    work: Storage,
    unit: Unit,
    inbox: list[Block],
    classes: pa.Array | None,
    levels: int,
    chosen: int,
) -> tuple[int, list[Contingency]]:
    """Write the assignments of one unit of the input, in input order; of .npy, whose ids are numbers, with file and row.

    Returns:
        The number of rows, and per level the counts of (cluster, class).
    """
    rows = concat_blocks(inbox)
    order = np.argsort(rows["id_N"])
    rows = {name: array[order] for name, array in rows.items()}
    ids = load_ids(work, unit.index, ["row", "id"] if classes is None else ["row", "id", "label"])
    if len(ids) > len(order):  # rows with duplicate ids were set aside after the ids were written
        ids = ids.filter(pc.is_in(ids["row"], pa.array(rows["id_N"])))
    assert np.array_equal(ids["row"].to_numpy(), rows["id_N"]), f"unit {unit.index}: assignments do not match its rows"
    columns: dict[str, Any] = {"id": ids["id"], **(places(unit, rows["id_N"]) if unit.kind == "npy" else {})}
    columns["cluster_id"] = pa.array(rows["chain_NL"][:, chosen])
    for level in range(levels):
        columns[f"level_{level}"] = pa.array(rows["chain_NL"][:, level])
    columns["density"] = pa.array(rows["density_N"])
    for name in ("confidence", "margin"):
        if f"{name}_N" in rows:
            columns[name] = pa.array(rows[f"{name}_N"], mask=np.isnan(rows[f"{name}_N"]))
    columns["is_peak"] = pa.array(rows["is_peak_N"])
    output.write_table(f"assignments/part-{unit.index:05d}.parquet", pa.table(columns))
    counts = []
    if classes is not None:
        class_N = pc.fill_null(pc.index_in(ids["label"].combine_chunks(), classes), -1).to_numpy().astype(np.int64)
        known = class_N >= 0
        counts = [contingency(rows["chain_NL"][known, level], class_N[known]) for level in range(levels)]
    return len(order), counts


def cluster_table(trees: list[Block], parents: list[Block], start: int, stop: int) -> Block:
    """The clusters start .. stop - 1 of a level, in order.

    Args:
        trees: blocks of rank_N, id_N, count_N and cohesion_N.
        parents: blocks of at_N and label_N: a cluster and its tree one level up; empty at the top.
        start: first cluster.
        stop: one after the last.

    Returns:
        peak_N, count_N, cohesion_N, similarity_N where they have it, and parent_N, -1 at the top.
    """
    found = concat_blocks(trees)
    at = found["rank_N"] - start
    table = {}
    columns = {"peak_N": "id_N", "count_N": "count_N", "cohesion_N": "cohesion_N", "similarity_N": "similarity_N"}
    for name, column in columns.items():
        if column not in found:
            continue
        table[name] = np.empty(stop - start, dtype=found[column].dtype)
        table[name][at] = found[column]
    table["parent_N"] = np.full(stop - start, -1, dtype=np.int64)
    for block in parents:
        table["parent_N"][block["at_N"] - start] = block["label_N"]
    return table


def extend_chain(start: int, table: Block, needs: list[np.ndarray], answers: list[Block], is_answer: bool) -> Block:
    """A range of clusters with their ids at this level and all above, and the row of the peak and the size of their cluster in
    the answer (above it, of the top: nobody asks)."""
    own_N1 = np.arange(start, start + len(table["peak_N"]))[:, None]
    if not answers:
        return {"chain_NL": own_N1, "peak_N": table["peak_N"], "size_N": table["count_N"]}
    above = _rows_for(table["parent_N"], needs, answers)
    answer = {"peak_N": table["peak_N"], "size_N": table["count_N"]} if is_answer else above
    chain_NL = np.concatenate([own_N1, above["chain_NL"]], axis=1)
    return {"chain_NL": chain_NL, "peak_N": answer["peak_N"], "size_N": answer["size_N"]}


def _cluster_tables(tasks: Tasks, levels: list[LevelOutput], index: int) -> list[Ref]:
    level = levels[index]
    starts = fixed_starts(level.clusters, CLUSTERS_PER_FILE)
    R = len(starts) - 1
    trees = shuffle([tasks.call(_by_key, block, "rank_N", starts, returns=R) for block in level.trees], R)
    above = levels[index + 1].members if index + 1 < len(levels) else []
    parents = shuffle([tasks.call(_links_by_key, block, starts, returns=R) for block in above], R)
    return [tasks.call(cluster_table, trees[r], parents[r], starts[r], starts[r + 1]) for r in range(R)]


def _compose(tasks: Tasks, levels: list[LevelOutput], tables: list[list[Ref]], chosen: int) -> list[Ref]:
    """Per range of level-0 clusters a block of chain_NL [n, levels], and peak_N and size_N of their cluster in the answer."""
    chains: list[Ref] = []
    for index in reversed(range(len(levels))):
        starts = fixed_starts(levels[index].clusters, CLUSTERS_PER_FILE)
        needs: list[list[Ref]] = [[]] * len(tables[index])
        answers = needs
        if chains:
            keys = [tasks.call(_column, table, "parent_N") for table in tables[index]]
            above = fixed_starts(levels[index + 1].clusters, CLUSTERS_PER_FILE)
            needs, answers = fetch_rows(tasks, keys, chains, above, take_rows)
        chains = [
            tasks.call(extend_chain, starts[r], table, needs[r], answers[r], index == chosen)
            for r, table in enumerate(tables[index])
        ]
    return chains


def _samples_by_unit(tasks: Tasks, data: Ingested, levels: list[LevelOutput], chains: list[Ref]) -> list[list[Ref]]:
    """Per unit of the input the blocks with its samples' output columns."""
    keys = [tasks.call(_column, block, "label_N") for block in levels[0].members]
    starts = fixed_starts(levels[0].clusters, CLUSTERS_PER_FILE)
    needs, answers = fetch_rows(tasks, keys, chains, starts, take_rows)
    units = len(data.source.units)
    pieces = [
        tasks.call(_sample_columns, members, needs[s], answers[s], data.source.starts, returns=units)
        for s, members in enumerate(levels[0].members)
    ]
    return shuffle(pieces, units)


def _write_clusters(
    tasks: Tasks, output: Storage, work: Storage, data: Ingested, levels: list[LevelOutput], tables: list[list[Ref]]
) -> list[Ref]:
    serve = functools.partial(serve_ids, work)
    written = []
    path = any("shift" in level.numbers for level in levels)
    for index, ranges in enumerate(tables):
        shift = levels[index].numbers.get("shift", np.nan) if path else None
        keys = [tasks.call(_column, table, "peak_N") for table in ranges]
        needs, answers = fetch_rows(tasks, keys, data.source.units, data.source.starts, serve)
        starts = fixed_starts(levels[index].clusters, CLUSTERS_PER_FILE)
        written += [
            tasks.call(_write_cluster_file, output, index, r, starts[r], table, needs[r], answers[r], shift)
            for r, table in enumerate(ranges)
        ]
    return written


def _write_cluster_file(
    output: Storage,
    level: int,
    r: int,
    start: int,
    table: Block,
    needs: list[np.ndarray],
    answers: list[pa.Array],
    shift: float | None,
) -> None:
    """``shift`` of a relational model's level: NaN above its path, None of a raw model."""
    n = len(table["peak_N"])
    known, ids = np.concatenate(needs), pa.concat_arrays(answers)
    peak_id = ids.take(pa.array(np.searchsorted(known, table["peak_N"])))
    columns = {
        "level": pa.array(np.full(n, level, dtype=np.int32)),
        "cluster_id": pa.array(np.arange(start, start + n)),
        "parent_id": pa.array(table["parent_N"], mask=table["parent_N"] < 0),
        "size": pa.array(table["count_N"]),
        "peak_id": peak_id,
        "cohesion": pa.array(table["cohesion_N"]),
    }
    if shift is not None:
        similarity_N = table.get("similarity_N", np.full(n, np.nan, dtype=np.float32))
        columns["shift"] = pa.array(np.full(n, shift), mask=np.full(n, np.isnan(shift)))
        columns["similarity"] = pa.array(similarity_N, mask=np.isnan(similarity_N))
    output.write_table(f"clusters/level-{level:02d}-part-{r:05d}.parquet", pa.table(columns))


def _write_tree(output: Storage, tree: Block) -> None:
    names = ("first", "second", "distance", "count", "level")
    output.write_table("tree/part-00000.parquet", pa.table({name: tree[f"{name}_M"] for name in names}))


def _metrics(counts: list[list[Contingency]], levels: int, chosen: int, rows: int) -> dict[str, Any] | None:
    merged = {level: merge(unit[level] for unit in counts) for level in range(levels)}
    return scores_json(merged[chosen], merged, rows) if len(merged[0].count_E) else None


def _sample_columns(members: Block, needs: list[np.ndarray], answers: list[Block], unit_starts: tuple[int, ...]) -> Any:
    chain = _rows_for(members["label_N"], needs, answers)
    columns: Block = {
        "id_N": members["id_N"],
        "chain_NL": chain["chain_NL"],
        **{name: members[name] for name in ("density_N", "confidence_N", "margin_N") if name in members},
        "is_peak_N": members["id_N"] == chain["peak_N"],
    }
    if "margin_N" in columns:  # What its links are like says nothing of a row that is alone.
        for name in ("confidence_N", "margin_N"):
            columns[name] = np.where(chain["size_N"] > 1, columns[name], np.float32(np.nan))
    return partition_rows(columns, members["id_N"], unit_starts)


def _rows_for(keys: np.ndarray, needs: list[np.ndarray], answers: list[Block]) -> Block:
    at = np.searchsorted(np.concatenate(needs), keys)
    return {name: array[at] for name, array in concat_blocks(answers).items()}


def _by_key(block: Block, key: str, starts: tuple[int, ...]) -> Any:
    return partition_rows(block, block[key], starts)


def _links_by_key(block: Block, starts: tuple[int, ...]) -> Any:
    return partition_rows({"at_N": block["at_N"], "label_N": block["label_N"]}, block["at_N"], starts)


def _column(block: Block, name: str) -> np.ndarray:
    return block[name]
