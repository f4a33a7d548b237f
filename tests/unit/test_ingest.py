import functools
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from hilander_dist import ingest as ingest_module
from hilander_dist.config import InputConfig
from hilander_dist.errors import InputError
from hilander_dist.exchange import fetch_rows
from hilander_dist.ingest import (
    Ingested,
    ingest,
    ingest_unit,
    load_ids,
    load_part,
    normalise_rows,
    serve_ids,
    split_bad_rows,
)
from hilander_dist.local_tasks import LocalTasks, Value, put
from hilander_dist.run import Run
from hilander_dist.source import Source, open_source
from hilander_dist.source import source as source_module
from hilander_dist.storage import Storage
from tests import oracle
from tests.points import random_rows


def fine(table: pa.Table) -> np.ndarray:
    """No row is known to be bad."""
    return np.full(len(table), "", dtype=object)


VALUES = {"f2": pa.float16(), "f4": pa.float32(), "f8": pa.float64()}
LISTS = {"list": pa.list_, "large": pa.large_list, "fixed": lambda kind: pa.list_(kind, 2)}


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("shape", LISTS)
def test_every_bad_row_has_its_reason_and_the_good_ones_are_unit_rows(kind: str, shape: str) -> None:
    number = np.dtype(kind).type
    rows: list[tuple[Any, Any, str]] = [
        ("a", [3, 4], ""),
        (None, [1, 1], "null id"),
        ("c", None, "null embedding"),
        ("d", [0, 0], "zero vector"),
        ("e", [np.nan, 1], "NaN or infinite value"),
        ("f", [1, -np.inf], "NaN or infinite value"),
        ("g", [None, 1], "NaN or infinite value"),
        ("h", [0, -2], ""),
        (None, None, "null id"),
    ]
    if shape != "fixed":
        rows += [("i", [], "wrong length, not 2"), ("j", [1, 2, 3], "wrong length, not 2")]
    values = [row and [None if value is None else number(value) for value in row] for _, row, _ in rows]
    column = pa.array([[number(9), number(9)], *values], LISTS[shape](VALUES[kind]))
    chunks = pa.chunked_array([column.slice(1, 3), column.slice(4, 0), column.slice(4)])
    table = pa.table({"id": pa.array([row[0] for row in rows], pa.string()), "embedding": chunks})
    reason_N, x_MD = split_bad_rows(table, fine(table), 2, need_label=False)
    assert reason_N.tolist() == [row[2] for row in rows]
    np.testing.assert_array_equal(x_MD, np.array([[0.6, 0.8], [0, -1]], dtype=np.float32))
    assert x_MD.dtype == np.float32


@pytest.mark.parametrize(
    ("need_label", "reasons"), [(True, ["", "null label", "null id"]), (False, ["", "", "null id"])]
)
def test_a_null_label_is_bad_only_where_labels_are_needed(need_label: bool, reasons: list[str]) -> None:
    table = pa.table(
        {
            "id": pa.array(["a", "b", None]),
            "embedding": pa.array([[1.0], [2.0], [3.0]]),
            "label": pa.array([7, None, None], pa.int64()),
        }
    )
    assert split_bad_rows(table, fine(table), 1, need_label)[0].tolist() == reasons


@pytest.mark.parametrize("n", [0, 2])
def test_a_unit_without_a_good_row(n: int) -> None:
    table = pa.table(
        {"id": pa.array([None] * n, pa.string()), "embedding": pa.array([[1.0]] * n, pa.list_(pa.float64()))}
    )
    reason_N, x_MD = split_bad_rows(table, fine(table), 1, need_label=False)
    assert (reason_N.tolist(), x_MD.shape) == (["null id"] * n, (0, 1))


FLOATS = st.one_of(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 6), st.integers(1, 9)),
        elements={"allow_nan": False, "allow_infinity": False},
    ),
    arrays.arrays(
        np.float64,
        st.tuples(st.integers(1, 6), st.integers(1, 9)),
        elements={"allow_nan": False, "allow_infinity": False},
    ),
    arrays.arrays(
        np.float16,
        st.tuples(st.integers(1, 6), st.integers(1, 9)),
        elements={"allow_nan": False, "allow_infinity": False},
    ),
)


