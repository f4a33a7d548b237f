"""Inputs as people have them, through the command line: each ends in a right result, or in one line and exit code 2.

Bn in a test's name is a bug of the official code (algorithm.md 3). B1, B8 to B11 are of its own imports, training and GPU
code; B12 is in test_parity.py.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import oracle, points
from tests.integration.conftest import (
    DIM,
    Outcome,
    command,
    hilander,
    read_assignments,
    read_bad_rows,
    result_bytes,
    rows,
    write_points,
)

pytestmark = pytest.mark.usefixtures("local_ray")


def refused(outcome: Outcome, *words: str) -> None:
    """It ended with exit code 2 and one line that holds all the words."""
    assert outcome.code == 2, outcome.err
    assert outcome.error.startswith("error: ")
    assert outcome.err.count("error: ") == 1
    assert "Traceback" not in outcome.err
    for word in words:
        assert word in outcome.error


# ---- Files that cannot be read, or do not fit


def _truncated(folder: Path) -> None:
    file = write_points(folder / "a.parquet", rows(300))
    file.write_bytes(file.read_bytes()[:-100])


def _damaged_pages(folder: Path) -> None:
    file = write_points(folder / "a.parquet", rows(300))
    data = bytearray(file.read_bytes())
    data[4:400] = b"\xff" * 396
    file.write_bytes(data)


def _without(column: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        table = pq.read_table(write_points(folder / "a.parquet", rows(30)))
        pq.write_table(
            table.rename_columns([f"my_{c}" if c == column else c for c in table.column_names]), folder / "a.parquet"
        )

    return make


def _column(name: str, values: pa.Array) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        table = pq.read_table(write_points(folder / "a.parquet", rows(len(values))))
        at = table.column_names.index(name)
        pq.write_table(table.set_column(at, name, values), folder / "a.parquet")

    return make


def _two_files(**second: object) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        write_points(folder / "a.parquet", rows(30))
        x_ND = points.random_rows(1, 30, int(str(second.pop("dim", DIM))))
        write_points(folder / "b.parquet", x_ND, ids=[str(i) for i in range(30)] if second else np.arange(30, 60))

    return make


def _npy(array: np.ndarray, cut: int = 0) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        np.save(folder / "a.npy", array)
        data = (folder / "a.npy").read_bytes()
        (folder / "a.npy").write_bytes(data[: len(data) - cut])

    return make


def _text(folder: Path) -> None:
    (folder / "a.csv").write_text("id,embedding\n")


REFUSED: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "empty": (lambda folder: write_points(folder / "a.parquet", rows(3)[:0]), ("no rows in 1 file(s)",)),
    "truncated": (_truncated, ("a.parquet", "not a readable Parquet file")),
    "damaged pages": (_damaged_pages, ("a.parquet", "damaged Parquet file")),
    "no id": (_without("id"), ("a.parquet", "no column 'id'", "my_id", "input.id_column")),
    "no embedding": (_without("embedding"), ("a.parquet", "no column 'embedding'", "input.embedding_column")),
    "ids are floats": (_column("id", pa.array([0.5, 1.5])), ("a.parquet", "'id' is double")),
    "embedding is a number": (_column("embedding", pa.array([0.5, 1.5])), ("'embedding' is double", "list of")),
    "embeddings are null": (
        _column("embedding", pa.array([None, None], pa.list_(pa.float32()))),
        ("every embedding is null",),
    ),
    "another dimension": (lambda folder: write_points(folder / "a.parquet", points.random_rows(0, 30, 5)), ("5", "8")),
    "files of two dimensions": (_two_files(dim=5), ("b.parquet", "embeddings of 5 dimensions, but 8 in most rows")),
    "files of two id types": (_two_files(ids="string"), ("b.parquet", "id column differs in type", "a.parquet")),
    "npy of one axis": (_npy(np.zeros(8, np.float32)), ("a.npy", "shape (8,)")),
    "npy of integers": (_npy(np.zeros((8, 8), np.int32)), ("a.npy", "int32")),
    "npy cut short": (_npy(rows(30), cut=10), ("a.npy", "truncated")),
    "no data file": (_text, ("none of the 1 files", "a.csv")),
    "nothing": (lambda folder: None, ("the directory is empty",)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unusable_input_is_refused_by_name(name: str, cluster: Callable[..., Outcome], tmp_path: Path) -> None:
    make, words = REFUSED[name]
    (tmp_path / "in").mkdir()
    make(tmp_path / "in")

    refused(cluster(tmp_path / "in"), *words)
    assert not (tmp_path / "run" / "_SUCCESS").exists()


def test_a_missing_input_or_model_and_bad_options_are_refused(
    cluster: Callable[..., Outcome], weights: tuple[Path, oracle.Weights], tmp_path: Path
) -> None:
    file = write_points(tmp_path / "in.parquet", rows(30))
    refused(cluster(tmp_path / "absent.parquet"), "absent.parquet")
    refused(cluster(tmp_path / "absent-*.parquet"), "absent-*.parquet")
    refused(hilander(*command(file, tmp_path / "absent.pth", tmp_path / "run")), "no model at", "absent.pth")
    refused(cluster(file, "--set", "model.hidden=32"), "model.pth", "--set model.hidden=16")
    refused(cluster(file, "--k", 1), "k: ", "greater than or equal to 2")
    refused(cluster(file, "--set", "taau=0.5"), "unknown option taau", "did you mean tau")
    assert not (tmp_path / "run" / "_SUCCESS").exists()


@pytest.mark.parametrize("name", ["truncated", "another dimension", "too many bad rows"])
def test_a_process_ends_with_exit_code_2_and_one_line(
    name: str, weights: tuple[Path, oracle.Weights], tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    if name == "too many bad rows":  # found by a Ray task: the process starts and ends a Ray of its own
        write_points(tmp_path / "in" / "a.parquet", np.concatenate([rows(90), np.zeros((10, DIM), np.float32)]))
    else:
        REFUSED[name][0](tmp_path / "in")
    script = Path(sys.executable).with_name("hilander")
    args = [str(arg) for arg in command(tmp_path / "in", weights[0], tmp_path / "run")]

    done = subprocess.run([script, *args], capture_output=True, text=True, check=False, timeout=200)

    refused(Outcome(done.returncode, done.stdout, done.stderr))
    assert done.stdout == ""


# ---- Rows that cannot be used


def test_b5_bad_rows_below_the_limit_are_set_aside_with_reasons(
    cluster: Callable[..., Outcome], weights: tuple[Path, oracle.Weights], tmp_path: Path
) -> None:
    good_ND = rows(600)
    x_ND = np.insert(good_ND, [0, 100, 300, 600], 0.0, axis=0)
    x_ND[101], x_ND[302] = np.nan, np.inf  # two of the four zero rows
    write_points(tmp_path / "in" / "a.parquet", x_ND[:200], ids=[f"p{i}" for i in range(200)])
    write_points(tmp_path / "in" / "b.parquet", x_ND[200:], ids=[f"p{i}" for i in range(200, 604)], rows_per_group=50)

    outcome = cluster(tmp_path / "in")
    assert outcome.code == 0, outcome.err
    assert "bad rows set aside" in outcome.err

    bad = read_bad_rows(tmp_path / "run")
    assert list(bad) == ["id", "file", "row", "reason"]
    a, b = (str(tmp_path / "in" / name) for name in ("a.parquet", "b.parquet"))
    assert sorted(map(tuple, bad.to_numpy().tolist())) == [
        ("p0", a, 0, "zero vector"),
        ("p101", a, 101, "NaN or infinite value"),
        ("p302", b, 102, "NaN or infinite value"),
        ("p603", b, 403, "zero vector"),
    ]
    counts = json.loads((tmp_path / "run" / "manifest.json").read_text())["counts"]
    assert counts == {"rows": 604, "clustered": 600, "bad": {"zero vector": 2, "NaN or infinite value": 2}}
    found = read_assignments(tmp_path / "run")
    assert found["id"].tolist() == [f"p{i}" for i in range(604) if i not in (0, 101, 302, 603)]
    levels = oracle.hierarchy(good_ND, weights[1], 10, 0.3, 10, False)
    assert found["level_0"].tolist() == levels[0].sample_label.tolist()


def test_b5_bad_rows_above_the_limit_stop_the_run(cluster: Callable[..., Outcome], tmp_path: Path) -> None:
    x_ND = rows(600)
    x_ND[:4], x_ND[4:7] = 0, np.nan
    file = write_points(tmp_path / "in.parquet", x_ND)

    counts = ("7 of 600 rows", "4 zero vector", "3 NaN or infinite value")
    refused(cluster(file), *counts, "input.max_bad_share = 0.01", "bad_rows/")
    assert read_bad_rows(tmp_path / "run")["row"].tolist() == list(range(7))

    write_points(file, np.zeros((20, DIM), np.float32))
    refused(cluster(file, "--set", "input.max_bad_share=1", output="none"), "none of the 20 rows", "20 zero vector")


def test_null_ids_null_embeddings_and_wrong_lengths_are_bad_rows(
    cluster: Callable[..., Outcome], tmp_path: Path
) -> None:
    lists = [*rows(40).tolist(), None, [1.0, 2.0], []]
    table = {"id": pa.array([None, *range(1, 43)], pa.int64()), "embedding": pa.array(lists, pa.list_(pa.float32()))}
    pq.write_table(pa.table(table), tmp_path / "in.parquet")

    assert cluster(tmp_path / "in.parquet", "--set", "input.max_bad_share=0.2").code == 0

    bad = read_bad_rows(tmp_path / "run")
    assert bad["row"].tolist() == [0, 40, 41, 42]
    assert bad["reason"].tolist() == ["null id", "null embedding", "wrong length, not 8", "wrong length, not 8"]
    assert read_assignments(tmp_path / "run")["id"].tolist() == list(range(1, 40))


@pytest.mark.parametrize("kind", ["int", "string"])
def test_only_the_first_row_with_an_id_stays(
    kind: str, cluster: Callable[..., Outcome], weights: tuple[Path, oracle.Weights], tmp_path: Path
) -> None:
    x_ND = rows(120)
    ids = np.arange(1000, 1120)
    ids[[7, 50, 110]] = ids[[3, 3, 20]]  # within the first file twice, across files once
    named = ids.tolist() if kind == "int" else [f"image {i}.jpg" for i in ids]
    write_points(tmp_path / "in" / "a.parquet", x_ND[:60], ids=named[:60])
    write_points(tmp_path / "in" / "b.parquet", x_ND[60:], ids=named[60:])

    refused(cluster(tmp_path / "in", output="refused"), "3 of 120 rows", "3 duplicate id")
    outcome = cluster(tmp_path / "in", "--set", "input.max_bad_share=0.05")
    assert outcome.code == 0, outcome.err

    kept = [i for i in range(120) if i not in (7, 50, 110)]
    found, bad = read_assignments(tmp_path / "run"), read_bad_rows(tmp_path / "run")
    assert found["id"].tolist() == [named[i] for i in kept]
    assert bad["id"].tolist() == [named[3], named[3], named[20]]
    assert bad["row"].tolist() == [7, 50, 50]
    assert [Path(file).name for file in bad["file"]] == ["a.parquet", "a.parquet", "b.parquet"]
    level = oracle.hierarchy(x_ND[kept], weights[1], 10, 0.3, 1, False)[0]
    assert found["level_0"].tolist() == level.sample_label.tolist()


# ---- Forms of the same input


def test_every_form_of_an_input_gives_the_same_labels(cluster: Callable[..., Outcome], tmp_path: Path) -> None:
    x_ND = rows(150).astype(np.float16)
    forms: dict[str, str] = {}
    for name, dtype, lists in (("float16", np.float16, "fixed"), ("float32", np.float32, "list")):
        forms[name] = str(write_points(tmp_path / f"{name}.parquet", x_ND.astype(dtype), lists=lists))
    for name, array in (("npy16", x_ND), ("npy32", x_ND.astype(np.float32)), ("columns", np.asfortranarray(x_ND))):
        forms[name] = str(tmp_path / f"{name}.npy")
        np.save(forms[name], array)
    for part, at in enumerate((0, 70)):
        write_points(
            tmp_path / "parts" / f"{part}.parquet",
            x_ND[at : at + 70 + 10 * part],
            np.arange(150)[at : at + 70 + 10 * part],
        )
    forms |= {"directory": str(tmp_path / "parts"), "glob": str(tmp_path / "par*" / "?.parquet")}

    for name, uri in forms.items():
        outcome = cluster(uri, "--max-levels", 2, output=name)
        assert outcome.code == 0, outcome.err

    expected = read_assignments(tmp_path / "float16")
    for name in forms:
        found = read_assignments(tmp_path / name)
        if forms[name].endswith(".npy"):
            assert found.pop("file").tolist() == [forms[name]] * 150
            assert found.pop("row").tolist() == list(range(150))
        assert found.equals(expected), name


def test_labels_give_the_metrics_that_evaluate_prints(cluster: Callable[..., Outcome], tmp_path: Path) -> None:
    x_ND, y_N = points.clustered(0, 300, DIM, 20)
    known = [None if i % 7 == 0 else f"class {y}" for i, y in enumerate(y_N)]
    file = write_points(tmp_path / "in.parquet", x_ND, ids=[f"p{i}" for i in range(300)], labels=known)
    assert cluster(file).code == 0

    found = json.loads((tmp_path / "run" / "metrics.json").read_text())
    printed = hilander("evaluate", "--assignments", tmp_path / "run", "--labels", file, "--json")
    assert printed.code == 0, printed.err
    assert found == json.loads(printed.out)
    keep = [i for i in range(300) if i % 7]
    expected = oracle.metrics(read_assignments(tmp_path / "run")["cluster_id"].to_numpy()[keep], y_N[keep])
    assert found["final"]["pairwise"]["f"] == pytest.approx(expected["pairwise_f"], abs=1e-12)
    assert found["final"]["nmi"] == pytest.approx(expected["nmi"], abs=1e-12)
    assert found["final"]["unlabelled"] == 43


def test_an_output_directory_belongs_to_one_run(cluster: Callable[..., Outcome], tmp_path: Path) -> None:
    file = write_points(tmp_path / "in.parquet", rows(60))
    assert cluster(file).code == 0
    before = result_bytes(tmp_path / "run")
    refused(cluster(file), "holds a complete run")

    (tmp_path / "run" / "_SUCCESS").unlink()
    refused(cluster(file, "--tau", 0.4), "differs in config.tau", "0.3 there, 0.4 now")
    shutil.rmtree(tmp_path / "run" / "assignments")
    assert cluster(file).code == 0
    assert result_bytes(tmp_path / "run") == before

    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("mine")
    refused(cluster(file, output="foreign"), "is not empty (notes.txt)")
    assert [file.name for file in (tmp_path / "foreign").iterdir()] == ["notes.txt"]
