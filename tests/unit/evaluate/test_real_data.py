"""The data preparation and the output of benchmarks/real_data.py; the commands that it runs are stood in for."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import real_data
from benchmarks.real_data import Row, format_rows, load_halves, measure_baseline, measure_hilander, write_half


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    emb = (7 * rng.standard_normal((60, 12))).astype(np.float16)
    label = (np.arange(60) % 6 - 1).astype(np.int32)
    np.savez(tmp_path / "set.npz", emb=emb, label=label, class_split=np.array([0, 1, 0, 1, 1], np.uint8))
    return tmp_path / "set.npz"


def test_halves_divide_the_classes_and_leave_out_no_class(npz: Path) -> None:
    train, unseen = load_halves(npz, 0)
    assert sorted(set(train.label_N.tolist())) == [0, 2]
    assert sorted(set(unseen.label_N.tolist())) == [1, 3, 4]
    assert (len(train.id_N), len(unseen.id_N)) == (20, 30)
    with np.load(npz) as arrays:
        for half in (train, unseen):
            assert np.array_equal(arrays["label"][half.id_N], half.label_N)
            rows = arrays["emb"][half.id_N].astype(np.float64)
            np.testing.assert_allclose(half.x_ND, rows / np.linalg.norm(rows, axis=1, keepdims=True), atol=1e-6)


def test_pca_is_fitted_on_the_training_half_alone(npz: Path) -> None:
    full, unseen = load_halves(npz, 0)
    reduced, reduced_unseen = load_halves(npz, 5)
    assert (reduced.x_ND.shape, reduced_unseen.x_ND.shape) == ((20, 5), (30, 5))
    centred = full.x_ND - full.x_ND.mean(axis=0)
    _, _, axes = np.linalg.svd(centred.astype(np.float64), full_matrices=False)
    for half, small in ((full, reduced), (unseen, reduced_unseen)):
        expected = (half.x_ND - full.x_ND.mean(axis=0)) @ axes[:5].T
        np.testing.assert_allclose(np.abs(small.x_ND), np.abs(expected), atol=1e-5)


@pytest.mark.parametrize("pca", [0, 5])
def test_parquet_holds_fixed_size_lists_of_float32(npz: Path, tmp_path: Path, pca: int) -> None:
    train, _ = load_halves(npz, pca)
    write_half(train, tmp_path / "train.parquet")
    table = pq.read_table(tmp_path / "train.parquet")
    width = pca or 12
    assert table.schema.types == [pa.int64(), pa.list_(pa.float32(), width), pa.int64()]
    assert table.column_names == ["id", "embedding", "label"]
    flat = table["embedding"].combine_chunks().flatten().to_numpy()
    assert np.array_equal(flat.reshape(-1, width), train.x_ND)
    assert table["id"].to_pylist() == train.id_N.tolist()
    assert table["label"].to_pylist() == train.label_N.tolist()


def test_commands_get_the_files_and_options(npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fake(*arguments: str) -> str:
        calls.append(arguments)
        final = {"pairwise": {"f": 0.5}, "bcubed": {"f": 0.25}, "nmi": 0.75, "clusters": 9}
        return json.dumps({"final": final, "levels": []})

    monkeypatch.setattr(real_data, "_hilander", fake)
    _, unseen = load_halves(npz, 0)
    row = measure_hilander("set", "gat", unseen, tmp_path, ["k=20"])
    assert [call[0] for call in calls] == ["train", "cluster", "evaluate"]
    train, cluster, evaluate = (dict(zip(call[1::2], call[2::2], strict=False)) for call in calls)
    assert train["--input"] == str(tmp_path / "train.parquet")
    assert cluster["--input"] == evaluate["--labels"] == str(tmp_path / "unseen.parquet")
    assert cluster["--model"] == train["--output"]
    assert evaluate["--assignments"] == cluster["--output"]
    assert "model.encoder=gat" in calls[0]
    assert "k=20" in calls[0]
    assert "k=20" in calls[1]
    assert (row.pairwise_f, row.bcubed_f, row.nmi, row.clusters, row.true_classes) == (0.5, 0.25, 0.75, 9, 3)


def test_baseline_row_is_scored_on_the_unseen_half(npz: Path) -> None:
    train, unseen = load_halves(npz, 0)
    row = measure_baseline("set", "all apart", lambda x, y: len(y), lambda x, n: np.arange(len(x)) + n, train, unseen)
    assert (row.pairwise_f, row.clusters, row.true_classes) == (0, 30, 3)
    # Singletons: BCubed precision 1, recall 1 of the 10 items of a class.
    assert row.bcubed_f == pytest.approx(2 * 0.1 / 1.1)


def test_table_shows_what_is_not_known_as_a_dash() -> None:
    lines = format_rows([Row("set", "FINCH", 0.5, 0.25, 3), Row("set", "ours", 1, 1, 3, 0.9, 4, 1.25, 2)]).splitlines()
    assert lines[1].split() == ["set", "FINCH", "0.500", "0.250", "-", "-", "3", "-", "-"]
    assert lines[2].split() == ["set", "ours", "1.000", "1.000", "0.900", "4", "3", "1.2", "2.0"]
    assert len({len(line) for line in lines}) == 1
