from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hilander_dist.errors import InputError
from hilander_dist.evaluate import evaluate_tables
from hilander_dist.jobs.evaluate import evaluate_uris

IDS = [f"row{i}" for i in range(6)]
CLUSTERS = [0, 0, 1, 1, 2, 2]
LEVELS = [0, 1, 2, 2, 3, 3]
LABELS = ["a", "a", "a", "b", "b", None]


def assignments() -> pa.Table:
    return pa.table({"id": IDS, "cluster_id": CLUSTERS, "level_0": LEVELS, "level_1": CLUSTERS, "density": [0.5] * 6})


def labels() -> pa.Table:
    return pa.table({"id": IDS, "label": LABELS})


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    """A run directory: other Parquet files lie beside the assignments."""
    for path, table in {
        "assignments/part-00000.parquet": assignments().slice(0, 2),
        "assignments/part-00001.parquet": assignments().slice(2),
        "clusters/level-00-part-00000.parquet": pa.table({"cluster_id": [0]}),
        "bad_rows/rows-00000.parquet": pa.table({"id": ["x"]}),
    }.items():
        (tmp_path / "run" / path).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, tmp_path / "run" / path)
    return tmp_path / "run"


@pytest.fixture
def labels_file(tmp_path: Path) -> Path:
    path = tmp_path / "labels.parquet"
    pq.write_table(labels().append_column("more", pa.array([1] * 6)), path)
    return path


@pytest.mark.parametrize(
    "place",
    ["{}", "{}/", "{}/assignments", "{}/assignments/", "{}/assignments/*.parquet", "{}/assignments/part-0000?.parquet"],
)
def test_a_run_its_assignments_or_its_files_give_the_same_scores(
    run_directory: Path, labels_file: Path, place: str
) -> None:
    result = evaluate_uris(place.format(run_directory), str(labels_file))
    assert result == evaluate_tables([assignments()], labels())
    assert result["final"]["items"] == 5
    assert [level["level"] for level in result["levels"]] == [0, 1]


def test_a_single_file_of_assignments(run_directory: Path, labels_file: Path) -> None:
    result = evaluate_uris(f"{run_directory}/assignments/part-00001.parquet", str(labels_file))
    assert (result["final"]["items"], result["final"]["unlabelled"]) == (3, 1)


def test_labels_in_several_files_of_different_widths(run_directory: Path, tmp_path: Path) -> None:
    where = tmp_path / "labels"
    where.mkdir()
    pq.write_table(labels().slice(0, 3), where / "a.parquet")
    wide = labels().slice(3).cast(pa.schema([("id", pa.large_string()), ("label", pa.large_string())]))
    pq.write_table(wide, where / "b.parquet")
    assert evaluate_uris(str(run_directory), str(where)) == evaluate_tables([assignments()], labels())


def test_labels_of_files_that_do_not_fit_together_are_refused(run_directory: Path, tmp_path: Path) -> None:
    where = tmp_path / "labels"
    where.mkdir()
    pq.write_table(labels(), where / "a.parquet")
    pq.write_table(pa.table({"id": IDS, "label": [1] * 6}), where / "b.parquet")
    with pytest.raises(InputError, match="labels") as caught:
        evaluate_uris(str(run_directory), str(where))
    assert "\n" not in str(caught.value)


def test_labels_without_the_columns_are_refused_by_file(run_directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "labels.parquet"
    pq.write_table(labels().rename_columns(["id", "kind"]), path)
    with pytest.raises(
        InputError, match=r"labels\.parquet: no column 'label' \(there are: id, kind\): name yours with --set"
    ):
        evaluate_uris(str(run_directory), str(path))


def test_a_file_that_is_no_parquet_is_refused_by_name(run_directory: Path, labels_file: Path) -> None:
    (run_directory / "assignments" / "part-00001.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(InputError, match=r"assignments/part-00001\.parquet: damaged Parquet file") as caught:
        evaluate_uris(str(run_directory), str(labels_file))
    assert "\n" not in str(caught.value)


def test_a_place_without_files_is_refused(tmp_path: Path, labels_file: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        evaluate_uris(str(tmp_path / "nowhere"), str(labels_file))
