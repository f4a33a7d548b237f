"""The input before any row is read: files, row groups, columns, dimension.

The input is cut into *units*: runs of Parquet row groups of one file, or runs of rows of a .npy file. Units depend on the
files alone, never on the cluster. A row's number is its place in the whole input, files in the order of their names.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hilander_dist.config import InputConfig
from hilander_dist.errors import InputError
from hilander_dist.monitor.log import logger
from hilander_dist.storage import FileInfo, Storage, list_inputs

ROWS_PER_UNIT = 32_768
"""Small row groups are read together up to this many rows, and a .npy file is cut at it: 32 MiB at 256 dimensions."""

NPY_TYPES = tuple(np.dtype(order + kind) for order in "<>" for kind in ("f2", "f4", "f8"))
"""Types of a .npy file that can be read."""

FOOTER_THREADS = 16
"""Footers are read side by side: on S3 each is a round trip."""


@dataclass(frozen=True)
class Unit:
    """A run of rows of one file: what one ingest task reads."""

    index: int
    path: str
    first_row: int
    """Number of its first row in the whole input."""
    row_in_file: int
    """Number of its first row in its file."""
    rows: int
    groups: tuple[int, int]
    """Parquet: first row group and the one after the last; (0, 0) for .npy."""


@dataclass(frozen=True)
class Source:
    """An input that has been looked at: its files are readable and their columns fit together."""

    uri: str
    """As it was given."""
    root: Storage
    files: tuple[FileInfo, ...]
    units: tuple[Unit, ...]
    dim: int
    id_type: str
    """"string" or "int64"."""
    has_label: bool
    columns: InputConfig

    @property
    def rows(self) -> int:
        """Rows in all files together, good and bad."""
        return sum(unit.rows for unit in self.units)

    @property
    def starts(self) -> tuple[int, ...]:
        """First row number of each unit, and the number of rows."""
        return (*(unit.first_row for unit in self.units), self.rows)

    def listing(self) -> list[list[Any]]:
        """Files with sizes and tags, for a run's fingerprint."""
        return [[info.path, info.size, info.tag] for info in self.files]


def open_source(uri: str, columns: InputConfig, need_label: bool = False) -> Source:
    """Look at an input: list its files, read the footers, check columns and find the dimension.

    Raises:
        InputError: no file, no row, an unreadable file, a missing or mistyped column, files that do not fit together.
    """
    root, files = list_inputs(uri)
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        heads = list(pool.map(lambda info: _read_head(root, info, columns, need_label), files))
    # A file without rows may have columns of no type, as pandas writes them.
    full = [(info, head) for info, head in zip(files, heads, strict=True) if head.units]
    if not full:
        raise InputError(f"{uri}: no rows in {len(files)} file(s): nothing to do")
    first_info, first = full[0]
    for info, head in full:
        if (head.id_type, head.label_type) != (first.id_type, first.label_type):
            raise InputError(
                f"{root.uri}/{info.path}: its id or label column differs in type from that of {first_info.path}: "
                "write both files alike"
            )
    if need_label and first.label_type is None:
        raise InputError(
            f"{uri}: no column {columns.label_column!r}: labels are needed here; name theirs with --set input.label_column=..."
        )
    units: list[Unit] = []
    row = 0
    for _, head in full:
        for unit in head.units:
            units.append(replace(unit, index=len(units), first_row=row))
            row += unit.rows
    dim = next((head.dim for _, head in full if head.dim), 0) or _first_length(root, units, columns)
    for info, head in full:
        if head.dim and head.dim != dim:
            raise InputError(
                f"{root.uri}/{info.path}: embeddings of {head.dim} dimensions, but {dim} elsewhere in the input"
            )
    return Source(uri, root, tuple(files), tuple(units), dim, first.id_type, first.label_type is not None, columns)


def read_unit(source: Source, unit: Unit) -> pa.Table:
    """Rows of a unit as a table with columns id, embedding and, where the input has it, label."""
    if unit.path.endswith(".npy"):
        return _read_npy_rows(source.root, unit)
    names = source.columns
    columns = [names.id_column, names.embedding_column, *([names.label_column] if source.has_label else [])]
    where = f"{source.root.uri}/{unit.path}"
    with _parsing(where), source.root.open(unit.path) as file:
        table = pq.ParquetFile(file).read_row_groups(range(*unit.groups), columns=columns, use_threads=False)
    out = {"id": _as_key(table, names.id_column, where), "embedding": table[names.embedding_column]}
    if source.has_label:
        out["label"] = _as_key(table, names.label_column, where)
    return pa.table(out)


@dataclass(frozen=True)
class _Head:
    units: tuple[Unit, ...]
    """Without any, nothing else counts."""
    dim: int
    """0 where the footer does not tell (lists of any length)."""
    id_type: str
    label_type: str | None
    """None where there is no such column."""


