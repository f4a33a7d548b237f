"""Two real processes on one output: one works, the other ends in one line; a stopped one that goes on has lost the run."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hilander_dist.storage import Storage
from tests import points
from tests.integration.conftest import RAW_SHAPE, make_weights, write_points
from tests.integration.ray_head import clean_env, ray_head
from tests.integration.s3_server import S3Server

ROWS, DIM, SHARDS = 6_000, 64, 4

HILANDER = """
import sys
from hilander_dist import lease
lease.RENEW_S, lease.STALE_S, lease.POLL_S = 0.5, 5.0, 0.2
from hilander_dist.cli import main
main(sys.argv[1:])
"""
"""The command line with a lease that goes stale in seconds in the place of a minute."""


@dataclass(frozen=True)
class Place:
    """Where outputs go, and what the run writes there when nothing disturbs it."""

    folder: Path
    root: Storage
    env: dict[str, str]
    expected: dict[str, bytes]

    def start(self, output: str) -> "subprocess.Popen[str]":
        """The command, in a process of its own."""
        return start(self.folder, self.root.child(output).uri, self.env)

    def results(self, output: str) -> dict[str, bytes]:
        return results(self.root.child(output))


def start(folder: Path, output: str, env: dict[str, str]) -> "subprocess.Popen[str]":
    files = ["--input", folder / "in", "--model", folder / "model.pth", "--output", output]
    command = ["cluster", *files, "--num-shards", SHARDS, *RAW_SHAPE]
    return subprocess.Popen(
        [sys.executable, "-c", HILANDER, *map(str, command)], env=env, stderr=subprocess.PIPE, text=True
    )


def results(output: Storage) -> dict[str, bytes]:
    return {
        info.path: output.read_bytes(info.path)
        for folder in ("assignments", "clusters")
        for info in output.list(folder)
    }


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, server: S3Server) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder with input and model, and the variables of a process that runs on a head of two CPUs and knows the server."""
    folder = tmp_path_factory.mktemp("job")
    write_points(folder / "in" / "0.parquet", points.clustered(0, ROWS, DIM, 400)[0])
    make_weights(folder / "model.pth", 0, DIM)
    env = clean_env() | server.env
    with ray_head(2, env) as head:
        yield folder, env | {"RAY_ADDRESS": head.address}


@pytest.fixture(scope="module")
def expected(job: tuple[Path, dict[str, str]]) -> dict[str, bytes]:
    folder, env = job
    done = start(folder, str(folder / "undisturbed"), env)
    _, err = done.communicate(timeout=120)
    assert done.returncode == 0, err
    return results(Storage(str(folder / "undisturbed")))


@pytest.fixture(params=["local", "s3"])
def place(
    request: pytest.FixtureRequest,
    job: tuple[Path, dict[str, str]],
    expected: dict[str, bytes],
    server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
) -> Place:
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    root = Storage(str(job[0]) if request.param == "local" else f"s3://{server.bucket}/two-runs")
    return Place(*job[:1], root, job[1], expected)


def attempts(output: Storage) -> list[str]:
    return [Path(info.path).stem for info in output.list("_work/lease")]


def wait_for(condition: Callable[[], bool], *processes: "subprocess.Popen[str]") -> None:
    """Until it holds; the processes must not end before."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        for process in processes:
            assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.02)


def test_of_two_that_start_together_one_does_the_work(place: Place) -> None:
    both = [place.start("together") for _ in range(2)]
    said = [process.communicate(timeout=200)[1] for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) == [0, 2], said
    loser = codes.index(2)
    last = said[loser].rstrip().splitlines()[-1]
    assert last.startswith("error: ")
    assert f"is being worked on by process {both[1 - loser].pid} on " in last
    assert said[loser].count("error: ") == 1
    output = place.root.child("together")
    assert attempts(output) == ["00000001"]
    assert output.exists("_SUCCESS")
    assert place.results("together") == place.expected


@pytest.mark.parametrize(
    ("place", "goes_on"),
    [("local", "while the other works"), ("s3", "when the other has finished")],
    indirect=["place"],
)
def test_one_that_was_stopped_past_its_lease_has_lost_the_run(place: Place, goes_on: str) -> None:
    name = f"stopped {goes_on}"
    output = place.root.child(name)
    first = place.start(name)
    wait_for(lambda: bool(output.list("_work/ingest")), first)
    first.send_signal(signal.SIGSTOP)
    second = place.start(name)
    try:
        wait_for(lambda: attempts(output) == ["00000001", "00000002"], second)
        if goes_on == "when the other has finished":
            wait_for(lambda: second.poll() is not None)
    finally:
        first.send_signal(signal.SIGCONT)
    said = [process.communicate(timeout=200)[1] for process in (first, second)]

    assert (first.returncode, second.returncode) == (2, 0), said
    last = said[0].rstrip().splitlines()[-1]
    assert last.startswith("error: ")
    assert f"this process stood still, and process {second.pid} on " in last
    assert json.loads(output.read_bytes("manifest.json"))["attempt"] == 2
    assert place.results(name) == place.expected
    assert [info.path for info in output.list() if ".writing-" in info.path] == []
