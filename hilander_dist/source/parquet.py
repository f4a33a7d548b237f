"""A Parquet file: what its footer says of its columns and row groups, and the rows of some groups."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hilander_dist.errors import InputError
from hilander_dist.source.columns import embedding_dim, key_type, read_embedding, short
from hilander_dist.storage import Storage

FIRST_ROWS = 1024
"""Rows looked at to tell the dimension of lists."""


@dataclass(frozen=True)
class Footer:
    """What a file's footer says."""

    uri: str
    schema: pa.Schema
    group_rows: tuple[int, ...]
    """Rows of each row group."""

    @property
    def rows(self) -> int:
        """Rows of the file."""
        return sum(self.group_rows)

    def key(self, name: str) -> str | None:
        """What a column of ids or labels is read as, see ``columns.key_type``.

        Raises:
            InputError: two columns have the name.
        """
        return key_type(self.field(name).type)

    def field(self, name: str) -> pa.Field:
        """A column that is there.

        Raises:
            InputError: two columns have the name.
        """
        count = self.schema.names.count(name)
        if count > 1:
            raise InputError(f"{self.uri}: {count} columns are called {name!r}: rename all but one")
        return self.schema.field(name)

    def has(self, name: str) -> bool:
        """Whether there is such a column."""
        return name in self.schema.names

    def dim(self, name: str) -> int:
        """Dimensions of a column of embeddings, 0 where its type does not tell.

        Raises:
            InputError: two columns have the name, or it is no column of embeddings.
        """
        field = self.field(name)
        return embedding_dim(field.type, self.uri, name, field.metadata)

    def unusable_key(self, name: str) -> InputError:
        """Says that a column is neither string nor integer."""
        return InputError(f"{self.uri}: column {name!r} is {self.field(name).type}, not string or integer: convert it")


def read_footer(uri: str) -> Footer:
    """Read a file's footer.

    Raises:
        InputError: it has none.
    """
    try:
        with Storage(uri).open() as file:
            parquet = pq.ParquetFile(file, pre_buffer=False)
            metadata = parquet.metadata
            groups = tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
            return Footer(uri, parquet.schema_arrow, groups)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{uri}: not a readable Parquet file ({short(error)}): is it truncated?") from None


def read_groups(uri: str, columns: Sequence[str] | None = None, groups: range | None = None) -> pa.Table:
    """Those of the named columns that a file has, or all columns, of some of its row groups or of all.

    Raises:
        InputError: the file is damaged.
    """
    with _parsing(uri), Storage(uri).open() as file:
        # Arrow's threads would let go of the file while the interpreter ends: 6 of 85 runs were aborted after their
        # output ("terminate called without an active exception"), of 80 without such threads none.
        parquet = pq.ParquetFile(file, pre_buffer=False)
        every = range(parquet.metadata.num_row_groups)
        names = parquet.schema_arrow.names
        own = names if columns is None else [name for name in dict.fromkeys(columns) if name in names]
        return parquet.read_row_groups(every if groups is None else groups, columns=own, use_threads=False)


def first_lengths(uri: str, column: str) -> np.ndarray:
    """Lengths of the embeddings in the first rows of a file, up to some of which one has any, int64; 0 for null and empty.

    Raises:
        InputError: the file is damaged.
    """
    found: list[np.ndarray] = []
    with _parsing(uri), Storage(uri).open() as file:
        for batch in pq.ParquetFile(file, pre_buffer=False).iter_batches(
            FIRST_ROWS, columns=[column], use_threads=False
        ):
            lists = read_embedding(pa.chunked_array([batch.column(0)]))
            found.append(pc.fill_null(pc.list_value_length(lists), 0).to_numpy().astype(np.int64))
            if found[-1].any():
                break
    return np.concatenate(found)


@contextmanager
def _parsing(uri: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{uri}: damaged Parquet file ({short(error)}): write it again") from None
