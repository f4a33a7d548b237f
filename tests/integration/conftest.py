"""One local Ray for all tests of a process, and the files that jobs read and write.

Starting Ray takes longer than a small job: every job and every command run in this process shares the session's one.
"""

import contextlib
import io
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Read when Ray is first imported or started: before any import that may do so.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"
os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"  # a process less for each fit; test_ray_jobs has it

import numpy as np
import pandas as pd
import psutil  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch

from hilander_dist.cli import main
from hilander_dist.run import Run
from hilander_dist.storage import Storage
from tests import oracle, points
from tests.integration.s3_server import S3Server, s3_server


@pytest.fixture(scope="module")
def local_ray() -> None:
    """A Ray of two CPUs in this process: started by the first test that asks, kept until the last one."""
    if not ray.is_initialized():
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=512 * 2**20,
        )


@pytest.fixture(scope="module")
def ray_address(local_ray: None) -> str:
    """Of the same Ray, for RAY_ADDRESS of a process that would start one of its own."""
    return str(ray.get_runtime_context().gcs_address)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server with an empty bucket."""
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3_env(server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """This process's variables are those of ``server``, and no ~/.aws is there."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))  # no ~/.aws
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.fixture
def storage(server: S3Server, s3_env: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Storage:
    """A place on ``server`` for one test."""
    return Storage(f"s3://{server.bucket}/{request.node.name.replace('[', '-').replace(']', '')}")


@pytest.fixture(scope="session", autouse=True)
def _end_ray() -> Iterator[None]:
    yield
    ray.shutdown()


def write_points(
    path: Path,
    x_ND: oracle.Array,
    ids: Any = None,
    labels: Any = None,
    lists: str = "fixed",
    rows_per_group: int = 2**20,
) -> Path:
    """Write a Parquet file with columns id (default: row numbers), embedding and, where given, label.

    Args:
        path: the file.
        x_ND: float16, float32 or float64 rows; the column has their type.
        ids: of the rows.
        labels: of the rows.
        lists: ``fixed`` for a column of fixed-size lists, ``list`` for one of lists.
        rows_per_group: rows of a row group.
    """
    values = pa.array(x_ND.reshape(-1))
    if lists == "fixed":
        embedding = pa.FixedSizeListArray.from_arrays(values, x_ND.shape[1])
    else:
        embedding = pa.ListArray.from_arrays(np.arange(len(x_ND) + 1, dtype=np.int32) * x_ND.shape[1], values)
    columns = {"id": pa.array(np.arange(len(x_ND)) if ids is None else ids), "embedding": embedding}
    if labels is not None:
        columns["label"] = pa.array(labels)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=rows_per_group)
    return path


def write_weights(path: Path, weights: oracle.Weights) -> Path:
    """Write weights as the official code does: a state dict, pickled by torch."""
    torch.save({key: torch.from_numpy(value) for key, value in weights.items()}, path)
    return path


def make_weights(path: Path, seed: int, dim: int, **shape: Any) -> tuple[Path, oracle.Weights]:
    """Random weights of hidden width 16 (see ``oracle.random_weights`` for ``shape``) and the .pth file with them."""
    options = {"hidden": 16, "encoder": "gcn", **shape}
    weights = oracle.random_weights(np.random.default_rng(seed), dim, **options)
    return write_weights(path, weights), weights


@dataclass(frozen=True)
class Outcome:
    """What a command said."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """Its last line on stderr."""
        return self.err.rstrip().rpartition("\n")[2]


def hilander(*args: object) -> Outcome:
    """Run a command line in this process, on the session's Ray."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main([str(arg) for arg in args])
    return Outcome(int(ended.value.code or 0), out.getvalue(), err.getvalue())


def read_assignments(output: Path) -> pd.DataFrame:
    """All assignments of a run, in input order."""
    return _read(output / "assignments")


def read_clusters(output: Path) -> pd.DataFrame:
    """All clusters of a run, by level and cluster."""
    return _read(output / "clusters")


def read_bad_rows(output: Path) -> pd.DataFrame:
    """All bad rows of a run."""
    return _read(output / "bad_rows")


def result_bytes(
    output: Path, folders: Sequence[str] = ("assignments", "clusters", "tree", "bad_rows")
) -> dict[str, bytes]:
    """The files of a result by their name."""
    files = [file for folder in folders for file in sorted((output / folder).glob("*"))]
    return {file.relative_to(output).as_posix(): file.read_bytes() for file in files}


def is_busy_worker(process: psutil.Process) -> bool:
    """Whether it is a Ray worker with a task, whose name is then its title. The node's agents have a title of that form."""
    try:
        title = str((process.cmdline() or [""])[0])
    except psutil.Error:  # it has gone
        return False
    return title.startswith("ray::") and title != "ray::IDLE" and not title.endswith("Agent")


def dies_at(marker: str) -> Callable[..., None]:
    """``Run.mark`` of a process that ends in the place of writing a marker."""
    mark = Run.mark

    def mark_or_die(run: Run, name: str, numbers: dict[str, Any]) -> None:
        if name == marker:
            raise SystemExit(9)
        mark(run, name, numbers)

    return mark_or_die


def start_and_kill(command: list[str], is_time: Callable[[], bool]) -> None:
    """Start the command with a Ray of its own and SIGKILL it, then what is left of its processes, once it is time."""
    driver = subprocess.Popen([Path(sys.executable).with_name("hilander"), *command], stderr=subprocess.PIPE, text=True)
    assert driver.stderr is not None
    while not is_time():
        assert driver.poll() is None, driver.stderr.read()
        time.sleep(0.002)
    driver.send_signal(signal.SIGSTOP)  # listing its processes takes a while, in which it would go on
    tree = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    for process in tree:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    assert driver.wait(30) == -9
    psutil.wait_procs(tree, timeout=30)
    driver.stderr.close()
    assert not (Path(command[command.index("--output") + 1]) / "_SUCCESS").exists()


def _read(folder: Path) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(file) for file in sorted(folder.glob("*.parquet"))], ignore_index=True)


DIM = 8
"""Of the small runs below."""

RAW_SHAPE = ("--set", "model.features=raw", "--set", "model.hidden=16")
"""What a file of ``make_weights`` does not tell of itself."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, oracle.Weights]:
    """Random weights for 8 dimensions."""
    return make_weights(tmp_path_factory.mktemp("model") / "model.pth", 0, DIM)


@pytest.fixture
def cluster(weights: tuple[Path, oracle.Weights], tmp_path: Path) -> Callable[..., Outcome]:
    """``hilander cluster`` from an input to ``tmp_path / "run"`` with more options."""

    def run(source: Path | str, *options: object, output: str = "run") -> Outcome:
        return hilander(*command(source, weights[0], tmp_path / output, *options))

    return run


def command(source: Path | str, model: Path, output: Path, *options: object) -> list[object]:
    given = ["--input", source, "--model", model, "--output", output]
    return ["cluster", *given, "--tau", 0.3, *RAW_SHAPE, *options]


def labels(output: Path) -> list[list[int]]:
    """The labels of all samples, by level."""
    return [column.tolist() for _, column in read_assignments(output).filter(like="level_").items()]


def rows(n: int, seed: int = 0) -> oracle.Array:
    return points.clustered(seed, n, DIM, max(1, n // 12))[0]
