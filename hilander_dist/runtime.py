"""The Ray cluster that a job runs on: the one that it is told of, or one of its own on this machine."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from hilander_dist.errors import ClusterError


@contextmanager
def ray_session(address: str | None, debug: bool = False) -> Iterator[None]:
    """Connect to Ray for the time of a job.

    Args:
        address: of a running cluster; default: RAY_ADDRESS (set inside ``ray job submit``), else a local Ray is started
            and ended with the job. A process that is already connected stays so.
        debug: show Ray's own log lines and those of the workers.

    Raises:
        ClusterError: the cluster does not answer, or has no CPU to offer.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    try:
        ray.init(
            address=address,
            log_to_driver=debug,
            logging_level=logging.INFO if debug else logging.ERROR,
            include_dashboard=False if address == "local" else None,
        )
    except Exception as error:  # A plain one where Ray's own processes do not start in time.
        remedy = "is this machine busy? Try again" if address == "local" else "check --address"
        raise ClusterError(f"no Ray cluster at {address} ({' '.join(str(error).split())[:200]}): {remedy}") from error
    try:
        if not cluster_cpus():
            raise ClusterError(f"the Ray cluster at {address} offers no CPU: add a worker node")
        yield
    finally:
        ray.shutdown()


def cluster_cpus() -> int:
    """CPUs of the cluster that tasks may use."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return int(resources.get("CPU", 0))
