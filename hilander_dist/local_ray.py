"""A Ray of one's own on this machine, and what to do where it does not start."""

import logging
import os
import resource
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import ray

from hilander_dist.errors import ClusterError

FILES_BASE, FILES_PER_CPU = 128, 8
"""Open files that a process of Ray may need: the raylet had up to 62, and 3 for each CPU. With 48 it did not start; with 64 it
died during a job."""


def start_local_ray(debug: bool) -> None:
    """Start it and connect; ``ray.shutdown()`` ends it. Where that fails, none of its processes is left.

    Args:
        debug: show Ray's own log lines and those of the workers.

    Raises:
        ClusterError: it does not start; the message has the remedy.
    """
    check_open_files(os.cpu_count() or 1)
    before = set(psutil.Process().children(recursive=True))
    try:
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=debug,
            logging_level=logging.INFO if debug else logging.ERROR,
        )
    except Exception as error:  # A plain one where Ray's own processes do not start in time.
        ray.shutdown()
        _end_processes(before)
        raise ClusterError(f"no Ray on this machine: {_reason(error)}") from error


def check_open_files(cpus: int) -> None:
    """Refuse a limit with which Ray starts, or not, and later loses workers without a word.

    Ray itself raises the soft limit to the hard one.

    Raises:
        ClusterError: the hard limit is too low for so many CPUs.
    """
    limit, needed = resource.getrlimit(resource.RLIMIT_NOFILE)[1], FILES_BASE + FILES_PER_CPU * cpus
    if limit != resource.RLIM_INFINITY and limit < needed:
        raise ClusterError(
            f"no Ray on this machine: processes may open {limit} files (ulimit -Hn), and Ray with {cpus} CPUs needs {needed}: "
            "raise the limit, to 8192 for example: `ulimit -n 8192` as root, or nofile in /etc/security/limits.conf"
        )


def _reason(error: Exception) -> str:
    """What happened, and what to do."""
    directory = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    text = " ".join(str(error).split())
    if "AF_UNIX" in text:
        return (
            f"its sockets below {directory} (RAY_TMPDIR, {len(directory)} characters) would have paths of more than the "
            "107 bytes that the system allows: set RAY_TMPDIR to a shorter directory, such as /tmp"
        )
    if isinstance(error, OSError):
        return f"{text[:300]}: set RAY_TMPDIR to a directory with room that can be written to (now {directory})"
    return f"{text[:200].rstrip('.')}: is this machine busy? Try again"


def _end_processes(before: set[psutil.Process]) -> None:
    """End what Ray has started since, which it leaves alone where it failed before it was connected."""
    home = str(Path(ray.__file__).parent)
    started = []
    for process in set(psutil.Process().children(recursive=True)) - before:
        try:
            if any(home in word for word in process.cmdline()):
                process.terminate()
                started.append(process)
        except psutil.NoSuchProcess:
            continue
    for process in psutil.wait_procs(started, timeout=5)[1]:
        process.kill()
    psutil.wait_procs(started, timeout=5)
