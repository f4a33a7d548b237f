"""Quality on the unseen classes of real data, by the real commands, beside the baselines.

    python -m benchmarks.real_data --data DIR [--sets clinc150 caltech101 grocery] [--json FILE]

Of each set, the points of half of the classes (``class_split`` 0) train a GCN and a GAT model, and the points of the
other half (1) are clustered and scored. Points of no class (label -1) are left out. Photos are reduced by a PCA fitted
on the training half. DBSCAN and HAC are tuned on the training half and run here, on the same vectors.
"""

import argparse
import json
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.decomposition import PCA

from hilander_dist.evaluate import contingency, scores
from hilander_dist.evaluate.baselines import run_dbscan, run_hac, tune_dbscan, tune_hac

FILES = {
    "clinc150": "clinc150_minilm.npz",
    "caltech101": "caltech101_efflite0.npz",
    "grocery": "grocery_efflite0.npz",
}
PHOTOS = ("caltech101", "grocery")
# Pairwise F and BCubed F on the unseen classes, each tuned on split 0: the table in the data directory's README.md.
PUBLISHED = {
    "clinc150": {
        "Infomap": (0.874, 0.884),
        "HAC average": (0.693, 0.733),
        "FINCH": (0.678, 0.700),
        "DBSCAN": (0.497, 0.590),
        "k-means, true k": (0.782, 0.826),
    },
    "caltech101": {
        "Infomap": (0.809, 0.815),
        "HAC average": (0.968, 0.862),
        "FINCH": (0.635, 0.748),
        "DBSCAN": (0.617, 0.698),
        "k-means, true k": (0.431, 0.669),
    },
    "grocery": {
        "Infomap": (0.557, 0.629),
        "HAC average": (0.450, 0.582),
        "FINCH": (0.473, 0.529),
        "DBSCAN": (0.256, 0.462),
        "k-means, true k": (0.407, 0.433),
    },
}


class Half(NamedTuple):
    """The points of one half of the classes."""

    id_N: np.ndarray
    """int64, row number in the file."""
    x_ND: np.ndarray
    """float32 unit rows (after a PCA: its coordinates)."""
    label_N: np.ndarray
    """int64."""


@dataclass(frozen=True)
class Row:
    """One line of the result table; None where the source does not tell."""

    data: str
    method: str
    pairwise_f: float
    bcubed_f: float
    true_classes: int
    nmi: float | None = None
    clusters: int | None = None
    train_s: float | None = None
    cluster_s: float | None = None


def load_halves(file: Path, pca: int) -> tuple[Half, Half]:
    """The training half and the unseen half of a set; ``pca`` 0 keeps the dimension."""
    with np.load(file) as arrays:
        x_ND, label_N, split_G = (
            arrays["emb"].astype(np.float32),
            arrays["label"].astype(np.int64),
            arrays["class_split"],
        )
    x_ND /= np.linalg.norm(x_ND, axis=1, keepdims=True)
    # Label -1 would index the last class.
    split_N = np.where(label_N < 0, -1, split_G[label_N])
    if pca:
        x_ND = PCA(pca, random_state=0).fit(x_ND[split_N == 0]).transform(x_ND)
    train, unseen = (np.flatnonzero(split_N == half) for half in (0, 1))
    return Half(train, x_ND[train], label_N[train]), Half(unseen, x_ND[unseen], label_N[unseen])


def write_half(half: Half, file: Path) -> None:
    """Write Parquet with the columns id, embedding (fixed-size list of float32) and label."""
    embedding = pa.FixedSizeListArray.from_arrays(pa.array(half.x_ND.ravel()), half.x_ND.shape[1])
    pq.write_table(pa.table({"id": half.id_N, "embedding": embedding, "label": half.label_N}), file)


