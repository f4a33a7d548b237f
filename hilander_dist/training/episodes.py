"""Episodes: what a relational LANDER is trained on. Each is a small labelled set drawn from a data set as a new one might be.

A clusterer must not learn its training sets by heart: how large classes are, how hard the embedding is, how close classes
stand, how many neighbours a list has against how many a class has. So each episode takes other classes, in other shares, moves
classes together, divides them, makes rows strangers, blurs or projects the vectors, and has its own graph, of 80 or fewer
neighbours. Which rows it takes is decided per row by a hash of (seed, episode, id).

Shapes: N rows, D dimensions, K = k - 1 neighbours, Q depths of lists, M of means, C classes.
"""

from typing import NamedTuple

import faiss
import numpy as np

from hilander_dist.knn.local_means import edge_cosines, local_means
from hilander_dist.knn.neighbour_overlap import count_shared
from hilander_dist.lander.losses import hash_ids
from hilander_dist.lander.relational import list_depths, mean_depths
from hilander_dist.training.augment import divide_classes, make_strangers

Block = dict[str, np.ndarray]

K_USED = 80
"""Neighbours of graphs in use and in validation, the node included. Validation does not choose it: its small episodes would take 40,
with which whole sets lose up to .07 of F (LOG 2026-11-25, list-lengths)."""

K_TRAINING = (80, 80, 24, 80, 40, 80, 12, 80)
"""Of training graphs in turn. Short lists stand for classes that are large against the list, which no episode could hold: without
them such classes come apart (LOG 2026-11-25, list-lengths)."""

ROWS_LONG, ROWS_SHORT = 1500, 2500
"""Of a training episode with at least 60 neighbours, and with fewer."""

ROWS_VALIDATION = 2500

LEAST_ROWS = 50
"""Of an episode as planned: with fewer it takes so many of each class, if it has them. Rows are drawn, and by chance none of a few."""

MOST_OF_ONE = 0.6
"""Of an episode's rows, of one class: there are two at least, and an episode does not grow with its classes."""

GROUPED = 0.25
"""Share of the training episodes in which groups of classes are moved together, as kinds of apples are among groceries. A larger
share wins where classes stand that close, but makes clusters hang more on tau (LOG 2026-11-26, groups)."""

CLASSES_A_GROUP = (2.0, 8.0)

LEAST_GROUPED = 8
"""Fewer classes would be one group, in which nothing tells them apart (LOG 2026-11-26, groups)."""

CLOSEST = 0.25
"""Share of the distance to the mean of its group that a class keeps at least."""

UNEVEN, MOST_UNEVEN = 0.5, 0.6
OFFSET, LONGEST_OFFSET = 0.3, 2.0
"""Shares of the training episodes in which some rows are noisier than others, as bad photos are, and in which all rows have
something in common, as in many encoders; and how much. Both make hubs, which are neighbours of many rows (LOG 2026-11-27,
strangers)."""

STRANGE = 0.3
"""Share of the training episodes in which rows are made strangers (``mirrored``): without any, a network finds company for rows that
have none; with more of them that differ less, texts were taken for strangers (LOG 2026-11-27, strangers)."""

STRANGERS = (0.2, 0.8)
"""Share of the rows of such an episode that are."""

DIVIDED, PARTS = 0.4, (2.0, 12.0)
"""Share of the training episodes in which classes are divided, and in how many parts: so episodes hold hundreds of small classes,
which the sets lack. In twice as many, too few edges are left that are of one class (LOG 2026-11-27, divided)."""

VALIDATION_EPISODES = 2
"""Classes as they are, and with sizes spread evenly over all magnitudes."""


class Plan(NamedTuple):
    """What an episode is made of."""

    draw: int
    """Rows are drawn by it."""
    k: int
    class_M: np.ndarray
    """int64, the classes that it takes rows of, ascending."""
    keep_M: np.ndarray
    """Chance of a row of each of them to be taken."""
    noise: float
    """Length of the normal noise that is added to unit rows; 0 for none."""
    project: float
    """Share of the dimensions that a random projection keeps; 1 for none."""
    group: float = 0.0
    """Classes in a group, on average, that are moved together; 0 for none."""
    uneven: float = 0.0
    """Standard deviation of the logarithm of the length of each row's noise."""
    offset: float = 0.0
    """Length of what is added to all rows alike."""
    strangers: float = 0.0
    """Share of the rows that are made strangers."""
    parts: float = 0.0
    """Classes that each class is divided in, on average; 0 where they stay whole."""


