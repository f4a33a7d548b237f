"""A Ray head without CPUs on free ports of this machine, whose autoscaler has one kind of worker, and workers joined by hand.

The autoscaler is Ray's own (version 1) with the provider for tests that comes with Ray, which starts workers as processes here.
It reads its configuration every second: ``Head.allow`` changes how many it may start.
"""

import contextlib
import json
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import psutil  # type: ignore[import-untyped]
import ray
from ray._private.gcs_utils import create_gcs_channel
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.core.generated.gcs_pb2 import GcsNodeInfo  # type: ignore[attr-defined]

import hilander_dist
from tests.integration import ray_head
from tests.integration.ray_head import RAY
from tests.integration.s3_server import free_ports

START_S = 120.0
STORE = 128 * 2**20
NODE_PORTS = (
    "--object-manager-port",
    "--node-manager-port",
    "--dashboard-agent-listen-port",
    "--dashboard-agent-grpc-port",
    "--runtime-env-agent-port",
    "--metrics-export-port",
)
HEAD_PORTS = ("--port", "--dashboard-port", "--ray-client-server-port", *NODE_PORTS)
GROUP = "workers"
"""The autoscaler's kind of worker: one CPU and one GPU, which is not used."""


def clean_env() -> dict[str, str]:
    """As of ``ray_head``, with the package that is tested and no other paths: a node may be given that of another place."""
    return ray_head.clean_env() | {"PYTHONPATH": str(Path(hilander_dist.__file__).parents[1])}


class Head:
    """A head that runs; see ``scaling_head``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        ports = dict(zip(HEAD_PORTS, free_ports(len(HEAD_PORTS)), strict=True))
        self.address = f"{ray.util.get_node_ip_address()}:{ports['--port']}"  # type: ignore[no-untyped-call]
        self.nodes: list[subprocess.Popen[bytes]] = []
        self.allow(0)
        options = ["--head", "--num-cpus=0", "--include-dashboard=false", f"--temp-dir={directory / 'ray'}"]
        options += [f"--autoscaling-config={directory / 'autoscaling.yaml'}", *_flags(ports)]
        scaling = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_TMPDIR": str(directory)}
        self._process = self._start("head", options, scaling)

    def wait_until_up(self) -> None:
        deadline = time.monotonic() + START_S
        with create_gcs_channel(self.address) as channel:
            while True:
                with contextlib.suppress(grpc.RpcError):
                    channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")(b"", timeout=5)
                    # Not before: beside the jobs of a test its own processes may start too slowly for each other.
                    if self.names() and self.kv("__autoscaling_status"):
                        return
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"no head:\n{(self.directory / 'head.log').read_text()[-2000:]}")
                time.sleep(0.2)

    def allow(self, workers: int) -> None:
        """Let the autoscaler start so many workers."""
        group = {"resources": {"CPU": 1, "GPU": 1, "object_store_memory": STORE}, "min_workers": 0}
        config = {
            "cluster_name": "test",
            "provider": {"type": "fake_multinode", "gcs_address": self.address, "use_node_id_as_ip": True}
            | {"disable_node_updaters": True, "disable_launch_config_check": True},
            "max_workers": workers,
            "idle_timeout_minutes": 60,
            "head_node_type": "ray.head.default",
            "available_node_types": {
                "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
                GROUP: {**group, "node_config": {}, "max_workers": workers},
            },
            **{key: {} for key in ("docker", "auth", "file_mounts")},
            **{key: [] for key in _COMMANDS},
            "upscaling_speed": 1.0,
            "file_mounts_sync_continuously": False,
        }
        file = self.directory / "autoscaling.yaml"
        file.with_suffix(".new").write_text(json.dumps(config))
        file.with_suffix(".new").replace(file)

    def kv(self, key: str) -> Any:
        """A value in the head's key-value store, parsed; None without one."""
        value = GcsClient(address=self.address).internal_kv_get(key.encode())
        return json.loads(value) if value else None

    def names(self) -> set[str]:
        """Of the living nodes."""
        nodes = GcsClient(address=self.address).get_all_node_info(timeout=10).values()
        return {node.node_name for node in nodes if node.state == GcsNodeInfo.ALIVE}

    def join(self, name: str, memory: int = 4 * 10**9, **env: str) -> "subprocess.Popen[bytes]":
        """Start a worker with one CPU and more variables in its environment; it joins some seconds later.

        Args:
            name: of the node.
            memory: in bytes, that it offers.
            **env: the variables.
        """
        options = [f"--address={self.address}", "--num-cpus=1", f"--memory={memory}", f"--node-name={name}"]
        node = self._start(name, [*options, "--dashboard-agent-listen-port=0"], env)
        self.nodes.append(node)
        return node

    def stop(self) -> None:
        """End the head and all workers, also those that the autoscaler has started, which outlive it for a minute."""
        head = psutil.Process(self._process.pid)
        started = head.children(recursive=True)
        for process in [*self.nodes, self._process]:
            process.send_signal(signal.SIGTERM)
        for process in [*self.nodes, self._process]:
            process.wait(60)
        _, alive = psutil.wait_procs(started, timeout=0.5)
        for process in alive:
            process.terminate()
        for process in psutil.wait_procs(alive, timeout=5)[1]:
            process.kill()

    def _start(self, name: str, options: Sequence[str], env: dict[str, str]) -> "subprocess.Popen[bytes]":
        command = [RAY, "start", "--block", f"--object-store-memory={STORE}", *options]
        command += ["--min-worker-port=0", "--max-worker-port=0"]
        with (self.directory / f"{name}.log").open("wb") as log:
            return subprocess.Popen(command, env=clean_env() | env, stdout=log, stderr=log, cwd="/")


_COMMANDS = (
    "cluster_synced_files",
    "rsync_exclude",
    "rsync_filter",
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)


@contextlib.contextmanager
def scaling_head() -> Iterator[Head]:
    """A head that is up, and ended at the end."""
    # Sockets lie below the directory, and their paths may have 107 characters.
    directory = Path(tempfile.mkdtemp(prefix="hdn-", dir="/tmp"))
    head = Head(directory)
    try:
        head.wait_until_up()
        yield head
    finally:
        head.stop()
    shutil.rmtree(directory, ignore_errors=True)


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a node that was started here."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _flags(ports: dict[str, int]) -> list[str]:
    return [f"{flag}={port}" for flag, port in ports.items()]
