"""Point sets for tests: pure functions of their arguments that give float32 rows and, where there are classes, labels.

Legend: N rows, D dimensions, C classes.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

Array = NDArray[Any]

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def random_rows(seed: int, n: int, dim: int) -> Array:
    """Unit rows, uniform on the sphere: no structure, about half of all pairs with a negative similarity."""
    return _unit(np.random.default_rng(seed).normal(size=(n, dim)))


def clustered(seed: int, n: int, dim: int, classes: int, spread: float = 0.7) -> tuple[Array, Array]:
    """Unit rows around random class centres and their labels 0..C-1, in random order.

    Class sizes are long tailed (class c has weight 1 / (c + 1)) and every class has at least one row. spread is the
    length of the noise for a centre of length 1: at 0.7 the mean similarity is 0.67 in a class and 0 across classes.
    """
    rng = np.random.default_rng(seed)
    weight_C = 1.0 / np.arange(1, classes + 1)
    y_N = np.concatenate([np.arange(classes), rng.choice(classes, size=n - classes, p=weight_C / weight_C.sum())])
    rng.shuffle(y_N)
    centre_CD = _unit(rng.normal(size=(classes, dim)))
    return _unit(centre_CD[y_N] + spread * rng.normal(size=(n, dim)) / dim**0.5), y_N


def at_degrees(*angles: float) -> Array:
    """Unit rows in the plane at the given angles: the similarity of two is the cosine of their difference."""
    return np.array([[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in angles], dtype=np.float32)


def with_duplicates(seed: int, n: int, dim: int, groups: tuple[int, ...] = (2, 3, 7, 25)) -> tuple[Array, Array]:
    """Clustered unit rows, some bit-identical, and each row's group of copies (an index into groups, -1: single).

    With k = 10 the groups of 2, 3 and 7 copies are smaller than a neighbour list and the group of 25 is larger. Copies
    are scattered over the row numbers.
    """
    rng = np.random.default_rng(seed)
    copies = sum(groups)
    if copies > n:
        raise ValueError(f"{copies} copies do not fit {n} rows")
    single = n - copies
    x_ND, _ = clustered(seed, single + len(groups), dim, max(1, n // 12))
    row_N = np.concatenate([np.arange(single), np.repeat(np.arange(len(groups)) + single, groups)])
    group_N = np.where(row_N < single, -1, row_N - single)
    order_N = rng.permutation(n)
    return x_ND[row_N[order_N]], group_N[order_N]


def all_equal(n: int, dim: int) -> Array:
    """Copies of one unit row."""
    return np.repeat(random_rows(0, 1, dim), n, axis=0)


def scaled_rows(seed: int, n: int, dim: int, directions: int) -> Array:
    """Collinear rows: one of a few directions times 2^-8 .. 2^8. Normalised, those of a direction are copies."""
    rng = np.random.default_rng(seed)
    x_ND = random_rows(seed, directions, dim)[rng.integers(directions, size=n)]
    return x_ND * np.exp2(rng.integers(-8, 9, size=(n, 1))).astype(np.float32)


def negative_only(dim: int) -> Array:
    """The dim + 1 corners of a regular simplex: all pairwise similarities are -1 / dim, so no row has a neighbour."""
    corner_ND = np.eye(dim + 1) - 1.0 / (dim + 1)
    basis_DD = np.linalg.svd(corner_ND)[2][:dim]
    return _unit(corner_ND @ basis_DD.T)


def antipodal(seed: int, n: int, dim: int, spread: float = 0.3) -> tuple[Array, Array]:
    """Two groups around u and -u (labels 0, 1, 0, 1, ...): similarities are positive in a group, negative across."""
    rng = np.random.default_rng(seed)
    y_N = np.arange(n) % 2
    noise_ND = spread * rng.normal(size=(n, dim)) / dim**0.5
    return _unit(np.where(y_N == 0, 1.0, -1.0)[:, None] * random_rows(seed, 1, dim) + noise_ND), y_N


def real(name: str, n: int, split: int) -> tuple[Array, Array]:
    """Up to n rows of whole classes (only the last class is cut) of a real embedding set, and their labels.

    Rows are as stored (not unit) and in stored order; rows without a class (label -1) are left out. name is the file's
    stem, such as "clinc150_minilm"; split is a value of its class_split: 0 for meta-training, 1 for evaluation. Skips
    the calling test where the data is absent.
    """
    path = DATA / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"real data set {name} is not on this machine ({path} is absent)")
    with np.load(path) as data:
        emb_ND, y_N, split_C = data["emb"], data["label"].astype(np.int64), data["class_split"]
    class_C = np.random.default_rng(0).permutation(np.flatnonzero(split_C == split))
    rank_C = np.full(len(split_C), len(split_C))
    rank_C[class_C] = np.arange(len(class_C))
    rank_N = np.where(y_N >= 0, rank_C[y_N], len(split_C))
    row_N = np.argsort(rank_N, kind="stable")[: min(n, int((rank_N < len(split_C)).sum()))]
    row_N.sort()
    return emb_ND[row_N].astype(np.float32), y_N[row_N]


# One small set of every kind (names for pytest.mark.parametrize).
SETS: dict[str, Callable[[], Array]] = {
    "random": lambda: random_rows(0, 150, 8),
    "clustered": lambda: clustered(0, 300, 16, 20)[0],
    "duplicates": lambda: with_duplicates(0, 200, 16)[0],
    "all equal": lambda: all_equal(30, 5),
    "scaled": lambda: scaled_rows(0, 120, 6, 7),
    "negative only": lambda: negative_only(14),
    "antipodal": lambda: antipodal(0, 90, 12)[0],
    "smaller than k": lambda: random_rows(1, 6, 4),
    "one row": lambda: random_rows(2, 1, 4),
}


def _unit(x_ND: Array) -> Array:
    unit_ND: Array = (x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)).astype(np.float32)
    return unit_ND
