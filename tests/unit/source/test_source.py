import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilander_dist.config import InputConfig
from hilander_dist.errors import InputError
from hilander_dist.source import Source, open_source, read_unit
from hilander_dist.source import source as source_module

COLUMNS = InputConfig()


def embeddings(n: int, dim: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


def table(n: int, first: int = 0, dim: int = 3, **replaced: Any) -> pa.Table:
    columns = {
        "id": pa.array([f"row{i}" for i in range(first, first + n)], pa.string()),
        "embedding": pa.array(embeddings(n, dim, first).tolist(), pa.list_(pa.float32())),
        **replaced,
    }
    return pa.table({name: column for name, column in columns.items() if column is not None})


def write(path: Path, content: pa.Table, row_group_size: int | None = None) -> Path:
    pq.write_table(content, path, row_group_size=row_group_size)
    return path


def everything(source: Source) -> pa.Table:
    return pa.concat_tables([read_unit(source.layout, unit)[0] for unit in source.units])


def refusal(uri: Path, columns: InputConfig = COLUMNS, need_label: bool = False) -> str:
    """The message with which an input is refused; it is one line."""
    with pytest.raises(InputError) as caught:
        open_source(str(uri), columns, need_label)
    assert "\n" not in str(caught.value)
    return str(caught.value)


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


def test_other_column_names_and_labels(tmp_path: Path) -> None:
    content = table(3, label=pa.array([1, None, 2], pa.int16())).rename_columns(["key", "vector", "kind"])
    path = write(tmp_path / "a.parquet", content.append_column("more", pa.array(["x", "y", "z"])))
    columns = InputConfig(id_column="key", embedding_column="vector", label_column="kind")
    source = open_source(str(path), columns, need_label=True)
    read = everything(source)
    assert set(read.column_names) == {"id", "embedding", "label"}
    assert read["label"].type == pa.int64()
    assert read["label"].to_pylist() == [1, None, 2]


@pytest.mark.parametrize(
    ("ids", "id_type", "kind"),
    [
        (pa.array([3, 1, 2], pa.int32()), "int64", pa.int64()),
        (pa.array([3, 1, 2], pa.uint8()), "int64", pa.int64()),
        (pa.array(["a", "b", None], pa.large_string()), "string", pa.string()),
    ],
)
def test_ids_are_int64_or_string(tmp_path: Path, ids: pa.Array, id_type: str, kind: pa.DataType) -> None:
    source = open_source(str(write(tmp_path / "a.parquet", table(3, id=ids))), COLUMNS)
    read = everything(source)["id"]
    assert (source.layout.id_type, read.type, read.to_pylist()) == (id_type, kind, ids.to_pylist())


def test_string_types_of_different_width_fit_together(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", table(2))
    write(tmp_path / "b.parquet", table(2, id=pa.array(["x", "y"], pa.large_string())))
    assert everything(open_source(str(tmp_path), COLUMNS))["id"].to_pylist() == ["row0", "row1", "x", "y"]


@pytest.mark.parametrize("name", ["id", "label"])
def test_ids_or_labels_of_two_types_are_refused_by_file(tmp_path: Path, name: str) -> None:
    labels = pa.array([1, 2])
    write(tmp_path / "a.parquet", table(2, label=labels))
    write(
        tmp_path / "b.parquet", table(2, **{"label": labels, name: pa.array(["x", "y"] if name == "label" else [1, 2])})
    )
    message = refusal(tmp_path)
    assert f"b.parquet: its {name} column differs in type from that of {tmp_path}/a.parquet" in message


def test_rows_of_a_file_without_the_label_column_have_none(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", table(2))
    write(tmp_path / "b.parquet", table(2, 2, label=pa.array([1, 2])))
    read = everything(open_source(str(tmp_path), COLUMNS, need_label=True))
    assert (read["label"].type, read["label"].to_pylist()) == (pa.int64(), [None, None, 1, 2])


@pytest.mark.parametrize("name", ["id", "embedding", "label"])
def test_a_part_of_arrows_null_type_is_nulls_of_the_type_of_the_others(tmp_path: Path, name: str) -> None:
    labels = pa.array(["x", "y"])
    write(tmp_path / "a.parquet", table(2, **{"label": labels, name: pa.nulls(2)}))
    write(tmp_path / "b.parquet", table(2, 2, label=labels))
    source = open_source(str(tmp_path), COLUMNS, need_label=True)
    read = everything(source)
    assert source.dim == 3
    assert read[name].null_count == 2
    assert read[name].type == everything(open_source(str(tmp_path / "b.parquet"), COLUMNS, True))[name].type


def test_labels_without_any_value_are_none(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", table(2, label=pa.nulls(2)))
    assert "no label in a column 'label': labels are needed" in refusal(tmp_path, need_label=True)
    assert not open_source(str(tmp_path), COLUMNS).has_label


@pytest.mark.parametrize("label", [pa.array([0.5, 1.5])])
def test_labels_that_cannot_be_used_matter_only_where_they_are_needed(label: pa.Array, tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", table(2, label=label))
    assert f"column 'label' is {label.type}, not string or integer" in refusal(tmp_path, need_label=True)
    assert not open_source(str(tmp_path), COLUMNS).has_label


def test_categories_are_read_as_their_values(tmp_path: Path) -> None:
    ids, labels = pa.array(["b", "a"]).dictionary_encode(), pa.array([7, 3]).dictionary_encode()
    write(tmp_path / "a.parquet", table(2, id=ids, label=labels))
    source = open_source(str(tmp_path), COLUMNS)
    rows = read_unit(source.layout, source.units[0])[0]
    assert (rows["id"].to_pylist(), rows["label"].to_pylist()) == (["b", "a"], [7, 3])
    assert (rows["id"].type, rows["label"].type) == (pa.string(), pa.int64())


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


def damaged(path: Path) -> Path:
    """A file whose footer is good and whose pages are not."""
    content = bytearray(path.read_bytes())
    footer = int.from_bytes(content[-8:-4], "little") + 8
    content[4:-footer] = b"\xff" * (len(content) - 4 - footer)
    path.write_bytes(content)
    return path


def test_damaged_pages_are_reported_by_file_name(tmp_path: Path) -> None:
    lists = damaged(write(tmp_path / "lists.parquet", table(50)))
    assert f"{lists}: damaged Parquet file" in refusal(lists)
    fixed = table(50, embedding=pa.FixedSizeListArray.from_arrays(pa.array(np.ones(100)), 2))
    path = damaged(write(tmp_path / "fixed.parquet", fixed))
    source = open_source(str(path), COLUMNS)
    with pytest.raises(InputError, match=r"fixed\.parquet: damaged Parquet file"):
        read_unit(source.layout, source.units[0])


def test_an_integer_id_beyond_int64_is_refused_by_file_and_column(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", table(2, id=pa.array([1, 2**64 - 1], pa.uint64())))
    source = open_source(str(path), COLUMNS)
    with pytest.raises(InputError, match=r"a\.parquet: column 'id': .*18446744073709551615.*write it as strings"):
        read_unit(source.layout, source.units[0])


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4"])
def test_npy_rows_are_numbered_over_all_files(tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "ROWS_PER_UNIT", 10)
    first, second = embeddings(23), embeddings(4, seed=1)
    np.save(tmp_path / "a.npy", first.astype(dtype))
    np.save(tmp_path / "b.npy", second.astype(dtype))
    source = open_source(str(tmp_path), COLUMNS)
    assert [(Path(u.uri).name, u.first_row, u.row_in_file, u.rows) for u in source.units] == [
        ("a.npy", 0, 0, 10),
        ("a.npy", 10, 10, 10),
        ("a.npy", 20, 20, 3),
        ("b.npy", 23, 0, 4),
    ]
    assert (source.dim, source.layout.id_type, source.has_label) == (3, "int64", False)
    read = everything(source)
    assert read["id"].to_pylist() == list(range(27))
    values = np.array(read["embedding"].to_pylist(), dtype=np.float64)
    np.testing.assert_array_equal(values, np.concatenate([first, second]).astype(dtype))


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f8"])
def test_a_npy_array_in_fortran_order_is_read(tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "ROWS_PER_UNIT", 10)
    x_ND = embeddings(23, 5)
    np.save(tmp_path / "a.npy", np.asfortranarray(x_ND.astype(dtype)))
    read = everything(open_source(str(tmp_path), COLUMNS))["embedding"]
    np.testing.assert_array_equal(np.array(read.to_pylist(), dtype=np.float64), x_ND.astype(dtype))


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


def broken_text(values: list[bytes | None]) -> pa.Array:
    """A string column whose bytes nobody has looked at."""
    return pa.Array.from_buffers(pa.string(), len(values), pa.array(values, pa.binary()).buffers())


def test_an_id_that_is_not_utf8_is_a_bad_row_and_a_label_is_none_where_it_is_not_needed(tmp_path: Path) -> None:
    ids, labels = broken_text([b"a", b"caf\xe9", None]), broken_text([b"\xff", b"x", b"y"])
    for name, kind in (("text", pa.string()), ("bytes", pa.binary()), ("views", pa.binary_view())):
        path = write(tmp_path / f"{name}.parquet", table(3, id=ids.cast(kind), label=labels.cast(kind)))
        source = open_source(str(path), COLUMNS)
        rows, fault_N = read_unit(source.layout, source.units[0])
        assert rows["id"].to_pylist() == ["a", "caf\\xe9", None]
        assert rows["label"].to_pylist() == [None, "x", "y"]
        assert fault_N.tolist() == ["", "id is not UTF-8", ""]
        source = open_source(str(path), COLUMNS, need_label=True)
        assert read_unit(source.layout, source.units[0])[1].tolist() == ["label is not UTF-8", "id is not UTF-8", ""]


@pytest.mark.parametrize("name", ["id", "embedding", "label"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, name: str) -> None:
    whole = table(2, label=pa.array([1, 2]))
    path = write(tmp_path / "a.parquet", whole.append_column(name, whole[name]))
    assert f"{path}: 2 columns are called {name!r}: rename all but one" in refusal(path)


def test_directories_in_hive_layout_give_labels(tmp_path: Path) -> None:
    for at, value in enumerate(("cat", "7", "a%20b", "__HIVE_DEFAULT_PARTITION__")):
        (tmp_path / f"label={value}").mkdir()
        write(tmp_path / f"label={value}" / "x.parquet", table(1, at))
    source = open_source(str(tmp_path), COLUMNS, need_label=True)
    found = {row["id"]: row["label"] for row in everything(source).to_pylist()}
    assert found == {"row0": "cat", "row1": "7", "row2": "a b", "row3": None}
    for one in ("label=cat", "label=c*", "label=cat/x.parquet"):
        assert everything(open_source(str(tmp_path / one), COLUMNS, True))["label"].to_pylist() == ["cat"]


def test_directories_in_hive_layout_give_integers_where_all_are(tmp_path: Path) -> None:
    for value in (12, 3):
        (tmp_path / f"kind={value}").mkdir()
        np.save(tmp_path / f"kind={value}" / "x.npy", embeddings(2))
    columns = InputConfig(label_column="kind")
    assert everything(open_source(str(tmp_path), columns))["label"].to_pylist() == [3, 3, 12, 12]
    assert not open_source(str(tmp_path), COLUMNS).has_label
    # What is only written like an integer is none.
    (tmp_path / "kind=007").mkdir()
    np.save(tmp_path / "kind=007" / "x.npy", embeddings(1))
    assert set(everything(open_source(str(tmp_path), columns))["label"].to_pylist()) == {"3", "12", "007"}


def test_directories_in_hive_layout_give_ids_and_a_column_of_the_file_goes_first(tmp_path: Path) -> None:
    for key in (1, 2):
        (tmp_path / f"id={key}").mkdir()
        write(tmp_path / f"id={key}" / "x.parquet", table(1, id=None))
    assert everything(open_source(str(tmp_path), COLUMNS))["id"].to_pylist() == [1, 2]
    write(tmp_path / "id=2" / "x.parquet", table(1, 5))
    assert everything(open_source(str(tmp_path), COLUMNS))["id"].to_pylist() == ["1", "row5"]


def tensors(kind: str) -> pa.Array:
    """Two rows of three numbers in a tensor type."""
    from ray.data.extensions import ArrowTensorType, ArrowTensorTypeV2

    if kind == "arrow":
        storage = pa.array([[1.0, 2, 3], [4, 5, 6]], pa.list_(pa.float32(), 3))
        return pa.FixedShapeTensorArray.from_storage(pa.fixed_shape_tensor(pa.float32(), (3,)), storage)
    ray_type = {"ray 1": ArrowTensorType, "ray 2": ArrowTensorTypeV2}[kind]((3,), pa.float32())
    return pa.ExtensionArray.from_storage(ray_type, pa.array([[1.0, 2, 3], [4, 5, 6]], ray_type.storage_type))


READ = """
import sys
from hilander_dist.config import InputConfig
from hilander_dist.source import open_source, read_unit
assert "ray.data" not in sys.modules
source = open_source(sys.argv[1], InputConfig())
print(source.dim, read_unit(source.layout, source.units[0])[0]["embedding"].to_pylist())
"""


@pytest.mark.parametrize("kind", ["arrow", "ray 1", "ray 2"])
def test_tensor_types_are_read_as_their_storage_whether_or_not_ray_data_was_imported(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "a.parquet", table(2, embedding=tensors(kind)))
    expected = [[1, 2, 3], [4, 5, 6]]
    source = open_source(str(path), COLUMNS)
    assert (source.dim or 3, everything(source)["embedding"].to_pylist()) == (3, expected)
    told = subprocess.run([sys.executable, "-c", READ, path], capture_output=True, text=True, check=True).stdout
    assert told.split(" ", 1)[1].strip() == "[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]"


def test_tensors_of_two_axes_are_no_vectors(tmp_path: Path) -> None:
    storage = pa.array([[1.0, 2, 3, 4]], pa.list_(pa.float32(), 4))
    column = pa.FixedShapeTensorArray.from_storage(pa.fixed_shape_tensor(pa.float32(), (2, 2)), storage)
    path = write(tmp_path / "a.parquet", table(1, embedding=column))
    assert f"{path}: column 'embedding' has tensors of shape (2, 2), not vectors: flatten or pool" in refusal(path)


def test_a_npy_file_of_a_newer_header_version_is_read(tmp_path: Path) -> None:
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array(file, embeddings(3), version=(2, 0))
    assert everything(open_source(str(tmp_path), COLUMNS))["embedding"].to_pylist() == embeddings(3).tolist()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(7, np.float32), "float32 array of shape (7,)"),
        (np.zeros((2, 3, 4), np.float32), "shape (2, 3, 4)"),
        (np.float32(1), "shape ()"),
        (np.zeros((3, 0), np.float32), "shape (3, 0)"),
        (np.zeros((3, 2), np.int32), "int32 array"),
        (np.zeros((3, 2), np.longdouble), "float128 array"),
        (np.zeros((3, 2), "S3"), "|S3 array"),
    ],
)
def test_a_npy_array_of_another_kind_is_refused(tmp_path: Path, array: Any, message: str) -> None:
    np.save(tmp_path / "a.npy", array)
    found = refusal(tmp_path / "a.npy")
    assert message in found
    assert "a 2-D array of float16, float32 or float64 is needed" in found


def test_a_pickled_npy_file_is_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[object()]]), allow_pickle=True)
    assert "object array" in refusal(tmp_path / "a.npy")


@pytest.mark.parametrize("missing", [1, 12])
def test_a_truncated_npy_file_is_refused(tmp_path: Path, missing: int) -> None:
    np.save(tmp_path / "a.npy", embeddings(9))
    content = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(content[:-missing])
    assert "a.npy: truncated: its header promises 9 x 3 float32" in refusal(tmp_path / "a.npy")


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\x76\x00{'descr'", b"not numpy at all"])
def test_a_damaged_npy_header_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    assert "a.npy: not a readable .npy file" in refusal(tmp_path / "a.npy")
