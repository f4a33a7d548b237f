"""The k-NN graph against IndexIVFFlat, flat search and the matrix product itself, on the same cores in the same run.

    python -m benchmarks.knn_graph [--points N --dim D --k K --shards S --data NPZ --store-gb G --no-peers --json]
    python -m benchmarks.knn_graph --points N --no-peers --than-points M     # time per point over that at M points
    python -m benchmarks.knn_graph --points N --no-peers --than-shards 1     # time over that in one shard
    python -m benchmarks.knn_graph --points N --no-peers --crowd M           # M of them near-duplicates of one image
    python -m benchmarks.knn_graph --points N --no-peers --gpu               # on GPUs, and its time over that on the CPU

Both sides build the whole graph, training of their quantizer included, and reach recall@k-1 >= .98 against exact search
on a sample, neighbours compared by their numbers. IVFFlat gets the best of several (nlist, nprobe); from 500,000 points on
it is timed on a sample of the queries, its training and filling in full. Ours runs as it does in a job: tasks on a Ray that
is up and has run such a job before, blocks saved to disk.
"""

import argparse
import json
import logging
import os
import tempfile
import time
from typing import Any

import faiss
import numpy as np
import ray

from benchmarks.common import PART, Peak, long_tailed, sgemm_peak
from hilander_dist.jobs.job import default_shards
from hilander_dist.knn.graph import GraphOptions, knn_graph
from hilander_dist.monitor.log import configure_log
from hilander_dist.monitor.progress import Progress
from hilander_dist.storage import Storage
from hilander_dist.tasks import Tasks

TARGET = 0.98
SAMPLE = 4000
SAMPLE_QUERIES_FROM = 500_000


def put_crowd(x_ND: np.ndarray, crowd: int) -> None:
    """Turn `crowd` of the rows, spread over all, into near-duplicates of one (cosines above 1 - 1e-7)."""
    rng = np.random.default_rng(2)
    row_M = np.sort(rng.choice(len(x_ND), crowd, replace=False))
    for at in range(0, crowd, PART):
        row_P = row_M[at : at + PART]
        noise = rng.standard_normal((len(row_P), x_ND.shape[1]), dtype=np.float32)
        copies = x_ND[0] + noise * np.float32(1e-4 / np.sqrt(x_ND.shape[1]))
        x_ND[row_P] = copies / np.linalg.norm(copies, axis=1, keepdims=True)


def tiled(path: str, n: int) -> np.ndarray:
    """Real embeddings (key `emb` of an .npz) repeated to n rows, each copy moved by noise of a fifth of its length."""
    with np.load(path) as data:
        real_RD = data["emb"].astype(np.float32)
    real_RD /= np.linalg.norm(real_RD, axis=1, keepdims=True)
    rng = np.random.default_rng(0)
    x_ND = np.empty((n, real_RD.shape[1]), np.float32)
    for at in range(0, n, PART):
        row_P = np.arange(at, min(n, at + PART)) % len(real_RD)
        noise: np.ndarray = rng.standard_normal((len(row_P), real_RD.shape[1]), dtype=np.float32)
        x_ND[at : at + len(row_P)] = real_RD[row_P] + noise * np.float32(0.2 / np.sqrt(real_RD.shape[1]))
    x_ND /= np.linalg.norm(x_ND, axis=1, keepdims=True)
    return x_ND