def held_out_classes(size_C: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Which classes are kept for validation, bool (C); at least two, and at least two are left to train on, of those with rows."""
    there = np.flatnonzero(size_C)
    count = min(max(round(len(there) * share), 2), len(there) - 2)
    held_C = np.zeros(len(size_C), dtype=bool)
    held_C[there[rng.permutation(len(there))[:count]]] = True
    return held_C


def plan_training(number: int, size_C: np.ndarray, rng: np.random.Generator, several: bool) -> Plan:
    """An episode of training.

    Args:
        number: of the episode; decides the list length and how class sizes are drawn.
        size_C: int64 rows of each class, 0 for those that are held out.
        rng: decides the rest.
        several: sets are trained on. A network of one set meets that domain alone, with the hubs and the rows without company that
            it has.
    """
    k = K_TRAINING[number % len(K_TRAINING)]
    rows = ROWS_LONG if k >= 60 else ROWS_SHORT
    class_M, keep_M = _class_shares(number % 4, size_C, rows, rng)
    noise = float(np.exp(rng.uniform(np.log(0.2), np.log(1.5)))) if rng.random() < 0.7 else 0.0
    project = float(rng.uniform(0.25, 0.75)) if rng.random() < 0.3 else 1.0
    grouped = rng.random() < GROUPED and len(class_M) >= LEAST_GROUPED
    group = float(rng.uniform(*CLASSES_A_GROUP)) if grouped else 0.0
    plan = Plan(number, k, class_M, keep_M, noise, project, group)
    if not several:
        return plan
    strangers = float(rng.uniform(*STRANGERS)) if rng.random() < STRANGE else 0.0
    uneven = float(rng.uniform(0, MOST_UNEVEN)) if rng.random() < UNEVEN else 0.0
    offset = float(rng.uniform(0, LONGEST_OFFSET)) if rng.random() < OFFSET else 0.0
    parts = float(np.exp(rng.uniform(*np.log(PARTS)))) if rng.random() < DIVIDED else 0.0
    return plan._replace(uneven=uneven, offset=offset, strangers=strangers, parts=parts)


def plan_validation(number: int, size_C: np.ndarray, rng: np.random.Generator) -> Plan:
    """An episode of held-out classes."""
    mode = 2 if number else 0
    class_M, keep_M = _class_shares(mode, size_C, ROWS_VALIDATION, rng)
    return Plan(-1 - number, K_USED, class_M, keep_M, 0.0, 1.0)


def plan_classes(size_C: np.ndarray, rows: int, rng: np.random.Generator) -> Plan:
    """Classes in random order until there are so many rows; see ``_class_shares``."""
    class_M, keep_M = _class_shares(0, size_C, rows, rng)
    return Plan(0, K_USED, class_M, keep_M, 0.0, 1.0)


def _class_shares(mode: int, size_C: np.ndarray, rows: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Shares of classes in random order until there are ``rows``: whole ones (mode 0), one share of all (1), sizes spread
    evenly over all magnitudes (2), or exponential ones (3); of no class more than MOST_OF_ONE, so 1.6 times ``rows`` at most."""
    most = max(1, int(MOST_OF_ONE * rows))
    share = np.exp(rng.uniform(np.log(0.05), 0))
    scale = np.exp(rng.uniform(np.log(3), np.log(60)))
    keep: dict[int, float] = {}
    taken = 0
    for c in rng.permutation(np.flatnonzero(size_C)).tolist():
        size = int(size_C[c])
        wanted = (
            size,
            max(1, int(size * share)),
            max(1, int(np.exp(rng.uniform(0, np.log(max(size, 1)))))),
            min(size, max(1, int(rng.exponential(scale)))),
        )[mode]
        wanted = min(wanted, most)
        keep[c] = wanted / size
        taken += wanted
        if taken >= rows:
            break
    chosen = sorted(keep)
    keep_M = np.array([keep[c] if taken >= LEAST_ROWS else min(1.0, LEAST_ROWS / size_C[c]) for c in chosen])
    return np.array(chosen, dtype=np.int64), keep_M


def pick_rows(id_N: np.ndarray, class_N: np.ndarray, plan: Plan, seed: int) -> np.ndarray:
    """Which rows of a part an episode takes, bool (N); rows of no class (-1) never."""
    drawn_N = hash_ids(id_N, seed, plan.draw).astype(np.float64) / 2.0**64
    at_N = np.minimum(np.searchsorted(plan.class_M, class_N), len(plan.class_M) - 1)
    picked_N: np.ndarray = (plan.class_M[at_N] == class_N) & (drawn_N < plan.keep_M[at_N])
    return picked_N


def build_episode(x_ND: np.ndarray, label_N: np.ndarray, plan: Plan, rng: np.random.Generator) -> Block:
    """The episode's graph.

    Args:
        x_ND: unit rows.
        label_N: int64 classes.
        plan: of the episode.
        rng: for groups, parts, strangers, noise, offset and projection.

    Returns:
        nbr_NK int32 (-1 pads), sim_NK float32 (0 at pads), shared_NKQ uint8, cos_NKM int16, label_N int64.
    """
    D = x_ND.shape[1]
    x_ND = x_ND.astype(np.float32)
    if plan.group:
        x_ND = move_together(x_ND, label_N, plan.group, rng)
    if plan.parts:
        x_ND, label_N = divide_classes(x_ND, label_N, plan.parts, rng)
    if plan.strangers:
        x_ND, label_N = make_strangers(x_ND, label_N, plan.strangers, rng)
    if plan.noise:
        noise_ND = rng.normal(0, plan.noise / np.sqrt(D), x_ND.shape).astype(np.float32)
        if plan.uneven:
            noise_ND *= np.exp(rng.normal(0, plan.uneven, len(x_ND))).astype(np.float32)[:, None]
        x_ND = x_ND + noise_ND
    if plan.offset:
        direction_D = rng.normal(size=D)
        x_ND = x_ND + (plan.offset / np.linalg.norm(direction_D) * direction_D).astype(np.float32)
    if plan.project < 1:
        basis = np.linalg.qr(rng.normal(size=(D, max(2, int(D * plan.project)))))[0]
        x_ND = x_ND @ basis.astype(np.float32)
    x_ND = np.ascontiguousarray(_unit(x_ND))
    nbr_NK, sim_NK = exact_neighbours(x_ND, plan.k - 1)
    graph = {"nbr_NK": nbr_NK.astype(np.int32), "sim_NK": sim_NK, "label_N": label_N}
    return {**graph, **graph_relations(x_ND, nbr_NK, plan.k)}


def move_together(x_ND: np.ndarray, label_N: np.ndarray, group: float, rng: np.random.Generator) -> np.ndarray:
    """Unit rows in which classes stand closer to the mean of their group, float32.

    A group is the classes whose means are nearest to that of one of them, drawn; each group has its own factor between CLOSEST and 1
    for its classes' distances from its mean. What a class's own rows differ by stays.

    Args:
        x_ND: unit rows.
        label_N: int64 classes.
        group: classes in a group, on average.
        rng: draws groups and factors.
    """
    if len(x_ND) == 0:
        return x_ND
    class_N, count_C = np.unique(label_N, return_inverse=True, return_counts=True)[1:]
    mean_CD = _sums(x_ND, class_N, len(count_C)) / count_C[:, None]
    groups = max(1, round(len(count_C) / group))
    first_G = rng.permutation(len(count_C))[:groups]
    direction_CD = _unit(mean_CD)
    group_C = (direction_CD @ direction_CD[first_G].T).argmax(1)
    mean_GD = _sums(mean_CD, group_C, groups) / np.maximum(np.bincount(group_C, minlength=groups), 1)[:, None]
    factor_G = np.exp(rng.uniform(np.log(CLOSEST), 0, groups))
    move_CD = (factor_G[group_C] - 1)[:, None] * (mean_CD - mean_GD[group_C])
    return _unit(x_ND + move_CD[class_N]).astype(np.float32)


def _sums(x_ND: np.ndarray, group_N: np.ndarray, groups: int) -> np.ndarray:
    sum_GD = np.zeros((groups, x_ND.shape[1]))
    np.add.at(sum_GD, group_N, x_ND)
    return sum_GD


def _unit(x_ND: np.ndarray) -> np.ndarray:
    unit_ND: np.ndarray = x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-12)
    return unit_ND


