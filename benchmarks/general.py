"""Clustering with the general checkpoint at scale: time by stage, peak of memory, and Infomap beside it.

    python -m benchmarks.general [--points N --dim D --shards S --no-peers --json]

Embeddings of the generator in Parquet, on a local Ray that is up; reading and writing are counted. Nothing is tuned for
ours. Infomap has all cores for its exact 80-neighbour search, the vectors in memory, and the threshold of the generator's
other classes (tuned on 20,000 points; that is not counted).
"""

import argparse
import json
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import ray

from benchmarks.common import Peak, long_tailed
from benchmarks.end_to_end import write_parquet
from benchmarks.peers import run_infomap, tune_infomap
from hilander_dist.config import Config
from hilander_dist.evaluate import contingency, scores
from hilander_dist.jobs.cluster import run_cluster_job
from hilander_dist.monitor.log import configure_log

TUNING_POINTS = 20_000


def measure(folder: Path, points: int, dim: int, shards: int | None) -> dict[str, Any]:
    """All figures of one run of ours."""
    write_parquet(folder / "in", points, dim, 0)
    with Peak() as peak:
        manifest = run_cluster_job(str(folder / "in"), None, str(folder / "out"), Config(num_shards=shards))
    final = json.loads((folder / "out" / "metrics.json").read_text())["final"]
    return {
        "points": points,
        "dim": dim,
        "shards": manifest["shards"],
        "seconds": manifest["seconds"],
        "us_per_point": 1e6 * manifest["seconds"] / points,
        "stages": manifest["stages"],
        **before_and_after(manifest["stages"]),
        "f_pairwise": final["pairwise"]["f"],
        "f_bcubed": final["bcubed"]["f"],
        "clusters": final["clusters"],
        "chosen": f"shift {manifest['chosen_shift']}: {manifest['chosen_because']}",
        "levels": [(level.get("shift"), level["clusters"]) for level in manifest["levels"]],
        "peak_bytes": peak.total_bytes,
        "peak_parts": peak.parts,
        "peak_at_seconds": round(peak.seconds, 1),
        "peak_over_vectors": peak.total_bytes / (4 * points * dim),
    }


def before_and_after(stages: dict[str, float]) -> dict[str, float]:
    """Seconds of the stages until all edges have scores, and of those after it."""
    names = list(stages)
    scored = names.index("level-0 forward") + 1
    return {
        "seconds_until_scores": round(sum(stages[name] for name in names[:scored]), 3),
        "seconds_after_scores": round(sum(stages[name] for name in names[scored:]), 3),
    }


def measure_infomap(points: int, dim: int) -> dict[str, Any]:
    """Time and F of Infomap on the same points."""
    parameters = tune_infomap(*long_tailed(TUNING_POINTS, dim, 1))
    x_ND, label_N = long_tailed(points, dim, 0)
    began = time.perf_counter()
    found = run_infomap(x_ND, parameters)
    seconds = time.perf_counter() - began
    f = scores(contingency(found, label_N))
    return {"infomap_seconds": seconds, "infomap_f_pairwise": f.pairwise.f, "infomap_f_bcubed": f.bcubed.f}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--shards", type=int, help="default: as a job chooses them")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    configure_log()
    ray.init(num_cpus=os.cpu_count(), include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    with tempfile.TemporaryDirectory() as name:
        result = measure(Path(name), args.points, args.dim, args.shards)
    ray.shutdown()
    if not args.no_peers:
        result |= measure_infomap(args.points, args.dim)
        result["infomap_over_ours"] = result["infomap_seconds"] / result["seconds"]
    print(json.dumps(result) if args.json else "\n".join(f"{key:24} {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
