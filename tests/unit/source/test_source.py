"""An input that is looked at: units, files that fit together, the dimension."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilander_dist.errors import InputError
from hilander_dist.source import open_source, read_unit
from hilander_dist.source import source as source_module
from tests.unit.source.tables import COLUMNS, damaged, embeddings, everything, refusal, table, write


def test_files_and_row_groups_become_units_with_numbered_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "ROWS_PER_UNIT", 10)
    write(tmp_path / "b.parquet", table(25, 100), row_group_size=4)
    write(tmp_path / "a.parquet", table(7), row_group_size=100)
    write(tmp_path / "c.parquet", table(30, 200), row_group_size=15)
    source = open_source(str(tmp_path), COLUMNS)
    assert [(Path(u.uri).name, u.first_row, u.row_in_file, u.rows, u.groups) for u in source.units] == [
        ("a.parquet", 0, 0, 7, (0, 1)),
        ("b.parquet", 7, 0, 8, (0, 2)),
        ("b.parquet", 15, 8, 8, (2, 4)),
        ("b.parquet", 23, 16, 9, (4, 7)),
        ("c.parquet", 32, 0, 15, (0, 1)),
        ("c.parquet", 47, 15, 15, (1, 2)),
    ]
    assert [unit.index for unit in source.units] == list(range(6))
    assert source.starts == (0, 7, 15, 23, 32, 47, 62)
    assert (source.rows, source.dim, source.layout.id_type, source.has_label) == (62, 3, "string", False)
    assert [Path(file.uri).name for file in source.files] == ["a.parquet", "b.parquet", "c.parquet"]
    expected = pa.concat_tables([table(7), table(25, 100), table(30, 200)])
    assert everything(source).to_pydict() == expected.to_pydict()


@given(sizes=st.lists(st.integers(0, 12), max_size=20))
def test_units_of_a_file_cover_its_row_groups_once(sizes: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source_module, "ROWS_PER_UNIT", 10)
        units = source_module._group_units("a.parquet", sizes)
    assert sum(unit.rows for unit in units) == sum(sizes)
    for unit, following in zip(units, [*units[1:], None], strict=False):
        assert 0 < unit.rows == sum(sizes[slice(*unit.groups)])
        assert unit.row_in_file == sum(sizes[: unit.groups[0]])
        assert unit.rows <= 10 or sum(size > 0 for size in sizes[slice(*unit.groups)]) == 1
        if following is not None:
            assert unit.groups[1] == following.groups[0]
            assert unit.rows + sizes[following.groups[0]] > 10


def test_a_file_without_rows_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", table(0))
    write(tmp_path / "b.parquet", table(3))
    source = open_source(str(tmp_path), COLUMNS)
    assert [(Path(unit.uri).name, unit.first_row) for unit in source.units] == [("b.parquet", 0)]


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"id": None}, "no column 'id' (there are: embedding): name yours with --set input.id_column="),
        ({"embedding": None}, "no column 'embedding' (there are: id): name yours with --set input.embedding_column="),
        ({"id": pa.array([0.5, 1.5])}, "column 'id' is double, not string or integer"),
        ({"embedding": pa.array([[1, 2], [3, 4]])}, "column 'embedding' is list<"),
        ({"embedding": pa.array([0.5, 1.5])}, "column 'embedding' is double, not a list"),
        ({"embedding": pa.array([b"x", b"y"])}, "column 'embedding' is binary"),
    ],
)
def test_a_missing_or_mistyped_column_is_refused(tmp_path: Path, replaced: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "a.parquet", table(2, **replaced))
    assert f"{path}: {message}" in refusal(path)


def test_labels_are_asked_for_where_they_are_needed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", table(2))
    assert (
        "no label in a column 'label': labels are needed here; name theirs with --set input.label_column="
        in refusal(path, need_label=True)
    )
    np.save(tmp_path / "b.npy", embeddings(3))
    assert "labels are needed" in refusal(tmp_path / "b.npy", need_label=True)


def test_an_input_without_rows_is_refused(tmp_path: Path) -> None:
    assert "no rows in 1 file(s)" in refusal(write(tmp_path / "a.parquet", table(0)))
    np.save(tmp_path / "b.npy", embeddings(0))
    assert "no rows in 1 file(s)" in refusal(tmp_path / "b.npy")


def test_the_types_of_a_file_without_rows_do_not_count(tmp_path: Path) -> None:
    untyped = pa.table({name: pa.nulls(0) for name in ("id", "embedding", "label")})
    assert "no rows in 1 file(s)" in refusal(write(tmp_path / "a.parquet", untyped), need_label=True)
    write(tmp_path / "b.parquet", table(3))
    assert everything(open_source(str(tmp_path), COLUMNS)).num_rows == 3


@pytest.mark.parametrize(
    "column",
    [
        pa.array([None] * 4, pa.list_(pa.float32())),
        pa.array([[]] * 4, pa.list_(pa.float32())),
        pa.array([[]] * 4),
        pa.nulls(4),
    ],
    ids=["null", "empty", "of nothing", "no type"],
)
def test_an_embedding_column_without_any_value_is_refused(tmp_path: Path, column: pa.Array) -> None:
    path = write(tmp_path / "a.parquet", table(4, embedding=column), row_group_size=2)
    assert "every embedding is null or empty" in refusal(path)


def test_the_dimension_of_lists_is_their_commonest_first_length(tmp_path: Path) -> None:
    rows = [None, [], [1.0, 2.0], [1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]
    write(tmp_path / "a.parquet", table(2, embedding=pa.array([None, []], pa.list_(pa.float32()))))
    write(tmp_path / "b.parquet", table(5, embedding=pa.array(rows, pa.large_list(pa.float16()))))
    assert open_source(str(tmp_path), COLUMNS).dim == 3


def test_the_dimension_is_that_of_most_rows_of_the_first_files(tmp_path: Path) -> None:
    """One odd row, or one odd file, in front of others does not choose it."""
    write(tmp_path / "0.parquet", table(3, dim=7))
    for part in range(1, 4):
        write(tmp_path / f"{part}.parquet", table(5, 10 * part, dim=4))
    assert open_source(str(tmp_path), COLUMNS).dim == 4
    rows = [[1.0] * 9, *[[1.0, 2.0, 3.0]] * 5]
    path = write(tmp_path / "one.parquet", table(6, embedding=pa.array(rows, pa.list_(pa.float32()))))
    assert open_source(str(path), COLUMNS).dim == 3


def test_a_fixed_size_list_gives_the_dimension_for_all_files(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", table(2))
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(8)), 4)
    write(tmp_path / "b.parquet", table(2, embedding=fixed))
    assert open_source(str(tmp_path), COLUMNS).dim == 4
    other = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(10)), 5)
    path = write(tmp_path / "c.parquet", table(2, embedding=other))
    assert f"{path}: embeddings of 5 dimensions, but 4 in most rows" in refusal(tmp_path)


@pytest.mark.parametrize("kept", [0, 3, 200])
def test_a_truncated_parquet_file_is_refused_by_name(tmp_path: Path, kept: int) -> None:
    path = write(tmp_path / "a.parquet", table(50))
    path.write_bytes(path.read_bytes()[:kept])
    assert f"{path}: not a readable Parquet file" in refusal(path)


def test_damaged_pages_are_reported_by_file_name(tmp_path: Path) -> None:
    lists = damaged(write(tmp_path / "lists.parquet", table(50)))
    assert f"{lists}: damaged Parquet file" in refusal(lists)
    fixed = table(50, embedding=pa.FixedSizeListArray.from_arrays(pa.array(np.ones(100)), 2))
    path = damaged(write(tmp_path / "fixed.parquet", fixed))
    source = open_source(str(path), COLUMNS)
    with pytest.raises(InputError, match=r"fixed\.parquet: damaged Parquet file"):
        read_unit(source.layout, source.units[0])


def test_files_are_read_in_natural_order_of_their_names(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        np.save(tmp_path / f"part-{number}.npy", np.full((1, 2), number, np.float32))
    source = open_source(str(tmp_path), COLUMNS)
    assert [value[0] for value in everything(source)["embedding"].to_pylist()] == [1, 2, 10]
    assert source.summary()["order"].startswith("natural")


def test_several_inputs_are_one(tmp_path: Path) -> None:
    write(tmp_path / "b.parquet", table(2))
    (tmp_path / "more").mkdir()
    write(tmp_path / "more" / "a.parquet", table(3, 2))
    source = open_source([str(tmp_path / "b.parquet"), str(tmp_path / "more")], COLUMNS)
    assert everything(source)["id"].to_pylist() == [f"row{i}" for i in range(5)]
    assert source.summary()["uris"] == [str(tmp_path / "b.parquet"), str(tmp_path / "more")]
    twice = [str(tmp_path / "*.parquet"), str(tmp_path / "more" / ".." / "b.parquet")]
    with pytest.raises(InputError, match=r"b\.parquet: both .* and .* name it: name it once"):
        open_source(twice, COLUMNS)
    np.save(tmp_path / "c.npy", embeddings(3))
    with pytest.raises(InputError, match=r"c\.npy: \.npy, but .*b\.parquet is \.parquet: give inputs of one kind"):
        open_source([str(tmp_path / "b.parquet"), str(tmp_path / "c.npy")], COLUMNS)
