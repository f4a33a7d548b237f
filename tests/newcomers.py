"""What people try first: a few clear classes, make_blobs, copies, strangers, an offset, noise. Nothing is tuned.

    python -m tests.newcomers [--seeds N]       # the table: asked and found F, means over the seeds

F is the mean of pairwise and BCubed F. Rows are clustered by the general checkpoint as a job does it, in this process.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from sklearn.datasets import make_blobs

from hilander_dist.cluster.local import cluster_points, f_scores
from hilander_dist.config import RelationalModel
from hilander_dist.ingest import normalise_rows
from hilander_dist.jobs.models import GENERAL
from hilander_dist.lander.checkpoint import load_checkpoint
from hilander_dist.lander.relational import RelationalLander

STRANGER = 1_000_000
"""Labels of rows that belong to nothing are this and above."""


class Rows(NamedTuple):
    """A set: unit rows float32, and labels int64."""

    x_ND: np.ndarray
    label_N: np.ndarray


class Found(NamedTuple):
    """What was found."""

    label_N: np.ndarray
    warnings: list[str]


@dataclass(frozen=True)
class Case:
    """A set that people try first, and the F that they may expect."""

    name: str
    make: Callable[[int], Rows]
    """Of a seed."""
    score: Callable[[Rows, Found], float]
    asked: float


def classes(count: int, size: int, dim: int, noise: float) -> Callable[[int], Rows]:
    """Classes around random directions, with normal noise of this length."""

    def make(seed: int) -> Rows:
        rng = np.random.default_rng(seed)
        centre_CD = _unit(rng.normal(size=(count, dim)))
        label_N = np.repeat(np.arange(count), size)
        return Rows(_unit(centre_CD[label_N] + rng.normal(size=(len(label_N), dim)) * noise / np.sqrt(dim)), label_N)

    return make


def blobs(rows: int, dim: int, centres: int) -> Callable[[int], Rows]:
    """make_blobs of scikit-learn."""

    def make(seed: int) -> Rows:
        x_ND, label_N = make_blobs(rows, dim, centers=centres, random_state=seed)
        return Rows(_unit(x_ND), label_N.astype(np.int64))

    return make


def with_copies(copies: int) -> Callable[[int], Rows]:
    """30 classes of 20 rows; the first row is there so many times."""

    def make(seed: int) -> Rows:
        x_ND, label_N = classes(30, 20, 32, 0.5)(seed)
        more = np.zeros(copies - 1, dtype=np.int64)
        return Rows(np.concatenate([x_ND, x_ND[more]]), np.concatenate([label_N, label_N[more]]))

    return make


def with_strangers(count: int, size: int, strangers: int) -> Callable[[int], Rows]:
    """Classes, and rows that are unrelated to all."""

    def make(seed: int) -> Rows:
        x_ND, label_N = classes(count, size, 128, 0.5)(seed)
        other_ND = _unit(np.random.default_rng(seed + 1000).normal(size=(strangers, 128)))
        return Rows(np.concatenate([x_ND, other_ND]), np.concatenate([label_N, STRANGER + np.arange(strangers)]))

    return make


def with_offset(cosine: float) -> Callable[[int], Rows]:
    """20 classes of 300 rows with a direction in common: rows have about this cosine."""

    def make(seed: int) -> Rows:
        x_ND, label_N = classes(20, 300, 128, 0.3)(seed)
        offset_D = np.zeros(128)
        offset_D[0] = np.sqrt(cosine / (1 - cosine))
        return Rows(_unit(x_ND + offset_D), label_N)

    return make


def noise(rows: int, dim: int) -> Callable[[int], Rows]:
    """Uniform rows of a cube, without any class."""

    def make(seed: int) -> Rows:
        return Rows(_unit(np.random.default_rng(seed).uniform(size=(rows, dim))), np.zeros(rows, dtype=np.int64))

    return make


def f_of(rows: Rows, found: Found) -> float:
    """The mean of both F."""
    return sum(f_scores(found.label_N, rows.label_N)) / 2


def f_of_others(rows: Rows, found: Found) -> float:
    """The F of the classes without copies."""
    other_N = rows.label_N > 0
    return sum(f_scores(found.label_N[other_N], rows.label_N[other_N])) / 2


def f_and_strangers(rows: Rows, found: Found) -> float:
    """The F, 0 where not most strangers are alone."""
    size_N = np.unique(found.label_N, return_inverse=True, return_counts=True)
    alone_N = size_N[2][size_N[1]] == 1
    return f_of(rows, found) if alone_N[rows.label_N >= STRANGER].mean() > 0.5 else 0.0


def warned(rows: Rows, found: Found) -> float:
    """1 where the run says that there are no clusters."""
    del rows
    return float(any(warning.startswith("no clusters found") for warning in found.warnings))


CASES = [
    *(
        Case(f"{c} classes of {n}, {d} dimensions, noise {s}", classes(c, n, d, s), f_of, 0.98)
        for c, n, d, s in (
            (20, 300, 128, 0.3),
            (5, 1000, 64, 0.5),
            (100, 300, 128, 0.5),
            (30, 20, 32, 0.5),
            (15, 20, 32, 0.5),
            (5, 20, 512, 0.5),
        )
    ),
    *(
        Case(f"make_blobs({n}, {d}, centers={c})", blobs(n, d, c), f_of, 0.98)
        for n, d, c in ((3000, 128, 3), (6000, 64, 20), (2000, 64, 10), (500, 16, 5))
    ),
    *(Case(f"30 classes of 20, one row {n} times", with_copies(n), f_of_others, 0.98) for n in (60, 400, 2000)),
    *(
        Case(f"{c} x {n} and {s} strangers", with_strangers(c, n, s), f_and_strangers, 0.95)
        for c, n, s in ((1, 800, 200), (4, 200, 200), (1, 8000, 2000))
    ),
    *(Case(f"20 classes of 300, mean cosine {c}", with_offset(c), f_of, 0.98) for c in (0.99, 0.999, 0.9999)),
    Case("uniform noise (says so: 1)", noise(3000, 64), warned, 1.0),
]


def general() -> RelationalLander:
    """The checkpoint that comes with the package."""
    model = load_checkpoint(GENERAL.read_bytes(), GENERAL.name, RelationalModel())
    assert isinstance(model, RelationalLander)
    return model


def measure(case: Case, seeds: int) -> Iterator[float]:
    """The score with each seed."""
    model = general()
    for seed in range(seeds):
        rows = case.make(seed)
        found = cluster_points(rows.x_ND, model)
        yield case.score(rows, Found(found.label_LN[found.chosen], found.numbers["warnings"]))


def _unit(x_ND: np.ndarray) -> np.ndarray:
    return normalise_rows(x_ND)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = parser.parse_args().seeds
    for case in CASES:
        scores = list(measure(case, seeds))
        print(
            f"{case.name:50} asked {case.asked:.2f}  found {np.mean(scores):.3f}  least {min(scores):.3f}", flush=True
        )


if __name__ == "__main__":
    main()
