"""The same bytes of assignments/, clusters/ and tree/ from any cluster: shards, nodes, nodes that die, and a small object store.

    python -m benchmarks.same_bytes [--model general --points 200000 --dim 256 --runs NAME ... --json]

Each run is a process with a Ray of its own. Nodes are Ray nodes on this machine, one CPU each; with the general checkpoint two of
three are killed with SIGKILL in one run, when level 0's forward begins and inside its merges; of a raw model one, when level 0's
forward begins or when its collapse does.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import ray
import torch
from ray.cluster_utils import Cluster

from benchmarks.end_to_end import MODEL, write_parquet
from hilander_dist.config import Config
from hilander_dist.jobs.cluster import run_cluster_job
from hilander_dist.lander.checkpoint import save_checkpoint
from hilander_dist.lander.model import Lander
from hilander_dist.monitor.log import configure_log

GB = 10**9
FORWARD, MERGES, COLLAPSE = "graph-*", "path-05/*", "scores-*"
"""Blocks of level 0 that are there when a stage begins: of each shard, or, of the merges, one."""

RUNS: dict[str, dict[str, dict[str, Any]]] = {
    "general": {
        "1 shard": {"shards": 1},
        "3 shards": {"shards": 3},
        "8 shards": {"shards": 8},
        "3 nodes, two killed": {"shards": 5, "nodes": 3, "kill": [FORWARD, MERGES]},
    },
    "raw": {
        "1 shard": {"shards": 1},
        "2 shards": {"shards": 2},
        "5 shards": {"shards": 5},
        "16 shards": {"shards": 16},
        "3 nodes": {"shards": 5, "nodes": 3},
        "3 nodes, one killed in the forward": {"shards": 5, "nodes": 3, "kill": [FORWARD]},
        "3 nodes, one killed in the collapse": {"shards": 5, "nodes": 3, "kill": [COLLAPSE]},
        "object store of a quarter": {"shards": 16, "store": 0.25},
    },
}
"""By the model: the checkpoint that comes with the package, or random weights of the paper's."""


def digest(output: Path) -> str:
    """Of all files of the result. Rows stand in input order and by cluster id, so no sorting is needed."""
    total = hashlib.sha256()
    for folder in ("assignments", "clusters", "tree"):
        for file in sorted((output / folder).glob("*")):
            total.update(file.name.encode() + file.read_bytes())
    return total.hexdigest()


def run_one(folder: Path, model: str, name: str, vectors: int) -> None:
    """One of RUNS, in this process; its output goes to a directory of that name."""
    configure_log()
    run = RUNS[model][name]
    nodes = run.get("nodes", 1)
    store = int(vectors * run["store"]) if "store" in run else 2 * GB
    head = {"num_cpus": 2 if nodes == 1 else 1, "object_store_memory": store, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    workers = [cluster.add_node(num_cpus=1, object_store_memory=store) for _ in range(nodes - 1)]
    ray.init(address=cluster.address, log_to_driver=False)
    output = folder / name
    kinds = run.get("kill", [])
    victims = [psutil.Process(worker.all_processes["raylet"][0].process.pid) for worker in workers[: len(kinds)]]
    killed: list[str] = []
    threading.Thread(target=_kill, args=(victims, output, kinds, run["shards"], killed), daemon=True).start()
    began = time.perf_counter()
    weights, config = None, Config(num_shards=run["shards"])
    if model == "raw":
        weights, config = str(folder / "model.safetensors"), Config(num_shards=run["shards"], model=MODEL)
    run_cluster_job(str(folder / "in"), weights, str(output), config)
    seconds = round(time.perf_counter() - began, 1)
    result = {"seconds": seconds, "killed_at": killed, "digest": digest(output)}
    (folder / f"{name}.json").write_text(json.dumps(result))
    ray.shutdown()
    cluster.shutdown()  # type: ignore[no-untyped-call]


def _kill(victims: list[psutil.Process], output: Path, kinds: list[str], shards: int, killed: list[str]) -> None:
    """Kill nodes, each when a stage of level 0 begins; note its newest file then."""
    level = output / "_work" / "level-0"
    for raylet, kind in zip(victims, kinds, strict=True):
        while len(list(level.glob(kind))) < (1 if kind == MERGES else shards):
            time.sleep(0.002)
        raylet.kill()
        raylet.wait()
        newest = max(level.rglob("[!.]*.safetensors"), key=lambda file: file.stat().st_mtime_ns)
        killed.append(newest.relative_to(level).as_posix())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=RUNS, default="general")
    parser.add_argument("--points", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--runs", nargs="+", metavar="NAME", help="only these; default: all of the model")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", nargs=2, metavar=("FOLDER", "RUN"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    vectors = 4 * args.points * args.dim
    if args.one:
        run_one(Path(args.one[0]), args.model, args.one[1], vectors)
        return
    runs = args.runs or list(RUNS[args.model])
    if unknown := [run for run in runs if run not in RUNS[args.model]]:
        parser.error(f"no run {unknown[0]!r} of {args.model}: choose among {', '.join(RUNS[args.model])}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_parquet(folder / "in", args.points, args.dim, 0)
        if args.model == "raw":
            torch.manual_seed(0)
            (folder / "model.safetensors").write_bytes(save_checkpoint(Lander(args.dim, MODEL), {}))
        rows = {}
        for run in runs:
            size = ["--model", args.model, "--points", str(args.points), "--dim", str(args.dim)]
            subprocess.run([sys.executable, "-m", "benchmarks.same_bytes", *size, "--one", name, run], check=True)
            rows[run] = json.loads((folder / f"{run}.json").read_text())
            print(run, rows[run], file=sys.stderr)
    equal = len({row["digest"] for row in rows.values()}) == 1
    result = {"model": args.model, "points": args.points, "dim": args.dim, "equal": equal, "runs": rows}
    print(json.dumps(result) if args.json else "\n".join(f"{key:12} {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
