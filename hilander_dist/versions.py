"""One version of the package on all nodes of a job: tasks of two versions would mix two results in one run.

The nodes that are there are asked before any work. Nodes that join later, as autoscaled and spot ones do, are found out by
each task, which is told the job's version.
"""

import functools
import re
from collections.abc import Callable
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hilander_dist.errors import ClusterError
from hilander_dist.monitor.log import logger
from hilander_dist.run import code_version
from hilander_dist.waiting import is_own_ray

ANSWER_S = 120.0
"""Nodes that take longer are left to the checks of the tasks: a worker starts in 1 to 5 s, after its runtime environment."""

REMEDY = "install the same package on every node, or bring it along by `ray job submit --working-dir`"


def job_version() -> str | None:
    """The version that tasks of this process's job must have, for ``check_version``.

    None on a Ray that this process has started: it runs the one installation that is here, and where a developer edits that
    meanwhile, no node is to blame.
    """
    return None if is_own_ray() else this_version()


def check_version(expected: str | None) -> None:
    """Refuse to run a task on a node with another version of the package.

    Args:
        expected: ``job_version()`` of the driver.

    Raises:
        ClusterError: it is another one; the node is named.
    """
    if expected is not None and this_version() != expected:
        node = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        raise ClusterError(f"node {node} has hilander_dist {this_version()}, the job {expected}: {REMEDY}")


def other_package(error: ray.exceptions.RayTaskError) -> ClusterError | None:
    """What is behind a task that could not even be loaded, where that is a package unlike the driver's, or none at all.

    Such a task has not come to ``check_version``: Ray looks up the functions of ours that it names before.
    """
    text = str(error)
    found = re.search(r"^(?:\w*ImportError|ModuleNotFoundError|AttributeError): .*$", text, re.MULTILINE)
    unloaded = "System error: " in text or "failed to import on the worker" in text
    if job_version() is None or not unloaded or not found or "hilander_dist" not in found[0]:
        return None
    node = re.search(r"\(pid=\d+, ip=([^)]+)\)", text)
    return ClusterError(
        f"node {node[1] if node else ''} has not the job's hilander_dist {this_version()} ({found[0]}): {REMEDY}"
    )


@functools.cache
def this_version() -> str:
    """The version of this process, from when it first asked: hashing the sources takes some ms."""
    return code_version()


def check_nodes() -> None:
    """Ask each node with CPUs for its version.

    Raises:
        ClusterError: some have another one, or none that can be imported; it names them all.
    """
    nodes = {n["NodeID"]: n for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU")}  # type: ignore[no-untyped-call]
    # No CPUs, so that it waits for no other job's task.
    ask = ray.remote(num_cpus=0, max_retries=0)(_asker())
    asked = {
        ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(): node
        for node in nodes
    }
    answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S)
    if silent:
        names = ", ".join(_name(nodes[asked[ref]]) for ref in silent)
        logger.warning("nodes that do not say their version", nodes=names, waited_s=ANSWER_S)
    found = {asked[ref]: _answer(ref) for ref in answered}
    others = [
        f"{_name(nodes[node])} has {version}"
        for node, version in found.items()
        if version not in (None, this_version())
    ]
    if others:
        raise ClusterError(
            f"{len(others)} of {len(nodes)} nodes have another hilander_dist than this job's {this_version()}: "
            f"{'; '.join(sorted(others))}: {REMEDY}"
        )


def _asker() -> Callable[[], str]:
    """What a node runs. It travels as code, not by name, as the node's package may lack this module or be missing."""

    def version_there() -> str:
        try:
            from hilander_dist.run import code_version
        except Exception as error:
            return f"none that works ({type(error).__name__}: {' '.join(str(error).split())})"
        return code_version()

    return version_there


def _answer(ref: Any) -> str | None:
    """None of a node that is gone meanwhile."""
    try:
        return str(ray.get(ref))
    except ray.exceptions.RayError:
        return None


def _name(node: dict[str, Any]) -> str:
    """Its address, and its name where that tells more."""
    address, name = node["NodeManagerAddress"], node["NodeName"]
    return str(address) if name == address else f"{name} ({address})"
