"""Sets in which most classes have a single row, as people in photos do.

Class sizes are those of Labeled Faces in the Wild: of 5,749 people 4,069 have one photo, few have more than ten, one has 530.
``sizes_of_classes`` gives them to the classes of any set; ``made_faces`` are synthetic: no embeddings of faces are at hand.
"""

from typing import NamedTuple

import numpy as np

from jobs.open_sets import Half

PHOTOS = {1: 4069, 2: 779, 3: 291, 4: 187, 5: 112, 6: 55, 7: 39, 8: 33, 9: 26, 10: 15}
"""People with so many photos; MANY others have more: a power law that ends at MOST."""

MANY, MOST = 143, 530

PEOPLE = 2870
"""In each half."""


class Kind(NamedTuple):
    """How embeddings are spread."""

    dim: int
    directions: int
    """Beyond so many, directions count less and less: variance 1 / (1 + i / directions)."""
    noise: float
    """Length of what differs between photos of one person, on average, for 1 between people."""
    offset: float
    """Length of what all photos have in common."""


KINDS = {
    "faces": Kind(512, 512, 1.0, 0.0),
    "faces, 32 directions": Kind(128, 32, 0.9, 0.0),
    "faces, offset": Kind(128, 32, 0.8, 1.5),
}


def sizes_of_classes(classes: int, most: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of each class, int64, at most ``most``."""
    few = np.repeat(list(PHOTOS), list(PHOTOS.values()))
    many = np.minimum(11 * rng.random(MANY) ** (-1 / 1.2), MOST).astype(np.int64)
    drawn = rng.permutation(np.r_[few, many])[np.arange(classes) % (len(few) + MANY)]
    return np.minimum(drawn, most)


def made_faces(name: str) -> tuple[Half, Half]:
    """The training half and the unseen half of one of KINDS: other people, the same spread."""
    first, second = (_half(KINDS[name], seed) for seed in (0, 1))
    return first, second


def _half(kind: Kind, seed: int) -> Half:
    rng = np.random.default_rng(seed)
    size_C = sizes_of_classes(PEOPLE, MOST, rng)
    size_C[0] = MOST
    label_N = np.repeat(np.arange(PEOPLE), size_C)
    scale_D = 1 / np.sqrt(1 + np.arange(kind.dim) / kind.directions)
    person_CD, photo_ND = (_unit(rng.normal(size=(n, kind.dim)) * scale_D) for n in (PEOPLE, len(label_N)))
    noise_N = kind.noise * np.exp(rng.normal(0, 0.35, len(label_N)))
    x_ND = person_CD[label_N] + noise_N[:, None] * photo_ND + kind.offset / np.sqrt(kind.dim)
    return Half(_unit(x_ND).astype(np.float32), label_N)


def _unit(x_ND: np.ndarray) -> np.ndarray:
    unit_ND: np.ndarray = x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)
    return unit_ND
