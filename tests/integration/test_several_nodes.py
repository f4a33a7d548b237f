"""Three Ray nodes on one machine: the same bytes as on one, by either kind of model, also when nodes are killed during the run.

Run as a script, in a process of its own beside the session's Ray, this file is the job on such a cluster.
"""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
import ray
from ray.cluster_utils import Cluster

from hilander_dist.config import Config, RawModel
from hilander_dist.jobs.cluster import run_cluster_job
from tests import oracle, points
from tests.integration.conftest import is_busy_worker, make_weights, result_bytes, write_points

NODES = 3
SHARDS = 5
LAYOUT, SCORES, MERGES = ("nodes-*", 1), ("graph-*", SHARDS), ("path-03/*", 1)
"""Level 0 has so many blocks of a kind when these stages begin, or, of the merges, are under way."""
RUNS = {
    "undisturbed": ("general", []),
    "one death": ("raw", [SCORES]),
    "two deaths": ("general", [LAYOUT, MERGES]),
}
"""The model of each run, and when nodes are killed."""
ROOT = Path(__file__).resolve().parents[2]
MEMORY = 128 * 2**20
FAST_DETECTION = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


@pytest.mark.usefixtures("local_ray")
def test_several_nodes_and_their_deaths_give_the_bytes_of_one_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A shard's rows are 138 KB: Ray keeps results below 100 KB with the driver, where the death of a node loses nothing.
    x_ND = points.with_duplicates(0, 2700, 64, (2, 3, 7, 25, 90))[0]
    for part in range(4):
        rows = slice(part * 700, part * 700 + 700)
        write_points(tmp_path / "in" / f"{part}.parquet", x_ND[rows], ids=list(range(2700))[rows])
    _, weights = make_weights(tmp_path / "model.pth", 0, 64)
    (tmp_path / "tau").write_text(str(oracle.middle_tau(x_ND[:1000], weights, 10)))
    for model in ("raw", "general"):
        run_job(tmp_path, model, model)
    expected = {model: result_bytes(tmp_path / model) for model in ("raw", "general")}
    for name, value in FAST_DETECTION.items():
        monkeypatch.setenv(name, value)

    script = [sys.executable, "-m", __name__, str(tmp_path)]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=False, timeout=250)

    assert done.returncode == 0, done.stderr
    said = json.loads((tmp_path / "said.json").read_text())
    assert said["busy"] == list(range(NODES))
    for run, (model, deaths) in RUNS.items():
        assert len(said[run]) == len(deaths)
        for death in said[run]:
            assert not death["alive"]
            assert {"ingest.json", "level-0.json"} & set(death["finished"]) == {"ingest.json"}
        assert result_bytes(tmp_path / run) == expected[model]
    in_merges = said["two deaths"][1]["finished"]
    assert "level-0/path-02.json" in in_merges
    assert "level-0/path-22.json" not in in_merges  # the last level of the path


def run_job(folder: Path, model: str, output: str) -> None:
    """The job with raw weights or with the general checkpoint, on the Ray that this process is connected to."""
    weights, config = None, Config(num_shards=SHARDS)
    if model == "raw":
        tau = float((folder / "tau").read_text())
        weights, config = str(folder / "model.pth"), Config(tau=tau, num_shards=SHARDS, model=RawModel(hidden=16))
    run_cluster_job(str(folder / "in"), weights, str(folder / output), config)


def main(folder: Path) -> None:
    """Run the job on a cluster of three nodes, undisturbed and while nodes are killed; write what happened to said.json."""
    head = {"num_cpus": 1, "object_store_memory": MEMORY, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(NODES - 1):
        cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
    nodes = [cluster.head_node, *cluster.worker_nodes]
    ray.init(address=cluster.address, log_to_driver=False)
    raylets = [_raylet(node) for node in nodes]
    busy: set[int] = set()
    threading.Thread(target=_watch, args=([*raylets], busy), daemon=True).start()
    said: dict[str, Any] = {"busy": []}
    for run, (model, deaths) in RUNS.items():
        while len(raylets) < NODES:
            raylets.append(_raylet(cluster.add_node(num_cpus=1, object_store_memory=MEMORY)))
        victims = [raylets.pop() for _ in deaths]
        finished: list[list[str]] = []
        killer = threading.Thread(target=_kill, args=(victims, folder / run / "_work", deaths, finished))
        killer.start()
        run_job(folder, model, run)
        killer.join(30)
        said[run] = [
            {"alive": victim.is_running() and victim.status() != psutil.STATUS_ZOMBIE, "finished": markers}
            for victim, markers in zip(victims, finished, strict=True)
        ]
        said["busy"] = said["busy"] or sorted(busy)  # in the first run, of three nodes
    (folder / "said.json").write_text(json.dumps(said))
    ray.shutdown()
    cluster.shutdown()  # type: ignore[no-untyped-call]


def _watch(raylets: list[psutil.Process], busy: set[int]) -> None:
    """Note which nodes run tasks, until each has."""
    while len(busy) < len(raylets):
        busy.update(node for node, raylet in enumerate(raylets) if _is_busy(raylet))
        time.sleep(0.005)


def _kill(victims: list[psutil.Process], work: Path, deaths: list[tuple[str, int]], seen: list[list[str]]) -> None:
    """SIGKILL nodes, each once level 0 has so many blocks of a kind; note the stages that were finished then."""
    for raylet, (kind, count) in zip(victims, deaths, strict=True):
        while len(list((work / "level-0").glob(kind))) < count and not (work.parent / "_SUCCESS").exists():
            time.sleep(0.001)
        raylet.kill()
        markers = work / "markers"
        seen.append(sorted(file.relative_to(markers).as_posix() for file in markers.rglob("*.json")))


def _raylet(node: Any) -> psutil.Process:
    return psutil.Process(node.all_processes["raylet"][0].process.pid)


def _is_busy(raylet: psutil.Process) -> bool:
    try:
        return any(is_busy_worker(worker) for worker in raylet.children())
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    main(Path(sys.argv[1]))