@settings(max_examples=200)
@given(x_ND=FLOATS)
def test_normalised_rows_are_unit_rows_that_keep_their_direction_and_bits(x_ND: np.ndarray) -> None:
    x_ND = x_ND[(x_ND != 0).any(axis=1)]
    unit_ND = normalise_rows(x_ND)
    assert unit_ND.dtype == np.float32
    assert np.isfinite(unit_ND).all()
    np.testing.assert_allclose(np.linalg.norm(unit_ND.astype(np.float64), axis=1), 1, atol=2.0**-22)
    assert normalise_rows(unit_ND).tobytes() == unit_ND.tobytes()
    for row, unit in zip(x_ND, unit_ND, strict=True):  # each row by itself
        assert normalise_rows(row[None]).tobytes() == unit.tobytes()
        largest = np.abs(row).argmax()
        assert np.sign(row[largest]) == np.sign(unit[largest])
        assert abs(unit[largest]) == np.abs(unit).max()


@pytest.mark.parametrize("scale", [1e-320, 1e-200, 1e-30, 1.0, 1e30, 1e200, 1e308])
def test_rows_of_any_length_that_float64_holds_are_normalised(scale: float) -> None:
    x_ND = np.array([[0.6, 0.8], [-1.0, 0.5]]) * scale
    np.testing.assert_allclose(normalise_rows(x_ND), [[0.6, 0.8], [-(0.8**0.5), 0.2**0.5]], rtol=1e-3)


def test_rows_are_normalised_as_the_oracle_does() -> None:
    x_ND = random_rows(0, 500, 17) * np.random.default_rng(1).choice([1e-6, 1.0, 3.0, 1e20], (500, 1)).astype(
        np.float32
    )
    assert normalise_rows(x_ND).tobytes() == oracle.unit_rows(x_ND).tobytes()


def test_unit_rows_of_other_software_keep_their_bits() -> None:
    unit_ND = random_rows(0, 300, 16)
    near_ND = (unit_ND * np.float32(1 + 1.5e-7)).astype(np.float32)
    assert normalise_rows(near_ND).tobytes() == near_ND.tobytes()
    far_ND = (unit_ND * np.float32(1 + 1e-6)).astype(np.float32)
    assert (normalise_rows(far_ND) != far_ND).any(axis=1).all()


def test_a_rows_bits_do_not_depend_on_its_place() -> None:
    x_ND = np.random.default_rng(0).normal(size=(257, 129)).astype(np.float32)
    unit_ND = normalise_rows(x_ND)
    order = np.random.default_rng(1).permutation(257)
    assert normalise_rows(x_ND[order]).tobytes() == unit_ND[order].tobytes()
    assert normalise_rows(x_ND[100:]).tobytes() == unit_ND[100:].tobytes()


# id, embedding, label; one file of three units (10 rows each) and one of one unit
GOOD = [0.5, 0.5]


def written(directory: Path, changes: dict[int, tuple[Any, Any, Any]], labelled: bool = True) -> Source:
    """36 good rows in two files, with some rows replaced, cut into units of 10 rows."""
    rows: list[tuple[Any, Any, Any]] = [(f"row{i}", GOOD, f"class{i % 3}") for i in range(36)]
    for at, row in changes.items():
        rows[at] = row
    directory.mkdir(exist_ok=True)
    for name, part in (("a.parquet", rows[:30]), ("b.parquet", rows[30:])):
        columns = {
            "id": pa.array([row[0] for row in part], pa.string()),
            "embedding": pa.array([row[1] for row in part], pa.list_(pa.float32())),
            "label": pa.array([row[2] for row in part], pa.string()),
        }
        if not labelled:
            del columns["label"]
        pq.write_table(pa.table(columns), directory / name, row_group_size=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source_module, "ROWS_PER_UNIT", 10)
        return open_source(str(directory), InputConfig(max_bad_share=0.5))


def ingested(directory: Path, source: Source) -> tuple[LocalTasks, Run, Ingested]:
    """Ingest in this process."""
    run = Run(Storage(str(directory)), {})
    tasks = LocalTasks(run.work)
    return tasks, run, ingest(tasks, run, source)


def bad_rows(run: Run) -> list[tuple[Any, ...]]:
    tables = [run.output.read_table(info.path) for info in run.output.list("bad_rows")]
    rows = [row for table in tables for row in table.to_pylist()]
    return sorted((Path(row["file"]).name, row["row"], row["id"], row["reason"]) for row in rows)


