"""From files to unit rows: read, validate, quarantine and number the rows, by Ray Data.

Ray Data streams the input's units (source.py) through ``ingest_unit``; each becomes a block of good rows, a table of their
ids, and a table of bad rows with reasons. Then duplicate ids, which no unit can see alone, are found by a shuffle on the
id's hash: the first row with an id stays. A row's *id* inside the program is its number in the input (int64).
"""

import functools
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from hilander_dist.errors import InputError
from hilander_dist.exchange import as_list, shuffle, unpack
from hilander_dist.monitor.log import logger
from hilander_dist.run import Run
from hilander_dist.source import Layout, Source, Unit, read_unit
from hilander_dist.storage import Storage
from hilander_dist.tasks import Block, Loader, Ref, Tasks

IDS_PER_HASH_TASK = 4_194_304
"""Ids that one task compares for duplicates: about 1 GiB with string ids of 100 bytes."""

UNIT_TOLERANCE = 2.0**-22
"""A row this near to length 1 is a unit row: rounding its coordinates to float32 moves the length by less."""

TINY = 2.0**-400
"""Shorter rows, and those longer than 1 / TINY, are scaled before they are squared: float64 input can be so extreme."""

DUPLICATE = "duplicate id"

CLASSES = "ingest/classes.parquet"


@dataclass(frozen=True)
class Ingested:
    """The usable rows of an input."""

    source: Source
    parts: list[Loader]
    """Per unit what reads its block: id_N int64 (row number), x_ND unit rows (float32 or float16), and class_N int64
    where the input has labels (-1: none)."""
    rows: int
    """Good rows."""
    bad: dict[str, int]
    """Bad rows by reason."""
    classes: Ref | None
    """The distinct labels in ascending order, a pyarrow array; class_N indexes it."""


def ingest(tasks: Tasks, run: Run, source: Source, vectors: str = "float32") -> Ingested:
    """Read and validate every row of the input.

    Args:
        tasks: where to run.
        run: the run directory; blocks go to its work area and bad rows to ``bad_rows/``.
        source: the input.
        vectors: the type in which unit rows are kept, ``float32`` or ``float16``.

    Raises:
        InputError: the share of bad rows exceeds ``input.max_bad_share``; the counts by reason are in the message.
    """
    counts = run.marker("ingest")
    if counts is None:
        unit_counts = _read_units(tasks, run, source, vectors)
        duplicates = _find_duplicates(tasks, run, source)
        bad = Counter(duplicates)
        for unit in unit_counts:
            bad.update(unit)
        counts = {"rows": source.rows - bad.total(), "bad": dict(bad)}
        run.mark("ingest", counts)
    _refuse_many_bad(source, counts)
    classes = None
    if source.has_label and CLASSES in run.saved:
        classes = tasks.call(_load_labels, run.work)
    elif source.has_label:
        found = [tasks.call(_unit_labels, run.work, unit.index) for unit in source.units]
        classes = tasks.call(_merge_labels, run.work, found)
        tasks.wait([classes], "classes")
    parts: list[Loader] = [
        functools.partial(load_part, run.work, unit.index, DUPLICATE in counts["bad"], source.has_label)
        for unit in source.units
    ]
    return Ingested(source, parts, counts["rows"], counts["bad"], classes)


def load_part(work: Storage, unit: int, has_duplicates: bool, labelled: bool) -> Block:
    """Read back a unit's good rows, without duplicates, labels as indices into the classes."""
    block = work.read_block(_rows_path(unit))
    if labelled:
        classes = _load_labels(work)
        label = load_ids(work, unit, ["label"])["label"]
        block["class_N"] = pc.fill_null(pc.index_in(label, classes), -1).to_numpy().astype(np.int64)
    if has_duplicates and work.exists(_duplicates_path(unit)):
        drop = work.read_block(_duplicates_path(unit))["id_N"]
        keep = ~np.isin(block["id_N"], drop)
        block = {name: array[keep] for name, array in block.items()}
    return block


def load_ids(work: Storage, unit: int, columns: list[str]) -> pa.Table:
    """The user's ids of a unit's good rows, duplicates included: columns row, id and, where the input has it, label."""
    return work.read_table(_ids_path(unit), columns)


def serve_ids(work: Storage, unit: Unit, rows: np.ndarray) -> pa.Array:
    """The user's ids of rows of a unit, counted from its first one: the ``serve`` of ``exchange.fetch_rows``."""
    ids = load_ids(work, unit.index, ["row", "id"])
    at = np.searchsorted(ids["row"].to_numpy(), rows + unit.first_row)
    return ids["id"].combine_chunks().take(pa.array(at))