def measure_hilander(data: str, encoder: str, unseen: Half, folder: Path, options: list[str]) -> Row:
    """Train on ``train.parquet``, cluster ``unseen.parquet`` and score it, each by its command."""
    model, output = str(folder / f"{encoder}-model"), str(folder / f"{encoder}-clusters")
    train, points = str(folder / "train.parquet"), str(folder / "unseen.parquet")
    sets = [part for option in options for part in ("--set", option)]
    shape = ["--set", f"model.encoder={encoder}"]
    _, train_s = _timed(lambda: _hilander("train", "--input", train, "--output", model, *shape, *sets))
    _, cluster_s = _timed(lambda: _hilander("cluster", "--input", points, "--model", model, "--output", output, *sets))
    final = json.loads(_hilander("evaluate", "--assignments", output, "--labels", points, "--json"))["final"]
    return Row(
        data,
        f"hilander {encoder}",
        final["pairwise"]["f"],
        final["bcubed"]["f"],
        len(np.unique(unseen.label_N)),
        final["nmi"],
        final["clusters"],
        train_s,
        cluster_s,
    )


def measure_baseline(
    data: str, name: str, tune: Callable[..., Any], run: Callable[..., np.ndarray], train: Half, unseen: Half
) -> Row:
    """Tune on the training half, run on the other; ``train_s`` is the time of the tuning."""
    parameters, train_s = _timed(lambda: tune(train.x_ND, train.label_N))
    cluster_N, cluster_s = _timed(lambda: run(unseen.x_ND, parameters))
    result = scores(contingency(cluster_N, unseen.label_N))
    classes = len(np.unique(unseen.label_N))
    return Row(data, name, result.pairwise.f, result.bcubed.f, classes, result.nmi, result.clusters, train_s, cluster_s)


def format_rows(rows: list[Row]) -> str:
    """The plain text table."""
    numbers = ("pair F", "BCub F", "NMI", "clusters", "classes", "train s", "run s")
    lines = [f"{'data':12}{'method':24}" + "".join(f"{name:>9}" for name in numbers)]
    for row in rows:
        nmi, clusters, train_s, cluster_s = (
            "-" if value is None else format(value, spec)
            for value, spec in ((row.nmi, ".3f"), (row.clusters, "d"), (row.train_s, ".1f"), (row.cluster_s, ".1f"))
        )
        lines.append(
            f"{row.data:12}{row.method:24}{row.pairwise_f:>9.3f}{row.bcubed_f:>9.3f}{nmi:>9}{clusters:>9}"
            f"{row.true_classes:>9}{train_s:>9}{cluster_s:>9}"
        )
    return "\n".join(lines)


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def _hilander(*arguments: str) -> str:
    command = [str(Path(sysconfig.get_path("scripts")) / "hilander"), *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory with the .npz files")
    parser.add_argument("--sets", nargs="+", choices=list(FILES), default=list(FILES))
    parser.add_argument("--pca", type=int, default=256, help="dimension of the photos' vectors; 0 keeps all")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="option of train and cluster")
    parser.add_argument("--json", type=Path, help="write the rows to this file, too")
    arguments = parser.parse_args()
    rows = []
    for data in arguments.sets:
        train, unseen = load_halves(arguments.data / FILES[data], arguments.pca if data in PHOTOS else 0)
        classes = len(np.unique(unseen.label_N))
        with tempfile.TemporaryDirectory() as folder:
            write_half(train, Path(folder) / "train.parquet")
            write_half(unseen, Path(folder) / "unseen.parquet")
            rows += [measure_hilander(data, kind, unseen, Path(folder), arguments.set) for kind in ("gcn", "gat")]
        rows.append(measure_baseline(data, "DBSCAN", tune_dbscan, run_dbscan, train, unseen))
        rows.append(measure_baseline(data, "HAC average", tune_hac, run_hac, train, unseen))
        rows += [Row(data, f"{name} (README)", *f, classes) for name, f in PUBLISHED[data].items()]
    print(format_rows(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2))


if __name__ == "__main__":
    main()
