"""Whitening by classes: learned from training classes, kept where it helps held-out ones, the same for any parts."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from hilander_dist.cluster.whitening import MAP
from hilander_dist.config import Config, RelationalTrain
from hilander_dist.ingest import Ingested
from hilander_dist.local_tasks import LocalTasks, held, put
from hilander_dist.storage import Storage
from hilander_dist.training import class_whitening
from hilander_dist.training.class_whitening import whiten_by_classes
from hilander_dist.training.episodes import held_out_classes, plan_classes

CLASSES, DIM, N = 30, 10, 1200


@dataclass(frozen=True)
class NoSource:
    uri: str = "there"


def labelled(parts: int, spread_D: np.ndarray) -> Ingested:
    """Classes that differ in all dimensions and spread by ``spread_D``."""
    rng = np.random.default_rng(0)
    class_N = rng.integers(CLASSES, size=N)
    x_ND = rng.normal(size=(CLASSES, DIM))[class_N] + rng.normal(size=(N, DIM)) * spread_D
    x_ND = (x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)).astype(np.float32)
    id_N = rng.permutation(N)
    blocks = [
        {"id_N": id_N[at], "x_ND": x_ND[at], "class_N": class_N[at]}
        for at in np.array_split(np.random.default_rng(parts).permutation(N), parts)
    ]
    return Ingested(NoSource(), held(blocks), N, {}, put(list(range(CLASSES))))  # type: ignore[arg-type]


def sizes(data: Ingested) -> np.ndarray:
    return np.bincount(np.concatenate([part()["class_N"] for part in data.parts]), minlength=CLASSES)


NARROW = np.r_[np.full(2, 2.0), np.full(DIM - 2, 0.3)]


@pytest.mark.parametrize("rows", [2**15, 400])
def test_it_brings_classes_together_and_does_not_depend_on_parts(
    rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(class_whitening, "ROWS", rows)
    maps = []
    for parts in (1, 3):
        data = labelled(parts, NARROW)
        tasks = LocalTasks(Storage(str(tmp_path / f"{parts}")))
        found, map_DD, numbers = whiten_by_classes(tasks, data, put(sizes(data)), Config())
        assert map_DD is not None
        assert numbers["kept"]
        assert numbers["same_class_whitened"] > numbers["same_class_plain"] + 0.05
        np.testing.assert_array_equal(map_DD, tasks.blocks[MAP]["map_DD"])
        assert found.rows == N
        # Shortened where classes spread.
        lengths = np.linalg.norm(map_DD, axis=0)
        assert lengths[:2].max() < 0.6 * lengths[2:].min()
        maps.append(map_DD)
    np.testing.assert_array_equal(maps[0], maps[1])


def test_held_out_classes_tell_nothing_of_the_map(tmp_path: Path) -> None:
    found = []
    for moved in (0.0, 1.0):
        data = labelled(1, NARROW)
        block = data.parts[0]()
        size_C = sizes(data)
        held_N = held_out_classes(np.ones(CLASSES), RelationalTrain().holdout, np.random.default_rng([0, 0, 0]))[
            block["class_N"]
        ]
        x_ND = block["x_ND"] + moved * held_N[:, None] * np.random.default_rng(5).normal(size=(N, DIM))
        changed = Ingested(data.source, held([{**block, "x_ND": x_ND.astype(np.float32)}]), N, {}, data.classes)
        tasks = LocalTasks(Storage(str(tmp_path / str(moved))))
        whiten_by_classes(tasks, changed, put(size_C), Config())
        found.append(tasks.blocks[MAP])
    np.testing.assert_array_equal(found[0]["map_DD"], found[1]["map_DD"])
    assert (found[0]["same_2"] != found[1]["same_2"]).all()


def test_it_is_left_where_it_does_not_help(tmp_path: Path) -> None:
    """Held-out classes differ by nothing but what the others spread in."""
    data = labelled(1, NARROW)
    block = data.parts[0]()
    held_N = held_out_classes(np.ones(CLASSES), RelationalTrain().holdout, np.random.default_rng([0, 0, 0]))[
        block["class_N"]
    ]
    rng = np.random.default_rng(6)
    apart_ND = np.zeros((N, DIM))
    apart_ND[:, :2] = 3 * rng.normal(size=(CLASSES, 2))[block["class_N"]]
    other_ND = apart_ND + rng.normal(size=(N, DIM)) * 0.3
    x_ND = np.where(held_N[:, None], other_ND / np.linalg.norm(other_ND, axis=1, keepdims=True), block["x_ND"])
    changed = Ingested(data.source, held([{**block, "x_ND": x_ND.astype(np.float32)}]), N, {}, data.classes)
    tasks = LocalTasks(Storage(str(tmp_path)))
    found, map_DD, numbers = whiten_by_classes(tasks, changed, put(sizes(data)), Config())
    assert map_DD is None
    assert not numbers["kept"]
    assert found is changed


def test_a_class_that_is_larger_than_all_rows_wanted_is_taken_in_part() -> None:
    plan = plan_classes(np.array([0, 10**6, 10**6]), 1000, np.random.default_rng(0))
    assert plan.class_M.tolist() == [1, 2]
    assert plan.keep_M.tolist() == [0.0006, 0.0006]
    whole = plan_classes(np.array([30, 0, 40]), 1000, np.random.default_rng(0))
    assert (whole.class_M.tolist(), whole.keep_M.tolist()) == ([0, 2], [1.0, 1.0])
