"""The general checkpoint on the unseen half of every open set, nothing tuned: the level that it chooses, and the best one.

    python -m benchmarks.open_sets --data DIR [--sets ...] [--model FILE] [--coarse] [--labels N] [--json FILE]

F is the mean of pairwise and BCubed F. Sets of more than 6,000 rows are cut to whole classes, drawn. For each set: the chosen level, the
best written level, the best level of the whole path, and the best of direct clusterings, each made from the seeds with one shift; with
``--labels N`` the level that N labelled rows choose (mean of five draws). ``--coarse`` scores real upper classes (domains of intents,
kinds of groceries, alphabets): the F of the best level and the dendrogram purity, beside average-linkage HAC on all points.
"""

import argparse
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from hilander_dist.cluster.hierarchy.levels import Nodes
from hilander_dist.cluster.local import cluster_points, f_scores
from hilander_dist.cluster.partition.average_linkage import cut
from hilander_dist.cluster.relational import score_rows, whitened_rows
from hilander_dist.cluster.sharded.labels import own_labels
from hilander_dist.cluster.sharded.path import labels_by_level, merge_path
from hilander_dist.config import RelationalModel
from hilander_dist.ingest import normalise_rows
from hilander_dist.jobs.models import GENERAL
from hilander_dist.jobs.tune import best_level
from hilander_dist.knn.graph import GraphOptions
from hilander_dist.lander.checkpoint import load_checkpoint
from hilander_dist.lander.inference import Inference
from hilander_dist.lander.relational import RelationalLander
from hilander_dist.local_tasks import LocalTasks, held, put
from jobs.open_sets import SETS, load_set

MOST_ROWS = 6000
COARSE = {"clinc150": "domain", "grocery": "coarse", "omniglot": "alphabet"}
DRAWS = 5


@dataclass(frozen=True)
class Unseen:
    """The rows of the unseen classes of a set."""

    x_ND: np.ndarray
    label_N: np.ndarray
    coarse_N: np.ndarray | None


@dataclass(frozen=True)
class Row:
    """What was found on a set; F unless the name says otherwise."""

    data: str
    rows: int
    classes: int
    chosen: float
    clusters: int
    reason: str
    best_written: float
    best_of_path: float
    best_direct: float
    by_labels: float | None = None
    coarse_best: float | None = None
    coarse_purity: float | None = None
    hac_coarse_best: float | None = None
    hac_coarse_purity: float | None = None


def load_unseen(folder: Path, name: str) -> Unseen:
    """The unseen half of an open set, at most MOST_ROWS rows of whole classes."""
    if name in SETS:
        x_ND, label_N = load_set(folder, name)[1]
        coarse_N = None
    else:
        with np.load(next(folder.glob(f"{name}_*.npz"))) as arrays:
            label_N = arrays["label"].astype(np.int64)
            unseen_N = arrays["class_split"][label_N] == 1
            x_ND, label_N, coarse_N = normalise_rows(arrays["emb"][unseen_N]), label_N[unseen_N], None
    if name in COARSE:
        with np.load(next(folder.glob(f"{name}_*.npz"))) as arrays:
            every_N, own_N = arrays[COARSE[name]], arrays["label"].astype(np.int64)
            if len(every_N) == len(own_N):  # of each row, else of each class
                of_class = dict(zip(own_N.tolist(), every_N.tolist(), strict=True))
                every_N = np.array([of_class.get(c, -1) for c in range(own_N.max() + 1)])
        coarse_N = np.unique(every_N[label_N], return_inverse=True)[1]
    if len(label_N) > MOST_ROWS:
        kept, rows = [], 0
        for c in np.random.default_rng(0).permutation(np.unique(label_N)):
            size = int((label_N == c).sum())
            if rows == 0 or rows + size <= MOST_ROWS:
                kept.append(c)
                rows += size
        at = np.isin(label_N, kept)
        x_ND, label_N, coarse_N = x_ND[at], label_N[at], None if coarse_N is None else coarse_N[at]
    return Unseen(np.ascontiguousarray(x_ND, dtype=np.float32), label_N, coarse_N)


