"""Nodes that are not there yet: the autoscaler is asked for them, and the job waits.

The recommended layout on Kubernetes is a head without CPUs and groups of workers that start at zero: no job would find a
node there at its start. A static cluster, which nobody enlarges, is not waited for, save for its first CPU: a worker may be
on its way by hand.
"""

import contextlib
import json
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.experimental.internal_kv import _internal_kv_get, internal_kv_get_gcs_client

from hilander_dist.monitor.log import logger

POLL_S = 1.0
ASK_AGAIN_POLLS = 5
"""A cluster keeps one request for all its jobs, the last: that of another job, as Ray Data makes too, takes the place of ours."""

STATUS_KEY = "__autoscaling_status"
"""Where the autoscaler of version 1 leaves its report, every 5 s."""

GIGA = {"memory": 1e9, "object_store_memory": 1e9}


def wait_for(bundle: Mapping[str, float], wait_s: float, count: int = 1) -> bool:
    """Whether the cluster has so many places for a bundle, at once or within the time.

    Args:
        bundle: resources that must be on one node, as Ray names them: ``CPU``, ``GPU``, ``memory`` in bytes.
        wait_s: how long to wait at most, in seconds. A Ray of this process, and a static cluster with CPUs, are not waited for.
        count: number of bundles.
    """
    if places(bundle) >= count:
        return True
    if wait_s <= 0 or not _may_grow():
        return False
    logger.info("waiting for nodes", needed=_named(bundle, count), there=places(bundle), up_to_s=wait_s)
    deadline, polls = time.monotonic() + wait_s, 0
    try:
        while places(bundle) < count:
            if time.monotonic() > deadline or not _may_grow():
                return False
            if polls % ASK_AGAIN_POLLS == 0:
                request_resources(bundles=[dict(bundle)] * count)
            polls += 1
            time.sleep(POLL_S)
        return True
    finally:
        with contextlib.suppress(Exception):  # Of a cluster that is gone: what follows fails by itself.
            request_resources(bundles=[])


def places(bundle: Mapping[str, float]) -> int:
    """How many such bundles fit the living nodes with CPUs at once, with whatever runs there aside."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    fitting = (
        min(there.get(name, 0) // asked for name, asked in bundle.items()) for there in nodes if there.get("CPU")
    )
    return int(sum(fitting))


def is_own_ray() -> bool:
    """Whether this process has started the Ray that it is connected to: a Ray of one node, with one installation."""
    node: Any = ray._private.worker._global_node
    return node is not None and bool(node.is_head())


def _may_grow() -> bool:
    """Whether nodes may come: not to a Ray of this process, nor, once it has a CPU, to a static cluster."""
    if not ray.is_initialized() or is_own_ray():
        return False
    return not places({"CPU": 1}) or not _is_static()


def _is_static() -> bool:
    """Whether plainly no autoscaler can add nodes; False too where that cannot be told.

    A driver sees neither the autoscaler's configuration nor its kind of provider, only what they leave behind:

    - Version 1 reports the type of each node. A monitor without configuration, which every `ray start --head` runs, makes
      up a type for each, ``node_<id of the node>``; those of KubeRay and `ray up` are names of their configuration.
      No report yet: it may come, 5 s after the head's start at the latest, or from the container beside KubeRay's head.
    - Version 2 knows nodes by the id of their cloud instance. KubeRay sets that on every node, whether it scales or not,
      `ray start` on none.
    """
    if is_autoscaler_v2(fetch_from_server=True):
        nodes = internal_kv_get_gcs_client().get_all_node_info(timeout=10).values()  # type: ignore[no-untyped-call]
        return not any(node.instance_id for node in nodes)
    report = json.loads(_internal_kv_get(STATUS_KEY) or "{}").get("autoscaler_report") or {}
    types = {*report.get("active_nodes", ()), *(report.get("node_type_mapping") or {}).values()}
    made_up = {f"node_{node['NodeID']}" for node in ray.nodes()}  # type: ignore[no-untyped-call]
    return bool(types) and types <= made_up


def _named(bundle: Mapping[str, float], count: int) -> str:
    """As people write it: ``2 x (1 CPU, 3.4 GB memory)``."""
    parts = [
        f"{asked / GIGA[name]:.1f} GB {name}" if name in GIGA else f"{asked:g} {name}" for name, asked in bundle.items()
    ]
    return f"{count} x ({', '.join(parts)})"
