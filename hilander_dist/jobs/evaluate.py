"""The evaluation job: assignments and labels in, scores out."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from hilander_dist.config import InputConfig
from hilander_dist.errors import InputError
from hilander_dist.evaluate import evaluate_tables
from hilander_dist.source import list_inputs, read_labels
from hilander_dist.source.parquet import read_groups
from hilander_dist.source.source import log_left_out
from hilander_dist.storage import Storage


def evaluate_uris(assignments_uri: str, labels_uri: str, columns: InputConfig | None = None) -> dict[str, Any]:
    """Score assignments against labels.

    Args:
        assignments_uri: a run directory, its ``assignments/``, or Parquet files.
        labels_uri: Parquet file, directory or glob with ids and labels.
        columns: what the columns of ids and labels are called there.

    Returns:
        See ``evaluate.evaluate_tables``.

    Raises:
        InputError: files that are missing, unreadable or do not fit together.
    """
    labels = read_labels(labels_uri, columns or InputConfig())
    run = Storage(assignments_uri)
    return evaluate_tables(
        _tables(f"{run.uri}/assignments" if run.is_directory("assignments") else assignments_uri), labels
    )


def _tables(uri: str) -> Iterator[pa.Table]:
    inputs = list_inputs(uri)
    log_left_out(inputs.left_out)
    for file in inputs.files:
        if file.kind == "npy":
            raise InputError(f"{file.uri}: assignments are Parquet: name the output directory of `cluster`")
        yield read_groups(file.uri)
