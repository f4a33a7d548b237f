"""The commands as processes of their own, from and to a real S3 server: same bytes as on disk, one line per failure."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.fs
import pytest

from tests import points
from tests.integration.conftest import make_weights, read_assignments, read_clusters, result_bytes, write_points
from tests.integration.s3_server import S3Server

ROWS, DIM, CLASSES = 600, 16, 20
HILANDER = str(Path(sys.executable).with_name("hilander"))
TRAIN = ["model.features=raw", "model.hidden=32", "train.epochs=3", "train.level_k=[10]", "train.level_counts=[2]"]
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ \[(info|warning) *\] ")


@dataclass(frozen=True)
class Done:
    """How a process ended."""

    code: int
    out: str
    err: str
    seconds: float


@pytest.fixture(scope="module")
def env(server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of the processes: the server's address and keys, and no ~/.aws."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return clean | server.env | {"HOME": str(tmp_path_factory.mktemp("home"))}


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the labelled input (two files) in ``input`` and a model in ``model.pth``."""
    root = tmp_path_factory.mktemp("local")
    x_ND, y_N = points.clustered(0, ROWS, DIM, CLASSES)
    id_N, half = np.array([f"image-{i}" for i in range(ROWS)]), ROWS // 2
    write_points(root / "input" / "a.parquet", x_ND[:half], id_N[:half], y_N[:half])
    write_points(root / "input" / "b.parquet", x_ND[half:], id_N[half:], y_N[half:])
    make_weights(root / "model.pth", 0, DIM)
    return root


@pytest.fixture(scope="module")
def results(server: S3Server, env: dict[str, str], local: Path) -> Path:
    """Everything that ``train`` and ``cluster`` left on S3, copied to disk, and in ``on-disk`` the same run there."""
    _upload(server, local / "input", "input")
    at = f"s3://{server.bucket}"
    options = [word for option in TRAIN for word in ("--set", option)]
    _succeed(env, "train", "--input", f"{at}/input", "--output", f"{at}/model", *options)
    _download(server, "model", local / "model")
    with ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(_succeed, env, "cluster", "--input", source, "--model", model, "--output", output)
            for source, model, output in (
                (f"{at}/input", f"{at}/model", f"{at}/result"),
                (local / "input", local / "model", local / "on-disk"),
            )
        ]
        for run in runs:
            run.result()
    _download(server, "result", local / "result")
    return local


def test_training_on_s3_leaves_a_complete_directory(results: Path) -> None:
    model = results / "model"
    assert {"manifest.json", "metrics.jsonl", "model.safetensors", "_SUCCESS"} <= {
        path.name for path in model.iterdir()
    }
    assert len((model / "metrics.jsonl").read_text().splitlines()) == 3
    assert json.loads((model / "manifest.json").read_text())["counts"]["classes"] == CLASSES


def test_a_result_on_s3_is_complete_and_has_the_bytes_of_one_on_disk(results: Path) -> None:
    ours = results / "result"
    manifest = json.loads((ours / "manifest.json").read_text())
    assert (ours / "_SUCCESS").exists()
    assert manifest["counts"] == {"rows": ROWS, "clustered": ROWS, "bad": {}}
    assert manifest["clusters"] == read_assignments(ours)["cluster_id"].nunique() > 1
    assert sorted(read_assignments(ours)["id"]) == sorted(f"image-{i}" for i in range(ROWS))
    found = result_bytes(ours)
    assert {name.partition("/")[0] for name in found} == {"assignments", "clusters"}
    assert found == result_bytes(results / "on-disk")
    assert (ours / "metrics.json").read_bytes() == (results / "on-disk" / "metrics.json").read_bytes()


def test_a_result_on_s3_is_scored_from_there(results: Path, server: S3Server, env: dict[str, str]) -> None:
    at = f"s3://{server.bucket}"
    done = _hilander(env, "evaluate", "--assignments", f"{at}/result", "--labels", f"{at}/input", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out) == json.loads((results / "result" / "metrics.json").read_text())
    assert done.err == ""


