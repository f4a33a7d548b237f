"""Runs that are killed: the same command again goes on and ends in the same bytes; another command is refused."""

import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from tests import oracle, points
from tests.integration.conftest import (
    RAW_SHAPE,
    Outcome,
    hilander,
    is_busy_worker,
    make_weights,
    result_bytes,
    start_and_kill,
    write_points,
)

pytestmark = pytest.mark.usefixtures("local_ray")

SHARDS = 5


@dataclass(frozen=True)
class Job:
    """One command, and what it writes when nothing disturbs it."""

    folder: Path
    options: tuple[object, ...]
    expected: dict[str, bytes]

    def command(self, output: Path, *options: object) -> list[str]:
        """The command line of ``hilander``, with further options."""
        given = ["cluster", "--input", self.folder / "in", "--output", output, "--num-shards", SHARDS]
        return [str(arg) for arg in (*given, *self.options, *options)]


@pytest.fixture(scope="module")
def jobs(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    """The same points with a raw model, and with the general checkpoint."""
    folder = tmp_path_factory.mktemp("job")
    x_ND = points.clustered(0, 2700, 24, 150)[0]
    for part in range(4):
        rows = slice(part * 700, part * 700 + 700)
        write_points(folder / "in" / f"{part}.parquet", x_ND[rows], ids=list(range(2700))[rows])
    _, weights = make_weights(folder / "model.pth", 0, 24)
    tau = oracle.middle_tau(x_ND[:1000], weights, 10)
    raw = ("--model", folder / "model.pth", "--tau", tau, *RAW_SHAPE)
    return {"raw": _undisturbed(folder, "raw", *raw), "general": _undisturbed(folder, "general")}


def _undisturbed(folder: Path, name: str, *options: object) -> Job:
    job = Job(folder, options, {})
    outcome = hilander(*job.command(folder / name))
    assert outcome.code == 0, outcome.err
    return replace(job, expected=result_bytes(folder / name))


def test_a_driver_killed_twice_goes_on_where_it_was(jobs: dict[str, Job], tmp_path: Path) -> None:
    job = jobs["raw"]
    output = tmp_path / "run"
    work = output / "_work"
    graph = work / "level-0" / "graph-00000.safetensors"
    start_and_kill(job.command(output), lambda: graph.exists())
    assert not (work / "markers" / "level-0.json").exists()

    _refused(hilander(*job.command(output, "--tau", 0.123)), "config.tau", "0.123 now")
    _refused(hilander(*job.command(output, "--seed", 7)), "config.seed")
    make_weights(tmp_path / "other.pth", 1, 24)
    _refused(hilander(*job.command(output, "--model", tmp_path / "other.pth")), "model (")
    one = [
        str(job.folder / "in" / "0.parquet") if arg == str(job.folder / "in") else arg for arg in job.command(output)
    ]
    _refused(hilander(*one), "input.uris[0]")
    _refused(
        hilander(
            *job.command(output, "--input", write_points(tmp_path / "more.parquet", points.random_rows(0, 9, 24)))
        ),
        "input.uris",
    )

    begun = graph.stat().st_mtime_ns
    start_and_kill(job.command(output), lambda: any((output / "assignments").glob("*.parquet")))
    first_level = (work / "markers" / "level-0.json").read_bytes()

    outcome = hilander(*job.command(output))
    assert outcome.code == 0, outcome.err
    assert result_bytes(output) == job.expected
    assert graph.stat().st_mtime_ns == begun
    assert (work / "markers" / "level-0.json").read_bytes() == first_level
    _refused(hilander(*job.command(output)), "holds a complete run")


def test_a_driver_killed_again_and_again_goes_on_where_it_was(jobs: dict[str, Job], tmp_path: Path) -> None:
    """With the general checkpoint: among the scores, and twice inside the merges."""
    job = jobs["general"]
    output = tmp_path / "run"
    work = output / "_work"
    markers = work / "markers" / "level-0"
    moments = (
        work / "level-0" / "relations-00000.safetensors",
        work / "level-0" / "path-02" / "moves.safetensors",
        markers / "path-08.json",
    )
    written: dict[Path, int] = {}
    for file in moments:
        start_and_kill(job.command(output), file.exists)
        found = _written(work)
        assert found.keys() >= written.keys()
        written = {**found, **written}
        assert not (markers / "path-22.json").exists()  # the last level of the path
    outcome = hilander(*job.command(output))
    assert outcome.code == 0, outcome.err
    assert (markers / "path-22.json").exists()
    assert result_bytes(output) == job.expected
    # Nothing that was there has been written again.
    again = _written(work)
    assert {file: again[file] for file in written} == written


def _written(work: Path) -> dict[Path, int]:
    """What is saved of level 0, with the times of its writing."""
    folders = (work / "level-0", work / "markers" / "level-0")
    files = (file for folder in folders for file in folder.rglob("*") if not file.name.startswith("."))
    return {file: file.stat().st_mtime_ns for file in files if file.is_file()}


@pytest.mark.parametrize(
    ("model", "begun"), [("raw", "ingest"), ("raw", "level-0"), ("general", "level-0/graph-00000.safetensors")]
)
def test_a_killed_worker_changes_nothing(model: str, begun: str, jobs: dict[str, Job], tmp_path: Path) -> None:
    job = jobs[model]
    output = tmp_path / "run"
    killed: list[int] = []

    def kill_one_busy_worker() -> None:
        while not (output / "_work" / begun).exists():
            time.sleep(0.001)
        while not killed and not (output / "_SUCCESS").exists():
            for worker in psutil.Process().children(recursive=True):
                if is_busy_worker(worker):
                    worker.kill()
                    killed.append(worker.pid)
                    return

    killer = threading.Thread(target=kill_one_busy_worker, daemon=True)
    killer.start()
    outcome = hilander(*job.command(output))
    killer.join(60)

    assert outcome.code == 0, outcome.err
    assert len(killed) == 1
    assert result_bytes(output) == job.expected


def _refused(outcome: Outcome, *words: str) -> None:
    assert outcome.code == 2, outcome.err
    for word in words:
        assert word in outcome.error
