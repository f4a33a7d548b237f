"""A disk that fills up and an S3 server that goes away in the middle of a run: one clear line, or patience; then the same bytes."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest

from hilander_dist.storage import Storage
from tests import points
from tests.integration.conftest import RAW_SHAPE, hilander, make_weights, result_bytes, write_points
from tests.integration.s3_server import s3_server

ROWS, DIM, SHARDS = 12_000, 64, 4
OUTAGE_S, TRIES = 5, 8
"""The server is away for so long, and until it was asked so often."""
HALF_A_MINUTE = 30.0


@pytest.fixture(scope="module")
def job(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A folder with an input and a model, and what the run writes when nothing disturbs it."""
    folder = tmp_path_factory.mktemp("job")
    write_points(folder / "in" / "0.parquet", points.clustered(0, ROWS, DIM, 400)[0])
    make_weights(folder / "model.pth", 0, DIM)
    done = hilander(*command(folder, folder / "undisturbed"))
    assert done.code == 0, done.err
    return folder, result_bytes(folder / "undisturbed")


def command(folder: Path, output: object) -> list[object]:
    files = ["--input", folder / "in", "--model", folder / "model.pth", "--output", output]
    return ["cluster", *files, "--num-shards", SHARDS, *RAW_SHAPE]


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A tmpfs of that size."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder], check=False)
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here: not root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_run_that_fits_no_node_is_refused_before_any_work(
    job: tuple[Path, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hilander_dist.cluster.memory.PROCESS", 10**15)
    done = hilander(*command(job[0], tmp_path / "run"))
    assert done.code == 1
    assert re.match(r"error: not enough memory: a task on one of 4 shards .* takes up to 1000000\.0 GB", done.error)
    assert not (tmp_path / "run" / "_work" / "ingest").exists()


def test_a_full_disk_ends_the_run_in_one_line_and_the_run_goes_on_when_there_is_space(
    job: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    folder, expected = job
    vectors = ROWS * DIM * 4 // 2**20  # 2 MiB: ingest fits, then the layout does not
    with small_disk(tmp_path / "disk", 2 * vectors + 1) as disk:
        done = hilander(*command(folder, disk / "run"))
        assert done.code == 2, done.err
        assert done.error.startswith(f"error: {disk}/run/_work/level-0/")
        assert done.error.endswith("the disk is full; free some space, or choose another path")
        assert (disk / "run" / "_work" / "markers" / "ingest.json").exists()
        subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
        done = hilander(*command(folder, disk / "run"))
        assert done.code == 0, done.err
        assert result_bytes(disk / "run") == expected


@contextlib.contextmanager
def nobody_at(endpoint: str) -> Iterator[list[float]]:
    """Close every connection to an address; yields the times of them."""
    asked: list[float] = []
    place = urlsplit(endpoint)
    with socket.create_server((place.hostname or "", place.port or 0)) as listener:

        def turn_away() -> None:
            with contextlib.suppress(OSError):  # the listener was closed
                while True:
                    listener.accept()[0].close()
                    asked.append(time.monotonic())

        threading.Thread(target=turn_away, daemon=True).start()
        try:
            yield asked
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # ends the waiting for the next one


def test_an_outage_of_half_a_minute_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    def answer() -> bytes:
        if now[0] < HALF_A_MINUTE:
            raise ConnectionError("there is nobody")
        return b"here"

    monkeypatch.setattr(sys.modules[Storage.__module__], "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    assert Storage(str(tmp_path))._run("x", answer) == b"here"


def test_a_run_waits_for_an_s3_server_that_is_away(
    job: tuple[Path, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, expected = job
    with s3_server(tmp_path / "s3") as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        output = Storage(f"s3://{server.bucket}/run")
        words = [str(word) for word in command(folder, output.uri)]
        process = subprocess.Popen(
            [Path(sys.executable).with_name("hilander"), *words],
            env={**os.environ, "RAY_ADDRESS": "local"},
            stderr=subprocess.PIPE,
            text=True,
        )
        while not output.exists("_work/markers/ingest.json"):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        server.stop()
        time.sleep(OUTAGE_S / 2)
        with nobody_at(server.endpoint) as asked:
            time.sleep(OUTAGE_S / 2)
            while len(asked) < TRIES:
                assert process.poll() is None, process.communicate()
                time.sleep(0.1)
        server.start()
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        names = [info.path for info in output.list() if info.path.startswith(("assignments/", "clusters/"))]
        assert {name: output.read_bytes(name) for name in names} == expected