def normalise_rows(x_ND: np.ndarray) -> np.ndarray:
    """Rows divided by their length: float64 inside, float32 out, each row by itself (algorithm.md 1.2).

    Float32 rows whose length is 1 to rounding keep their bits, so that normalising twice changes nothing.
    """
    wide = x_ND.astype(np.float64)
    with np.errstate(over="ignore", under="ignore"):
        length_N = np.sqrt(np.einsum("nd,nd->n", wide, wide))
        far_N = (length_N < TINY) | (length_N > 1 / TINY)
        if far_N.any():
            wide[far_N] = np.ldexp(wide[far_N], -np.frexp(np.abs(wide[far_N]).max(axis=1, keepdims=True))[1])
            length_N[far_N] = np.sqrt(np.einsum("nd,nd->n", wide[far_N], wide[far_N]))
    length_N[np.abs(length_N - 1) < UNIT_TOLERANCE] = 1.0
    return np.asarray(wide / length_N[:, None], dtype=np.float32)


def split_bad_rows(table: pa.Table, fault_N: np.ndarray, dim: int, need_label: bool) -> tuple[np.ndarray, np.ndarray]:
    """Tell the rows of a unit apart.

    Args:
        table: columns id, embedding and perhaps label.
        fault_N: why a row is bad already, "" where it is not (``source.read_unit``).
        dim: the number of dimensions that a row must have.
        need_label: whether a null label makes a row bad.

    Returns:
        ``reason_N`` (object: "" for a good row, else why it is bad) and the good rows as ``x_MD`` float32 unit rows.
    """
    reason_N = fault_N.copy()

    def mark(bad_N: np.ndarray, why: str) -> None:
        reason_N[bad_N & (reason_N == "")] = why

    mark(table["id"].is_null().to_numpy(), "null id")
    mark(table["embedding"].is_null().to_numpy(), "null embedding")
    if need_label:
        mark(table["label"].is_null().to_numpy(), "null label")
    length_N = pc.fill_null(pc.list_value_length(table["embedding"]), 0).to_numpy()
    mark(length_N != dim, f"wrong length, not {dim}")
    rows_M = np.flatnonzero(reason_N == "")
    kept = table["embedding"].take(pa.array(rows_M)).combine_chunks()
    raw_MD = kept.flatten().to_numpy(zero_copy_only=False).reshape(len(rows_M), dim)
    finite_M = np.isfinite(raw_MD).all(axis=1)
    nonzero_M = (raw_MD != 0).any(axis=1)
    reason_N[rows_M[~finite_M]] = "NaN or infinite value"
    reason_N[rows_M[finite_M & ~nonzero_M]] = "zero vector"
    return reason_N, normalise_rows(raw_MD[finite_M & nonzero_M])


def ingest_unit(layout: Layout, work: Storage, output: Storage, vectors: str, unit: Unit) -> dict[str, int]:
    """Read, validate and save one unit; return the number of bad rows by reason."""
    table, fault_N = read_unit(layout, unit)
    reason_N, x_MD = split_bad_rows(table, fault_N, layout.dim, layout.need_label)
    good_N = reason_N == ""
    row_N = np.arange(unit.first_row, unit.first_row + unit.rows, dtype=np.int64)
    ids = table.drop_columns(["embedding"]).append_column("row", pa.array(row_N)).filter(pa.array(good_N))
    work.write_block(_rows_path(unit.index), {"id_N": row_N[good_N], "x_ND": x_MD.astype(vectors, copy=False)})
    work.write_table(_ids_path(unit.index), ids)
    if not good_N.all():
        _write_bad_rows(output, "rows", unit, table.filter(pa.array(~good_N)), row_N[~good_N], reason_N[~good_N])
    bad = dict(Counter(reason_N[~good_N].tolist()))
    work.write_json(_done_path(unit.index), bad)
    return bad


def _read_units(tasks: Tasks, run: Run, source: Source, vectors: str) -> list[dict[str, int]]:
    """Stream the units through ``ingest_unit``; what returns to the driver is a few counts per unit."""
    done = {
        unit.index: run.work.read_json(_done_path(unit.index))
        for unit in source.units
        if _done_path(unit.index) in run.saved
    }
    todo = [unit for unit in source.units if unit.index not in done]
    read = functools.partial(ingest_unit, source.layout, run.work, run.output, vectors)
    for at, counts in tasks.stream(read, todo, "ingest"):
        done[todo[at].index] = counts
    return [done[unit.index] for unit in source.units]