def ours(
    x_ND: np.ndarray, k: int, shards: int, sample_S: np.ndarray | None = None, device: str = "cpu"
) -> dict[str, Any]:
    """Time of the whole graph on the running Ray, from vectors in files as a job has them, and the peak memory.

    The peak is that of all Ray processes and the object store, beyond what they had at the start and beyond the vectors
    themselves. With a sample, also its neighbours, as row numbers.
    """
    n, dim = x_ND.shape
    with tempfile.TemporaryDirectory() as folder:
        store = Storage(folder)
        for at in range(0, n, PART):
            rows = slice(at, min(n, at + PART))
            store.write_block(f"rows-{at}", {"id_N": np.arange(at, rows.stop), "x_ND": x_ND[rows]})
        tasks = Tasks(store, frozenset(), Progress())
        parts = [tasks.loader(f"rows-{at}") for at in range(0, n, PART)]
        with Peak() as peak:
            began = time.perf_counter()
            options = GraphOptions(k, TARGET, 0, device)
            level, graph, stats = knn_graph(tasks, parts, n, dim, shards, options, "level-0")
            seconds = time.perf_counter() - began
        peak_bytes = max(0, peak.bytes - x_ND.nbytes)
    result = {"seconds": seconds, "stages": tasks.progress.seconds, **stats.as_dict(), "peak_bytes": peak_bytes}
    if sample_S is not None:
        id_N = np.concatenate([block["id_N"] for block in tasks.get(level.nodes)])
        nbr_NK = np.concatenate([block["nbr_NK"] for block in tasks.get(graph)])
        found_SK = nbr_NK[np.argsort(id_N)[sample_S]]
        result["found"] = np.where(found_SK >= 0, id_N[found_SK], -1)
    return result


