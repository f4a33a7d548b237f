"""A .npy file: its header, and some of its rows. Nothing is ever unpickled."""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from hilander_dist.errors import InputError
from hilander_dist.source.columns import short
from hilander_dist.storage import Storage

TYPES = tuple(np.dtype(order + kind) for order in "<>" for kind in ("f2", "f4", "f8"))
"""Types of an array that can be read."""


class Header(NamedTuple):
    """What a .npy file says of itself."""

    rows: int
    dim: int
    dtype: np.dtype[Any]
    by_column: bool
    """Fortran order."""
    offset: int
    """Bytes before the first number."""


def read_header(uri: str, size: int | None = None) -> Header:
    """Read and check the header of a file of ``size`` bytes.

    Raises:
        InputError: no .npy file, an array of another kind, or one that is cut short.
    """
    try:
        with Storage(uri).open() as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, by_column, dtype = read(file)
            offset = file.tell()
    except (ValueError, OSError) as error:
        raise InputError(f"{uri}: not a readable .npy file ({short(error)})") from None
    if len(shape) != 2 or dtype not in TYPES or shape[1] == 0:
        raise InputError(f"{uri}: {dtype} array of shape {shape}: a 2-D array of float16, float32 or float64 is needed")
    header = Header(shape[0], shape[1], dtype, by_column, offset)
    if size is not None and size < offset + header.rows * header.dim * dtype.itemsize:
        raise InputError(
            f"{uri}: truncated: its header promises {header.rows} x {header.dim} {dtype}, it has {size} bytes"
        )
    return header


def read_rows(uri: str, first: int, rows: int) -> pa.FixedSizeListArray:
    """Rows ``first`` to ``first + rows - 1`` of a file."""
    header = read_header(uri)
    dim, dtype = header.dim, header.dtype
    with Storage(uri).open() as file:
        if header.by_column:
            # The raw file below the buffer: on S3 that would read 4 MiB ahead for the few bytes of each column.
            raw: Any = getattr(file, "raw", file)
            x_DN = np.empty((dim, rows), dtype=dtype)
            for d in range(dim):
                raw.seek(header.offset + (d * header.rows + first) * dtype.itemsize)
                x_DN[d] = np.frombuffer(_read_exactly(raw, rows * dtype.itemsize), dtype=dtype)
            values = np.ascontiguousarray(x_DN.T).reshape(-1)
        else:
            file.seek(header.offset + first * dim * dtype.itemsize)
            values = np.frombuffer(file.read(rows * dim * dtype.itemsize), dtype=dtype)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.astype(dtype.newbyteorder("="))), dim)


def _read_exactly(raw: Any, size: int) -> bytes:
    """So many bytes of an unbuffered file, which may return fewer at a time."""
    pieces = []
    while size:
        piece = raw.read(size)
        assert piece, "the file ends before its header says"
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)
