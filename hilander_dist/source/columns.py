"""Columns of ids, labels and embeddings in the forms that people's files have them, and as the program reads them.

An id or a label is int64 or string: integers of any width, strings, bytes that are UTF-8, dictionaries (pandas'
categories) of these. An embedding is a list of float16, float32 or float64, also inside Arrow's and Ray Data's tensor
types. A column of Arrow's null type, as a part without any value has it, is nulls of whatever the other files hold.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hilander_dist.errors import InputError

NOT_UTF8 = "is not UTF-8"
"""What is wrong with an id or a label of other bytes."""

HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
"""What Hive and Spark write in a directory's name for null."""


class KeyType(NamedTuple):
    """What a file says of the type of its ids or labels."""

    kind: str
    """"int64", "string", "null" where there is no column or no value in it, or the Arrow type of an unusable one."""
    from_name: bool = False
    """Whether its directory's name gives the value: an integer there may as well be a string."""


def key_type(kind: pa.DataType) -> str | None:
    """What a column of ids or labels is read as: "int64", "string", or "null" for no value at all; None for other types."""
    if pa.types.is_dictionary(kind):
        return key_type(kind.value_type)
    if pa.types.is_null(kind):
        return "null"
    if pa.types.is_integer(kind):
        return "int64"
    text = (
        *(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
        *(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view),
    )
    return "string" if any(is_kind(kind) for is_kind in text) else None


def read_key(column: pa.ChunkedArray, kind: str, where: str, name: str) -> tuple[pa.ChunkedArray, np.ndarray]:
    """A column of ids or labels as int64 or string, and which rows are not UTF-8 (bool (N,)); these have escapes.

    Args:
        column: of a type that ``key_type`` knows.
        kind: "int64" or "string", as the whole input has it.
        where: the file, for messages.
        name: of the column, for messages.

    Raises:
        InputError: an integer above 2^63 - 1.
    """
    fine_N = np.zeros(len(column), dtype=bool)
    column = unwrapped(column)
    if pa.types.is_null(column.type) or (pa.types.is_dictionary(column.type) and column.type.value_type == pa.null()):
        return pa.chunked_array([pa.nulls(len(column), pa.int64() if kind == "int64" else pa.string())]), fine_N
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if kind == "int64":
        try:
            return column.cast(pa.int64()), fine_N
        except pa.ArrowInvalid as error:
            raise InputError(f"{where}: column {name!r}: {short(error)}: write it as strings") from None
    raw = column.cast(pa.large_binary())
    try:
        return raw.cast(pa.large_string()).cast(pa.string()), fine_N
    except pa.ArrowInvalid:
        texts = [None if value is None else value.decode(errors="backslashreplace") for value in raw.to_pylist()]
        broken_N = np.array([value is not None and not _is_utf8(value) for value in raw.to_pylist()])
        return pa.chunked_array([pa.array(texts, pa.string())]), broken_N


def read_partition(path: str) -> dict[str, str | None]:
    """The columns that a file's directories give, as Hive and Spark write them (``label=cat/``); None for null."""
    found: dict[str, str | None] = {}
    for part in path.split("/")[:-1]:
        name, sign, value = part.partition("=")
        if sign and name:
            found[name] = None if value == HIVE_NULL else unquote(value)
    return found


def given_type(value: str | None) -> KeyType:
    """The type of what a directory's name gives; what is only written like an integer, as 007, is a string, as is what may
    not fit an int64."""
    if value is None:
        return KeyType("null")
    is_int = re.fullmatch(r"0|-?[1-9][0-9]{0,17}", value) is not None
    return KeyType("int64" if is_int else "string", from_name=True)


def constant_column(value: str | None, rows: int) -> pa.ChunkedArray:
    """A column of one value that a directory's name gives, or of nulls."""
    return pa.chunked_array([pa.array([value] * rows, pa.string())])


def common_type(types: Sequence[tuple[str, KeyType]], what: str) -> str | None:
    """The type of a column in all files, None where none has a value.

    Args:
        types: URI of each file, and what it says.
        what: the column, for messages.

    Raises:
        InputError: two files differ.
    """
    typed = [(uri, key) for uri, key in types if key.kind != "null"]
    if all(key.from_name for _, key in typed):
        kinds = {key.kind for _, key in typed}
        return "string" if "string" in kinds else next(iter(kinds), None)
    first_uri, first = next((uri, key) for uri, key in typed if not key.from_name)
    for uri, key in typed:
        if key.kind != first.kind and not (key.from_name and first.kind == "string"):
            raise InputError(
                f"{uri}: its {what} column differs in type from that of {first_uri} "
                f"({key.kind} and {first.kind}): write both files alike"
            )
    return first.kind


def embedding_dim(kind: pa.DataType, where: str, name: str, metadata: dict[bytes, bytes] | None = None) -> int:
    """The number of dimensions that a column's type tells; 0 for lists of any length.

    Raises:
        InputError: it is no column of embeddings.
    """
    shape = _tensor_shape(kind, metadata or {})
    if shape is not None and len(shape) != 1:
        raise InputError(
            f"{where}: column {name!r} has tensors of shape {tuple(shape)}, not vectors: flatten or pool them first"
        )
    kind = _storage_type(kind)
    fixed = pa.types.is_fixed_size_list(kind)
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_list_view, pa.types.is_large_list_view)
    if pa.types.is_null(kind):
        return 0
    if (fixed or any(is_kind(kind) for is_kind in lists)) and _is_number(kind.value_type):
        return int(kind.list_size) if fixed and not pa.types.is_null(kind.value_type) else 0
    raise InputError(f"{where}: column {name!r} is {kind}, not a list of float16, float32 or float64: convert it")


