"""Quality on classes, and on domains, never trained on: LANDER by the real commands, beside tuned peers.

    python -m benchmarks.quality --data DIR [--sets ...] [--methods ...] [--seeds 0 1 2] [--json FILE]
    python -m benchmarks.quality --data DIR --rows-per-class 10 --methods "left out" ...
    python -m benchmarks.quality --data DIR --rows-per-class long-tailed --sets omniglot --methods general ...
    python -m benchmarks.quality --data DIR --sets faces --methods general ...
    python -m benchmarks.quality --data DIR --workers 1 2 4

Everything is scored on the unseen half of each set's classes. What is trained or tuned, is on the other half:

- raw gcn, raw gat, relational: LANDER trained on the set's own training half;
- general: the checkpoint that comes with the package, trained on the training halves of all sets but digits;
- left out: the recipe of the general checkpoint without the set: nothing is known of the domain;
- HDBSCAN, DBSCAN, HAC, FINCH, Infomap with their best parameters on the training half; k-means told the number of classes.

``--rows-per-class`` takes so many rows of each unseen class, for classes that are small against the neighbour lists, or
``long-tailed``: one of most classes. LANDER is trained on the whole training halves, the others are tuned on as many rows of each
training class. Sets of ``faces`` are synthetic (``benchmarks.faces``).

``--json`` keeps the rows in a file, and rows that it holds already are not measured again. ``--workers`` trains the
relational model of one set with several numbers of workers instead and prints how far the final F differ.
"""

import argparse
import contextlib
import itertools
import json
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ray

from benchmarks.faces import KINDS, made_faces, sizes_of_classes
from benchmarks.peers import PEERS, run_kmeans
from hilander_dist.config import load_config
from hilander_dist.evaluate import contingency, scores
from hilander_dist.jobs.train import run_train_job
from jobs.open_sets import GENERAL, SETS, Half, half_as_parquet, load_set

LANDER = ("raw gcn", "raw gat", "relational", "general", "left out")
METHODS = (*LANDER, *PEERS, "k-means, true k")
RAW = ("model.features=raw", "model.hidden=128", "train.epochs=60")
"""The default 512 and 250 take twenty times as long and overfit these small sets more."""

LONG_TAILED = "long-tailed"
"""Class sizes of ``benchmarks.faces``."""


@dataclass(frozen=True)
class Row:
    """One measurement."""

    data: str
    method: str
    seed: int
    pairwise_f: float
    bcubed_f: float
    nmi: float
    clusters: int
    classes: int
    seconds: float
    """Of training or tuning, and clustering."""


class Folder(NamedTuple):
    """Where the halves of all sets stand as Parquet, and the models that were trained."""

    path: Path

    def write(self, name: str, halves: tuple[Half, Half]) -> None:
        """Both halves of a set."""
        for kind, half in zip(("train", "unseen"), halves, strict=True):
            (self.path / f"{name}-{kind}.parquet").write_bytes(half_as_parquet(half))

    def train(self, data: list[str], output: str, *arguments: str) -> str:
        """Train on the training halves of sets; the model's directory."""
        inputs = [part for name in data for part in ("--input", str(self.path / f"{name}-train.parquet"))]
        hilander("train", *inputs, "--output", str(self.path / output), *arguments)
        return str(self.path / output)

    def cluster(self, data: str, *arguments: str) -> Any:
        """Scores of the final clusters of a set's unseen half."""
        points, output = str(self.path / f"{data}-unseen.parquet"), tempfile.mkdtemp(dir=self.path)
        hilander("cluster", "--input", points, "--output", output, *arguments)
        return json.loads(hilander("evaluate", "--assignments", output, "--labels", points, "--json"))["final"]


