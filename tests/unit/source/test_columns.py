"""Columns of ids, labels and embeddings in the forms that people have."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilander_dist.config import InputConfig
from hilander_dist.errors import InputError
from hilander_dist.source import open_source, read_unit
from hilander_dist.source.columns import constant_column, given_type, read_key
from tests.unit.source.tables import COLUMNS, broken_text, embeddings, everything, refusal, table, write


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


def test_an_integer_id_beyond_int64_is_refused_by_file_and_column(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", table(2, id=pa.array([1, 2**64 - 1], pa.uint64())))
    source = open_source(str(path), COLUMNS)
    with pytest.raises(InputError, match=r"a\.parquet: column 'id': .*18446744073709551615.*write it as strings"):
        read_unit(source.layout, source.units[0])


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


@given(st.one_of(st.text("-0123456789 +.e", max_size=22), st.integers(-(2**70), 2**70).map(str)))
def test_what_a_directory_is_called_is_an_integer_only_where_nothing_is_lost(value: str) -> None:
    kind = given_type(value).kind
    if kind == "int64":
        assert str(int(value)) == value
        assert read_key(constant_column(value, 1), "int64", "a", "id")[0].to_pylist() == [int(value)]
    else:
        assert kind == "string"
        assert not (re.fullmatch(r"-?[1-9]\d{0,17}", value))
