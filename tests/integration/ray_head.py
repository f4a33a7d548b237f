"""A Ray head of its own for a test, as ``ray start`` makes it: drivers in other processes connect to it, or send it jobs."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tests.integration.s3_server import free_ports

RAY = str(Path(sys.executable).with_name("ray"))
START_S = 120.0
PORT_FLAGS = (
    *("--port", "--dashboard-port", "--object-manager-port", "--node-manager-port", "--ray-client-server-port"),
    *("--dashboard-agent-listen-port", "--dashboard-agent-grpc-port", "--runtime-env-agent-port"),
    "--metrics-export-port",
)


class Head(NamedTuple):
    """Where a head is reached."""

    address: str
    """For RAY_ADDRESS."""
    jobs: str
    """For ``ray job submit``; only with a dashboard."""


def clean_env() -> dict[str, str]:
    """Of this process, without S3 and another Ray; `python` is the one that runs the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))}
    return kept | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # a node that is told to end waits for 30 s otherwise
    }


@contextlib.contextmanager
def ray_head(num_cpus: int, env: Mapping[str, str], dashboard: bool = False, store_mb: int = 256) -> Iterator[Head]:
    """Run a head with these variables, which its workers inherit."""
    # Sockets lie below the directory, and their paths may have 107 characters.
    directory = Path(tempfile.mkdtemp(prefix="hr-", dir="/tmp"))
    ports = dict(zip(PORT_FLAGS, free_ports(len(PORT_FLAGS)), strict=True))
    command = [
        *(RAY, "start", "--head", "--block", f"--num-cpus={num_cpus}", f"--temp-dir={directory / 'ray'}"),
        *(f"{flag}={port}" for flag, port in ports.items()),
        *("--min-worker-port=0", "--max-worker-port=0"),  # any: another Ray may have those of the default range
        *(f"--include-dashboard={str(dashboard).lower()}", "--dashboard-host=127.0.0.1"),
        *("--node-ip-address=127.0.0.1", f"--object-store-memory={store_mb * 2**20}"),
    ]
    found = Head(f"127.0.0.1:{ports['--port']}", f"http://127.0.0.1:{ports['--dashboard-port']}")
    with (directory / "head.log").open("wb") as log:
        head = subprocess.Popen(command, env={**env}, stdout=log, stderr=log, cwd=directory)
        try:
            _wait_until_started(directory / "head.log", head, f"{found.jobs}/api/version" if dashboard else None)
            yield found
        finally:
            head.send_signal(signal.SIGTERM)
            head.wait(60)
    shutil.rmtree(directory)


def _wait_until_started(log: Path, head: "subprocess.Popen[bytes]", url: str | None) -> None:
    deadline = time.monotonic() + START_S
    while "Ray runtime started" not in log.read_text() or (url and not _answers(url)):
        if head.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"ray start (exit code {head.poll()}) did not come up:\n{log.read_text()[-2000:]}")
        time.sleep(0.2)


def _answers(url: str) -> bool:
    with contextlib.suppress(urllib.error.URLError), urllib.request.urlopen(url, timeout=5):
        return True
    return False
