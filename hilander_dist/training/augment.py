"""New classes for an episode, by mirroring rows: strangers, and parts of classes.

Labelled sets to train on have few classes and many rows of each. Two things are not met there. In photos of people, or texts that
users write, most classes may have a single row: *strangers* are rows made members of classes of one row or a few. In species,
characters or products there are hundreds of small classes, and most of a row's neighbours are of others: *parts* are classes
that one class was divided in.

A row is made one of a new class by mirroring it along some of the principal directions of the episode, drawn for the class: the spread
of all rows stays as it is along each direction, rows of one new class stay as far from each other as they were, and the more
directions are mirrored the less the row is like its former class.

Shapes: N rows, D dimensions, M strangers, C classes, P new classes.
"""

import numpy as np

MIRRORED = (0.2, 0.5)
"""Share of the directions; half leaves no similarity to the former class, a fifth 60% of it. A tenth was tried
(LOG 2026-11-27, strangers)."""

JOINED = 0.3
"""Chance of a stranger to be of the class of the stranger before it, of the same former class: 70% are the first of theirs."""

UNLIKE = 0.4
"""Standard deviation of the logarithm of how many parts a class has."""


def divide_classes(
    x_ND: np.ndarray, label_N: np.ndarray, parts: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows, float32, and classes from 0 up, int64: each class in ``parts`` classes of about equal size. The first part of each
    stays as it is, but for rounding.

    Args:
        x_ND: unit rows.
        label_N: int64 classes.
        parts: of a class, on average; not more than it has rows.
        rng: draws how many, who is in which, and what is mirrored.
    """
    if len(x_ND) == 0:
        return x_ND, label_N
    class_N, size_C = np.unique(label_N, return_inverse=True, return_counts=True)[1:]
    wanted_C = np.rint(parts * np.exp(rng.normal(0, UNLIKE, len(size_C)))).astype(np.int64)
    parts_C = np.clip(wanted_C, 1, size_C)
    first_C = np.cumsum(parts_C) - parts_C
    part_N = first_C[class_N] + (rng.random(len(x_ND)) * parts_C[class_N]).astype(np.int64)
    return _mirror(x_ND, np.arange(len(x_ND)), part_N, int(parts_C.sum()), first_C, rng), part_N


def make_strangers(
    x_ND: np.ndarray, label_N: np.ndarray, share: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows, float32, and classes, int64, with ``share`` of the rows made strangers.

    Args:
        x_ND: unit rows.
        label_N: int64 classes.
        share: of the rows, those of each class alike.
        rng: draws them, their classes, and what is mirrored.
    """
    strange = rng.permutation(np.flatnonzero(rng.random(len(x_ND)) < share))
    if len(strange) == 0:
        return x_ND, label_N
    strange = strange[np.argsort(label_N[strange], kind="stable")]
    former_M = label_N[strange]
    first = np.r_[True, (former_M[1:] != former_M[:-1]) | (rng.random(len(strange) - 1) >= JOINED)]
    class_M = np.cumsum(first) - 1
    made_ND, made_N = x_ND.copy(), label_N.copy()
    made_ND[strange] = _mirror(x_ND, strange, class_M, int(class_M[-1]) + 1, np.zeros(0, dtype=np.int64), rng)
    made_N[strange] = label_N.max() + 1 + class_M
    return made_ND, made_N


def _mirror(
    x_ND: np.ndarray, at_M: np.ndarray, class_M: np.ndarray, classes: int, stay_S: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Some of the rows mirrored, unit rows, float32.

    Args:
        x_ND: all rows.
        at_M: which.
        class_M: int64 new class of each, from 0 up; its rows are mirrored along the same directions.
        classes: how many there are, those without rows included.
        stay_S: classes that are not mirrored.
        rng: draws the directions.
    """
    mean_D = x_ND.mean(0)
    centred_ND = x_ND - mean_D
    direction_DD = np.linalg.eigh(centred_ND.T @ centred_ND)[1].astype(np.float32)
    sign_PD = np.where(rng.random((classes, x_ND.shape[1])) < rng.uniform(*MIRRORED), -1, 1).astype(np.float32)
    sign_PD[stay_S] = 1
    mirrored_MD = (centred_ND[at_M] @ direction_DD * sign_PD[class_M]) @ direction_DD.T + mean_D
    mirrored_MD /= np.maximum(np.linalg.norm(mirrored_MD, axis=1, keepdims=True), 1e-12)
    return np.asarray(mirrored_MD, dtype=np.float32)
