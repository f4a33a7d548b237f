"""Parquet in any layout that people's software writes: every row ends in assignments or in bad rows, by its own id.

Rows are drawn, then cut into files; each file has types, encodings, chunks and row groups of its own. What must come out
is told by the rows alone.
"""

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from ray.data.extensions import ArrowTensorType, ArrowTensorTypeV2

from hilander_dist.cluster.hierarchy.levels import Hierarchy, Nodes, run_levels
from hilander_dist.cluster.hierarchy.links import link_by_model
from hilander_dist.cluster.output import write_outputs
from hilander_dist.config import InputConfig
from hilander_dist.errors import InputError
from hilander_dist.ingest import ingest
from hilander_dist.local_tasks import LocalTasks, put
from hilander_dist.run import Run
from hilander_dist.source import open_source
from hilander_dist.storage import Storage
from tests.unit.cluster.small import options, random_model

DIM = 3
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Each example writes some 30 files, which the product flushes to the disk."""
MODEL = random_model(DIM, "gcn")

INTEGERS = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]
TEXTS = [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view()]
FLOATS = [pa.float16(), pa.float32(), pa.float64()]
LISTS = [pa.list_, pa.large_list, pa.list_view, pa.large_list_view]
SAME_LENGTH = [
    lambda kind: pa.list_(kind, DIM),
    lambda kind: pa.fixed_shape_tensor(kind, (DIM,)),
    lambda kind: ArrowTensorType((DIM,), kind),
    lambda kind: ArrowTensorTypeV2((DIM,), kind),
]


@dataclass(frozen=True)
class Row:
    id: Any
    """int, bytes (UTF-8 or not) or None."""
    embedding: list[float | None] | None
    label: Any

    def fault(self) -> str:
        """Why the row by itself is bad."""
        if isinstance(self.id, bytes) and not is_utf8(self.id):
            return "id is not UTF-8"
        if self.id is None:
            return "null id"
        if self.embedding is None:
            return "null embedding"
        if len(self.embedding) != DIM:
            return f"wrong length, not {DIM}"
        if any(value is None or not np.isfinite(value) for value in self.embedding):
            return "NaN or infinite value"
        return "zero vector" if not any(self.embedding) else ""


def is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


NUMBERS = st.sampled_from([-2.0, -0.5, 0.0, 0.25, 1.0, 3.0])
Vector = list[float | None] | None
GOOD: st.SearchStrategy[Vector] = st.lists(NUMBERS, min_size=DIM, max_size=DIM)
ODD: st.SearchStrategy[Vector] = st.one_of(
    st.none(),
    st.just([]),
    st.lists(NUMBERS, min_size=DIM + 1, max_size=DIM + 2),
    st.lists(st.sampled_from([None, float("nan"), float("inf"), 1.0]), min_size=DIM, max_size=DIM),
)
TEXT = st.one_of(st.text("ab é", max_size=3).map(str.encode), st.sampled_from([b"\xff", b"caf\xe9"]))


@st.composite
def rows(draw: st.DrawFn) -> list[Row]:
    ids = draw(st.sampled_from([st.integers(0, 30), TEXT]))
    labels = draw(st.sampled_from([st.integers(0, 3), st.sampled_from([b"x", b"y", b"\xff"]), st.none()]))
    found = []
    for _ in range(draw(st.integers(1, 16))):
        odd = draw(st.sampled_from([*["none"] * 8, "id", "embedding"]))
        id_ = None if odd == "id" else draw(ids)
        embedding = draw(ODD if odd == "embedding" else GOOD)
        found.append(Row(id_, embedding, draw(st.one_of(labels, st.none()))))
    return found


def column(draw: st.DrawFn, values: list[Any], kinds: list[Any]) -> pa.ChunkedArray:
    """Ids or labels in one of the types that can hold them."""
    if all(value is None for value in values) and draw(st.booleans()):
        return pa.chunked_array([pa.nulls(len(values))])
    kind = draw(st.sampled_from(kinds))
    if kind in TEXTS:
        narrow = pa.array(values, pa.binary())
        # As software that does not check writes it: text of any bytes.
        text = pa.Array.from_buffers(pa.string(), len(values), narrow.buffers()) if kind == pa.string() else narrow
        array = text if kind in (pa.string(), pa.binary()) else cast_text(narrow, kind)
    else:
        array = pa.array(values, kind)
    if draw(st.booleans()) and kind not in (pa.string_view(), pa.binary_view()):
        array = array.dictionary_encode()
        if pa.types.is_null(array.type.value_type):
            array = array.cast(kind)
    return pa.chunked_array([array])


def cast_text(narrow: pa.Array, kind: pa.DataType) -> pa.Array:
    """To a wider type, without a look at the bytes where the type is a text's."""
    if kind in (pa.large_binary(), pa.binary_view()):
        return narrow.cast(kind)
    wide = narrow.cast(pa.large_binary() if kind == pa.large_string() else pa.binary_view())
    return pa.Array.from_buffers(kind, len(narrow), wide.buffers())