def graph_relations(x_ND: np.ndarray, nbr_NK: np.ndarray, k: int) -> Block:
    """What is told of a graph's edges besides their similarity: shared_NKQ uint8 and cos_NKM int16."""
    shared_NKQ = count_shared(nbr_NK, np.arange(len(x_ND)), nbr_NK, nbr_NK, list_depths(k))
    cosines = [edge_cosines(local_means(x_ND, nbr_NK, depth), nbr_NK) for depth in mean_depths(k)]
    return {"shared_NKQ": shared_NKQ, "cos_NKM": np.stack(cosines, 2)}


def exact_neighbours(x_ND: np.ndarray, neighbours: int) -> tuple[np.ndarray, np.ndarray]:
    """The most similar other rows of each row, as a level's graph has them: nbr_NK int64 (-1 pads) and sim_NK float32;
    only similarities above 0 count."""
    N = len(x_ND)
    nbr_NK, sim_NK = np.full((N, neighbours), -1), np.zeros((N, neighbours), dtype=np.float32)
    if N == 0:
        return nbr_NK, sim_NK
    found = min(neighbours + 1, N)
    sim_NF, nbr_NF = faiss.knn(x_ND, x_ND, found, metric=faiss.METRIC_INNER_PRODUCT)
    other_NF = nbr_NF != np.arange(N)[:, None]
    # A row with many copies may not be among its own neighbours: then the last one is left out.
    other_NF[other_NF.all(1), -1] = False
    nbr_NK[:, : found - 1] = nbr_NF[other_NF].reshape(N, found - 1)
    sim_NK[:, : found - 1] = sim_NF[other_NF].reshape(N, found - 1)
    real_NK = (nbr_NK >= 0) & (sim_NK > 0)
    return np.where(real_NK, nbr_NK, -1), np.where(real_NK, sim_NK, np.float32(0))


def same_class(episode: Block) -> tuple[np.ndarray, np.ndarray]:
    """Whether both ends of each edge are of one class, bool (N, K), and which places hold an edge."""
    nbr_NK, label_N = episode["nbr_NK"], episode["label_N"]
    real_NK = nbr_NK >= 0
    return (label_N[nbr_NK] == label_N[:, None]) & real_NK, real_NK


def same_share(episode: Block) -> float:
    """Share of same-class edges; NaN without any edge."""
    same_NK, real_NK = same_class(episode)
    return float(same_NK.sum() / real_NK.sum()) if real_NK.any() else float("nan")
