"""The demo: cluster handwritten digits by the general checkpoint, which has never seen one.

The 8 x 8 images that scikit-learn carries are the embeddings: raw pixels, 64 numbers. Nothing is downloaded.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.datasets import load_digits

from hilander_dist.config import Config
from hilander_dist.evaluate import format_scores
from hilander_dist.jobs.cluster import run_cluster_job

FIRST_DIGIT = 5
"""Digits from it on are clustered."""


def run_demo(where: Path, address: str | None = None, debug: bool = False) -> str:
    """Run the demo and return its scores.

    Args:
        where: directory for the data and the clusters.
        address: Ray cluster; see ``runtime.ray_session``.
        debug: show the workers' log.

    Raises:
        OutputError: an earlier demo stands there.
    """
    x_ND, label_N = load_digits(return_X_y=True)
    taken_N = label_N >= FIRST_DIGIT
    where.mkdir(parents=True, exist_ok=True)
    digits, clusters = str(where / "digits.parquet"), str(where / "clusters")
    write_embeddings(digits, x_ND[taken_N], label_N[taken_N])
    manifest = run_cluster_job(digits, None, clusters, Config(), address, debug)
    scores = format_scores(json.loads(Path(clusters, "metrics.json").read_text()))
    head = f"{int(taken_N.sum())} images of five digits; level {manifest['chosen_level']} is the answer:"
    return "\n".join([head, scores, f"clusters, manifest and metrics: {clusters}"])


def write_embeddings(path: str, x_ND: np.ndarray, label_N: np.ndarray) -> None:
    """Write rows as the Parquet file that `hilander` reads: id, embedding, label."""
    embedding = pa.FixedSizeListArray.from_arrays(pa.array(x_ND.astype(np.float32).ravel()), x_ND.shape[1])
    columns: dict[str, Any] = {"id": pa.array(range(len(x_ND))), "embedding": embedding, "label": pa.array(label_N)}
    pq.write_table(pa.table(columns), path)
