"""Searching and training on a real GPU, through the commands. Everything here skips where torch sees none."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from hilander_dist.knn import layout
from tests import points
from tests.integration.conftest import hilander, read_clusters, result_bytes, write_points

pytestmark = [
    pytest.mark.usefixtures("local_ray"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device on this machine"),
    # Ray Train imports Ray Data, whose defaults trip over their own deprecations.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*"),
]

DEVICES = ("cpu", "cuda")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    x_ND, label_N = points.clustered(1, 1200, 24, 30)
    return write_points(tmp_path_factory.mktemp("gpu") / "in.parquet", x_ND, labels=label_N)


@pytest.mark.parametrize("vectors", ["float32", "float16"])
def test_an_exact_graph_has_the_bytes_of_the_cpu(vectors: str, labelled: Path, tmp_path: Path) -> None:
    options = ["--target-recall", 1, "--num-shards", 2, "--set", f"vectors={vectors}"]
    for device in DEVICES:
        out = tmp_path / device
        done = hilander("graph", "--input", labelled, "--output", out, *options, "--set", f"knn_device={device}")
        assert done.code == 0, done.err
    on_cpu, on_gpu = (result_bytes(tmp_path / device, ["graph"]) for device in DEVICES)
    assert len(on_cpu) > 0
    assert on_gpu == on_cpu


def test_a_graph_by_a_partition_is_nearly_that_of_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """faiss-gpu, where it is installed, has other centroids; without it the graph is that of the CPU."""
    monkeypatch.setattr(layout, "choose_nlist", lambda n: 30)
    x_ND = points.clustered(5, 3000, 24, 60)[0]
    file = write_points(tmp_path / "in.parquet", x_ND)
    found = []
    for device in DEVICES:
        out = tmp_path / device
        done = hilander("graph", "--input", file, "--output", out, "--set", f"knn_device={device}")
        assert done.code == 0, done.err
        found.append(np.array(pq.read_table(out / "graph")["similarities"].to_pylist()))
    assert (np.abs(found[0] - found[1]) <= 1e-5).mean() > 0.95


def test_clusters_are_those_of_the_cpu(labelled: Path, tmp_path: Path) -> None:
    for device in DEVICES:
        done = hilander(
            *("cluster", "--input", labelled, "--output", tmp_path / device, "--target-recall", 1),
            *("--set", f"knn_device={device}"),
        )
        assert done.code == 0, done.err
    on_cpu, on_gpu = (result_bytes(tmp_path / device, ["assignments", "clusters"]) for device in DEVICES)
    assert len(on_cpu) > 0
    assert on_gpu == on_cpu


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "options",
    [
        ("train.episodes=20", "train.epochs=2"),
        ("model.features=raw", "model.encoder=gcn", "model.hidden=32", "train.epochs=5"),
        ("model.features=raw", "model.encoder=gat", "model.hidden=32", "train.epochs=5"),
    ],
    ids=["relational", "gcn", "gat"],
)
def test_training_follows_the_curve_of_the_cpu_and_its_checkpoint_clusters(
    options: tuple[str, ...], labelled: Path, tmp_path: Path
) -> None:
    losses = []
    for name in DEVICES:
        out = tmp_path / name
        sets = [part for option in (*options, f"train.use_gpu={name == 'cuda'}") for part in ("--set", option)]
        done = hilander("train", "--input", labelled, "--output", out, *sets)
        assert done.code == 0, done.err
        losses.append([json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-2)
    done = hilander("cluster", "--input", labelled, "--model", tmp_path / "cuda", "--output", tmp_path / "run")
    assert done.code == 0, done.err
    assert read_clusters(tmp_path / "run")["size"].sum() > 0
