"""Inputs as people have them, through the command line: nothing is lost without a word, nothing is refused that is fine."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import points
from tests.integration.conftest import (
    DIM,
    Outcome,
    hilander,
    read_assignments,
    read_bad_rows,
    rows,
    write_points,
)
from tests.integration.test_bad_input import refused

pytestmark = pytest.mark.usefixtures("local_ray")


def manifest(output: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((output / "manifest.json").read_text())
    return found


def test_several_inputs_are_all_read(tmp_path: Path) -> None:
    """By each command that takes embeddings; ids that stand in two inputs are duplicates, as in two files."""
    x_ND, y_N = points.clustered(0, 120, DIM, 8)
    a = write_points(tmp_path / "a.parquet", x_ND[:70], ids=range(70), labels=y_N[:70])
    b = write_points(tmp_path / "b" / "x.parquet", x_ND[70:], ids=range(70, 120), labels=y_N[70:])
    both = ["--input", a, "--input", tmp_path / "b"]
    for command in ("cluster", "graph"):
        done = hilander(command, *both, "--output", tmp_path / command)
        assert done.code == 0, done.err
        assert manifest(tmp_path / command)["input"] == [
            {
                "uris": [str(a), str(tmp_path / "b")],
                "files": 2,
                "order": "natural order of their names: 2 before 10",
                "left_out": {"count": 0, "first": {}},
            }
        ]
    assert read_assignments(tmp_path / "cluster")["id"].tolist() == list(range(120))
    assert len(pq.read_table(tmp_path / "graph" / "graph")) == 120
    done = hilander("tune", *both, "--labels", b, "--output", tmp_path / "tuned")
    assert done.code == 0, done.err
    assert manifest(tmp_path / "tuned")["counts"]["rows"] == 120  # type: ignore[index]

    write_points(b, x_ND[70:], ids=range(69, 119))
    refused(
        hilander("graph", *both, "--output", tmp_path / "again", "--set", "input.max_bad_share=0"), "1 duplicate id"
    )
    refused(hilander("graph", *both, "--input", b, "--output", tmp_path / "b2"), "x.parquet", "name it once")


def test_what_is_left_out_is_named_in_the_log_and_the_manifest(cluster: Callable[..., Outcome], tmp_path: Path) -> None:
    for name, first in (("a.parquet", 0), ("B.PARQUET", 20), ("c.pq", 40), ("d.parq", 60), ("000000_0", 80)):
        write_points(tmp_path / "in" / name, rows(100)[first : first + 20], ids=range(first, first + 20))
    for name in ("notes.txt", "more/e.csv"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_text("x")
    for name in ("_SUCCESS", ".hidden", "table_$folder$"):
        (tmp_path / "in" / name).write_text("")
    done = cluster(tmp_path / "in")
    assert done.code == 0, done.err
    assert sorted(read_assignments(tmp_path / "run")["id"]) == list(range(100))
    left_out = manifest(tmp_path / "run")["input"][0]["left_out"]  # type: ignore[index]
    why = "its name ends in none of .parquet, .pq, .parq, .npy"
    expected = {str(tmp_path / "in" / name): why for name in ("notes.txt", "more/e.csv")}
    assert left_out == {"count": 2, "first": expected}
    assert "files left out" in done.err
    assert "count=2" in done.err
    assert "notes.txt" in done.err


def test_a_partly_downloaded_snapshot_is_refused_by_its_file(cluster: Callable[..., Outcome], tmp_path: Path) -> None:
    write_points(tmp_path / "snapshot" / "train-0.parquet", rows(30))
    (tmp_path / "snapshot" / "train-1.parquet").symlink_to("../blobs/7c1b")
    refused(cluster(tmp_path / "snapshot"), "snapshot/train-1.parquet: a link whose target is missing", "download")
    assert not (tmp_path / "run" / "_work").exists()


def test_an_output_inside_the_input_is_refused_before_anything_is_written(
    cluster: Callable[..., Outcome], tmp_path: Path
) -> None:
    write_points(tmp_path / "in" / "a.parquet", rows(30))
    for output in ("in", "in/run"):
        refused(cluster(tmp_path / "in", output=output), "stands in the input", "choose an --output beside it")
    assert [path.name for path in (tmp_path / "in").rglob("*")] == ["a.parquet"]
    assert cluster(tmp_path / "in", output="in/_run").code == 0  # hidden: an input leaves it out
    assert cluster(tmp_path / "in", output="run").code == 0
    assert read_assignments(tmp_path / "run").equals(read_assignments(tmp_path / "in" / "_run"))


def test_npy_rows_lead_back_to_file_and_row(cluster: Callable[..., Outcome], tmp_path: Path) -> None:
    x_ND = rows(90)
    (tmp_path / "in").mkdir()
    for number, first in ((1, 0), (2, 20), (10, 50)):
        np.save(tmp_path / "in" / f"emb_{number}.npy", x_ND[first : {1: 20, 2: 50, 10: 90}[number]])
    for command, folder in (("cluster", "assignments"), ("graph", "graph")):
        done = (
            cluster(tmp_path / "in")
            if command == "cluster"
            else hilander("graph", "--input", tmp_path / "in", "--output", tmp_path / "graph")
        )
        assert done.code == 0, done.err
        where = tmp_path / ("run" if command == "cluster" else "graph") / folder
        found = pd.concat([pd.read_parquet(file) for file in sorted(where.glob("*.parquet"))], ignore_index=True)
        assert found["id"].tolist() == list(range(90))
        for id_, file, row in zip(found["id"], found["file"], found["row"], strict=True):
            np.testing.assert_array_equal(np.load(file)[row], x_ND[id_])


def test_hive_layout_gives_labels(cluster: Callable[..., Outcome], tmp_path: Path) -> None:
    x_ND, y_N = points.clustered(0, 200, DIM, 6)
    for kind in range(6):
        write_points(
            tmp_path / "in" / f"label={kind}" / "x.parquet", x_ND[y_N == kind], ids=np.flatnonzero(y_N == kind)
        )
    done = cluster(tmp_path / "in")
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())["final"]
    assert found["items"] == 200
    # The same labels, as a column and by `evaluate`, which reads directories alike.
    printed = hilander("evaluate", "--assignments", tmp_path / "run", "--labels", tmp_path / "in", "--json")
    assert printed.code == 0, printed.err
    assert json.loads(printed.out)["final"] == found


def test_ids_that_are_not_utf8_are_bad_rows(cluster: Callable[..., Outcome], tmp_path: Path) -> None:
    names = pa.array([b"caf\xe9", *(f"p{i}".encode() for i in range(1, 150))], pa.binary())
    ids = pa.Array.from_buffers(pa.string(), 150, names.buffers())
    write_points(tmp_path / "in.parquet", rows(150), ids=ids)
    done = cluster(tmp_path / "in.parquet")
    assert done.code == 0, done.err
    assert read_bad_rows(tmp_path / "run")[["id", "reason"]].to_numpy().tolist() == [["caf\\xe9", "id is not UTF-8"]]
    assert read_assignments(tmp_path / "run")["id"].tolist() == [f"p{i}" for i in range(1, 150)]


def test_labels_may_have_other_column_names(cluster: Callable[..., Outcome], tmp_path: Path) -> None:
    x_ND, y_N = points.clustered(0, 150, DIM, 6)
    table = pq.read_table(write_points(tmp_path / "in.parquet", x_ND, labels=y_N)).rename_columns(
        ["key", "vec", "kind"]
    )
    pq.write_table(table, tmp_path / "in.parquet")
    pq.write_table(table.select(["kind", "key"]).slice(0, 100), tmp_path / "labels.parquet")
    keys = ["--set", "input.id_column=key", "--set", "input.label_column=kind"]
    vec = ["--set", "input.embedding_column=vec"]
    assert cluster(tmp_path / "in.parquet", *keys, *vec).code == 0
    labels = ["--labels", tmp_path / "labels.parquet"]
    refused(hilander("evaluate", "--assignments", tmp_path / "run", *labels), "no column 'id'", "input.id_column=")
    done = hilander("evaluate", "--assignments", tmp_path / "run", *labels, *keys)
    assert done.code == 0, done.err
    assert "100 labelled items scored" in done.out
    done = hilander("tune", "--input", tmp_path / "in.parquet", *labels, "--output", tmp_path / "tuned", *keys, *vec)
    assert done.code == 0, done.err
    assert "(100 items of 6 classes)" in done.out


def test_options_of_the_other_kind_of_model_are_refused(cluster: Callable[..., Outcome], tmp_path: Path) -> None:
    file = write_points(tmp_path / "in.parquet", rows(60), labels=np.arange(60) % 6)
    general = ["cluster", "--input", file, "--output", tmp_path / "general"]
    train, raw = ["train", "--input", file, "--output", tmp_path / "m"], ["--set", "model.features=raw"]
    for command, words in (
        ([*general, "--set", "compat=reference"], ("compat", "relational model", "leave compat out")),
        ([*general, "--set", "model.encoder=gat"], ("model.encoder: only a raw model has it: leave it out",)),
        ([*general, *raw], ("model.features", "raw", "relational", "leave it out")),
        ([*general, "--set", "model.hidden=16"], ("model.hidden", "16", "32", "leave it out")),
        ([*train, "--set", "train.batch_size=7"], ("train.batch_size: only a raw model has it: leave it out",)),
        ([*train, *raw, "--set", "train.episodes=9"], ("train.episodes: only a relational model has it",)),
    ):
        refused(hilander(*command), *words)
    refused(cluster(file, "--set", "compat=reference", "--target-recall", 0.9), "target_recall", "searches exactly")
    warned = hilander("graph", "--input", file, "--output", tmp_path / "graph", "--set", "tau=0.3")
    assert warned.code == 0
    assert "options without effect here" in warned.err
    assert "options=tau" in warned.err


def test_a_quantizer_of_other_vectors_is_refused(cluster: Callable[..., Outcome], tmp_path: Path) -> None:
    """Cells of whitened vectors mean nothing to plain ones, and the other way round."""
    file = write_points(tmp_path / "in.parquet", points.clustered(0, 400, DIM, 10)[0])
    assert hilander("graph", "--input", file, "--output", tmp_path / "graph").code == 0
    general = ["cluster", "--input", file, "--output"]
    done = hilander(*general, tmp_path / "general")
    assert done.code == 0, done.err
    kept = manifest(tmp_path / "general")["whitening"]["kept"]  # type: ignore[index]
    refused(
        hilander(*general, tmp_path / "other", "--set", f"quantizer={tmp_path / 'graph'}"),
        "graph/quantizer.safetensors: its cells are of vectors as they are",
        "use the quantizer of a run with it",
    )
    # What the first run decided holds: the same bytes, whether it whitened or found that it does not pay.
    done = hilander(*general, tmp_path / "again", "--set", f"quantizer={tmp_path / 'general'}")
    assert done.code == 0, done.err
    assert manifest(tmp_path / "again")["whitening"] == {"learned_from": "earlier run", "kept": kept}
    assert read_assignments(tmp_path / "again").equals(read_assignments(tmp_path / "general"))
    plain = ["graph", "--input", file, "--output", tmp_path / "graph 2", "--set", f"quantizer={tmp_path / 'general'}"]
    if kept:
        refused(hilander(*plain), "its cells are of whitened vectors")
    else:
        assert hilander(*plain).code == 0


def test_signs_of_globs_in_names_and_unquoted_globs(cluster: Callable[..., Outcome], tmp_path: Path) -> None:
    file = write_points(tmp_path / "run [1]?" / "x[2].parquet", rows(40))
    assert cluster(file).code == 0
    assert cluster(file.parent, output="whole").code == 0
    expanded = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    refused(hilander("cluster", "--input", *expanded, "--output", tmp_path / "out"), "b.parquet", "quote a glob")
    assert not os.path.lexists(tmp_path / "out")