def names(folder: Path) -> list[str]:
    """The open sets in a folder, and the digits that scikit-learn brings."""
    return [*sorted(file.stem.rsplit("_", 1)[0] for file in folder.glob("*.npz")), "digits"]


def mean_f(label_N: np.ndarray, class_N: np.ndarray) -> float:
    """The mean of both F."""
    return sum(f_scores(label_N, class_N)) / 2


def path_labels(x_ND: np.ndarray, model: RelationalLander) -> tuple[np.ndarray, np.ndarray]:
    """The clusters of all levels of the path, and of direct clusterings with each of its shifts: int64 (L, N) each."""
    tasks, (N, D) = LocalTasks(), x_ND.shape
    search = GraphOptions(model.inference.k, 0.98, 0)
    nodes = Nodes(held([{"id_N": np.arange(N), "x_ND": x_ND}]), N, D, N)
    parts, _ = whitened_rows(tasks, None, nodes, model, put(model), 1, search)
    level, graph, _ = score_rows(tasks, replace(nodes, parts=parts), 1, search, model, put(model), "level-0")
    order = np.argsort(tasks.get(level.nodes)[0]["id_N"])

    def labels(inference: Inference) -> list[np.ndarray]:
        path = merge_path(tasks, None, graph, inference, f"{inference.first_shift}-{inference.last_shift}")
        found = [tasks.get(refs)[0] for refs in labels_by_level(tasks, graph, path)]
        return [own_labels(block, N)[order] for block in found]

    inference = model.inference
    direct = [
        labels(inference.model_copy(update={"first_shift": shift, "last_shift": shift}))[0]
        for shift in inference.shifts()
    ]
    return np.stack(labels(inference)), np.stack(direct)