def hilander(*arguments: str) -> str:
    """Run the command; its standard output."""
    command = [str(Path(sysconfig.get_path("scripts")) / "hilander"), *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def measure_lander(folder: Folder, data: str, method: str, seed: int, classes: int) -> Row:
    """Train where the method says so, cluster the unseen half, score it."""
    began = time.perf_counter()
    with_seed, model = ("--seed", str(seed)), []
    if method != "general":
        names = [name for name in GENERAL if name != data] if method == "left out" else [data]
        options = (*RAW, f"model.encoder={method[4:]}") if method.startswith("raw") else ()
        sets = [part for option in options for part in ("--set", option)]
        output = f"{data}-{method}-{seed}".replace(" ", "-")
        model = ["--model", folder.train(names, output, *with_seed, *sets)]
    final = folder.cluster(data, *model, *with_seed)
    seconds = time.perf_counter() - began
    f = final["pairwise"]["f"], final["bcubed"]["f"]
    return Row(data, method, seed, *f, final["nmi"], final["clusters"], classes, seconds)


def measure_peer(halves: tuple[Half, Half], data: str, method: str, seed: int) -> Row:
    """Tune on the training half, cluster the unseen half."""
    train, unseen = halves
    classes = len(np.unique(unseen.label_N))
    began = time.perf_counter()
    if method in PEERS:
        peer = PEERS[method]
        cluster_N = peer.run(unseen.x_ND, peer.tune(train.x_ND, train.label_N))
    else:
        cluster_N = run_kmeans(unseen.x_ND, (classes, seed))
    seconds = time.perf_counter() - began
    found = scores(contingency(cluster_N, unseen.label_N))
    return Row(data, method, seed, found.pairwise.f, found.bcubed.f, found.nmi, found.clusters, classes, seconds)


def rows_option(text: str) -> int | str:
    """``--rows-per-class``."""
    return text if text == LONG_TAILED else int(text)


def thinned(half: Half, rows: int | str | None) -> Half:
    """So many rows of each class, drawn; all where ``rows`` is None."""
    if rows is None:
        return half
    rng = np.random.default_rng(0)
    class_C = np.unique(half.label_N)
    most = len(half.label_N)
    size_C = sizes_of_classes(len(class_C), most, rng) if rows == LONG_TAILED else np.full(len(class_C), rows)
    drawn = [rng.permutation(np.flatnonzero(half.label_N == c))[:n] for c, n in zip(class_C, size_C, strict=True)]
    at = np.sort(np.concatenate(drawn))
    return Half(half.x_ND[at], half.label_N[at])


def compare_workers(folder: Folder, data: str, workers: list[int]) -> str:
    """Train with several numbers of workers on a Ray of as many CPUs; how far the final F differ."""
    lines, found = [], []
    for count in workers:
        with ray_of(count):
            config = load_config(overrides=[f"train.num_workers={count}"])
            output = str(folder.path / f"{data}-workers-{count}")
            run_train_job(str(folder.path / f"{data}-train.parquet"), output, config)
        final = folder.cluster(data, "--model", output)
        found.append((final["pairwise"]["f"], final["bcubed"]["f"]))
        lines.append(f"{data:12}{count} workers{found[-1][0]:>9.4f}{found[-1][1]:>9.4f}")
    spread = np.ptp(np.array(found), axis=0).max()
    return "\n".join([*lines, f"largest difference of a final F: {spread:.4f} (asked: 0.005)"])


@contextlib.contextmanager
def ray_of(cpus: int) -> Iterator[None]:
    """A local Ray that offers so many CPUs, whatever the machine has."""
    ray.init(address="local", num_cpus=max(2, cpus), include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def format_rows(rows: list[Row]) -> str:
    """One line per set and method: means over seeds, and the largest distance from the mean."""
    names = ("pair F", "+-", "BCub F", "+-", "NMI", "clusters", "/ true", "seconds")
    lines = [f"{'data':22}{'method':18}" + "".join(f"{name:>9}" for name in names)]
    for data, method in dict.fromkeys((row.data, row.method) for row in rows):
        same = [row for row in rows if (row.data, row.method) == (data, method)]
        table = np.array([(row.pairwise_f, row.bcubed_f, row.nmi, row.clusters, row.seconds) for row in same])
        mean, spread = table.mean(0), np.abs(table - table.mean(0)).max(0)
        lines.append(
            f"{data:22}{method:18}{mean[0]:>9.3f}{spread[0]:>9.3f}{mean[1]:>9.3f}{spread[1]:>9.3f}{mean[2]:>9.3f}"
            f"{mean[3]:>9.0f}{mean[3] / same[0].classes:>9.2f}{mean[4]:>9.1f}"
        )
    return "\n".join(lines)


def format_figures(rows: list[Row]) -> str:
    """The figures asked for, from the rows that are there."""
    mean: dict[tuple[str, str], np.ndarray] = {}
    for data, method in {(row.data, row.method) for row in rows}:
        same = [(row.pairwise_f, row.bcubed_f) for row in rows if (row.data, row.method) == (data, method)]
        mean[data, method] = np.mean(same, axis=0)
    lines = []
    for method in ("relational", "left out"):
        margins = {}
        for data in dict.fromkeys(row.data for row in rows):
            peers = [mean[data, peer] for peer in PEERS if (data, peer) in mean]
            if (data, method) in mean and peers:
                # The best peer in each of both F, which need not be the same one.
                margins[data] = mean[data, method] - np.max(peers, axis=0)
        if margins:
            above = sum(bool((margin > 0).all()) for margin in margins.values())
            each = ", ".join(f"{data} {margin[0]:+.3f} {margin[1]:+.3f}" for data, margin in margins.items())
            average = np.mean(list(margins.values()), axis=0)
            lines.append(f"{method} less the best tuned peer (pairwise, BCubed): {each}")
            lines.append(
                f"  on average {average[0]:+.3f} {average[1]:+.3f}; above it in both on {above} of {len(margins)}"
            )
    ratios = {}
    for data in dict.fromkeys(row.data for row in rows):
        raw = [mean[data, kind][0] for kind in ("raw gcn", "raw gat") if (data, kind) in mean]
        if raw and (data, "general") in mean:
            ratios[data] = mean[data, "general"][0] / max(raw)
    if ratios:
        each = ", ".join(f"{data} {ratio:.2f}" for data, ratio in ratios.items())
        lines.append(
            f"general / best raw, pairwise F: {each}; on average {np.mean(list(ratios.values())):.2f} (asked: 1.47)"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory with the .npz files")
    parser.add_argument("--sets", nargs="+", choices=(*SETS, *KINDS), default=list(SETS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--rows-per-class", type=rows_option, help=f"of the unseen classes, a number or {LONG_TAILED}; all by default"
    )
    parser.add_argument("--json", type=Path, help="keep the rows in this file")
    parser.add_argument("--workers", nargs="+", type=int, help="compare numbers of workers on the first of --sets")
    arguments = parser.parse_args()
    kept = arguments.json and arguments.json.exists()
    rows = [Row(**row) for row in json.loads(arguments.json.read_text())] if kept else []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Folder(Path(temporary))
        asked = set(SETS if "left out" in arguments.methods else arguments.sets)  # It is trained on the others.
        halves = {name: load_set(arguments.data, name) for name in SETS if name in asked}
        halves |= {name: made_faces(name) for name in arguments.sets if name in KINDS}
        small = arguments.rows_per_class
        for name, (train, unseen) in halves.items():
            folder.write(name, (train, thinned(unseen, small)))
        if arguments.workers:
            print(compare_workers(folder, arguments.sets[0], arguments.workers))
            return
        for name, method, seed in itertools.product(arguments.sets, arguments.methods, arguments.seeds):
            data = f"{name}:{small}" if small else name
            once = method == "general" or method in PEERS  # Nothing in them is drawn anew.
            there = any((row.data, row.method, row.seed) == (data, method, seed) for row in rows)
            if there or (once and seed != arguments.seeds[0]):
                continue
            train, unseen = halves[name]
            if method in LANDER:
                row = measure_lander(folder, name, method, seed, len(np.unique(unseen.label_N)))
            else:
                row = measure_peer((thinned(train, small), thinned(unseen, small)), name, method, seed)
            rows.append(replace(row, data=data))
            print(format_rows(rows[-1:]).splitlines()[-1], flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2))
    print(format_rows(rows))
    print(format_figures(rows))


if __name__ == "__main__":
    main()