def test_a_result_on_s3_is_cut_there(results: Path, server: S3Server, env: dict[str, str]) -> None:
    at = f"s3://{server.bucket}"
    _succeed(env, "cut", "--run", f"{at}/result", "--output", f"{at}/cut", "--level", 0)
    _download(server, "cut", results / "cut")
    assert (results / "cut" / "_SUCCESS").exists()
    rows, whole = read_assignments(results / "cut"), read_assignments(results / "result")
    assert rows["cluster_id"].equals(whole["level_0"].rename("cluster_id"))
    assert rows["id"].equals(whole["id"])
    assert len(read_clusters(results / "cut")) == rows["cluster_id"].nunique()


# From here on: what cannot be reached ends every command within 20 seconds in one line.


@pytest.mark.parametrize(
    ("changes", "bucket", "message"),
    [
        (
            {"AWS_ACCESS_KEY_ID": "wrong"},
            S3Server.bucket,
            r"the server does not know the access key \(403\); check AWS_",
        ),
        ({}, "no-such-bucket", r"the bucket does not exist \(404\); check the bucket name"),
        (
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
            S3Server.bucket,
            "http://127.0.0.1:9 cannot be reached .*; check AWS",
        ),
    ],
    ids=["key", "bucket", "endpoint"],
)
def test_s3_that_cannot_be_used(
    changes: dict[str, str], bucket: str, message: str, env: dict[str, str], local: Path, tmp_path: Path
) -> None:
    there = f"s3://{bucket}/x"
    source, model, output = local / "input", local / "model.pth", tmp_path / "output"
    commands = [
        ["cluster", "--input", there, "--model", model, "--output", output],
        ["cluster", "--input", source, "--model", there, "--output", output],
        ["cluster", "--input", source, "--model", model, "--output", there],
        ["train", "--input", source, "--output", there],
        ["evaluate", "--assignments", there, "--labels", source],
        ["cut", "--run", there, "--output", output, "--level", "0"],
    ]
    with ThreadPoolExecutor(2) as pool:
        for done in pool.map(lambda command: _hilander(env | changes, *command), commands):
            _assert_one_line(done, f"error: {there}", message)
    assert not output.exists() or not any(output.iterdir())


def test_a_server_that_never_answers(env: dict[str, str], local: Path, tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        changes = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{listener.getsockname()[1]}"}
        done = _hilander(
            env | changes,
            "cluster",
            "--input",
            local / "input",
            "--model",
            "s3://bucket/x",
            "--output",
            tmp_path / "output",
        )
    _assert_one_line(done, "error: s3://bucket/x", r"cannot be reached \(.*Timeout.*\); check AWS_ENDPOINT_URL")


def _assert_one_line(done: Done, start: str, message: str) -> None:
    assert done.code == 2, done.err
    assert done.out == ""
    assert done.err.startswith(start)
    assert re.search(message, done.err)
    assert done.err.count("\n") == 1
    assert done.seconds < 20


def _succeed(env: dict[str, str], *command: object) -> None:
    done = _hilander(env, *command)
    assert done.code == 0, done.err
    assert done.out == ""
    assert all(LOG_LINE.match(line) for line in done.err.splitlines()), done.err


def _hilander(env: dict[str, str], *command: object) -> Done:
    start = time.monotonic()
    words = [HILANDER, *(str(word) for word in command)]
    ended = subprocess.run(words, env=env, capture_output=True, text=True, check=False, timeout=200)
    return Done(ended.returncode, ended.stdout, ended.stderr, time.monotonic() - start)


def _upload(server: S3Server, source: Path, prefix: str) -> None:
    """Copy a directory to the server by another way than the package's."""
    remote = _remote(server)
    for file in source.iterdir():
        with remote.open_output_stream(f"{server.bucket}/{prefix}/{file.name}") as sink:
            sink.write(file.read_bytes())


def _download(server: S3Server, prefix: str, target: Path) -> None:
    pyarrow.fs.copy_files(
        f"{server.bucket}/{prefix}",
        str(target),
        source_filesystem=_remote(server),
        destination_filesystem=pyarrow.fs.LocalFileSystem(),
    )


def _remote(server: S3Server) -> pyarrow.fs.S3FileSystem:
    return pyarrow.fs.S3FileSystem(
        access_key=server.access_key,
        secret_key=server.secret_key,
        endpoint_override=server.endpoint,
        region="us-east-1",
    )
