"""``ray job submit`` to a real Ray head: a result on S3, a trained model, and a log that ends with the reason of a failure.

The head knows no S3 keys: the jobs bring them in their runtime environment, which also reaches the tasks' processes.
"""

import json
import re
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from hilander_dist.storage import Storage
from tests import points
from tests.integration.conftest import RAW_SHAPE, make_weights, write_points
from tests.integration.ray_head import RAY, clean_env, ray_head
from tests.integration.s3_server import S3Server

ROWS, DIM, CLASSES = 600, 16, 20
REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Job:
    """How a job ended."""

    exit_code: int
    """Of ``ray job submit``."""
    status: str
    log: list[str]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The jobs' address of a head of its own, with four CPUs."""
    with ray_head(4, clean_env(), dashboard=True, store_mb=512) as head:
        yield head.jobs


@pytest.fixture(scope="module")
def jobs(address: str, server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    """The jobs of this module by name, run side by side; the trained model is in ``model`` of the bucket."""
    root = tmp_path_factory.mktemp("jobs")
    x_ND, y_N = points.clustered(0, ROWS, DIM, CLASSES)
    at, source = f"s3://{server.bucket}", write_points(root / "input.parquet", x_ND, labels=y_N)
    x_ND[::2] = 0
    spoilt = write_points(root / "spoilt.parquet", x_ND)
    weights, _ = make_weights(root / "model.pth", 0, DIM)
    script, s3 = REPOSITORY / "jobs" / "cluster.py", json.dumps({"env_vars": server.env})
    small = ["model.features=raw", "model.hidden=32", "train.epochs=2", "train.level_k=[10]", "train.level_counts=[2]"]
    commands: dict[str, list[object]] = {
        "cluster": [
            *("--runtime-env-json", s3, "--", "python", script),
            *("--input", source, "--model", weights, "--output", f"{at}/result"),
            *RAW_SHAPE,
        ],
        "train": [
            *("--runtime-env-json", s3, "--working-dir", REPOSITORY, "--", "python", "jobs/train.py"),
            *("--input", source, "--output", f"{at}/model"),
            *(word for option in small for word in ("--set", option)),
        ],
        "bad rows": [
            *("--", "python", script),
            *("--input", spoilt, "--model", weights, "--output", root / "spoilt", *RAW_SHAPE),
        ],
        "unknown option": [
            *("--", "python", script),
            *("--input", source, "--model", weights, "--output", root / "none", "--set", "taau=1"),
        ],
    }
    with ThreadPoolExecutor(len(commands)) as pool:
        running = {name: pool.submit(_run_job, address, command) for name, command in commands.items()}
        return {name: job.result() for name, job in running.items()}


def test_a_clustering_job_succeeds(jobs: dict[str, Job], server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    job = jobs["cluster"]
    assert (job.exit_code, job.status) == (0, "SUCCEEDED"), job.log
    result = _output(server, "result", monkeypatch)
    assert result.exists("_SUCCESS")
    assert result.read_json("manifest.json")["counts"] == {"rows": ROWS, "clustered": ROWS, "bad": {}}
    ids = [i for file in result.list("assignments") for i in result.read_table(file.path, ["id"])["id"].to_pylist()]
    assert sorted(ids) == list(range(ROWS))
    assert " done " in job.log[-1]


def test_a_training_job_succeeds(jobs: dict[str, Job], server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    job = jobs["train"]
    assert (job.exit_code, job.status) == (0, "SUCCEEDED"), job.log
    model = _output(server, "model", monkeypatch)
    assert model.exists("_SUCCESS")
    assert model.exists("model.safetensors")
    assert " done " in job.log[-1]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("unknown option", r"error: unknown option taau: did you mean tau\?"),
        ("bad rows", r"error: .*300 of 600 rows cannot be used .*; see bad_rows/ in the output$"),
    ],
)
def test_the_log_of_a_failed_job_ends_with_the_reason(name: str, reason: str, jobs: dict[str, Job]) -> None:
    job = jobs[name]
    assert (job.exit_code, job.status) == (1, "FAILED"), job.log
    assert re.match(reason, job.log[-1]), job.log
    assert not any("Traceback" in line for line in job.log)


def _run_job(address: str, command: list[object]) -> Job:
    """Run ``ray job submit``, which follows the job to its end."""
    name = f"job-{time.time_ns()}"
    words = [RAY, "job", "submit", "--address", address, "--submission-id", name, *(str(word) for word in command)]
    ended = subprocess.run(words, env=clean_env(), cwd="/", capture_output=True, text=True, check=False, timeout=250)
    with urllib.request.urlopen(f"{address}/api/jobs/{name}") as answer:
        status = json.load(answer)["status"]
    with urllib.request.urlopen(f"{address}/api/jobs/{name}/logs") as answer:
        log = json.load(answer)["logs"]
    return Job(ended.returncode, status, log.rstrip("\n").split("\n"))


def _output(server: S3Server, path: str, monkeypatch: pytest.MonkeyPatch) -> Storage:
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    return Storage(f"s3://{server.bucket}/{path}")
