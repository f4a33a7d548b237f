"""An input that has been looked at before any row is read: files, row groups, columns, dimension; and its rows by unit.

The input is cut into *units*: runs of Parquet row groups of one file, or runs of rows of a .npy file. Units depend on the
files alone, never on the cluster. A row's number is its place in the whole input, files in natural order of their names,
input after input.
"""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hilander_dist.config import InputConfig
from hilander_dist.errors import InputError
from hilander_dist.monitor.log import logger
from hilander_dist.source.columns import (
    NOT_UTF8,
    KeyType,
    common_type,
    constant_column,
    given_type,
    read_embedding,
    read_key,
    read_partition,
)
from hilander_dist.source.files import THREADS, InputFile, Kind, list_all
from hilander_dist.source.npy import read_header, read_rows
from hilander_dist.source.parquet import first_lengths, read_footer, read_groups

ROWS_PER_UNIT = 32_768
"""Small row groups are read together up to this many rows, and a .npy file is cut at it: 32 MiB at 256 dimensions."""

FILES_LOOKED_INTO = 16
"""Where lists may be of any length, that of most rows in the first so many files is the dimension."""

NAMES_SHOWN = 20
"""Files left out that the manifest names; the log names a quarter of that. All are counted."""


@dataclass(frozen=True)
class Unit:
    """A run of rows of one file: what one ingest task reads."""

    index: int
    uri: str
    """Of its file."""
    kind: Kind
    first_row: int
    """Number of its first row in the whole input."""
    row_in_file: int
    """Number of its first row in its file."""
    rows: int
    groups: tuple[int, int]
    """Parquet: first row group and the one after the last; (0, 0) for .npy."""
    partition: tuple[tuple[str, str | None], ...] = ()
    """Id or label that the file's directory gives for all of its rows, by column name (``label=cat/``)."""


@dataclass(frozen=True)
class Layout:
    """How the rows of every unit are read."""

    dim: int
    id_type: str
    """"string" or "int64"."""
    label_type: str | None
    """The same, or None where the input has no labels."""
    need_label: bool
    """Whether rows without a label cannot be used."""
    columns: InputConfig


