"""Training of a relational LANDER on one or more labelled data sets: episodes, Ray Train, calibration.

Each data set's rows stay in their parts. A part gives each episode the rows that it takes, a few thousand of all parts
together, and one task builds the episode. So nothing grows with the data but the number of parts that are read once.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from hilander_dist.config import Config, RelationalModel, RelationalTrain
from hilander_dist.errors import InputError
from hilander_dist.exchange import concat_blocks, shuffle, take_rows, unpack
from hilander_dist.ingest import Ingested
from hilander_dist.lander.inference import Inference
from hilander_dist.monitor.log import logger
from hilander_dist.run import Run
from hilander_dist.tasks import Block, Loader, Ref, Tasks
from hilander_dist.training.episode_course import EPISODES_PER_STEP, EpisodeCourse
from hilander_dist.training.episodes import (
    K_USED,
    VALIDATION_EPISODES,
    Plan,
    build_episode,
    held_out_classes,
    pick_rows,
    plan_training,
    plan_validation,
    same_share,
)
from hilander_dist.training.validation import score_episode

LEAST_CLASSES = 4
"""Two to train on, two to validate with."""

_LEAST_RATE = 1e-6
"""Rates are of log-odds, which 0 and 1 have none of."""


class ClassSizes(NamedTuple):
    """The classes of a data set."""

    size_C: Ref
    """int64 rows of each."""
    classes: int
    """Those with a row."""


@dataclass(frozen=True)
class Episodes:
    """The episodes of all data sets."""

    training: tuple[tuple[str, ...], ...]
    """URIs, per data set."""
    validation: tuple[tuple[str, ...], ...]
    """URIs, per data set."""
    classes: int
    base_rate: float
    """Share of same-class edges in training, the mean over data sets of the mean over episodes."""


def draw_episodes(tasks: Tasks, run: Run, inputs: list[Ingested], sizes: list[ClassSizes], config: Config) -> Episodes:
    """Draw and build the episodes of all data sets; they are saved, and an earlier attempt's are used again."""
    assert isinstance(config.train, RelationalTrain)
    training, validation, shares = [], [], []
    built: list[Ref] = []
    for domain, (data, size) in enumerate(zip(inputs, sizes, strict=True)):
        refs, paths = _draw(tasks, data, size.size_C, domain, len(inputs) > 1, config)
        built += refs
        shares.append([tasks.call(same_share, ref) for ref in refs[: config.train.episodes]])
        uris = tuple(run.work.child(path).uri for path in paths)
        training.append(uris[: config.train.episodes])
        validation.append(uris[config.train.episodes :])
    tasks.wait(built, "episodes")
    found = [_mean_share(np.array(tasks.get(refs)), data) for refs, data in zip(shares, inputs, strict=True)]
    return Episodes(tuple(training), tuple(validation), sum(size.classes for size in sizes), float(np.mean(found)))


def class_sizes(tasks: Tasks, data: Ingested) -> ClassSizes:
    """Count the rows of each class of a data set.

    Raises:
        InputError: there are fewer than four classes of two rows.
    """
    size_C = tasks.call(_add, [tasks.call(_class_sizes, part, data.classes) for part in data.parts])
    classes, pairs, rows = tasks.get(tasks.call(_shape, size_C))
    if pairs < LEAST_CLASSES:
        raise InputError(
            f"{data.source.uri}: {classes} classes, {pairs} of them of two rows or more: at least {LEAST_CLASSES} such are"
            " needed, as some are kept for validation; look whether this is the column of labels (input.label_column)"
        )
    logger.info("data set", uri=data.source.uri, classes=classes, rows=rows)
    return ClassSizes(size_C, classes)


def make_course(episodes: Episodes, config: Config) -> EpisodeCourse:
    """The course over the episodes."""
    assert isinstance(config.model, RelationalModel)
    assert isinstance(config.train, RelationalTrain)
    if config.train.num_workers > EPISODES_PER_STEP:
        logger.warning(
            "more workers than episodes in a step: the others help with validation alone",
            workers=config.train.num_workers,
            episodes=EPISODES_PER_STEP,
        )
    inference = Inference(
        k=K_USED,
        base_rate=round(float(np.clip(episodes.base_rate, _LEAST_RATE, 1 - _LEAST_RATE)), 6),
        whiten=len(episodes.training) > 1,
    )
    return EpisodeCourse(
        episodes.training, episodes.validation, config.model, config.train, config.seed, inference, score_episode
    )


def _draw(
    tasks: Tasks, data: Ingested, size_C: Ref, domain: int, several: bool, config: Config
) -> tuple[list[Ref], list[str]]:
    assert isinstance(config.train, RelationalTrain)
    numbers = config.train.episodes + VALIDATION_EPISODES
    names = [f"training-{n:05d}" for n in range(config.train.episodes)]
    names += [f"validation-{n:05d}" for n in range(numbers - config.train.episodes)]
    paths = [f"episodes/{domain:03d}/{name}.safetensors" for name in names]
    if tasks.saved.issuperset(paths):
        return [tasks.load(path) for path in paths], paths
    key = (config.seed, domain, config.train.episodes, config.train.holdout, several)
    picked = [tasks.call(_pick, part, size_C, key, numbers, returns=numbers) for part in data.parts]
    built = [
        tasks.call(_build, inbox, size_C, key, number, save=path)
        for number, (inbox, path) in enumerate(zip(shuffle(picked, numbers), paths, strict=True))
    ]
    return built, paths


def _mean_share(share_E: np.ndarray, data: Ingested) -> float:
    if np.isnan(share_E).all():
        raise InputError(
            f"{data.source.uri}: no two rows have a similarity above 0: there is nothing to learn from them"
        )
    return float(np.nanmean(share_E))


def make_plan(size_C: np.ndarray, key: tuple[int, int, int, float, bool], number: int) -> Plan:
    """The plan of an episode: the first ones are for training, the others for validation on held-out classes."""
    seed, domain, training, holdout, several = key
    held_C = held_out_classes(size_C, holdout, np.random.default_rng([seed, domain, 0]))
    if number < training:
        rng = np.random.default_rng([seed, domain, 1, number])
        return plan_training(number, np.where(held_C, 0, size_C), rng, several)
    number -= training
    rng = np.random.default_rng([seed, domain, 2, number])
    return plan_validation(number, np.where(held_C, size_C, 0), rng)


def _class_sizes(part: Loader, classes: Any) -> np.ndarray:
    class_N = part()["class_N"]
    return np.bincount(class_N[class_N >= 0], minlength=len(classes))


def _add(sizes: list[np.ndarray]) -> np.ndarray:
    return np.asarray(np.sum(sizes, axis=0, dtype=np.int64))


def _shape(size_C: np.ndarray) -> tuple[int, int, int]:
    return int((size_C > 0).sum()), int((size_C > 1).sum()), int(size_C.sum())


def _pick(part: Loader, size_C: np.ndarray, key: tuple[int, int, int, float, bool], numbers: int) -> Any:
    block = part()
    plans = [make_plan(size_C, key, number) for number in range(numbers)]
    return unpack([take_rows(block, pick_rows(block["id_N"], block["class_N"], plan, key[0])) for plan in plans])


def _build(inbox: list[Block], size_C: np.ndarray, key: tuple[int, int, int, float, bool], number: int) -> Block:
    rows = concat_blocks(inbox)
    order = np.argsort(rows["id_N"])
    rng = np.random.default_rng([key[0], key[1], 3, number])
    return build_episode(rows["x_ND"][order], rows["class_N"][order], make_plan(size_C, key, number), rng)