def read_embedding(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of embeddings as lists of a float type, whatever wraps them."""
    column = unwrapped(column)
    kind = column.type
    if pa.types.is_null(kind):
        return column.cast(pa.list_(pa.float32()))
    if pa.types.is_null(kind.value_type):
        kind = pa.list_(pa.float32(), kind.list_size) if pa.types.is_fixed_size_list(kind) else pa.list_(pa.float32())
        return column.cast(kind)
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        # By hand: pyarrow's cast of such a column, as a Parquet file brings it, has an offset too few.
        return pa.chunked_array([_as_lists(chunk) for chunk in column.chunks], pa.large_list(kind.value_type))
    return column


def unwrapped(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The storage of an extension type; whether the type is known differs from process to process."""
    if not isinstance(column.type, pa.BaseExtensionType):
        return column
    storage = column.type.storage_type
    return pa.chunked_array([chunk.storage for chunk in column.chunks], storage)


def short(error: Exception) -> str:
    """An error's text on one line, cut."""
    return " ".join(str(error).split())[:160]


def _as_lists(views: pa.Array) -> pa.LargeListArray:
    length_N = pc.fill_null(pc.list_value_length(views), 0).to_numpy(zero_copy_only=False)
    end_N = np.concatenate([[0], np.cumsum(length_N, dtype=np.int64)])
    mask = views.is_null() if views.null_count else None
    return pa.LargeListArray.from_arrays(pa.array(end_N), views.flatten(), mask=mask)


def _storage_type(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_null(kind))


def _tensor_shape(kind: pa.DataType, metadata: dict[bytes, bytes]) -> list[int] | None:
    """The shape of a row of a tensor type, also where the type is not registered and its name stands in the metadata."""
    if isinstance(kind, pa.BaseExtensionType):
        shape = getattr(kind, "shape", None)
        return None if shape is None else list(shape)
    try:
        described: Any = json.loads(metadata.get(b"ARROW:extension:metadata", b"null"))
    except ValueError:
        return None
    shape = described.get("shape") if isinstance(described, dict) else described
    return shape if isinstance(shape, list) and all(isinstance(size, int) for size in shape) else None


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
