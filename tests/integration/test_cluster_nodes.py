"""Nodes that are not there, come later, or have another version; heads that do not answer; a local Ray that does not start.

Each job is a process of its own, as a user starts it: that of the tests may be connected to a Ray already.
"""

import contextlib
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from hilander_dist.run import code_version
from tests import oracle, points
from tests.integration.conftest import write_points
from tests.integration.ray_nodes import Head, clean_env, end, scaling_head

ROWS, DIM = 300, 8
HILANDER = str(Path(sys.executable).with_name("hilander"))
REQUEST = "autoscaler_resource_request"
"""Where version 1 of the autoscaler is told what is needed."""

SESSION = """
import sys
import ray
from hilander_dist.errors import HilanderError
from hilander_dist.monitor.log import configure_log
from hilander_dist.monitor.progress import Progress
from hilander_dist.runtime import ray_session
from hilander_dist.storage import Storage
from hilander_dist.tasks import Tasks
from hilander_dist.waiting import wait_for

def job():
    BODY

configure_log()
try:
    with ray_session(sys.argv[1] or None, wait_s=60):
        job()
except HilanderError as error:
    sys.exit(f"error: {error}")
"""
"""A session on an address with a body, which ends as the command line would."""


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with scaling_head() as head:
        yield head


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_points(tmp_path_factory.mktemp("in") / "in.parquet", x_ND())


@pytest.fixture
def worker(head: Head) -> None:
    """At least one worker of this version."""
    if not head.nodes:
        head.join("worker")


def x_ND() -> oracle.Array:
    return oracle.unit_rows(points.clustered(0, ROWS, DIM, 20)[0])


def command(source: Path, output: Path, *options: object) -> list[str]:
    given = ["graph", "--input", source, "--output", output, "--target-recall", 1, *options]
    return [HILANDER, *(str(word) for word in given)]


def session(body: str = "pass") -> list[str]:
    return [sys.executable, "-c", SESSION.replace("BODY", body.replace("\n", "\n    "))]


@contextlib.contextmanager
def started(words: list[str], **env: str) -> Iterator["subprocess.Popen[str]"]:
    """A job whose pipes are text; killed if it still runs at the end."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        words, env=clean_env() | env, cwd="/", text=True, stdin=pipe, stdout=pipe, stderr=pipe
    ) as job:
        try:
            yield job
        finally:
            if job.poll() is None:
                job.kill()


def run(words: list[str], **env: str) -> tuple[int, str]:
    """Exit code and stderr of a job."""
    with started(words, **env) as job:
        return ended(job)


def ended(job: "subprocess.Popen[str]", told: str | None = None) -> tuple[int, str]:
    """Exit code and stderr of a job, which is told something on stdin."""
    said = job.communicate(told, timeout=200)[1]
    return job.returncode, said


def error_of(words: list[str], **env: str) -> str:
    """The one line that a job says when it fails."""
    code, said = run(words, **env)
    assert code == 1, said
    assert said.count("\n") == 1, said
    return said.rstrip()


def test_jobs_ask_for_nodes_and_wait(head: Head, source: Path, tmp_path: Path) -> None:
    """Of two, one gives up; the other asks again, as the first has withdrawn the cluster's one request, and gets a node."""
    impatient = command(source, tmp_path / "none", "--address", head.address, "--set", "cluster.wait_s=3")
    with started(command(source, tmp_path / "out", "--address", head.address, "--set", "cluster.wait_s=100")) as job:
        code, said = run(impatient)
        assert code == 1, said
        waiting, error = said.splitlines()
        assert re.search(r"waiting for nodes .*needed='1 x \(1 CPU\)' there=0 up_to_s=3", waiting)
        assert error == (
            f"error: the Ray cluster at {head.address} offers no CPU, and none came within 3 s: add a worker node, let the "
            "autoscaler start one, or wait longer with --set cluster.wait_s=SECONDS"
        )
        assert job.stderr is not None
        assert "waiting for nodes" in job.stderr.readline()
        until(lambda: head.kv(REQUEST) == [{"CPU": 1}])
        head.join("worker")
        code, said = ended(job)
    assert code == 0, said
    table = pq.read_table(tmp_path / "out" / "graph")
    nbr_NK, *_ = oracle.knn(x_ND(), np.arange(ROWS), 10)
    assert table["neighbor_ids"].to_pylist() == [[j for j in row if j >= 0] for row in nbr_NK.tolist()]
    assert head.kv(REQUEST) == []


@pytest.mark.usefixtures("worker")
def test_the_autoscaler_starts_what_a_job_lacks(head: Head) -> None:
    head.allow(1)
    body = "assert wait_for({'CPU': 1, 'GPU': 1}, 100)\nassert ray.cluster_resources()['GPU'] == 1"
    body += "\nwith ray_session('10.0.0.1:6379'): pass"
    code, said = run([*session(body), head.address])
    assert code == 0, said
    assert "needed='1 x (1 CPU, 1 GPU)' there=0" in said
    assert re.search(f"already connected to another Ray cluster address=10.0.0.1:6379 connected={head.address}", said)
    assert head.kv(REQUEST) == []


