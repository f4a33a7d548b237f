"""Strangers: rows of an episode that are made members of classes of which there are one or a few rows.

In photos of people, or texts that users write, most classes may have a single row. Labelled sets to train on have few classes and
many rows of each, so rows that nothing belongs to are not met there: whatever a row's best neighbour was, it was of its class. A
stranger is a row mirrored along some of the principal directions of the episode, drawn for it: the spread of all rows stays as it is
along each direction, and the more directions are mirrored the less the row is like its former class.

Shapes: N rows, D dimensions, M strangers, P classes of them.
"""

import numpy as np

MIRRORED = (0.2, 0.5)
"""Share of the directions; half leaves no similarity to the former class, a fifth 60% of it."""

JOINED = 0.3
"""Chance of a stranger to be of the class of the stranger before it, of the same former class: 70% are the first of theirs."""


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
    mean_D = x_ND.mean(0)
    centred_ND = x_ND - mean_D
    direction_DD = np.linalg.eigh(centred_ND.T @ centred_ND)[1].astype(np.float32)
    sign_PD = np.where(rng.random((class_M[-1] + 1, x_ND.shape[1])) < rng.uniform(*MIRRORED), -1, 1).astype(np.float32)
    mirrored_MD = (centred_ND[strange] @ direction_DD * sign_PD[class_M]) @ direction_DD.T + mean_D
    x_ND, label_N = x_ND.copy(), label_N.copy()
    x_ND[strange] = mirrored_MD / np.maximum(np.linalg.norm(mirrored_MD, axis=1, keepdims=True), 1e-12)
    label_N[strange] = label_N.max() + 1 + class_M
    return x_ND, label_N