def ivfflat(x_ND: np.ndarray, k: int, truth_SK: np.ndarray, sample_S: np.ndarray) -> dict[str, Any]:
    """Time of the best IndexIVFFlat: all points as queries, in their own order, the point itself found and dropped."""
    n, dim = x_ND.shape
    best: dict[str, Any] = {}
    for nlist in sorted({round(np.sqrt(n)), round(2 * np.sqrt(n)), round(4 * np.sqrt(n))}):
        began = time.perf_counter()
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, nlist, faiss.METRIC_INNER_PRODUCT)
        index.cp.min_points_per_centroid = 1
        index.train(x_ND[:: max(1, n // (64 * nlist))])
        index.add(x_ND)
        built = time.perf_counter() - began
        for nprobe in range(1, nlist):
            index.nprobe = nprobe
            found_SK = index.search(x_ND[sample_S], k)[1]
            recall = _recall(truth_SK, found_SK, sample_S)
            if recall >= TARGET:
                break
        # A tenth of the queries tells which index is best; the best one is then timed.
        probe = x_ND[:: max(1, n // 10_000)]
        began = time.perf_counter()
        index.search(probe, k)
        estimate = built + (time.perf_counter() - began) * n / len(probe)
        if not best or estimate < best["estimate"]:
            best = {
                "estimate": estimate,
                "index": index,
                "built": built,
                "nlist": nlist,
                "nprobe": nprobe,
                "recall": recall,
            }
    index = best.pop("index")
    queries = x_ND if n < SAMPLE_QUERIES_FROM else x_ND[:: n // 100_000]
    began = time.perf_counter()
    index.search(queries, k)
    return {**best, "seconds": best["built"] + (time.perf_counter() - began) * n / len(queries), "timed": len(queries)}


def flat_seconds(x_ND: np.ndarray, k: int) -> float:
    """Time of flat search of all points, from a sample of the queries."""
    index = faiss.IndexFlatIP(x_ND.shape[1])
    index.add(x_ND)
    queries = x_ND[:: max(1, len(x_ND) // 4096)]
    began = time.perf_counter()
    index.search(queries, k)
    return (time.perf_counter() - began) * len(x_ND) / len(queries)


def exact_neighbours(x_ND: np.ndarray, k: int, sample_S: np.ndarray) -> np.ndarray:
    """The k - 1 nearest others of sampled points."""
    found_SK = faiss.knn(x_ND[sample_S], x_ND, k, metric=faiss.METRIC_INNER_PRODUCT)[1]
    return np.stack([row[row != own][: k - 1] for row, own in zip(found_SK, sample_S, strict=True)])


def _recall(truth_SK: np.ndarray, found_SK: np.ndarray, sample_S: np.ndarray) -> float:
    pairs = zip(truth_SK, found_SK, sample_S, strict=True)
    return float(np.mean([np.isin(truth, found[found != own]).mean() for truth, found, own in pairs]))


def measure(
    x_ND: np.ndarray, k: int, shards: int, peers: bool, twice: bool = True, device: str = "cpu"
) -> dict[str, Any]:
    """All figures of one set."""
    n, dim = x_ND.shape
    result: dict[str, Any] = {"points": n, "dim": dim, "k": k, "shards": shards, "device": device}
    sample_S = np.random.default_rng(1).choice(n, min(n, SAMPLE), replace=False)
    truth_SK = exact_neighbours(x_ND, k, sample_S)
    # Memory is that of the first run: what it has touched, the store keeps. Time is that of the second.
    first = ours(x_ND, k, shards, None if twice else sample_S, device)
    peak_bytes = first["peak_bytes"]
    mine = ours(x_ND, k, shards, sample_S, device) if twice else first
    peak = sgemm_peak()
    # Products of the search alone: each point against the rows of its probed cells.
    flop = 2.0 * n * dim * mine["rows_compared"]
    search_s = mine["stages"]["level-0 knn graph"]
    result |= {"recall": _recall(truth_SK, mine["found"], sample_S), "recall_estimate": mine["recall"]}
    result |= {key: mine[key] for key in ("nlist", "nprobe", "probe_gap", "crowds_cut", "rows_compared")}
    result |= {"ours_s": mine["seconds"], "search_s": search_s, "sgemm_peak_gflops": peak / 1e9}
    result |= {"sgemm_share": flop / search_s / peak, "sgemm_share_of_build": flop / mine["seconds"] / peak}
    result |= {"peak_bytes": peak_bytes, "peak_over_vectors": peak_bytes / x_ND.nbytes}
    if peers:
        theirs = ivfflat(x_ND, k, truth_SK, sample_S)
        flat_s = flat_seconds(x_ND, k)
        result |= {"ivfflat_s": theirs["seconds"], "ivfflat": theirs, "flat_s": flat_s}
        result |= {"ratio_vs_ivfflat": theirs["seconds"] / mine["seconds"], "ratio_vs_flat": flat_s / mine["seconds"]}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--shards", type=int, help="default: as a job chooses them")
    parser.add_argument(
        "--data", metavar="NPZ", help="real embeddings, repeated with noise, in the place of generated ones"
    )
    parser.add_argument("--crowd", type=int, default=0, help="so many of the points are near-duplicates of one")
    parser.add_argument("--no-peers", action="store_true", help="time ours alone")
    parser.add_argument("--than-points", type=int, help="time per point against that at this many points")
    parser.add_argument("--than-shards", type=int, help="time against that in this many shards")
    parser.add_argument(
        "--gpu", action="store_true", help="on GPUs (knn_device=cuda), and its time against that on the CPU"
    )
    parser.add_argument("--store-gb", type=float, help="size of Ray's object store; default: Ray's own")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    configure_log()
    ray.init(
        num_cpus=os.cpu_count(),
        object_store_memory=int(args.store_gb * 1e9) if args.store_gb else None,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )

    def points(n: int) -> np.ndarray:
        return tiled(args.data, n) if args.data else long_tailed(n, args.dim)[0]

    x_ND = points(args.points)
    put_crowd(x_ND, args.crowd)
    shards = args.shards or default_shards(args.points, x_ND.shape[1], os.cpu_count() or 1)
    ours(x_ND[:20_000], args.k, 4)  # workers start and kernels are compiled
    # What does not fit the object store runs for minutes: once.
    device = "cuda" if args.gpu else "cpu"
    result = measure(x_ND, args.k, shards, not args.no_peers, twice=not args.store_gb, device=device)
    if args.gpu:
        other = measure(x_ND, args.k, default_shards(args.points, x_ND.shape[1], os.cpu_count() or 1), False)
        result |= {"on_cpu": other, "ratio_cpu_over_gpu": other["ours_s"] / result["ours_s"]}
    if args.than_points:
        fewer_ND = points(args.than_points)
        other = measure(fewer_ND, args.k, default_shards(len(fewer_ND), x_ND.shape[1], os.cpu_count() or 1), False)
        ratio = result["ours_s"] / args.points / (other["ours_s"] / args.than_points)
        result |= {"than_points": other, "ratio_per_point": ratio}
    if args.than_shards:
        other = measure(x_ND, args.k, args.than_shards, False)
        result |= {"than_shards": other, "ratio_shards": result["ours_s"] / other["ours_s"]}
    print(json.dumps(result) if args.json else "\n".join(f"{key:20} {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
