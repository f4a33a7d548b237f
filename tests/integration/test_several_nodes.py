"""Three Ray nodes on one machine: the same bytes as on one, also when nodes are killed during the run.

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

from hilander_dist.config import Config, ModelConfig
from hilander_dist.pipeline.cluster import run_cluster_job
from tests import oracle, points
from tests.integration.conftest import is_busy_worker, make_weights, result_bytes, write_points

NODES = 3
SHARDS = 5
DEATHS = {"layout": ("nodes", 1), "forward": ("graph", SHARDS), "collapse": ("scores", SHARDS)}
"""Runs in which a node is killed: once level 0 has so many blocks of a kind, which is when that stage begins."""
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
    x_ND = points.clustered(0, 2700, 64, 150)[0]
    for part in range(4):
        rows = slice(part * 700, part * 700 + 700)
        write_points(tmp_path / "in" / f"{part}.parquet", x_ND[rows], ids=list(range(2700))[rows])
    _, weights = make_weights(tmp_path / "model.pth", 0, 64)
    (tmp_path / "tau").write_text(str(oracle.middle_tau(x_ND[:1000], weights, 10)))
    run_job(tmp_path, "one node")
    expected = result_bytes(tmp_path / "one node")
    for name, value in FAST_DETECTION.items():
        monkeypatch.setenv(name, value)

    script = [sys.executable, "-m", __name__, str(tmp_path)]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=False, timeout=250)

    assert done.returncode == 0, done.stderr
    said = json.loads((tmp_path / "said.json").read_text())
    assert said["busy"] == list(range(NODES))
    assert result_bytes(tmp_path / "three nodes") == expected
    for death in DEATHS:
        assert not said[death]["alive"]
        assert said[death]["finished"] == ["ingest.json", "plan.json"]
        assert result_bytes(tmp_path / death) == expected


def run_job(folder: Path, output: str) -> None:
    """The job, on the Ray that this process is connected to."""
    config = Config(tau=float((folder / "tau").read_text()), num_shards=SHARDS, model=ModelConfig(hidden=16))
    run_cluster_job(str(folder / "in"), str(folder / "model.pth"), str(folder / output), config)


def main(folder: Path) -> None:
    """Run the job on a cluster of three nodes, then again while nodes are killed; write what happened to said.json."""
    head = {"num_cpus": 1, "object_store_memory": MEMORY, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(NODES - 1):
        cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
    nodes = [cluster.head_node, *cluster.worker_nodes]
    ray.init(address=cluster.address, log_to_driver=False)
    raylets = [psutil.Process(node.all_processes["raylet"][0].process.pid) for node in nodes]
    busy: set[int] = set()
    threading.Thread(target=_watch, args=(raylets, busy), daemon=True).start()
    run_job(folder, "three nodes")

    said: dict[str, Any] = {"busy": sorted(busy)}
    victim = raylets[-1]
    for death, (kind, count) in DEATHS.items():
        finished: list[str] = []
        killer = threading.Thread(target=_kill, args=(victim, folder / death / "_work", kind, count, finished))
        killer.start()
        run_job(folder, death)
        killer.join(30)
        alive = victim.is_running() and victim.status() != psutil.STATUS_ZOMBIE
        said[death] = {"alive": alive, "finished": sorted(finished)}
        spare = cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
        victim = psutil.Process(spare.all_processes["raylet"][0].process.pid)
    (folder / "said.json").write_text(json.dumps(said))
    ray.shutdown()
    cluster.shutdown()  # type: ignore[no-untyped-call]


def _watch(raylets: list[psutil.Process], busy: set[int]) -> None:
    """Note which nodes run tasks, until each has."""
    while len(busy) < len(raylets):
        busy.update(node for node, raylet in enumerate(raylets) if _is_busy(raylet))
        time.sleep(0.005)


def _kill(raylet: psutil.Process, work: Path, kind: str, count: int, seen: list[str]) -> None:
    """SIGKILL a node once level 0 has so many blocks of a kind; note the stages that were finished then."""
    while len(list((work / "level-0").glob(f"{kind}-*"))) < count and not (work.parent / "_SUCCESS").exists():
        time.sleep(0.001)
    raylet.kill()
    seen.extend(file.name for file in (work / "markers").iterdir())


def _is_busy(raylet: psutil.Process) -> bool:
    try:
        return any(is_busy_worker(worker) for worker in raylet.children())
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    main(Path(sys.argv[1]))
