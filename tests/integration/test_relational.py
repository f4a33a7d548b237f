"""Relational LANDER by the real jobs: trained on two sets of other dimensions, applied to a third, tuned, killed."""

import json
import os
import signal
import threading
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray

from hilander_dist.cluster.whitening import map_rows
from hilander_dist.config import Config, RelationalModel, load_config
from hilander_dist.errors import ConfigError, InputError, ModelError, StorageError
from hilander_dist.ingest import normalise_rows
from hilander_dist.jobs import train
from hilander_dist.jobs.cluster import run_cluster_job
from hilander_dist.jobs.models import GENERAL
from hilander_dist.jobs.train import run_train_job
from hilander_dist.jobs.tune import run_tune_job
from hilander_dist.lander.checkpoint import load_checkpoint, save_checkpoint
from hilander_dist.lander.relational import RelationalLander
from hilander_dist.run import Run
from hilander_dist.training import loop as training
from hilander_dist.training.calibration import TEMPERATURES
from hilander_dist.training.episode_course import EpisodeCourse
from hilander_dist.training.meta_training import Episodes, make_course
from tests import points
from tests.integration.conftest import dies_at, hilander, read_assignments, read_clusters, result_bytes, write_points

pytestmark = [
    pytest.mark.usefixtures("local_ray"),
    # Ray Train imports Ray Data, whose defaults trip over their own deprecations.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*"),
]

UNSEEN, UNSEEN_CLASSES = 1500, 30


