"""The Ray cluster that a job runs on: the one that it is told of, or one of its own on this machine."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import grpc  # type: ignore[import-untyped]
import ray
from ray._private import services
from ray._private.gcs_utils import create_gcs_channel

from hilander_dist.errors import ClusterError
from hilander_dist.local_ray import start_local_ray
from hilander_dist.monitor.log import logger
from hilander_dist.versions import check_nodes
from hilander_dist.waiting import is_own_ray, wait_for

ANSWER_S = 10.0
"""A head that does not answer within this is not there. Ray itself tries for two minutes, and then ends the process."""


@contextmanager
def ray_session(address: str | None, debug: bool = False, wait_s: float = 0) -> Iterator[None]:
    """Connect to Ray for the time of a job, whose nodes have a CPU and this version of the package.

    Args:
        address: of a running cluster; default: RAY_ADDRESS (set inside ``ray job submit``), else a local Ray is started
            and ended with the job. A process that is already connected stays so.
        debug: show Ray's own log lines and those of the workers.
        wait_s: how long to wait for a node with a CPU, in seconds, where the cluster has none.

    Raises:
        ClusterError: the cluster does not answer, has no CPU to offer, or a node with another version of the package; or a
            local Ray does not start.
    """
    if ray.is_initialized():
        _warn_of_other_cluster(address)
        _check_cluster(wait_s)
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    source = "--address" if address else "RAY_ADDRESS"
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        start_local_ray(debug)
    else:
        _connect(address, source, debug)
    try:
        _check_cluster(wait_s)
        yield
    finally:
        ray.shutdown()


def cluster_cpus() -> int:
    """CPUs of the cluster that tasks may use."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return int(resources.get("CPU", 0))


def _connect(address: str, source: str, debug: bool) -> None:
    """Join a running cluster.

    Args:
        address: as the user wrote it.
        source: where, for messages.
        debug: as of ``ray_session``.
    """
    check_answer(address, source)
    try:
        ray.init(address=address, log_to_driver=debug, logging_level=logging.INFO if debug else logging.ERROR)
    except Exception as error:
        reason = _line(error.__cause__ or error)[:300]
        raise ClusterError(
            f"cannot join the Ray cluster at {address} ({source}): {reason}; a job runs on a node of the cluster: "
            "send it there with `ray job submit`, or make this machine one with `ray start --address`"
        ) from error


def check_answer(address: str, source: str) -> None:
    """Ask the head at an address whether it is alive, as ``ray.init`` ends the process where none is.

    Raises:
        ClusterError: the address is none, or no head of a Ray cluster answers there in time.
    """
    remedy = (
        "give the HOST:PORT of a running head, or none for a Ray on this machine, or send the job with `ray job submit`"
    )
    scheme = address.partition("://")[0] if "://" in address else None
    if scheme:  # http:// is where jobs are submitted, and `ray job submit` reads RAY_ADDRESS too. Ray Data needs more than ray://.
        raise ClusterError(f"no Ray cluster at {address} ({source}): a job cannot join one by {scheme}://: {remedy}")
    try:
        found = services.canonicalize_bootstrap_address(address) or address
    except Exception as error:  # ConnectionError where `auto` finds none, ValueError of what is no HOST:PORT.
        raise ClusterError(f"no Ray cluster at {address} ({source}): {_line(error)}: {remedy}") from None
    where = f"{address} ({source})" if found == address else f"{address} ({source}, that is {found})"
    with create_gcs_channel(found) as channel:
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")(b"", timeout=ANSWER_S)
        except grpc.RpcError as error:
            details = str(error.details())
            other = "something else listens there"
            answers = {
                grpc.StatusCode.UNAVAILABLE: other if "HTTP/2" in details else details.rpartition(": ")[2].rstrip("]"),
                grpc.StatusCode.DEADLINE_EXCEEDED: f"no answer within {ANSWER_S:g} s",
                grpc.StatusCode.UNIMPLEMENTED: other,
            }
            if error.code() in answers:  # Any other, as of a wrong token, is an answer: `ray.init` tells what it means.
                raise ClusterError(f"no Ray cluster at {where}: {answers[error.code()]}: {remedy}") from None


def _warn_of_other_cluster(address: str | None) -> None:
    """Say it where a process is connected to another cluster than the one that is asked for."""
    if address is None or address == "auto":
        return
    connected = ray.get_runtime_context().gcs_address
    try:
        other = (
            not is_own_ray() if address == "local" else services.canonicalize_bootstrap_address(address) != connected
        )
    except Exception:  # It is no address: what is connected is another one.
        other = True
    if other:
        logger.warning("already connected to another Ray cluster", connected=connected, address=address)


def _check_cluster(wait_s: float) -> None:
    if not wait_for({"CPU": 1}, wait_s):
        waited = f", and none came within {wait_s:g} s" if wait_s else ""
        raise ClusterError(
            f"the Ray cluster at {ray.get_runtime_context().gcs_address} offers no CPU{waited}: add a worker node, let the "
            "autoscaler start one, or wait longer with --set cluster.wait_s=SECONDS"
        )
    if not is_own_ray():
        check_nodes()


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
