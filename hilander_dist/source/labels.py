"""Tables of ids and labels beside the embeddings: what ``evaluate`` and ``tune`` are told of the truth."""

from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from hilander_dist.config import InputConfig
from hilander_dist.errors import InputError
from hilander_dist.source.columns import (
    NOT_UTF8,
    KeyType,
    common_type,
    constant_column,
    given_type,
    read_key,
    read_partition,
)
from hilander_dist.source.files import THREADS, InputFile, list_inputs
from hilander_dist.source.parquet import read_footer, read_groups
from hilander_dist.source.source import log_left_out


def read_labels(uri: str, columns: InputConfig) -> pa.Table:
    """The columns id and label of Parquet files, whatever they are called there; each int64 or string.

    Raises:
        InputError: files that are missing, unreadable or do not fit together; an id or a label that is not UTF-8.
    """
    inputs = list_inputs(uri)
    log_left_out(inputs.left_out)
    names = {"id": columns.id_column, "label": columns.label_column}
    with ThreadPoolExecutor(THREADS) as pool:
        types = list(pool.map(lambda file: {key: _key(file, name) for key, name in names.items()}, inputs.files))
    kinds = {
        key: common_type([(file.uri, found[key]) for file, found in zip(inputs.files, types, strict=True)], key)
        or "string"
        for key in names
    }
    return pa.concat_tables([_read(file, names, kinds) for file in inputs.files])


def _key(file: InputFile, name: str) -> KeyType:
    if file.kind == "npy":
        raise InputError(f"{file.uri}: labels are needed as Parquet, with an id for each")
    footer = read_footer(file.uri)
    given = read_partition(file.uri)
    if not footer.has(name):
        if name not in given:
            raise InputError(
                f"{file.uri}: no column {name!r} (there are: {', '.join(footer.schema.names)}): name yours with "
                "--set input.id_column=... and --set input.label_column=..."
            )
        return given_type(given[name])
    kind = footer.key(name)
    if kind is None:
        raise footer.unusable_key(name)
    return KeyType(kind if footer.rows else "null")


def _read(file: InputFile, names: dict[str, str], kinds: dict[str, str]) -> pa.Table:
    raw, given = read_groups(file.uri, list(names.values())), read_partition(file.uri)
    rows = raw.num_rows if raw.column_names else read_footer(file.uri).rows
    out = {}
    for key, name in names.items():
        own = raw[name] if name in raw.column_names else constant_column(given.get(name), rows)
        out[key], broken_N = read_key(own, kinds[key], file.uri, name)
        if broken_N.any():
            raise InputError(f"{file.uri}: row {broken_N.argmax()}: its {key} {NOT_UTF8}: write it as UTF-8")
    return pa.table(out)
