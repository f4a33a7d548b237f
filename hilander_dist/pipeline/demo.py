"""The demo: cluster handwritten digits by the general checkpoint, beside two classical methods that were tuned on others.

The 8 x 8 images that scikit-learn carries are the embeddings: raw pixels, 64 numbers. Nothing is downloaded.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.datasets import load_digits

from hilander_dist.config import Config
from hilander_dist.evaluate import Scores, contingency, scores
from hilander_dist.evaluate.baselines import run_dbscan, run_hac, tune_dbscan, tune_hac
from hilander_dist.pipeline.cluster import run_cluster_job

TRAIN_CLASSES = 5
"""The classical methods are tuned on digits 0 to 4. All cluster 5 to 9."""


def run_demo(where: Path, address: str | None = None, debug: bool = False) -> str:
    """Run the demo and return its table.

    Args:
        where: directory for the data and the clusters.
        address: Ray cluster; see ``runtime.ray_session``.
        debug: show the workers' log.

    Raises:
        OutputError: an earlier demo stands there.
    """
    x_ND, label_N = load_digits(return_X_y=True)
    seen_N = label_N < TRAIN_CLASSES
    where.mkdir(parents=True, exist_ok=True)
    digits, clusters = str(where / "digits.parquet"), str(where / "clusters")
    write_embeddings(digits, x_ND[~seen_N], label_N[~seen_N])
    run_cluster_job(digits, None, clusters, Config(), address, debug)
    assignments = pq.read_table(Path(clusters, "assignments"), columns=["id", "cluster_id"])
    found = assignments.sort_by("id")["cluster_id"].to_numpy()
    train, unseen = (x_ND[seen_N], label_N[seen_N]), x_ND[~seen_N]
    rows = {
        "LANDER": found,
        "DBSCAN": run_dbscan(unseen, tune_dbscan(*train)),
        "average-linkage HAC": run_hac(unseen, tune_hac(*train)),
    }
    table = [f"{'':20}{'pairwise F':>12}{'BCubed F':>12}{'NMI':>8}{'clusters':>10}"]
    table += [_row(name, scores(contingency(cluster_N, label_N[~seen_N]))) for name, cluster_N in rows.items()]
    head = f"{len(unseen)} digits of five classes; LANDER has never seen a digit, the others were tuned on five other classes:"
    return "\n".join([head, *table, f"clusters, manifest and metrics: {clusters}"])


def write_embeddings(path: str, x_ND: np.ndarray, label_N: np.ndarray) -> None:
    """Write rows as the Parquet file that `hilander` reads: id, embedding, label."""
    embedding = pa.FixedSizeListArray.from_arrays(pa.array(x_ND.astype(np.float32).ravel()), x_ND.shape[1])
    columns: dict[str, Any] = {"id": pa.array(range(len(x_ND))), "embedding": embedding, "label": pa.array(label_N)}
    pq.write_table(pa.table(columns), path)


def _row(name: str, result: Scores) -> str:
    return f"{name:20}{result.pairwise.f:>12.3f}{result.bcubed.f:>12.3f}{result.nmi:>8.3f}{result.clusters:>10}"
