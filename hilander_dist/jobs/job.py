"""What every job does around its work: output, fingerprint, run directory, Ray, tasks, shards, manifest."""

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from hilander_dist.cluster.hierarchy.levels import ROWS_WORTH_A_SHARD
from hilander_dist.config import Config
from hilander_dist.errors import ClusterError
from hilander_dist.monitor.progress import Progress
from hilander_dist.run import Run, code_version
from hilander_dist.runtime import cluster_cpus, ray_session
from hilander_dist.source import Source, refuse_overlap
from hilander_dist.storage import Storage
from hilander_dist.tasks import Tasks
from hilander_dist.waiting import wait_for

BYTES_PER_SHARD = 64 * 2**20
"""A shard's vectors, float32, are no larger unless asked for or there are more than MANY_SHARDS. A task holds about
twice as much of its own (README, memory)."""

MANY_SHARDS = 256
"""Above so many, shards grow instead, as S shards exchange S x S objects; up to MOST_BYTES_PER_SHARD."""

MOST_BYTES_PER_SHARD = 512 * 2**20

MANIFEST_VERSION = 2
SOFTWARE = ("hilander-dist", "ray", "torch", "numpy", "pyarrow", "numba")


@dataclass(frozen=True)
class Job:
    """A job whose run directory is ours and whose Ray is up."""

    name: str
    config: Config
    sources: tuple[Source, ...]
    run: Run
    tasks: Tasks
    fingerprint: dict[str, Any]
    began: float

    def manifest_head(self) -> dict[str, Any]:
        """The part of a manifest that every job has."""
        return manifest_head(self.name, self.config, self.fingerprint, self.sources, self.began)


@contextmanager
def open_job(
    name: str,
    output: Storage,
    sources: Sequence[Source],
    config: Config,
    about: dict[str, Any],
    address: str | None,
    debug: bool,
    restart: bool,
    quantizer: Storage | None = None,
) -> Iterator[Job]:
    """Take the run directory and start or find Ray.

    Args:
        name: of the job.
        output: of ``open_output``.
        sources: the inputs.
        config: all options.
        about: what else the result depends on, for the fingerprint.
        address: Ray cluster; see ``runtime.ray_session``.
        debug: show the workers' log.
        restart: discard a run that the output directory holds.
        quantizer: of an earlier run.

    Raises:
        OutputError: the directory holds something else.
        ClusterError: the cluster is not there, or has no GPU that is asked for.
    """
    began = time.time()
    fingerprint = run_fingerprint(name, config, *sources, quantizer=quantizer) | about
    with Run(output, fingerprint, restart) as run, ray_session(address, debug, config.cluster.wait_s):
        check_device(config)
        tasks = Tasks(run.work, run.saved, Progress())
        yield Job(name, config, tuple(sources), run, tasks, fingerprint, began)


def open_output(output_uri: str, input_uris: str | Sequence[str]) -> Storage:
    """The output directory, which files can be written to.

    Raises:
        OutputError: it stands in an input.
        StorageError: nothing can be written there.
    """
    refuse_overlap([input_uris] if isinstance(input_uris, str) else input_uris, output_uri)
    output = Storage(output_uri)
    output.check_writable()
    return output


def choose_shards(run: Run, source: Source, config: Config) -> int:
    """Shards of level 0: as asked, or from the size of the data and the CPUs. A resumed run keeps its number."""
    plan = run.marker("plan")
    if plan is None:
        plan = {"shards": config.num_shards or default_shards(source.rows, source.dim, cluster_cpus())}
        run.mark("plan", plan)
    shards: int = plan["shards"]
    return shards


def default_shards(n: int, dim: int, cpus: int) -> int:
    """Shards of level 0 for n rows of dim float32 on so many CPUs."""
    size = n * dim * 4
    # Two tasks a CPU even out shards that take longer.
    wanted = max(2 * cpus, min(MANY_SHARDS, -(-size // BYTES_PER_SHARD)), -(-size // MOST_BYTES_PER_SHARD))
    return min(-(-n // ROWS_WORTH_A_SHARD), wanted)


def check_device(config: Config) -> None:
    """Refuse a search on GPUs where the cluster has none: its tasks would wait for ever.

    Raises:
        ClusterError: there is none, and none comes in time.
    """
    if config.knn_device == "cuda" and not wait_for({"CPU": 1, "GPU": 1}, config.cluster.wait_s):
        raise ClusterError(
            "knn_device is cuda and no node of the Ray cluster has a GPU, and a CPU beside it: add a GPU node, or set knn_device=cpu"
        )


def run_fingerprint(job: str, config: Config, *sources: Source, quantizer: Storage | None = None) -> dict[str, Any]:
    """What the blocks and the result depend on; a run directory with another fingerprint is not gone on with."""
    entries = [source.fingerprint() for source in sources]
    return {
        "job": job,
        "config": config.model_dump(mode="json", exclude={"cluster"}),  # Another patience gives the same bytes.
        "quantizer": quantizer and hashlib.sha256(quantizer.read_bytes()).hexdigest(),
        "input": entries[0] if len(entries) == 1 else entries,
        "code": code_version(),
    }


def manifest_head(
    job: str, config: Config, fingerprint: dict[str, Any], sources: Sequence[Source], began: float
) -> dict[str, Any]:
    """The part of a manifest that every job has."""
    ended = time.time()
    digest = hashlib.sha256(repr(sorted(fingerprint.items())).encode()).hexdigest()
    return {
        "schema_version": MANIFEST_VERSION,
        "job": job,
        "config": config.model_dump(mode="json"),
        "fingerprint": digest,
        "code": fingerprint["code"],
        "input": [source.summary() for source in sources],
        "model": fingerprint.get("model"),
        "started": datetime.fromtimestamp(began, UTC).isoformat(timespec="seconds"),
        "seconds": round(ended - began, 3),
        "software": {name: version(name) for name in SOFTWARE},
    }
