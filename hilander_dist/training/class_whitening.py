"""Whitening learned from classes: where a model is trained on one labelled set, its labels tell what members of one class
differ by, better than clusters do (``cluster.whitening``).

It goes with the checkpoint, if it brings held-out classes together: directions by which the training classes do not differ may
be those by which others do.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from hilander_dist.cluster.whitening import MAP, ROWS, map_rows, same_share, whitened_parts, whitening_map
from hilander_dist.config import Config, RelationalTrain
from hilander_dist.exchange import concat_blocks
from hilander_dist.ingest import Ingested
from hilander_dist.tasks import Block, Loader, Ref, Tasks
from hilander_dist.training.episodes import held_out_classes, pick_rows, plan_classes

HELD_OUT_ROWS = 4096


def whiten_by_classes(
    tasks: Tasks, data: Ingested, size_C: Ref, config: Config
) -> tuple[Ingested, np.ndarray | None, dict[str, Any]]:
    """Learn a map from the training classes of one set.

    Args:
        tasks: where to run.
        data: the labelled set.
        size_C: int64 rows of each class.
        config: ``seed`` and ``train.holdout`` tell which classes are held out, as for episodes.

    Returns:
        The set with whitened vectors and ``map_DD`` float32, or as it was and None where held-out classes have no larger share
        of their nearest neighbours of their own class; and both shares, for the manifest.
    """
    assert isinstance(config.train, RelationalTrain)
    key = (config.seed, config.train.holdout)
    rows = [tasks.call(_pick, part, size_C, key) for part in data.parts]
    learned = tasks.call(learn_map, rows, size_C, key, save=MAP)
    tasks.wait([learned], "whitening map")
    found = tasks.get(learned)
    plain, whitened = found["same_2"].tolist()
    numbers = {"same_class_plain": round(plain, 4), "same_class_whitened": round(whitened, 4), "kept": whitened > plain}
    if not numbers["kept"]:
        return data, None, numbers
    return replace(data, parts=whitened_parts(tasks, data.parts)), found["map_DD"], numbers


def learn_map(rows: list[Block], size_C: np.ndarray, key: tuple[int, float]) -> Block:
    """The map of the training classes' rows, map_DD, and the shares of held-out rows' nearest neighbours that are of their
    class, same_2: without it and with it.

    Args:
        rows: x_ND, class_N and id_N of some classes.
        size_C: as above.
        key: as of ``_held_out``.
    """
    every = concat_blocks(rows)
    order = np.argsort(every["id_N"])
    x_ND, class_N = every["x_ND"][order].astype(np.float32, copy=False), every["class_N"][order]
    held_N = _held_out(size_C, key)[class_N]
    map_DD = _map_of(x_ND[~held_N].astype(np.float64), class_N[~held_N])
    held_ND = x_ND[held_N]
    same_2 = [same_share(vectors_ND, class_N[held_N]) for vectors_ND in (held_ND, map_rows(held_ND, map_DD))]
    return {"map_DD": map_DD, "same_2": np.array(same_2)}


def _map_of(x_ND: np.ndarray, class_N: np.ndarray) -> np.ndarray:
    class_N = np.unique(class_N, return_inverse=True)[1]
    count_C = np.bincount(class_N)
    sum_CD = np.zeros((len(count_C), x_ND.shape[1]))
    np.add.at(sum_CD, class_N, x_ND)
    apart_ND = x_ND - (sum_CD / count_C[:, None])[class_N]
    return whitening_map(apart_ND.T @ apart_ND, len(class_N) - len(count_C))


def _held_out(size_C: np.ndarray, key: tuple[int, float]) -> np.ndarray:
    """Those that are held out of the episodes of the first data set."""
    seed, share = key
    return held_out_classes(size_C, share, np.random.default_rng([seed, 0, 0]))


def _pick(part: Loader, size_C: np.ndarray, key: tuple[int, float]) -> Block:
    """A part's rows of classes drawn until there are ROWS of training classes and HELD_OUT_ROWS of the others."""
    block, held_C = part(), _held_out(size_C, key)
    rng = np.random.default_rng([key[0], 0, 4])
    picked_N = np.zeros(len(block["id_N"]), dtype=bool)
    for chosen_C, rows in ((~held_C, ROWS), (held_C, HELD_OUT_ROWS)):
        plan = plan_classes(np.where(chosen_C, size_C, 0), rows, rng)
        picked_N |= pick_rows(block["id_N"], block["class_N"], plan, key[0])
    return {name: block[name][picked_N] for name in ("id_N", "x_ND", "class_N")}
