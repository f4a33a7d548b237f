"""``hilander cut`` of a finished run: other clusters of the same rows, nested in the run's levels; what it refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests import points
from tests.integration.conftest import (
    RAW_SHAPE,
    Outcome,
    hilander,
    make_weights,
    read_assignments,
    read_clusters,
    result_bytes,
    start_and_kill,
    write_points,
)

pytestmark = pytest.mark.usefixtures("local_ray")

ROWS, CLASSES = 900, 40


@pytest.fixture(scope="module")
def run(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of the general checkpoint on two files of a labelled set; ids are words."""
    folder = tmp_path_factory.mktemp("cut")
    x_ND, label_N = points.clustered(0, ROWS, 16, CLASSES)
    names = np.array([f"image {row}" for row in range(ROWS)])
    for part in (0, 1):
        rows = slice(part * 500, part * 500 + 500)
        write_points(folder / "in" / f"{part}.parquet", x_ND[rows], names[rows], label_N[rows])
    done = hilander("cluster", "--input", folder / "in", "--output", folder / "run", "--num-shards", 3)
    assert done.code == 0, done.err
    return folder / "run"


def manifest(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "manifest.json").read_text())
    return found


def cut(run: Path, output: Path, *options: object) -> Outcome:
    return hilander("cut", "--run", run, "--output", output, *options)


