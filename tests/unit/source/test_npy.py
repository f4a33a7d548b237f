"""Arrays as .npy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hilander_dist.source import open_source
from hilander_dist.source import source as source_module
from tests.unit.source.tables import COLUMNS, embeddings, everything, refusal


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
