"""Small Parquet files and inputs for the tests of this folder."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hilander_dist.config import InputConfig
from hilander_dist.errors import InputError
from hilander_dist.source import Source, open_source, read_unit

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


def broken_text(values: list[bytes | None]) -> pa.Array:
    """A string column whose bytes nobody has looked at."""
    return pa.Array.from_buffers(pa.string(), len(values), pa.array(values, pa.binary()).buffers())


def damaged(path: Path) -> Path:
    """A file whose footer is good and whose pages are not."""
    content = bytearray(path.read_bytes())
    footer = int.from_bytes(content[-8:-4], "little") + 8
    content[4:-footer] = b"\xff" * (len(content) - 4 - footer)
    path.write_bytes(content)
    return path
