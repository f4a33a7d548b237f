"""A whole clustering job: time by stage, share of the sgemm peak, peak of memory.

    python -m benchmarks.end_to_end [--points N --dim D --shards S --json]

Embeddings of the generator in Parquet, on a local Ray that is up (its start is not counted); reading and writing are. The
model is a GCN of hidden size 512, trained for four epochs on other classes of the same generator, so that levels look like
real ones. FLOPs are those that the algorithm needs: products of the search with the rows that it compares, and the
network once for each node and edge; whatever else is computed counts as time only. Memory is private memory of all
processes and the shared object store, what Python, torch and Ray need for themselves included.
"""

import argparse
import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from safetensors.numpy import load_file

from benchmarks.common import Peak, long_tailed, sgemm_peak
from hilander_dist.config import Config, RawModel, RawTrain
from hilander_dist.jobs.cluster import run_cluster_job
from hilander_dist.jobs.train import run_train_job
from hilander_dist.monitor.log import configure_log

ROWS_PER_FILE = 65_536
TRAIN_ROWS = 20_000
MODEL = RawModel(hidden=512)
TAU = 0.1
"""At which this model gives about as many clusters as there are classes, by levels that shrink as those of real data do."""
GRAPH_STAGES = ("cells", "layout", "probing", "knn graph")


def write_parquet(folder: Path, n: int, dim: int, seed: int) -> None:
    """Embeddings with ids and labels, in files of ROWS_PER_FILE rows."""
    folder.mkdir()
    x_ND, label_N = long_tailed(n, dim, seed)
    for at in range(0, n, ROWS_PER_FILE):
        rows = slice(at, min(n, at + ROWS_PER_FILE))
        embedding = pa.FixedSizeListArray.from_arrays(pa.array(x_ND[rows].reshape(-1)), dim)
        columns = {"id": np.arange(rows.start, rows.stop), "embedding": embedding, "label": label_N[rows]}
        pq.write_table(pa.table(columns), folder / f"{at:09d}.parquet")


def network_flop(dim: int, k: int) -> float:
    """Of one node: the GCN's product, the two projections, and k - 1 edges (algorithm.md 1.5, 1.6)."""
    features = 2 * dim if MODEL.uses_cluster_features else dim
    H, G = MODEL.hidden, MODEL.hidden // 2
    convolution = 2 * (2 * features) * H + 2 * (k - 1) * features
    edges = (k - 1) * (2 * G * G + 2 * G * 2)
    return float(convolution + 2 * 2 * H * G + edges)


def by_stage(manifest: dict[str, Any]) -> dict[str, float]:
    """Seconds of all levels together, by kind of stage; what is in none is the start and the end of the job."""
    stages: dict[str, float] = manifest["stages"]

    def of_levels(*kinds: str) -> float:
        return sum(seconds for name, seconds in stages.items() if name.startswith("level-") and name.endswith(kinds))

    levels = sum(level["seconds"] for level in manifest["levels"])
    result = {kind: of_levels(kind) for kind in (*GRAPH_STAGES, "forward")}
    result["decode, roots, collapse"] = levels - sum(result.values())
    result |= {"ingest": stages["ingest"], "write outputs": stages["write outputs"]}
    result["rest"] = manifest["seconds"] - sum(result.values())
    return {name: round(seconds, 3) for name, seconds in result.items()}


def halo_share(level: Path) -> dict[str, float]:
    """Rows that travel to other shards per node of level 0, and how many would if its nodes were dealt out at random.

    What travels of a row (its vector, its projection, its density) is the same for both, so the bytes have this ratio.
    """
    shards = [load_file(file) for file in sorted(level.glob("graph-*.safetensors"))]
    start_S1 = np.cumsum([0, *(len(shard["nbr_NK"]) for shard in shards)])
    n = int(start_S1[-1])
    shuffled_N = np.random.default_rng(0).permutation(n)
    ours = dealt = 0
    dealt_NK = np.concatenate([shard["nbr_NK"] for shard in shards])[np.argsort(shuffled_N)]
    for s, shard in enumerate(shards):
        start, stop = int(start_S1[s]), int(start_S1[s + 1])
        ours += _away(shard["nbr_NK"], start, stop)
        nbr = dealt_NK[start:stop]
        dealt += _away(np.where(nbr < 0, -1, shuffled_N[nbr]), start, stop)
    return {"rows_per_node": ours / n, "random": dealt / n, "ratio": ours / dealt if dealt else 0.0}


def _away(nbr_NK: np.ndarray, start: int, stop: int) -> int:
    return len(np.unique(nbr_NK[((nbr_NK < start) & (nbr_NK >= 0)) | (nbr_NK >= stop)]))


def measure(folder: Path, points: int, dim: int, shards: int | None) -> dict[str, Any]:
    """All figures of one run."""
    config = Config(num_shards=shards, model=MODEL, tau=TAU)
    write_parquet(folder / "in", points, dim, 0)
    with Peak() as peak:
        manifest = run_cluster_job(str(folder / "in"), str(folder / "model"), str(folder / "out"), config)
    stages = by_stage(manifest)
    levels = manifest["levels"]
    search_flop = sum(2.0 * dim * level["nodes"] * level["graph"]["rows_compared"] for level in levels)
    forward_flop = sum(network_flop(dim, config.k) * level["nodes"] for level in levels)
    speed = sgemm_peak()
    vectors = points * dim * 4
    return {
        "points": points,
        "dim": dim,
        "shards": manifest["shards"],
        "levels": [{"nodes": level["nodes"], "seconds": level["seconds"]} for level in levels],
        "f_pairwise": json.loads((folder / "out" / "metrics.json").read_text())["final"]["pairwise"]["f"],
        "seconds": manifest["seconds"],
        "points_per_second": points / manifest["seconds"],
        "stages": stages,
        "sgemm_peak_gflops": speed / 1e9,
        "sgemm_share": (search_flop + forward_flop) / manifest["seconds"] / speed,
        "forward_sgemm_share": forward_flop / stages["forward"] / speed,
        "decode_collapse_share": stages["decode, roots, collapse"] / manifest["seconds"],
        "halo": halo_share(folder / "out" / "_work" / "level-0"),
        "peak_bytes": peak.total_bytes,
        "peak_parts": peak.parts,
        "peak_over_limit": peak.total_bytes / (3 * vectors + 2e9),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=110_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--shards", type=int, help="default: as a job chooses them")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    configure_log()
    ray.init(num_cpus=os.cpu_count(), include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_parquet(folder / "train", TRAIN_ROWS, args.dim, 1)
        train = RawTrain(level_k=(10,), level_counts=(3,), epochs=4, batch_size=256)
        run_train_job(str(folder / "train"), str(folder / "model"), Config(model=MODEL, train=train))
        result = measure(folder, args.points, args.dim, args.shards)
    print(json.dumps(result) if args.json else "\n".join(f"{key:24} {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