def check(run: Path, output: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The cut's assignments and clusters, which agree with each other and with the run."""
    rows, clusters, original = read_assignments(output), read_clusters(output), read_assignments(run)
    kept = ["id", "density", *original.filter(like="level_").columns]
    pd.testing.assert_frame_equal(rows[kept], original[kept])
    assert clusters["cluster_id"].tolist() == list(range(len(clusters)))
    assert clusters["size"].tolist() == np.bincount(rows["cluster_id"]).tolist()
    peaks = rows[rows["is_peak"]]
    assert peaks["cluster_id"].tolist() == clusters["cluster_id"].tolist()  # in the order of the rows
    assert peaks["id"].tolist() == clusters["peak_id"].tolist()
    if (run / "tree").exists():  # A raw model has other densities at its higher levels.
        assert peaks["density"].tolist() == rows.groupby("cluster_id")["density"].max().tolist()
    for level in map(str, original.filter(like="level_").columns):
        counts = rows.groupby("cluster_id")[level].nunique(), rows.groupby(level)["cluster_id"].nunique()
        assert (counts[0] == 1).all() or (counts[1] == 1).all(), level
    found = manifest(output)
    assert found["job"] == "cut"
    assert found["clusters"] == len(clusters)
    assert found["counts"]["rows"] == ROWS
    assert found["run_fingerprint"] == manifest(run)["fingerprint"]
    assert [file.name for file in sorted((output / "assignments").iterdir())] == [
        file.name for file in sorted((run / "assignments").iterdir())
    ]
    return rows, clusters


def test_a_level_of_the_run(run: Path, tmp_path: Path) -> None:
    told = manifest(run)
    counts = [level["clusters"] for level in told["levels"]]
    chosen = told["chosen_level"]
    assert len(counts) > 3
    for level in (0, chosen, len(counts) - 2):
        output = tmp_path / str(level)
        done = cut(run, output, "--level", level)
        assert done.code == 0, done.err
        rows, clusters = check(run, output)
        original = read_clusters(run)
        original = original[original["level"] == level].reset_index(drop=True)
        pd.testing.assert_frame_equal(clusters, original[list(clusters)])
        assert rows["cluster_id"].equals(rows[f"level_{level}"].rename("cluster_id"))
        assert len(clusters) == counts[level]
        # How sure a row is was counted for the run's own answer.
        assert ("confidence" in rows) == (level == chosen)
    pd.testing.assert_frame_equal(read_assignments(tmp_path / str(chosen)), read_assignments(run))


def test_a_number_of_clusters(run: Path, tmp_path: Path) -> None:
    told = manifest(run)
    own = told["clusters"]
    assert own > 12
    for count in (1, 7, own - 1, own):
        output = tmp_path / str(count)
        done = cut(run, output, "--clusters", count)
        assert done.code == 0, done.err
        rows, clusters = check(run, output)
        assert len(clusters) == count
        whole = rows.groupby(f"level_{told['chosen_level']}")["cluster_id"].nunique()
        assert (whole == 1).all()
    # Above the answer there are only the levels that were written.
    done = cut(run, tmp_path / "more", "--clusters", 10**6)
    assert done.code == 0, done.err
    _, clusters = check(run, tmp_path / "more")
    assert len(clusters) == told["levels"][0]["clusters"]


def test_a_shift(run: Path, tmp_path: Path) -> None:
    told = manifest(run)
    shifts = [level["shift"] for level in told["levels"] if "shift" in level]
    done = cut(run, tmp_path / "cut", "--shift", shifts[0] + 0.01)
    assert done.code == 0, done.err
    rows, _ = check(run, tmp_path / "cut")
    assert rows["cluster_id"].equals(rows["level_0"].rename("cluster_id"))
    assert manifest(tmp_path / "cut")["cut"] == {"level": 0}
    done = cut(run, tmp_path / "last", "--shift", 1000)
    assert done.code == 0, done.err
    assert manifest(tmp_path / "last")["cut"] == {"level": len(shifts) - 1}


def test_what_cannot_be_cut_is_refused_in_one_line(run: Path, tmp_path: Path) -> None:
    levels = len(manifest(run)["levels"])
    unfinished, other = tmp_path / "unfinished", tmp_path / "graph"
    shutil.copytree(run, unfinished)
    (unfinished / "_SUCCESS").unlink()
    done = hilander("graph", "--input", run.parent / "in", "--output", other)
    assert done.code == 0, done.err
    name = "name the output directory of `hilander cluster`"
    one = "give one of --level, --clusters and --shift"
    level = ("--level", 0)
    for source, output, options, words in (
        (unfinished, "no", level, (f"{unfinished}: no finished run", name)),
        (tmp_path / "nowhere", "no", level, ("nowhere: no finished run", name)),
        (other, "no", level, ("the output of `hilander graph`, not of `hilander cluster`",)),
        (run, "no", ("--level", levels), (f"--level {levels}: the run has levels 0 to {levels - 1}",)),
        (run, "no", ("--level", -1), (f"--level -1: the run has levels 0 to {levels - 1}",)),
        (run, "no", ("--clusters", 0), ("--clusters 0: at least 1",)),
        (run, "no", (), (one,)),
        (run, "no", (*level, "--clusters", 3), (one,)),
        (run, run, level, (f"{run}: stands in the run", "choose an --output beside it")),
        (run, run / "cut", level, (f"{run}/cut: stands in the run", "choose an --output beside it")),
    ):
        done = cut(source, tmp_path / output, *options)
        assert done.code == 2, done.err
        assert done.err.count("\n") == 1
        assert done.error.startswith("error: ")
        for word in words:
            assert word in done.error
    assert not (tmp_path / "no").exists() or not list((tmp_path / "no").rglob("*"))
    assert not (run / "cut").exists()


def test_a_raw_run_has_levels_but_no_shifts(run: Path, tmp_path: Path) -> None:
    model, _ = make_weights(tmp_path / "model.pth", 0, 16)
    raw = ("--model", model, "--tau", 0.3, *RAW_SHAPE)
    done = hilander("cluster", "--input", run.parent / "in", "--output", tmp_path / "raw", *raw)
    assert done.code == 0, done.err
    done = cut(tmp_path / "raw", tmp_path / "cut", "--shift", 0)
    assert done.code == 2
    assert "--shift: the run is of a raw model, whose levels have none: use --level or --clusters" in done.error
    # Without a dendrogram: the level with the next number.
    done = cut(tmp_path / "raw", tmp_path / "cut", "--clusters", 1)
    assert done.code == 0, done.err
    check(tmp_path / "raw", tmp_path / "cut")
    assert manifest(tmp_path / "cut")["cut"] == {"level": len(manifest(tmp_path / "raw")["levels"]) - 1}


def test_a_killed_cut_goes_on(run: Path, tmp_path: Path) -> None:
    done = cut(run, tmp_path / "undisturbed", "--clusters", 7)
    assert done.code == 0, done.err
    output = tmp_path / "cut"
    words = ["cut", "--run", str(run), "--output", str(output), "--clusters", "7"]
    start_and_kill(words, lambda: any((output / "assignments").glob("*.parquet")))
    done = cut(run, output, "--clusters", 8)
    assert done.code == 2
    assert "holds an unfinished run that differs in cut.clusters (7 there, 8 now)" in done.error
    done = cut(run, output, "--clusters", 7)
    assert done.code == 0, done.err
    assert result_bytes(output) == result_bytes(tmp_path / "undisturbed")
    done = cut(run, output, "--clusters", 7)
    assert done.code == 2
    assert "holds a complete run" in done.error