def test_clean_input_leaves_no_bad_rows(tmp_path: Path) -> None:
    source = written(tmp_path / "in", {})
    tasks, run, data = ingested(tmp_path / "out", source)
    assert [unit.rows for unit in source.units] == [10, 10, 10, 6]
    assert (data.rows, data.bad) == (36, {})
    assert run.output.list("bad_rows") == []
    blocks = [part() for part in data.parts]
    assert np.concatenate([block["id_N"] for block in blocks]).tolist() == list(range(36))
    assert tasks.get(data.classes).to_pylist() == ["class0", "class1", "class2"]
    assert np.concatenate([block["class_N"] for block in blocks]).tolist() == [i % 3 for i in range(36)]
    np.testing.assert_allclose(blocks[0]["x_ND"], 0.5**0.5)


def test_every_row_ends_in_the_parts_or_in_bad_rows_with_its_place(tmp_path: Path) -> None:
    changes: dict[int, tuple[Any, Any, Any]] = {
        3: ("row3", None, "x"),
        4: (None, GOOD, "x"),
        12: ("row12", [0.0, 0.0], None),
        17: ("row17", GOOD, None),
        25: ("row2", GOOD, "class1"),  # repeats
        31: ("row12", GOOD, "class0"),  # the first row of this id is bad, so this one stays
        33: ("row2", GOOD, "class0"),
        35: ("row35", [1.0], "class2"),
    }
    source = written(tmp_path / "in", changes)
    tasks, run, data = ingested(tmp_path / "out", source)
    assert data.bad == {
        "null embedding": 1,
        "null id": 1,
        "zero vector": 1,
        "duplicate id": 2,
        "wrong length, not 2": 1,
    }
    assert bad_rows(run) == [
        ("a.parquet", 3, "row3", "null embedding"),
        ("a.parquet", 4, None, "null id"),
        ("a.parquet", 12, "row12", "zero vector"),
        ("a.parquet", 25, "row2", "duplicate id"),
        ("b.parquet", 3, "row2", "duplicate id"),
        ("b.parquet", 5, "row35", "wrong length, not 2"),
    ]
    blocks = [part() for part in data.parts]
    id_N = np.concatenate([block["id_N"] for block in blocks])
    assert id_N.tolist() == [i for i in range(36) if i not in {3, 4, 12, 25, 33, 35}]
    assert data.rows == len(id_N)
    class_N = np.concatenate([block["class_N"] for block in blocks])
    assert tasks.get(data.classes).to_pylist() == ["class0", "class1", "class2"]  # "x" stands in bad rows only
    assert class_N[id_N == 17].tolist() == [-1]
    assert class_N[id_N == 31].tolist() == [0]
    assert (class_N[id_N != 17] == np.array([0 if i == 31 else i % 3 for i in id_N])[id_N != 17]).all()


