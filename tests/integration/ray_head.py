"""A Ray head of its own for a test, as ``ray start`` makes it: drivers in other processes connect to it."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.integration.s3_server import free_ports

RAY = str(Path(sys.executable).with_name("ray"))
START_S = 120.0
PORT_FLAGS = (
    *("--port", "--object-manager-port", "--node-manager-port", "--ray-client-server-port"),
    *("--dashboard-agent-listen-port", "--dashboard-agent-grpc-port", "--runtime-env-agent-port"),
    "--metrics-export-port",
)


@contextlib.contextmanager
def ray_head(num_cpus: int, env: dict[str, str] | None = None) -> Iterator[str]:
    """Run a head without a dashboard; yields its address, for RAY_ADDRESS."""
    # Sockets lie below the directory, and their paths may have 107 characters.
    directory = Path(tempfile.mkdtemp(prefix="hr-", dir="/tmp"))
    ports = dict(zip(PORT_FLAGS, free_ports(len(PORT_FLAGS)), strict=True))
    command = [
        *(RAY, "start", "--head", "--block", f"--num-cpus={num_cpus}", f"--temp-dir={directory / 'ray'}"),
        *(f"{flag}={port}" for flag, port in ports.items()),
        *("--min-worker-port=0", "--max-worker-port=0"),  # any: another Ray may have those of the default range
        *("--include-dashboard=false", "--node-ip-address=127.0.0.1", f"--object-store-memory={256 * 2**20}"),
    ]
    with (directory / "head.log").open("wb") as log:
        # A head that is told to end waits for 30 s otherwise.
        quick = {**(env or os.environ), "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
        head = subprocess.Popen(command, env=quick, stdout=log, stderr=log, cwd=directory)
        try:
            _wait_until_started(directory / "head.log", head)
            yield f"127.0.0.1:{ports['--port']}"
        finally:
            head.send_signal(signal.SIGTERM)
            head.wait(60)
    shutil.rmtree(directory)


def _wait_until_started(log: Path, head: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_S
    while "Ray runtime started" not in log.read_text():
        if head.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the head did not start:\n{log.read_text()[-2000:]}")
        time.sleep(0.1)