def purity(label_LN: np.ndarray, class_N: np.ndarray) -> float:
    """Dendrogram purity of nested levels, finest first and one cluster last: the mean, over pairs of rows of one class, of the share of
    that class in the smallest cluster that holds both."""
    classes = int(class_N.max()) + 1
    size_K = np.bincount(class_N)
    total = float((size_K * (size_K - 1) / 2).sum())
    found = 0.0
    joined_N = np.zeros(len(class_N))  # pairs of a row's class in its cluster at the level below, over the rows there
    for label_N in label_LN:
        key, at_N, count = np.unique(label_N * classes + class_N, return_inverse=True, return_counts=True)
        pairs = count * (count - 1) / 2
        earlier = np.bincount(at_N, joined_N, len(key))
        size = np.bincount(label_N)[key // classes]
        found += float(((pairs - earlier) * count / size).sum())
        joined_N = (pairs / count)[at_N]
    return found / total


def measure(folder: Path, name: str, model: RelationalLander, coarse: bool, labels: int) -> Row:
    """All figures of a set."""
    data = load_unseen(folder, name)
    found = cluster_points(data.x_ND, model)
    path_LN, direct_LN = path_labels(data.x_ND, model)
    f_L = [mean_f(label_N, data.label_N) for label_N in path_LN]
    chosen_N = found.label_LN[found.chosen]
    row = Row(
        name,
        len(data.label_N),
        len(np.unique(data.label_N)),
        mean_f(chosen_N, data.label_N),
        int(chosen_N.max()) + 1,
        found.numbers["chosen_because"],
        max(mean_f(label_N, data.label_N) for label_N in found.label_LN),
        max(f_L),
        max(mean_f(label_N, data.label_N) for label_N in direct_LN),
    )
    if labels:
        row = replace(row, by_labels=float(np.mean([f_L[at] for at in tuned(path_LN, data.label_N, labels)])))
    if coarse and data.coarse_N is not None:
        assert found.tree is not None
        steps_LN = [
            cut(found.tree["first_M"], found.tree["second_M"], found.tree["level_M"], count)[chosen_N]
            for count in range(len(found.tree["first_M"]), 0, -1)
        ]
        nested_LN = np.stack([np.arange(len(chosen_N)), *found.label_LN[: found.chosen + 1], *steps_LN])
        hac = linkage(squareform(np.maximum(1 - data.x_ND @ data.x_ND.T, 0), checks=False), "average")
        cuts = [fcluster(hac, count, "maxclust") for count in np.unique(np.geomspace(2, 400, 60).astype(int))]
        row = replace(
            row,
            coarse_best=max(mean_f(label_N, data.coarse_N) for label_N in nested_LN),
            coarse_purity=purity(nested_LN, data.coarse_N),
            hac_coarse_best=max(mean_f(label_N, data.coarse_N) for label_N in cuts),
            hac_coarse_purity=tree_purity(hac, data.coarse_N),
        )
    return row


def tuned(path_LN: np.ndarray, class_N: np.ndarray, labels: int) -> list[int]:
    """The level that so many labelled rows choose, of some draws."""
    chosen = []
    for seed in range(DRAWS):
        row_M = np.random.default_rng(seed).choice(len(class_N), min(labels, len(class_N)), replace=False)
        chosen.append(best_level(np.array([f_scores(label_N[row_M], class_N[row_M]) for label_N in path_LN])))
    return chosen


def tree_purity(tree: np.ndarray, class_N: np.ndarray) -> float:
    """``purity`` of a dendrogram in scipy's columns."""
    counts = [{int(c): 1} for c in class_N]
    found = 0.0
    for first, second, _, size in tree.tolist():
        large, small = sorted((counts[int(first)], counts[int(second)]), key=len, reverse=True)
        for c, n in small.items():
            if c in large:
                found += large[c] * n * (large[c] + n) / size
            large[c] = large.get(c, 0) + n
        counts.append(large)
    size_K = np.bincount(class_N)
    return found / float((size_K * (size_K - 1) / 2).sum())


def format_rows(rows: list[Row]) -> str:
    """A line a set, and the means."""
    columns = ("chosen", "best_written", "best_of_path", "best_direct", "by_labels")
    lines = [
        f"{'data':22}{'rows':>6}{'classes':>8}{'clusters':>9}" + "".join(f"{name:>14}" for name in columns) + "  reason"
    ]
    for row in rows:
        values = "".join(
            "-".rjust(14) if getattr(row, name) is None else f"{getattr(row, name):14.3f}" for name in columns
        )
        lines.append(f"{row.data:22}{row.rows:6}{row.classes:8}{row.clusters:9}{values}  {row.reason}")
    means = [[getattr(row, name) for row in rows if getattr(row, name) is not None] for name in columns]
    lines.append(f"{'mean':45}" + "".join(f"{np.mean(found):14.4f}" if found else "-".rjust(14) for found in means))
    lines += [
        f"coarse {row.data:15} best level {row.coarse_best:.3f} (HAC {row.hac_coarse_best:.3f}), "
        f"purity {row.coarse_purity:.3f} (HAC {row.hac_coarse_purity:.3f})"
        for row in rows
        if row.coarse_best is not None
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory with the .npz files")
    parser.add_argument("--sets", nargs="+", help="default: all")
    parser.add_argument("--model", type=Path, default=GENERAL)
    parser.add_argument("--coarse", action="store_true")
    parser.add_argument("--labels", type=int, default=0)
    parser.add_argument("--json", type=Path, help="keep the rows in this file")
    args = parser.parse_args()
    model = load_checkpoint(args.model.read_bytes(), str(args.model), RelationalModel())
    assert isinstance(model, RelationalLander)
    rows = []
    for name in args.sets or names(args.data):
        rows.append(measure(args.data, name, model, args.coarse, args.labels))
        print(format_rows(rows[-1:]).splitlines()[1], flush=True)
    print(format_rows(rows))
    if args.json:
        found: list[dict[str, Any]] = [asdict(row) for row in rows]
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
