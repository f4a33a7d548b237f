"""The evaluation job: assignments and labels in, scores out."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hilander_dist.errors import InputError
from hilander_dist.evaluate import evaluate_tables
from hilander_dist.storage import Storage, list_inputs


def evaluate_uris(assignments_uri: str, labels_uri: str) -> dict[str, Any]:
    """Score assignments against labels.

    Args:
        assignments_uri: a run directory, its ``assignments/``, or Parquet files.
        labels_uri: Parquet file, directory or glob with columns id and label.

    Returns:
        See ``evaluate.evaluate_tables``.

    Raises:
        InputError: files that are missing, unreadable or do not fit together.
    """
    labels = read_labels(labels_uri)
    is_run = bool(Storage(assignments_uri).list("assignments")) if "*" not in assignments_uri else False
    if is_run:
        assignments_uri = assignments_uri.rstrip("/") + "/assignments"
    return evaluate_tables(_tables(assignments_uri, None), labels)


def read_labels(uri: str) -> pa.Table:
    """The columns id and label of Parquet files.

    Raises:
        InputError: files that are missing, unreadable or do not fit together.
    """
    try:
        return pa.concat_tables(_tables(uri, ["id", "label"]), promote_options="permissive")
    except pa.ArrowException as error:
        detail = " ".join(str(error).split())
        raise InputError(f"{uri}: id or label of its files differ in type ({detail}): write them alike") from None


def _tables(uri: str, columns: list[str] | None) -> Iterator[pa.Table]:
    root, files = list_inputs(uri)
    for info in files:
        with root.open(info.path) as file:
            try:
                # Arrow's threads would let go of the file while the interpreter ends: 6 of 85 runs were aborted after their
                # output ("terminate called without an active exception"), of 80 without such threads none.
                footer = pq.ParquetFile(file, pre_buffer=False)
                missing = [name for name in columns or () if name not in footer.schema_arrow.names]
                if missing:
                    raise InputError(
                        f"{root.uri}/{info.path}: no column {missing[0]!r}; needed: {', '.join(columns or ())}"
                    )
                yield footer.read(columns=columns, use_threads=False)
            except (pa.ArrowException, OSError) as error:
                detail = " ".join(str(error).split())
                raise InputError(f"{root.uri}/{info.path}: not a readable Parquet file ({detail})") from None