@dataclass(frozen=True)
class Source:
    """An input that has been looked at: its files are readable and their columns fit together."""

    uris: tuple[str, ...]
    """As they were given."""
    files: tuple[InputFile, ...]
    units: tuple[Unit, ...]
    layout: Layout
    left_out: dict[str, str]
    """URI and reason of files that are not read."""

    @property
    def uri(self) -> str:
        """What was given, for messages."""
        return ", ".join(self.uris)

    @property
    def dim(self) -> int:
        """Dimensions of the embeddings."""
        return self.layout.dim

    @property
    def has_label(self) -> bool:
        """Whether there are labels."""
        return self.layout.label_type is not None

    @property
    def rows(self) -> int:
        """Rows in all files together, good and bad."""
        return sum(unit.rows for unit in self.units)

    @property
    def starts(self) -> tuple[int, ...]:
        """First row number of each unit, and the number of rows."""
        return (*(unit.first_row for unit in self.units), self.rows)

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the input: as it was given, and its files with sizes and tags."""
        return {"uris": list(self.uris), "files": [[file.uri, file.size, file.tag] for file in self.files]}

    def summary(self) -> dict[str, Any]:
        """For the manifest."""
        left_out = {"count": len(self.left_out), "first": dict(list(self.left_out.items())[:NAMES_SHOWN])}
        order = "natural order of their names: 2 before 10"
        return {"uris": list(self.uris), "files": len(self.files), "order": order, "left_out": left_out}


def open_source(uris: str | Sequence[str], columns: InputConfig, need_label: bool = False) -> Source:
    """Look at an input: list its files, read the footers, check columns and find the dimension.

    Args:
        uris: one or several files, directories or globs, see ``files.list_inputs``; together they are one input.
        columns: names of the columns.
        need_label: whether labels must be there.

    Raises:
        InputError: no file, no row, an unreadable file, a missing or mistyped column, files that do not fit together.
    """
    uris = (uris,) if isinstance(uris, str) else tuple(uris)
    name = ", ".join(uris)
    inputs = list_all(uris)
    log_left_out(inputs.left_out)
    with ThreadPoolExecutor(THREADS) as pool:
        heads = list(pool.map(lambda file: _read_head(file, columns, need_label), inputs.files))
    # A file without rows may have columns of no type, as pandas writes them.
    full = [head for head in heads if head.units]
    if not full:
        raise InputError(f"{name}: no rows in {len(heads)} file(s): nothing to do")
    id_type = common_type([(head.file.uri, head.id) for head in full], "id") or "string"
    label_type = common_type([(head.file.uri, head.label) for head in full], "label")
    if label_type not in (None, "int64", "string"):
        logger.warning("labels left out: neither string nor integer", column=columns.label_column, type=label_type)
        label_type = None
    if need_label and label_type is None:
        raise InputError(
            f"{name}: no label in a column {columns.label_column!r}: labels are needed here; name theirs with "
            "--set input.label_column=..."
        )
    units: list[Unit] = []
    row = 0
    for head in full:
        for unit in head.units:
            units.append(replace(unit, index=len(units), first_row=row))
            row += unit.rows
    layout = Layout(_common_dim(full, columns, name), id_type, label_type, need_label, columns)
    return Source(uris, tuple(inputs.files), tuple(units), layout, inputs.left_out)


def read_unit(layout: Layout, unit: Unit) -> tuple[pa.Table, np.ndarray]:
    """Read a unit.

    Returns:
        Its rows with columns id, embedding and, where the input has it, label; and for each row what is wrong with its id
        or its label, "" for nothing (object). A label that is wrong and not needed is null.
    """
    names, given = layout.columns, dict(unit.partition)
    keys = [("label", names.label_column, layout.label_type)] if layout.label_type else []
    if unit.kind == "npy":
        raw = pa.table({})
        ids = np.arange(unit.first_row, unit.first_row + unit.rows, dtype=np.int64)
        out = {"id": pa.array(ids), "embedding": read_rows(unit.uri, unit.row_in_file, unit.rows)}
    else:
        keys = [("id", names.id_column, layout.id_type), *keys]
        raw = read_groups(unit.uri, [names.embedding_column, *(column for _, column, _ in keys)], range(*unit.groups))
        out = {"embedding": read_embedding(raw[names.embedding_column])}
    fault_N = np.full(unit.rows, "", dtype=object)
    for key, column, kind in keys:
        # A column that the file lacks is given by its directory, or is null.
        own = raw[column] if column in raw.column_names else constant_column(given.get(column), unit.rows)
        out[key], broken_N = read_key(own, kind, unit.uri, column)
        if key == "id" or layout.need_label:
            fault_N[broken_N & (fault_N == "")] = f"{key} {NOT_UTF8}"
        elif broken_N.any():
            out[key] = pc.if_else(pa.array(broken_N), None, out[key])
    return pa.table(out), fault_N


@dataclass(frozen=True)
class _Head:
    file: InputFile
    units: tuple[Unit, ...]
    """Without any, nothing else counts."""
    dim: int
    """0 where the footer does not tell (lists of any length)."""
    id: KeyType
    label: KeyType

    @property
    def rows(self) -> int:
        return sum(unit.rows for unit in self.units)


def _read_head(file: InputFile, columns: InputConfig, need_label: bool) -> _Head:
    given = read_partition(file.uri)
    if file.kind == "npy":
        header = read_header(file.uri, file.size)
        partition = tuple((name, value) for name, value in given.items() if name == columns.label_column)
        units = [
            Unit(0, file.uri, "npy", 0, at, min(ROWS_PER_UNIT, header.rows - at), (0, 0), partition)
            for at in range(0, header.rows, ROWS_PER_UNIT)
        ]
        label = given_type(given.get(columns.label_column))
        return _Head(file, tuple(units), header.dim, KeyType("int64"), label)
    footer = read_footer(file.uri)
    for name, option in ((columns.id_column, "id_column"), (columns.embedding_column, "embedding_column")):
        if not footer.has(name) and not (name in given and option == "id_column"):
            raise InputError(
                f"{file.uri}: no column {name!r} (there are: {', '.join(footer.schema.names)}): "
                f"name yours with --set input.{option}=..."
            )
    if footer.rows == 0:
        return _Head(file, (), 0, KeyType("null"), KeyType("null"))
    keys = []
    for name, needed in ((columns.id_column, True), (columns.label_column, need_label)):
        key = KeyType(footer.key(name) or "") if footer.has(name) else given_type(given.get(name))
        if not key.kind and needed:
            raise footer.unusable_key(name)
        keys.append(key if key.kind else KeyType(str(footer.field(name).type)))
    partition = tuple(
        (name, given[name])
        for name in dict.fromkeys((columns.id_column, columns.label_column))
        if name in given and not footer.has(name)
    )
    units = [replace(unit, partition=partition) for unit in _group_units(file.uri, footer.group_rows)]
    return _Head(file, tuple(units), footer.dim(columns.embedding_column), *keys)


def _group_units(uri: str, sizes: Sequence[int]) -> list[Unit]:
    units: list[Unit] = []
    first = row = rows = 0
    for group, size in enumerate(sizes):
        if rows and rows + size > ROWS_PER_UNIT:
            units.append(Unit(0, uri, "parquet", 0, row, rows, (first, group)))
            first, row, rows = group, row + rows, 0
        rows += size
    if rows:
        units.append(Unit(0, uri, "parquet", 0, row, rows, (first, len(sizes))))
    return units


def _common_dim(heads: Sequence[_Head], columns: InputConfig, name: str) -> int:
    """The dimension of most rows: as types tell it, and as the lists in the first files have it.

    Raises:
        InputError: no row has an embedding, or a file's type tells another dimension.
    """
    rows_by_dim: Counter[int] = Counter()
    for head in heads:
        if head.dim:
            rows_by_dim[head.dim] += head.rows
    lists = [head for head in heads if not head.dim]
    for start in range(0, len(lists), FILES_LOOKED_INTO):
        some = lists[start : start + FILES_LOOKED_INTO]
        with ThreadPoolExecutor(THREADS) as pool:
            found = pool.map(lambda head: first_lengths(head.file.uri, columns.embedding_column), some)
            for head, length_N in zip(some, found, strict=True):
                for length, count in Counter(length_N[length_N > 0].tolist()).items():
                    rows_by_dim[length] += max(1, head.rows * count // len(length_N))
        if rows_by_dim:
            break
    if not rows_by_dim:
        raise InputError(f"{name}: every embedding is null or empty: nothing to do")
    dim = rows_by_dim.most_common(1)[0][0]
    for head in heads:
        if head.dim and head.dim != dim:
            raise InputError(
                f"{head.file.uri}: embeddings of {head.dim} dimensions, but {dim} in most rows of the input"
            )
    return dim


def log_left_out(left_out: dict[str, str]) -> None:
    """Count and name in the log what was met and is not read."""
    if left_out:
        first = "; ".join(f"{uri}: {why}" for uri, why in list(left_out.items())[: NAMES_SHOWN // 4])
        logger.warning("files left out", count=len(left_out), first=first)