def _read_head(root: Storage, info: FileInfo, columns: InputConfig, need_label: bool) -> _Head:
    path = info.path
    if path.endswith(".npy"):
        rows, dim, dtype, offset = _npy_shape(root, path)
        if info.size < offset + rows * dim * dtype.itemsize:
            raise InputError(
                f"{root.uri}/{path}: truncated: its header promises {rows} x {dim} {dtype}, it has {info.size} bytes"
            )
        units = [Unit(0, path, 0, at, min(ROWS_PER_UNIT, rows - at), (0, 0)) for at in range(0, rows, ROWS_PER_UNIT)]
        return _Head(tuple(units), dim, "int64", None)
    where = f"{root.uri}/{path}"
    try:
        with root.open(path) as file:
            footer = pq.ParquetFile(file)
            schema, metadata = footer.schema_arrow, footer.metadata
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{where}: not a readable Parquet file ({_short(error)}): is it truncated?") from None
    for name, option in ((columns.id_column, "id_column"), (columns.embedding_column, "embedding_column")):
        if name not in schema.names:
            raise InputError(
                f"{where}: no column {name!r} (there are: {', '.join(schema.names)}): name yours with --set input.{option}=..."
            )
    if metadata.num_rows == 0:
        return _Head((), 0, "", None)
    id_type = _key_type(schema.field(columns.id_column).type)
    if id_type is None:
        raise _unusable_key(schema.field(columns.id_column).type, where, columns.id_column)
    dim = _embedding_dim(schema.field(columns.embedding_column).type, where, columns.embedding_column)
    label_type = None
    if columns.label_column in schema.names:
        label_type = _key_type(schema.field(columns.label_column).type)
        if label_type is None and need_label:
            raise _unusable_key(schema.field(columns.label_column).type, where, columns.label_column)
        if label_type is None:
            logger.warning(
                "label column left out: it is not string or integer", file=where, column=columns.label_column
            )
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    return _Head(tuple(_group_units(path, sizes)), dim, id_type, label_type)


def _group_units(path: str, sizes: Sequence[int]) -> list[Unit]:
    units: list[Unit] = []
    first = row = rows = 0
    for group, size in enumerate(sizes):
        if rows and rows + size > ROWS_PER_UNIT:
            units.append(Unit(0, path, 0, row, rows, (first, group)))
            first, row, rows = group, row + rows, 0
        rows += size
    if rows:
        units.append(Unit(0, path, 0, row, rows, (first, len(sizes))))
    return units


def _key_type(kind: pa.DataType) -> str | None:
    """What a column of ids or labels is read as, or None: pandas' categories are dictionaries of their values."""
    if pa.types.is_dictionary(kind):
        return _key_type(kind.value_type)
    if pa.types.is_integer(kind):
        return "int64"
    strings = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return "string" if any(is_kind(kind) for is_kind in strings) else None


def _unusable_key(kind: pa.DataType, where: str, column: str) -> InputError:
    return InputError(f"{where}: column {column!r} is {kind}, not string or integer: convert it")


def _embedding_dim(kind: pa.DataType, where: str, column: str) -> int:
    fixed = pa.types.is_fixed_size_list(kind)
    if (fixed or pa.types.is_list(kind) or pa.types.is_large_list(kind)) and pa.types.is_floating(kind.value_type):
        return int(kind.list_size) if fixed else 0
    raise InputError(f"{where}: column {column!r} is {kind}, not a list of float16, float32 or float64: convert it")


def _first_length(root: Storage, units: Sequence[Unit], columns: InputConfig) -> int:
    """The commonest length among the first rows that have one: lists carry no dimension in the footer."""
    for unit in units:
        with _parsing(f"{root.uri}/{unit.path}"), root.open(unit.path) as file:
            batches = pq.ParquetFile(file).iter_batches(1024, range(*unit.groups), [columns.embedding_column])
            for batch in batches:
                lengths = pc.list_value_length(batch.column(0)).drop_null().to_numpy(zero_copy_only=False)
                if (lengths > 0).any():
                    return int(np.bincount(lengths[lengths > 0]).argmax())
    raise InputError(f"{root.uri}: every embedding is null or empty: nothing to do")


def _npy_shape(root: Storage, path: str) -> tuple[int, int, np.dtype[Any], int]:
    where = f"{root.uri}/{path}"
    try:
        with root.open(path) as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
            offset = file.tell()
    except (ValueError, OSError) as error:
        raise InputError(f"{where}: not a readable .npy file ({_short(error)})") from None
    if len(shape) != 2 or fortran or dtype not in NPY_TYPES or shape[1] == 0:
        order = "Fortran" if fortran else "C"
        raise InputError(
            f"{where}: {dtype} array of shape {shape} in {order} order: a 2-D array of float16, float32 or float64 "
            "in C order is needed"
        )
    return shape[0], shape[1], dtype, offset


def _read_npy_rows(root: Storage, unit: Unit) -> pa.Table:
    _, dim, dtype, offset = _npy_shape(root, unit.path)
    with root.open(unit.path) as file:
        file.seek(offset + unit.row_in_file * dim * dtype.itemsize)
        values = np.frombuffer(file.read(unit.rows * dim * dtype.itemsize), dtype=dtype)
    ids = np.arange(unit.first_row, unit.first_row + unit.rows, dtype=np.int64)
    embedding = pa.FixedSizeListArray.from_arrays(pa.array(values.astype(dtype.newbyteorder("="))), dim)
    return pa.table({"id": ids, "embedding": embedding})


@contextmanager
def _parsing(where: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{where}: damaged Parquet file ({_short(error)}): write it again") from None


def _as_key(table: pa.Table, column: str, where: str) -> pa.ChunkedArray:
    """A column of ids or labels as int64 or string."""
    kind = pa.int64() if _key_type(table[column].type) == "int64" else pa.string()
    try:
        return table[column].cast(kind)
    except pa.ArrowInvalid as error:
        raise InputError(f"{where}: column {column!r}: {_short(error)}: write it as strings") from None


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
