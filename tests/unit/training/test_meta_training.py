"""Episodes are the same bytes however the rows are cut into parts; calibration chooses what the episodes say."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hilander_dist.config import Config, load_config
from hilander_dist.errors import InputError
from hilander_dist.ingest import Ingested
from hilander_dist.lander.inference import Inference
from hilander_dist.local_tasks import LocalTasks, held, put
from hilander_dist.run import Run
from hilander_dist.storage import Storage
from hilander_dist.training.episode_course import read_episode
from hilander_dist.training.episodes import K_USED, VALIDATION_EPISODES
from hilander_dist.training.meta_training import class_sizes, draw_episodes, make_course, make_plan
from tests.points import clustered

CLASSES = 12


@dataclass(frozen=True)
class NoSource:
    uri: str = "there"


def small(**changed: Any) -> Config:
    options = {"train.episodes": 6, **changed}
    return load_config(overrides=[f"{key}={value}" for key, value in options.items()])


def ingested(parts: int, classes: int = CLASSES) -> Ingested:
    x_ND, class_N = clustered(0, 700, 8, classes)
    id_N = np.random.default_rng(1).permutation(700)
    blocks = [
        {"id_N": id_N[rows], "x_ND": x_ND[rows], "class_N": class_N[rows]}
        for rows in np.array_split(np.random.default_rng(parts).permutation(700), parts)
    ]
    return Ingested(NoSource(), held(blocks), 700, {}, put(list(range(classes))))  # type: ignore[arg-type]


def drawn(where: Path, parts: int, config: Config) -> tuple[dict[str, bytes], Any]:
    run = Run(Storage(str(where)), {})
    tasks, data = LocalTasks(run.work), ingested(parts)
    episodes = draw_episodes(tasks, run, [data], [class_sizes(tasks, data)], config)
    files = {file.relative_to(where).as_posix(): file.read_bytes() for file in where.rglob("*.safetensors")}
    return files, episodes


def test_episodes_do_not_depend_on_the_parts(tmp_path: Path) -> None:
    one, _ = drawn(tmp_path / "one", 1, small())
    three, episodes = drawn(tmp_path / "three", 3, small())
    assert one == three
    assert len(one) == 6 + VALIDATION_EPISODES
    assert 0 < episodes.base_rate < 1
    assert episodes.classes == CLASSES
    other, _ = drawn(tmp_path / "seed", 1, small(seed=1))
    assert all(other[name] != content for name, content in one.items())


def test_validation_is_on_other_classes_than_training() -> None:
    size_C = np.full(30, 20)
    plans = [make_plan(size_C, (0, 0, 8, 0.2, True), number) for number in range(8 + VALIDATION_EPISODES)]
    trained = {c for plan in plans[:8] for c in plan.class_M.tolist()}
    validated = {c for plan in plans[8:] for c in plan.class_M.tolist()}
    assert not trained & validated
    assert len(validated) == 6


def test_the_course_has_the_episodes_and_the_base_rate(tmp_path: Path) -> None:
    _, episodes = drawn(tmp_path, 2, small())
    course = make_course(episodes, small())
    assert len(course.training[0]) == 6
    assert course.validation == episodes.validation
    assert course.inference.k == K_USED
    assert course.inference.base_rate == pytest.approx(episodes.base_rate, abs=1e-6)
    assert not course.inference.whiten
    several = replace(episodes, training=episodes.training * 2, base_rate=0.0)
    assert make_course(several, small()).inference == Inference(k=K_USED, base_rate=1e-6, whiten=True)
    assert course.new_model().inference == course.inference


def test_too_few_classes_to_hold_any_out(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there: 3 classes, 3 of them of two rows or more: at least 4"):
        class_sizes(LocalTasks(Storage(str(tmp_path))), ingested(1, 3))


def test_classes_of_one_row_each_are_no_labels(tmp_path: Path) -> None:
    data = ingested(1)
    block = {**data.parts[0](), "class_N": np.arange(700)}
    ids = replace(data, parts=held([block]), classes=put(list(range(700))))
    with pytest.raises(InputError, match="700 classes, 0 of them of two rows or more"):
        class_sizes(LocalTasks(Storage(str(tmp_path))), ids)


def test_the_smallest_set_gives_episodes_with_rows_and_a_loss(tmp_path: Path) -> None:
    x_ND, _ = clustered(0, 20, 8, 4)
    parts = held([{"id_N": np.arange(20), "x_ND": x_ND, "class_N": np.arange(20) % 4}])
    data = Ingested(NoSource(), parts, 20, {}, put(list(range(4))))  # type: ignore[arg-type]
    config = small(**{"train.episodes": 40})
    run = Run(Storage(str(tmp_path)), {})
    tasks = LocalTasks(run.work)
    course = make_course(draw_episodes(tasks, run, [data], [class_sizes(tasks, data)], config), config)
    model = course.new_model()
    losses = [float(course.loss_share(model, step, 0, 1, torch.device("cpu")).detach()) for step in range(20)]
    assert np.isfinite(losses).all()
    assert all(len(read_episode(uri)["nbr_NK"]) > 1 for uri in (*course.training[0], *course.validation[0]))


def test_rows_that_are_no_ones_neighbours_teach_nothing(tmp_path: Path) -> None:
    x_ND = np.eye(20, dtype=np.float32)  # Of seed 7 the episode is neither blurred nor projected.
    parts = held([{"id_N": np.arange(20), "x_ND": x_ND, "class_N": np.arange(20) % 4}])
    data = Ingested(NoSource(), parts, 20, {}, put(list(range(4))))  # type: ignore[arg-type]
    run = Run(Storage(str(tmp_path)), {})
    tasks = LocalTasks(run.work)
    with pytest.raises(InputError, match="there: no two rows have a similarity above 0"):
        draw_episodes(tasks, run, [data], [class_sizes(tasks, data)], small(**{"train.episodes": 1, "seed": 7}))
