"""The k-NN graph as Parquet, for people who need just that: ``graph/*.parquet`` in input order, with the user's ids."""

import functools
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hilander_dist.exchange import concat_blocks, fetch_rows, partition_rows, shuffle, take_rows
from hilander_dist.ingest import Ingested, load_ids, places, serve_ids
from hilander_dist.knn.layout import Level
from hilander_dist.source import Unit
from hilander_dist.storage import Storage
from hilander_dist.tasks import Block, Ref, Tasks


def write_graph(tasks: Tasks, output: Storage, work: Storage, data: Ingested, level: Level, graph: list[Ref]) -> int:
    """Write each sample's neighbours: id, neighbor_ids and similarities, the most similar first; of .npy with file and row.

    Args:
        tasks: where to run.
        output: the run directory.
        work: its work area, with the ingested ids.
        data: the input.
        level: level 0.
        graph: its graph, see ``graph.build_graph``.

    Returns:
        The number of rows written.
    """
    ids = [tasks.call(_ids, nodes) for nodes in level.nodes]
    keys = [tasks.call(_neighbours, block) for block in graph]
    needs, answers = fetch_rows(tasks, keys, ids, level.starts, take_rows)
    units = data.source.units
    pieces = [
        tasks.call(_rows_by_unit, ids[s], graph[s], needs[s], answers[s], data.source.starts, returns=len(units))
        for s in range(level.shards)
    ]
    inboxes = shuffle(pieces, len(units))
    rows = [tasks.call(_neighbour_rows, inbox) for inbox in inboxes]
    serve = functools.partial(serve_ids, work)
    needs, answers = fetch_rows(tasks, rows, units, data.source.starts, serve)
    written = [
        tasks.call(_write_unit, output, work, unit, inboxes[unit.index], needs[unit.index], answers[unit.index])
        for unit in units
    ]
    tasks.wait(written, "write graph")
    return sum(tasks.get(written))


def _ids(nodes: Block) -> Block:
    return {"id_N": nodes["id_N"]}


def _neighbours(graph: Block) -> np.ndarray:
    return graph["nbr_NK"]


def _rows_by_unit(
    ids: Block, graph: Block, needs: list[np.ndarray], answers: list[Block], unit_starts: tuple[int, ...]
) -> Any:
    """Neighbour positions as row numbers of the input, -1 pads, cut by the unit of their node."""
    known, row = np.concatenate(needs), concat_blocks(answers)["id_N"]
    nbr_NK = graph["nbr_NK"]
    real_NK = nbr_NK >= 0
    nbr_row_NK = np.full(nbr_NK.shape, -1, dtype=np.int64)
    nbr_row_NK[real_NK] = row[np.searchsorted(known, nbr_NK[real_NK])]
    columns = {"id_N": ids["id_N"], "nbr_row_NK": nbr_row_NK, "sim_NK": graph["sim_NK"]}
    return partition_rows(columns, ids["id_N"], unit_starts)


def _neighbour_rows(inbox: list[Block]) -> np.ndarray:
    return np.concatenate([np.unique(block["nbr_row_NK"]) for block in inbox])


def _write_unit(
    output: Storage, work: Storage, unit: Unit, inbox: list[Block], needs: list[np.ndarray], answers: list[pa.Array]
) -> int:
    rows = concat_blocks(inbox)
    order = np.argsort(rows["id_N"])
    nbr_row_NK, sim_NK = rows["nbr_row_NK"][order], rows["sim_NK"][order]
    ids = load_ids(work, unit.index, ["row", "id"])
    ids = ids.filter(pc.is_in(ids["row"], pa.array(rows["id_N"])))
    known, values = np.concatenate(needs), pa.concat_arrays(answers)
    real_NK = nbr_row_NK >= 0
    ends = np.concatenate([[0], np.cumsum(real_NK.sum(axis=1))]).astype(np.int64)
    neighbour = values.take(pa.array(np.searchsorted(known, nbr_row_NK[real_NK])))
    table = {
        "id": ids["id"],
        **(places(unit, rows["id_N"][order]) if unit.kind == "npy" else {}),
        "neighbor_ids": pa.LargeListArray.from_arrays(pa.array(ends), neighbour),
        "similarities": pa.LargeListArray.from_arrays(pa.array(ends), pa.array(sim_NK[real_NK])),
    }
    output.write_table(f"graph/part-{unit.index:05d}.parquet", pa.table(table))
    return len(order)