def _find_duplicates(tasks: Tasks, run: Run, source: Source) -> dict[str, int]:
    """Quarantine every row whose id an earlier row has; the ids of a .npy file are row numbers and cannot repeat."""
    if source.units[0].kind == "npy":
        return {}
    receivers = -(-source.rows // IDS_PER_HASH_TASK)
    pieces = [tasks.call(_hash_ids, run.work, unit.index, receivers, returns=receivers) for unit in source.units]
    found = [tasks.call(_repeated_ids, inbox) for inbox in shuffle(pieces, receivers)]
    # Units without duplicates, as a rule all of them, get no task.
    index_U = tasks.get(tasks.call(_units_with, found, source.starts))
    if not len(index_U):
        return {}
    units = [source.units[index] for index in index_U.tolist()]
    split = as_list(tasks.call(_split_by_unit, found, source.starts, index_U, returns=len(units)), len(units))
    saved = [
        tasks.call(_save_duplicates, run.work, run.output, unit, row_M)
        for unit, row_M in zip(units, split, strict=True)
    ]
    return {DUPLICATE: sum(tasks.get(saved))}


def _hash_ids(work: Storage, unit: int, receivers: int) -> Any:
    table = load_ids(work, unit, ["row", "id"])
    bucket = pd.util.hash_array(table["id"].to_pandas().to_numpy()) % np.uint64(receivers)
    return unpack([table.filter(pa.array(bucket == r)) for r in range(receivers)])


def _repeated_ids(inbox: list[pa.Table]) -> np.ndarray:
    """Ascending row numbers whose id stands in an earlier row; the inbox is in row order."""
    table = pa.concat_tables(inbox)
    again = table["id"].to_pandas().duplicated(keep="first").to_numpy()
    return np.asarray(table["row"].to_numpy()[again])


def _units_with(found: list[np.ndarray], starts: tuple[int, ...]) -> np.ndarray:
    """Ascending numbers of the units in which rows stand."""
    return np.unique(np.searchsorted(starts, np.concatenate(found), side="right") - 1)


def _split_by_unit(found: list[np.ndarray], starts: tuple[int, ...], index_U: np.ndarray) -> Any:
    """Ascending row numbers of each of these units."""
    row_M = np.sort(np.concatenate(found))
    return unpack(np.split(row_M, np.searchsorted(row_M, np.asarray(starts)[index_U[1:]])))


def _save_duplicates(work: Storage, output: Storage, unit: Unit, row_M: np.ndarray) -> int:
    ids = load_ids(work, unit.index, ["row", "id"])
    ids = ids.filter(pc.is_in(ids["row"], pa.array(row_M)))
    _write_bad_rows(output, "duplicates", unit, ids, row_M, np.full(len(row_M), DUPLICATE, dtype=object))
    work.write_block(_duplicates_path(unit.index), {"id_N": row_M})
    return len(row_M)


def _write_bad_rows(
    output: Storage, kind: str, unit: Unit, table: pa.Table, row_M: np.ndarray, reason_M: np.ndarray
) -> None:
    bad = pa.table(
        {
            "id": table["id"],
            **places(unit, row_M),
            "reason": pa.array(reason_M.tolist(), pa.string()),
        }
    )
    output.write_table(f"bad_rows/{kind}-{unit.index:05d}.parquet", bad)


def places(unit: Unit, row_M: np.ndarray) -> dict[str, pa.Array]:
    """Columns file and row, counted in the file, of rows of a unit."""
    return {
        "file": pa.array([unit.uri] * len(row_M), pa.string()),
        "row": pa.array(row_M - unit.first_row + unit.row_in_file, pa.int64()),
    }


def _refuse_many_bad(source: Source, counts: dict[str, Any]) -> None:
    bad = sum(counts["bad"].values())
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(counts["bad"].items()))
    if bad > source.layout.columns.max_bad_share * source.rows:
        raise InputError(
            f"{source.uri}: {bad} of {source.rows} rows cannot be used ({reasons}): more than "
            f"input.max_bad_share = {source.layout.columns.max_bad_share}; see bad_rows/ in the output"
        )
    if counts["rows"] == 0:
        raise InputError(f"{source.uri}: none of the {source.rows} rows can be used ({reasons})")
    if bad:
        logger.warning("bad rows set aside", bad=bad, rows=source.rows, reasons=reasons)


def _rows_path(unit: int) -> str:
    return f"ingest/rows-{unit:05d}.safetensors"


def _ids_path(unit: int) -> str:
    return f"ingest/ids-{unit:05d}.parquet"


def _duplicates_path(unit: int) -> str:
    return f"ingest/duplicates-{unit:05d}.safetensors"


def _done_path(unit: int) -> str:
    return f"ingest/done-{unit:05d}.json"


def _unit_labels(work: Storage, unit: int) -> pa.Array:
    return pc.unique(load_ids(work, unit, ["label"])["label"].combine_chunks()).drop_null()


def _merge_labels(work: Storage, found: list[pa.Array]) -> pa.Array:
    every = pc.unique(pa.concat_arrays(found))
    classes = every.take(pc.array_sort_indices(every))
    work.write_table(CLASSES, pa.table({"class": classes}))
    return classes


def _load_labels(work: Storage) -> pa.Array:
    return work.read_table(CLASSES)["class"].combine_chunks()
