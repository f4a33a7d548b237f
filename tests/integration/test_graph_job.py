"""``hilander graph`` against brute force, with the ids of the user."""

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import pyarrow.parquet as pq
import pytest
import torch

from hilander_dist.knn import layout
from tests import oracle, points
from tests.integration.conftest import hilander, write_points

pytestmark = pytest.mark.usefixtures("local_ray")


def graph_files(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((folder / "graph").iterdir())]


@pytest.mark.parametrize("form", ["string", "int", "npy"])
def test_exact_graph_has_the_neighbours_of_brute_force(form: str, tmp_path: Path) -> None:
    x_ND = oracle.unit_rows(points.clustered(3, 700, 16, 40)[0])
    names: list[Any] = [f"p{i}" for i in range(700)] if form == "string" else list(range(700))
    file = tmp_path / ("in.npy" if form == "npy" else "in.parquet")
    if form == "npy":
        np.save(file, x_ND)
    else:
        write_points(file, x_ND, ids=names)
    done = hilander("graph", "--input", file, "--output", tmp_path / "out", "--target-recall", 1, "--num-shards", 2)
    assert done.code == 0, done.err
    table = pq.read_table(tmp_path / "out" / "graph")
    nbr_NK, sim_NK, _ = oracle.knn(x_ND, np.arange(700), 10)
    assert table["id"].to_pylist() == names
    assert table["neighbor_ids"].to_pylist() == [[names[j] for j in row if j >= 0] for row in nbr_NK]
    assert table["similarities"].to_pylist() == [
        sim[nbr >= 0].tolist() for nbr, sim in zip(nbr_NK, sim_NK, strict=True)
    ]


def test_shards_and_short_rows_and_bad_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x_ND = np.concatenate([points.clustered(5, 1500, 8, 60)[0], -np.eye(8, dtype=np.float32)[:1], np.zeros((1, 8))])
    file = write_points(tmp_path / "in.parquet", x_ND.astype(np.float32))
    monkeypatch.setattr(layout, "choose_nlist", lambda n: 30)
    for shards in (1, 3):
        out = tmp_path / str(shards)
        done = hilander("graph", "--input", file, "--output", out, "--target-recall", 0.9, "--num-shards", shards)
        assert done.code == 0, done.err
    assert graph_files(tmp_path / "1") == graph_files(tmp_path / "3")
    table = pq.read_table(tmp_path / "1" / "graph")
    assert table["id"].to_pylist() == list(range(1501))  # the zero row is in bad_rows/
    assert all(s == sorted(s, reverse=True) and min(s, default=1) > 0 for s in table["similarities"].to_pylist())


def test_a_later_run_uses_the_quantizer_of_an_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "choose_nlist", lambda n: 30)
    x_ND = points.clustered(5, 1500, 8, 60)[0]
    first = write_points(tmp_path / "first.parquet", x_ND[:1200])
    second = write_points(tmp_path / "second.parquet", x_ND)
    assert hilander("graph", "--input", first, "--output", tmp_path / "a").code == 0
    kept = tmp_path / "a" / "quantizer.safetensors"
    again = ["graph", "--input", second, "--set", f"quantizer={tmp_path / 'a'}", "--target-recall", 0.9]
    assert hilander(*again, "--output", tmp_path / "b").code == 0
    assert (tmp_path / "b" / "quantizer.safetensors").read_bytes() == kept.read_bytes()
    assert len(pq.read_table(tmp_path / "b" / "graph")) == 1500

    refused = hilander("graph", "--input", second, "--output", tmp_path / "c", "--set", f"quantizer={tmp_path / 'no'}")
    assert refused.code == 2
    assert "no/quantizer.safetensors: no such" in refused.error
    wide = write_points(tmp_path / "wide.parquet", points.random_rows(0, 50, 9))
    refused = hilander("graph", "--input", wide, "--output", tmp_path / "d", "--set", f"quantizer={kept}")
    assert refused.code == 2
    assert "a quantizer of 8 dimensions, the input has 9" in refused.error
    refused = hilander("graph", "--input", second, "--output", tmp_path / "e", "--set", f"quantizer={second}")
    assert refused.code == 2


def test_a_worker_killed_during_the_search_changes_nothing(tmp_path: Path) -> None:
    file = write_points(tmp_path / "in.parquet", points.clustered(5, 30_000, 32, 900)[0])
    command = ["graph", "--input", file, "--target-recall", 1, "--num-shards", 4]
    assert hilander(*command, "--output", tmp_path / "undisturbed").code == 0
    killed: list[int] = []

    def kill_a_searching_worker() -> None:
        while not killed and not (tmp_path / "killed" / "_SUCCESS").exists():
            for worker in psutil.Process().children(recursive=True):
                try:
                    if worker.cmdline()[:1] == ["ray::search_shard"]:
                        worker.kill()
                        killed.append(worker.pid)
                        return
                except psutil.Error:  # it has gone
                    continue
            time.sleep(0.001)

    killer = threading.Thread(target=kill_a_searching_worker, daemon=True)
    killer.start()
    done = hilander(*command, "--output", tmp_path / "killed")
    killer.join(60)
    assert done.code == 0, done.err
    assert len(killed) == 1
    assert graph_files(tmp_path / "killed") == graph_files(tmp_path / "undisturbed")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_search_on_a_gpu_is_refused_where_the_cluster_has_none(tmp_path: Path) -> None:
    file = write_points(tmp_path / "in.parquet", points.random_rows(0, 50, 4))
    refused = hilander("graph", "--input", file, "--output", tmp_path / "out", "--set", "knn_device=cuda")
    assert refused.code == 1
    assert "knn_device is cuda and no node of the Ray cluster has a GPU" in refused.error


def test_vectors_in_float16_give_nearly_the_same_graph_in_half_the_space(tmp_path: Path) -> None:
    x_ND = points.clustered(5, 1500, 64, 60)[0]
    file = write_points(tmp_path / "in.parquet", x_ND)
    sizes, similarities = [], []
    for kind in ("float32", "float16"):
        out = tmp_path / kind
        assert hilander("graph", "--input", file, "--output", out, "--set", f"vectors={kind}").code == 0
        sizes.append((out / "_work" / "ingest" / "rows-00000.safetensors").stat().st_size)
        similarities.append(np.array(pq.read_table(out / "graph")["similarities"].to_pylist()))
    assert sizes[1] < 0.6 * sizes[0]
    np.testing.assert_allclose(similarities[1], similarities[0], atol=1e-3)