def test_duplicates_are_found_however_ids_are_spread_over_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {at: (f"row{at - 20}", GOOD, "class0") for at in range(20, 33)}
    source = written(tmp_path / "in", changes)
    found = []
    for ids_per_task in (4, 1000):
        monkeypatch.setattr(ingest_module, "IDS_PER_HASH_TASK", ids_per_task)
        tasks, run, data = ingested(tmp_path / str(ids_per_task), source)
        assert tasks.calls.count("_repeated_ids") == -(-36 // ids_per_task)
        assert data.bad == {"duplicate id": 13}
        found.append((bad_rows(run), [block["id_N"].tolist() for block in [part() for part in data.parts]]))
    assert found[0] == found[1]
    assert found[0][1] == [list(range(10)), list(range(10, 20)), [], [33, 34, 35]]


def test_a_resumed_ingest_reads_its_marker_and_gives_the_same_parts(tmp_path: Path) -> None:
    source = written(tmp_path / "in", {25: ("row2", GOOD, "class1"), 3: ("row3", None, "x")})
    _tasks, _, data = ingested(tmp_path / "out", source)
    run = Run(Storage(str(tmp_path / "out")), {})
    again_tasks = LocalTasks(run.work)
    again = ingest(again_tasks, run, source)
    assert set(again_tasks.calls) == {"_load_labels"}
    assert (again.rows, again.bad) == (data.rows, data.bad)
    for block, expected in zip([part() for part in again.parts], [part() for part in data.parts], strict=True):
        assert {name: array.tolist() for name, array in block.items()} == {
            name: array.tolist() for name, array in expected.items()
        }


def test_input_without_labels_has_no_classes(tmp_path: Path) -> None:
    _tasks, _, data = ingested(tmp_path / "out", written(tmp_path / "in", {}, labelled=False))
    assert data.classes is None
    assert next(part() for part in data.parts).keys() == {"id_N", "x_ND"}


def test_rows_of_a_npy_file_cannot_be_duplicates(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((5, 3), dtype=np.float32))
    source = open_source(str(tmp_path / "a.npy"), InputConfig())
    tasks, _, data = ingested(tmp_path / "out", source)
    assert "_hash_ids" not in tasks.calls
    assert (data.rows, data.bad) == (5, {})


def test_too_many_bad_rows_stop_the_run_with_counts_by_reason(tmp_path: Path) -> None:
    changes = {at: (f"row{at}", None, "x") for at in range(18)} | {30: (None, GOOD, "x")}
    with pytest.raises(InputError) as caught:
        ingested(tmp_path / "out", written(tmp_path / "in", changes))
    assert "19 of 36 rows cannot be used (18 null embedding, 1 null id): more than" in str(caught.value)
    # As many as are allowed.
    del changes[30]
    assert ingested(tmp_path / "out2", written(tmp_path / "in2", changes))[2].rows == 18


def test_an_input_of_bad_rows_alone_is_refused_whatever_share_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((3, 2), dtype=np.float32))
    source = open_source(str(path), InputConfig(max_bad_share=1))
    with pytest.raises(InputError, match="none of the 3 rows can be used \\(3 zero vector\\)"):
        ingested(tmp_path / "out", source)


def test_a_unit_done_again_writes_the_same_files(tmp_path: Path) -> None:
    source = written(tmp_path / "in", {3: ("row3", None, "x")})
    output = Storage(str(tmp_path / "out"))
    work = output.child("_work")
    contents = []
    for _ in range(2):
        assert ingest_unit(source.layout, work, output, "float32", source.units[0]) == {"null embedding": 1}
        contents.append({info.path: output.read_bytes(info.path) for info in output.list()})
    assert contents[0] == contents[1]
    assert json.loads(contents[0]["_work/ingest/done-00000.json"]) == {"null embedding": 1}
    assert load_ids(work, 0, ["row", "id"])["row"].to_pylist() == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert load_part(work, 0, has_duplicates=True, labelled=False)["id_N"].tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9]


class Weighed(LocalTasks):
    """Counts the bytes of what a driver sends with its tasks, refs aside."""

    sent = 0

    def call(self, function: Any, *args: Any, **options: Any) -> Any:
        self.sent += len(pickle.dumps([function, *(arg for arg in args if not has_ref(arg))]))
        return super().call(function, *args, **options)

    def stream(self, function: Any, items: Any, stage: str) -> Any:
        self.sent += len(pickle.dumps(function)) + sum(len(pickle.dumps(item)) for item in items)
        return super().stream(function, items, stage)


def has_ref(arg: Any) -> bool:
    return isinstance(arg, Value) or (isinstance(arg, list) and any(map(has_ref, arg)))


def test_what_the_driver_sends_grows_with_the_units_and_not_with_their_square(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "ROWS_PER_UNIT", 5)
    sent = {}
    for units in (20, 200):
        ids = [f"row{i % (5 * units - 3)}" for i in range(5 * units)]  # three duplicates
        table = pa.table({"id": ids, "embedding": pa.array([GOOD] * len(ids), pa.list_(pa.float32()))})
        pq.write_table(table, tmp_path / f"{units}.parquet", row_group_size=5)
        source = open_source(str(tmp_path / f"{units}.parquet"), InputConfig(max_bad_share=1))
        assert len(source.units) == units
        run = Run(Storage(str(tmp_path / f"out-{units}")), {})
        tasks = Weighed(run.work)
        data = ingest(tasks, run, source)
        assert data.bad == {"duplicate id": 3}
        assert tasks.calls.count("_save_duplicates") == 1  # of 20 or 200 units the one that has them
        serve = functools.partial(serve_ids, run.work)
        fetch_rows(tasks, [put(np.arange(5 * units - 3))], source.units, source.starts, serve)
        sent[units] = tasks.sent
    assert sent[200] < 12 * sent[20]