def small(*overrides: str) -> Config:
    return load_config(overrides=["model.hidden=8", "train.episodes=48", "train.epochs=2", *overrides])


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two labelled sets of 12 and 20 dimensions, and one of 16 that is not trained on."""
    folder = tmp_path_factory.mktemp("sets")
    files = {}
    for name, seed, n, dim, classes in (
        ("a", 1, 600, 12, 20),
        ("b", 2, 500, 20, 12),
        ("c", 3, UNSEEN, 16, UNSEEN_CLASSES),
    ):
        x_ND, label_N = points.clustered(seed, n, dim, classes)
        files[name] = write_points(folder / f"{name}.parquet", x_ND, labels=label_N)
    return files


@pytest.fixture(scope="module")
def training_job(
    sets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, local_ray: None
) -> tuple[Path, EpisodeCourse]:
    """The output of a job that trained on two sets by two workers, and the course that it took."""
    output = tmp_path_factory.mktemp("trained") / "model"
    courses = []

    def keep(episodes: Episodes, config: Config) -> EpisodeCourse:
        courses.append(make_course(episodes, config))
        return courses[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "make_course", keep)
        run_train_job([str(sets["a"]), str(sets["b"])], str(output), small("train.num_workers=2"))
    return output, courses[0]


@pytest.fixture(scope="module")
def trained(training_job: tuple[Path, EpisodeCourse]) -> Path:
    return training_job[0]


def scores_of(run: Path) -> dict[str, Any]:
    final: dict[str, Any] = json.loads((run / "metrics.json").read_text())["final"]
    return final


def test_training_leaves_a_checkpoint_with_what_decides_its_clusters_and_its_numbers(trained: Path) -> None:
    model = load_checkpoint((trained / "model.safetensors").read_bytes(), "trained", RelationalModel())
    assert isinstance(model, RelationalLander)
    assert model.dim is None
    assert model.inference.whiten
    assert model.inference.shift is None
    assert 0 < model.inference.base_rate < 0.9
    found = json.loads((trained / "manifest.json").read_text())
    assert found["schema_version"] == 2
    assert found["calibration"]["base_rate"] == model.inference.base_rate
    assert found["calibration"]["temperature"] in TEMPERATURES
    assert found["calibration"]["pairwise_f"] > 0.6
    assert found["counts"]["classes"] == 32
    assert len(found["input"]) == 2
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines[1]["loss"] < lines[0]["loss"]
    assert all(0 <= line[name] <= 1 for line in lines for name in ("pairwise_f", "bcubed_f"))


def test_a_set_of_another_dimension_is_clustered_the_same_for_any_sharding(
    trained: Path, sets: dict[str, Path], tmp_path: Path
) -> None:
    runs = []
    for shards in (1, 3):
        output = tmp_path / str(shards)
        manifest = run_cluster_job(str(sets["c"]), str(trained), str(output), Config(num_shards=shards))
        assert manifest["shards"] == shards
        runs.append(result_bytes(output))
    assert runs[0] == runs[1]
    assert manifest["config"]["k"] == 80
    assert 0 < manifest["mean_probability"] < 1
    final = scores_of(output)
    assert final["pairwise"]["f"] > 0.6
    assert UNSEEN_CLASSES / 2 <= final["clusters"] <= UNSEEN_CLASSES * 2


def test_the_general_checkpoint_is_the_default(sets: dict[str, Path], tmp_path: Path) -> None:
    assert GENERAL.stat().st_size < 4 * 2**20
    manifest = run_cluster_job(str(sets["c"]), None, str(tmp_path / "run"), Config())
    assert manifest["config"]["k"] == 80
    assert manifest["config"]["max_levels"] is None
    final = scores_of(tmp_path / "run")
    assert final["pairwise"]["f"] > 0.8
    # What the manifest says is what the files hold.
    rows, clusters = read_assignments(tmp_path / "run"), read_clusters(tmp_path / "run")
    levels, chosen = manifest["levels"], manifest["chosen_level"]
    assert rows["cluster_id"].equals(rows[f"level_{chosen}"].rename("cluster_id"))
    assert [rows[f"level_{at}"].nunique() for at in range(len(levels))] == [level["clusters"] for level in levels]
    assert manifest["clusters"] == final["clusters"] == levels[chosen]["clusters"]
    assert levels[-1]["clusters"] == 1
    assert levels[chosen]["shift"] == manifest["chosen_shift"]
    assert manifest["chosen_because"] in ("agreement", "components")
    assert manifest["warnings"] == []
    assert [level["shift"] for level in manifest["path"]] == sorted(level["shift"] for level in manifest["path"])
    assert clusters.groupby("level").size().tolist() == [level["clusters"] for level in levels]
    merged = pq.read_table(tmp_path / "run" / "tree").to_pandas()
    assert len(merged) == manifest["clusters"] - 1
    assert merged["count"].max() == manifest["clusters"]
    # An option of the user's goes before the checkpoint's.
    other = run_cluster_job(str(sets["c"]), None, str(tmp_path / "other"), Config(k=20, max_levels=2))
    assert (other["config"]["k"], other["config"]["max_levels"]) == (20, 2)
    assert len(other["levels"]) == max(2, other["chosen_level"] + 1)


def test_options_of_a_raw_model_are_refused_with_a_relational_checkpoint(
    trained: Path, sets: dict[str, Path], tmp_path: Path
) -> None:
    source = str(sets["c"])
    for option in ("tau=0.3", "early_stop=true"):
        name, config = option.partition("=")[0], load_config(overrides=[option])
        refused = rf"{name}: only a raw model has it, and this one is relational: leave it out; .*`hilander cut`"
        with pytest.raises(ConfigError, match=refused):
            run_cluster_job(source, str(trained), str(tmp_path / "no"), config)
        with pytest.raises(ConfigError, match=refused):
            run_tune_job(source, source, None, str(tmp_path / "no"), config)
    done = hilander("cluster", "--input", source, "--output", tmp_path / "no", "--tau", 0.3)
    assert done.code == 2
    assert done.error.startswith("error: tau: only a raw model has it")
    assert not list((tmp_path / "no").rglob("*"))  # before any work


def test_whitening_is_that_of_an_earlier_run_where_its_quantizer_is_used(
    trained: Path, sets: dict[str, Path], tmp_path: Path
) -> None:
    first = run_cluster_job(str(sets["c"]), str(trained), str(tmp_path / "first"), Config())
    assert first["whitening"]["rows"] == UNSEEN
    assert 1 < first["whitening"]["clusters"] < UNSEEN
    # Half of the rows on their own would tell another map.
    pq.write_table(pq.read_table(sets["c"]).slice(0, UNSEEN // 2), tmp_path / "half.parquet")
    again = Config(quantizer=str(tmp_path / "first"))
    second = run_cluster_job(str(tmp_path / "half.parquet"), str(trained), str(tmp_path / "second"), again)
    assert second["whitening"] == {"learned_from": "earlier run", "kept": True}
    kept = [tmp_path / name / "quantizer.safetensors" for name in ("first", "second")]
    assert kept[0].read_bytes() == kept[1].read_bytes()


def test_a_model_of_one_set_has_the_whitening_of_its_classes(sets: dict[str, Path], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    label_N = rng.integers(40, size=900)
    spread_D = np.r_[np.full(3, 2.0), np.full(9, 0.3)]
    x_ND = (rng.normal(size=(40, 12))[label_N] + rng.normal(size=(900, 12)) * spread_D).astype(np.float32)
    seen_N = label_N < 16
    for name, some_N in (("seen", seen_N), ("unseen", ~seen_N)):
        write_points(tmp_path / f"{name}.parquet", x_ND[some_N], labels=label_N[some_N])
    trained = run_train_job(str(tmp_path / "seen.parquet"), str(tmp_path / "model"), small("train.epochs=1"))
    assert trained["whitening"]["kept"]
    unseen = str(tmp_path / "unseen.parquet")
    manifest = run_cluster_job(unseen, str(tmp_path / "model"), str(tmp_path / "run"), Config())
    assert manifest["whitening"] == {"learned_from": "model", "kept": True}
    # The same vectors, mapped beforehand, by the same network without a map.
    model = load_checkpoint((tmp_path / "model" / "model.safetensors").read_bytes(), "trained", RelationalModel())
    assert isinstance(model, RelationalLander)
    plain = RelationalLander(model.config)
    plain.inference = model.inference
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if name != "map_DD"})
    (tmp_path / "plain.safetensors").write_bytes(save_checkpoint(plain, {}))
    mapped_ND = map_rows(normalise_rows(x_ND[~seen_N]), model.map_DD.numpy())
    write_points(tmp_path / "mapped.parquet", mapped_ND, labels=label_N[~seen_N])
    run_cluster_job(
        str(tmp_path / "mapped.parquet"), str(tmp_path / "plain.safetensors"), str(tmp_path / "again"), Config()
    )
    assert read_assignments(tmp_path / "run").equals(read_assignments(tmp_path / "again"))
    other, refused = str(sets["c"]), r"has embeddings of 16 dimensions, the model .* takes 12"
    with pytest.raises(ModelError, match=refused):
        run_cluster_job(other, str(tmp_path / "model"), str(tmp_path / "no"), Config())
    with pytest.raises(ModelError, match=refused):
        run_tune_job(other, other, str(tmp_path / "model"), str(tmp_path / "no"), Config())


def test_tuning_by_some_labels(sets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pq.read_table(sets["c"], columns=["id", "label"])
    some = np.random.default_rng(0).permutation(UNSEEN)[:300]
    pq.write_table(table.take(some), tmp_path / "labels.parquet")
    arguments = str(sets["c"]), str(tmp_path / "labels.parquet"), None
    one = run_tune_job(*arguments, str(tmp_path / "tuned"), Config())
    killed = str(tmp_path / "killed")
    with monkeypatch.context() as patch:
        patch.setattr(Run, "mark", dies_at("level-0/path-05"))
        with pytest.raises(SystemExit):
            run_tune_job(*arguments, killed, Config(num_shards=3))
    resumed = run_tune_job(*arguments, killed, Config(num_shards=3))
    assert one["tuning"] == resumed["tuning"]
    for name in ("model.safetensors", "metrics.json"):
        assert (tmp_path / "tuned" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    tuning = one["tuning"]
    assert (tuning["labelled"], tuning["classes"]) == (300, table.take(some)["label"].to_pandas().nunique())
    by_shift = {row["shift"]: row for row in tuning["by_level"]}
    assert by_shift[tuning["shift"]]["pairwise_f"] >= tuning["expected_pairwise_f"] - 0.05
    manifest = run_cluster_job(str(sets["c"]), str(tmp_path / "tuned"), str(tmp_path / "run"), Config())
    assert (manifest["chosen_shift"], manifest["chosen_because"]) == (tuning["shift"], "asked for")
    with pytest.raises(StorageError, match="nowhere"):
        run_tune_job(*arguments, str(tmp_path / "no"), Config(quantizer=str(tmp_path / "nowhere")))
    # What was expected is what came out, for the labelled items and for all.
    assert scores_of(tmp_path / "run")["pairwise"]["f"] == pytest.approx(tuning["expected_pairwise_f"], abs=0.1)
    clusters = read_assignments(tmp_path / "run")
    assert len(clusters) == UNSEEN


def test_more_neighbours_than_can_be_counted_are_refused(sets: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"k=256: relational features take up to 255; lower --k"):
        run_cluster_job(str(sets["c"]), None, str(tmp_path / "run"), Config(k=256))
    assert not list((tmp_path / "run").rglob("*"))  # before any work
    run_cluster_job(str(sets["c"]), None, str(tmp_path / "most"), Config(k=255))


def test_labels_of_other_items_are_refused(sets: dict[str, Path], tmp_path: Path) -> None:
    x_ND, label_N = points.clustered(0, 20, 4, 3)
    write_points(tmp_path / "labels.parquet", x_ND, ids=np.arange(20) + 10**6, labels=label_N)
    with pytest.raises(InputError, match=r"0 of its 20 items are in the input, whose ids they must have, of 0 classes"):
        run_tune_job(str(sets["c"]), str(tmp_path / "labels.parquet"), None, str(tmp_path / "run"), Config())


def test_a_raw_model_of_two_encoders_is_refused(sets: dict[str, Path], tmp_path: Path) -> None:
    raw = load_config(overrides=["model.features=raw"])
    with pytest.raises(
        ConfigError, match=r"model\.features: raw is for one encoder, and there are 2 inputs: leave it out"
    ):
        run_train_job([str(sets["a"]), str(sets["b"])], str(tmp_path / "raw"), raw)


@dataclass(frozen=True)
class DyingCourse(EpisodeCourse):
    """The same, but one process that trains it is killed, once, as soon as there is a checkpoint."""

    folder: Path

    def open(self) -> EpisodeCourse:
        training.REPORT_EVERY_S = 0.0
        if (self.folder / "died").exists():
            assert ray.train.get_checkpoint() is not None
            (self.folder / "went on").touch()
        else:
            threading.Thread(target=self.wait_and_die, daemon=True).start()
        return self

    def wait_and_die(self) -> None:
        snapshot = self.folder / "run" / "checkpoint_manager_snapshot.json"
        while not (snapshot.exists() and "checkpoint_2" in snapshot.read_text()):
            time.sleep(0.005)
        try:
            (self.folder / "died").touch(exist_ok=False)
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_training_of_which_a_worker_is_killed_ends_in_the_same_bytes(
    training_job: tuple[Path, EpisodeCourse], tmp_path: Path
) -> None:
    trained, course = training_job
    given = {field.name: getattr(course, field.name) for field in fields(course)}
    found = training.fit(DyingCourse(**given, folder=tmp_path), str(tmp_path), "run")
    assert (tmp_path / "went on").exists()
    assert found.history == [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    (undisturbed,) = (trained / "_work" / "train").rglob(f"checkpoint_*/{training.BEST_FILE}")
    assert found.checkpoint == undisturbed.read_bytes()