@pytest.fixture(scope="module")
def other_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an edited copy of the package."""
    import hilander_dist

    copy = tmp_path_factory.mktemp("other")
    here = Path(hilander_dist.__file__).parent
    shutil.copytree(here, copy / here.name, ignore=shutil.ignore_patterns("__pycache__"))
    with (copy / here.name / "errors.py").open("a") as file:
        file.write("# edited\n")
    return copy


@pytest.mark.usefixtures("worker")
def test_nodes_with_another_version(head: Head, source: Path, tmp_path: Path, other_package: Path) -> None:
    told = [sys.executable, "-c", "from hilander_dist.run import code_version; print(code_version())"]
    env = clean_env() | {"PYTHONPATH": str(other_package)}
    theirs = subprocess.run(told, env=env, cwd="/", capture_output=True, text=True, check=True).stdout.strip()
    ours, remedy = code_version(), "install the same package on every node"
    assert theirs != ours
    # It has begun when the node joins. The node has memory that the others lack.
    body = "print(flush=True), sys.stdin.readline()"
    body += "\ntasks = Tasks(Storage('/tmp/none'), frozenset(), Progress()).asking(5 * 10**12)\ntasks.get(tasks.call(abs, -1))"
    with started([*session(body), head.address]) as early:
        assert early.stdout is not None
        early.stdout.readline()
        other = head.join("old", memory=10**13, PYTHONPATH=str(other_package))
        try:
            until(lambda: "old" in head.names())
            error = error_of(command(source, tmp_path / "out", "--address", head.address))
            _, said = ended(early, "\n")
        finally:
            end(other)
    assert re.match(rf"error: 1 of \d nodes have another hilander_dist than this job's {re.escape(ours)}: ", error)
    assert re.search(rf"old \([\d.]+\) has {re.escape(theirs)}: {remedy}, or ", error)
    assert not (tmp_path / "out" / "_work" / "markers").exists()
    last = said.splitlines()[-1]
    assert re.match(rf"error: node [\d.]+ has hilander_dist {re.escape(theirs)}, the job {re.escape(ours)}: ", last), (
        said
    )


def test_addresses_where_no_head_answers(source: Path, tmp_path: Path) -> None:
    with socket.socket() as silent, socket.socket() as closed, ThreadPoolExecutor(2) as pool:
        for listener in (silent, closed):
            listener.bind(("0.0.0.0", 0))
        silent.listen(5)
        at, nobody = (f"localhost:{one.getsockname()[1]}" for one in (silent, closed))
        jobs: list[tuple[list[str], dict[str, str]]] = [
            (command(source, tmp_path / "out", "--address", nobody), {}),
            ([*session(), ""], {"RAY_ADDRESS": at}),
            ([*session(), "ray://localhost:10001"], {}),
            ([*session(), "head"], {}),
        ]
        began = time.monotonic()
        refused, mute, client, malformed = pool.map(lambda job: error_of(job[0], **job[1]), jobs)
        assert time.monotonic() - began < 60  # 30 s each, two at a time
    remedy = ": give the HOST:PORT of a running head, or none for a Ray on this machine, or send the job with `ray job submit`"
    assert re.match(
        rf"error: no Ray cluster at {nobody} \(--address, that is .*\): Connection refused{remedy}$", refused
    )
    assert re.match(rf"error: no Ray cluster at {at} \(RAY_ADDRESS, that is .*\): no answer within 10 s{remedy}$", mute)
    where = "ray://localhost:10001 (--address): a job cannot join one by ray://"
    assert client == f"error: no Ray cluster at {where}{remedy}"
    assert malformed == f"error: no Ray cluster at head (--address): Invalid address format: head{remedy}"


def test_a_ray_of_ones_own_that_cannot_start(tmp_path: Path) -> None:
    def low() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    directory = tmp_path / ("x" * 120)
    directory.mkdir()
    error = error_of([*session(), ""], RAY_TMPDIR=str(directory))
    assert error.startswith(f"error: no Ray on this machine: its sockets below {directory} (RAY_TMPDIR, ")
    assert error.endswith("the 107 bytes that the system allows: set RAY_TMPDIR to a shorter directory, such as /tmp")
    job = subprocess.run(
        [*session(), ""], env=clean_env(), cwd="/", capture_output=True, text=True, check=False, preexec_fn=low
    )
    cpus = os.cpu_count()
    assert job.stderr.startswith(
        f"error: no Ray on this machine: processes may open 64 files (ulimit -Hn), and Ray with {cpus} CPUs needs "
    )


def until(done: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + 100
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.2)