def embeddings(draw: st.DrawFn, values: list[list[float | None] | None]) -> pa.ChunkedArray:
    if all(not value for value in values) and draw(st.booleans()):
        return pa.chunked_array([pa.nulls(len(values)) if all(value is None for value in values) else pa.array(values)])
    number = draw(st.sampled_from(FLOATS))
    shapes = LISTS + (SAME_LENGTH if all(value is None or len(value) == DIM for value in values) else [])
    kind = draw(st.sampled_from(shapes))(number)
    plain = [None if value is None else [to_number(item, number) for item in value] for value in values]
    if isinstance(kind, pa.BaseExtensionType):
        array = pa.ExtensionArray.from_storage(kind, pa.array(plain, kind.storage_type))
    else:
        array = pa.array(plain, kind)
    return pa.chunked_array([array])


def to_number(value: float | None, kind: pa.DataType) -> Any:
    return np.float16(value) if value is not None and kind == pa.float16() else value


def chunked(draw: st.DrawFn, table: pa.Table) -> pa.Table:
    """The same in other chunks, some of them empty."""
    cuts = sorted(draw(st.lists(st.integers(0, len(table)), max_size=3)))
    return pa.concat_tables([table.slice(a, b - a) for a, b in zip([0, *cuts], [*cuts, len(table)], strict=True)])


@st.composite
def inputs(draw: st.DrawFn) -> tuple[list[Row], list[pa.Table], list[dict[str, Any]]]:
    """Rows, the files that they stand in, and how each file is written."""
    every = draw(rows())
    cuts = sorted(draw(st.lists(st.integers(0, len(every)), max_size=2)))
    tables, settings_of = [], []
    for a, b in zip([0, *cuts], [*cuts, len(every)], strict=True):
        part = every[a:b]
        ids = TEXTS if any(isinstance(row.id, bytes) for row in every) else INTEGERS
        labels = TEXTS if any(isinstance(row.label, bytes) for row in every) else INTEGERS
        columns = {
            "more": pa.chunked_array([pa.array(range(len(part)))]),
            "embedding": embeddings(draw, [row.embedding for row in part]),
            "id": column(draw, [row.id for row in part], ids),
        }
        if any(row.label is not None for row in part) or draw(st.booleans()):
            columns["label"] = column(draw, [row.label for row in part], labels)
        tables.append(chunked(draw, pa.table(columns)))
        settings_of.append(
            {
                "row_group_size": draw(st.integers(2, 12)),
                "compression": draw(st.sampled_from(["none", "snappy", "zstd"])),
                "use_dictionary": draw(st.booleans()),
                "data_page_version": draw(st.sampled_from(["1.0", "2.0"])),
                "store_schema": draw(st.booleans()),
            }
        )
    return every, tables, settings_of


def expected(every: list[Row]) -> tuple[list[Any], Counter[str]]:
    """Ids of the good rows in order, and bad rows by reason."""
    good: list[Any] = []
    bad: Counter[str] = Counter()
    for row in every:
        fault = row.fault() or ("duplicate id" if row.id in good else "")
        if fault:
            bad[fault] += 1
        else:
            good.append(row.id)
    return [value.decode() if isinstance(value, bytes) else value for value in good], bad


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(inputs())
def test_every_row_ends_in_assignments_or_in_bad_rows(
    drawn: tuple[list[Row], list[pa.Table], list[dict[str, Any]]],
) -> None:
    every, tables, settings_of = drawn
    good, bad = expected(every)
    lengths = Counter(len(row.embedding) for row in every if row.embedding)
    assume(lengths[DIM] > lengths.total() / 2)  # else another dimension is that of most rows
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        folder = Path(name)
        (folder / "in").mkdir()
        for number, (table, how) in enumerate(zip(tables, settings_of, strict=True)):
            pq.write_table(table, folder / "in" / f"{number}.parquet", **how)
        source = open_source(str(folder / "in"), InputConfig(max_bad_share=1))
        run = Run(Storage(str(folder / "out")), {})
        tasks = LocalTasks(run.work)
        if not good:
            with pytest.raises(InputError, match=f"none of the {len(every)} rows can be used"):
                ingest(tasks, run, source)
            return
        data = ingest(tasks, run, source)
        levels = run_levels(
            tasks,
            run,
            Nodes(data.parts, data.rows, source.dim, source.rows),
            options(max_levels=1),
            link_by_model(MODEL, put(MODEL), 0.3, "default"),
        )
        write_outputs(tasks, run.output, run.work, data, Hierarchy(levels, len(levels) - 1, None, {}))
        found = [run.output.read_table(info.path) for info in run.output.list("assignments")]
        assert [value for table in found for value in table["id"].to_pylist()] == good
        aside = [run.output.read_table(info.path) for info in run.output.list("bad_rows")]
        assert Counter(value for table in aside for value in table["reason"].to_pylist()) == bad == Counter(data.bad)
        assert len(good) + bad.total() == len(every) == source.rows
        places = {(Path(row["file"]).name, row["row"]) for table in aside for row in table.to_pylist()}
        assert len(places) == bad.total()
        for row in (row for table in aside for row in table.to_pylist()):
            at = sum(len(table) for table in tables[: int(Path(row["file"]).stem)]) + row["row"]
            kept = every[at].id
            assert row["id"] == (kept.decode(errors="backslashreplace") if isinstance(kept, bytes) else kept)
