"""Storage on a real S3 server: the contract of tests/unit/test_storage.py, outages, and one clear line per failure."""

import contextlib
import itertools
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import numpy as np
import pytest

import hilander_dist.storage
from hilander_dist.errors import StorageError
from hilander_dist.source import list_inputs
from hilander_dist.storage import Storage, check_reachable, check_readable
from hilander_dist.storage.s3 import S3
from tests.integration.s3_server import S3Server
from tests.unit.test_storage import CONTRACT, RACE, winners


@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
def test_contract(check: Callable[[Storage], None], storage: Storage) -> None:
    check(storage)
    assert [file.path for file in storage.list() if ".writing-" in file.path] == []


def test_put_if_absent_has_one_winner_among_processes(storage: Storage, server: S3Server) -> None:
    assert winners(storage, server.env) == RACE


def test_a_bucket_without_prefix(server: S3Server, s3_env: pytest.MonkeyPatch) -> None:
    bucket = Storage(f"s3://{server.bucket}")
    bucket.check_writable()
    check_readable(bucket.uri)
    bucket.put("at-the-top", b"1")
    assert bucket.list("at-the-top") == []
    assert "at-the-top" in [file.path for file in bucket.list()]
    assert not bucket.exists()


def test_a_key_that_only_begins_like_the_prefix_is_elsewhere(storage: Storage) -> None:
    storage.child("data-old").put("x.npy", b"")
    assert storage.list("data") == []
    with pytest.raises(StorageError, match=r"/data: no such object \(404\)"):
        check_readable(f"{storage.uri}/data")


def test_listings_of_many_pages(storage: Storage) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: storage.put(f"many/{i:04}", b""), range(1005)))
    assert [file.path for file in storage.list()] == [f"many/{i:04}" for i in range(1005)]
    storage.delete_all([info.path for info in storage.list()])
    assert storage.list() == []


def test_a_large_file_goes_in_parts(storage: Storage) -> None:
    data = np.random.default_rng(0).bytes(1 << 20) * 101  # s3fs cuts from 100 MiB on
    storage.put("large", data)
    assert storage.read_bytes("large") == data
    assert "-" in storage.list()[0].tag  # the ETag of an object that came in parts


def test_a_file_that_changes_while_it_is_read(storage: Storage) -> None:
    storage.put("x", b"1" * (5 << 20))
    with storage.open("x") as file:
        file.read(1)
        storage.put("x", b"2" * (5 << 20))
        with pytest.raises(StorageError, match=r"/x: the file changed while it was read \(412\); start again"):
            file.read()


def test_a_missing_region_is_no_error(storage: Storage, s3_env: pytest.MonkeyPatch) -> None:
    s3_env.delenv("AWS_DEFAULT_REGION")
    storage.put("x", b"1")
    assert storage.read_bytes("x") == b"1"


def test_reads_and_writes_wait_for_a_server_that_restarts(storage: Storage, server: S3Server) -> None:
    data = np.random.default_rng(0).bytes(6 << 20)
    storage.put("old", data)
    file = storage.open("old")
    file.read(1)
    server.stop()
    with ThreadPoolExecutor(6) as pool:
        pending: list[Future[Any]] = [
            pool.submit(storage.put, "new", b"new"),
            pool.submit(storage.put_if_absent, "lock", b"lock"),
            pool.submit(storage.read_bytes, "old"),
            pool.submit(file.read),
            pool.submit(storage.list, ""),
            pool.submit(storage.delete, "other"),
        ]
        time.sleep(1)
        assert not any(each.done() for each in pending)
        server.start()
        answers = [each.result() for each in pending]
    assert answers[1] is True
    assert answers[2] == data
    assert answers[3] == data[1:]
    assert storage.read_bytes("new") == b"new"


def test_a_put_survives_a_server_that_stalls(storage: Storage, server: S3Server) -> None:
    data = np.random.default_rng(0).bytes(64 << 20)
    with ThreadPoolExecutor(1) as pool:
        os.kill(server.pid, signal.SIGSTOP)
        try:
            pending = pool.submit(storage.put, "x", data)
            time.sleep(1)
            assert not pending.done()
        finally:
            os.kill(server.pid, signal.SIGCONT)
        pending.result()
    assert storage.read_bytes("x") == data


def test_a_put_gives_up_in_the_end(storage: Storage, s3_env: pytest.MonkeyPatch) -> None:
    s3_env.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{_closed_port()}")
    s3_env.setattr(hilander_dist.storage.storage, "_PATIENCE_S", 2.0)
    with pytest.raises(
        StorageError, match=r"/x: the S3 endpoint http.* cannot be reached .* \(tried for 2 s\); check AWS_"
    ):
        storage.put("x", b"")


def test_put_if_absent_knows_its_own_write_whose_answer_was_lost(
    storage: Storage, server: S3Server, s3_env: pytest.MonkeyPatch
) -> None:
    with _answer_lost_once(server.endpoint) as endpoint:
        s3_env.setenv("AWS_ENDPOINT_URL", endpoint)
        assert storage.put_if_absent("lock", b"mine")
        assert not storage.put_if_absent("lock", b"other")
        assert storage.read_bytes("lock") == b"mine"


def test_many_files_are_deleted_in_few_requests(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: storage.put(f"level-0/{i:04}", b""), range(1005)))
    calls: list[str] = []
    call = S3._call

    def noted(self: S3, method: str, **arguments: Any) -> dict[str, Any]:
        calls.append(method)
        return call(self, method, **arguments)

    monkeypatch.setattr(S3, "_call", noted)
    storage.delete_all(f"level-0/{i:04}" for i in range(1005))
    assert calls == ["delete_objects"] * 2
    assert storage.list() == []


def test_a_password_in_the_endpoint_is_never_shown(storage: Storage, s3_env: pytest.MonkeyPatch) -> None:
    s3_env.setenv("AWS_ENDPOINT_URL", f"http://me:very-secret@127.0.0.1:{_closed_port()}")
    with pytest.raises(StorageError) as caught:
        storage.check_writable()
    shown = "".join(traceback.format_exception(caught.value))
    assert "http://***@127.0.0.1" in shown
    assert "very-secret" not in shown


# From here on: what the driver finds out before any work.


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"AWS_ACCESS_KEY_ID": "wrong"}, r"the server does not know the access key \(403\); check AWS_ACCESS_KEY_ID"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, r"the secret key does not fit .* \(403\); check .*AWS_SECRET_ACCESS_KEY"),
        ({"AWS_SECRET_ACCESS_KEY": ""}, "no S3 credentials .*; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "no S3 credentials .*; set AWS_ACCESS_KEY_ID and AWS"),
        ({"AWS_PROFILE": "nobody"}, r"no S3 credentials \(.*nobody.*\); set .* AWS_PROFILE"),
        (
            {"AWS_ENDPOINT_URL": "localhost:9000"},
            r"S3 cannot be set up \(Invalid .*localhost:9000\); check AWS_ENDPOINT",
        ),
        (
            {"AWS_ENDPOINT_URL": "http://host.invalid"},
            "endpoint http://host.invalid cannot be reached .*; check AWS_END",
        ),
    ],
    ids=["key", "secret", "half", "none", "profile", "endpoint", "host"],
)
def test_wrong_settings(changes: dict[str, str], message: str, storage: Storage, s3_env: pytest.MonkeyPatch) -> None:
    for name, value in changes.items():
        s3_env.setenv(name, value) if value else s3_env.delenv(name)
    _assert_checks_fail(storage, message)


@pytest.mark.timeout(20)
def test_a_missing_bucket(s3_env: pytest.MonkeyPatch) -> None:
    _assert_checks_fail(
        Storage("s3://no-such-bucket/x"),
        r"the bucket does not exist \(404\); check the bucket name and AWS_ENDPOINT_URL",
    )


@pytest.mark.timeout(20)
def test_a_key_that_may_only_read(storage: Storage, server: S3Server, s3_env: pytest.MonkeyPatch) -> None:
    storage.put("x.npy", b"")
    for name, value in server.env_for(server.reader_key, server.reader_secret).items():
        s3_env.setenv(name, value)
    check_readable(storage.uri)
    assert len(list_inputs(storage.uri).files) == 1
    with pytest.raises(StorageError, match=f"^{storage.uri}: access is denied .*; check that the key .* may .* write"):
        storage.check_writable()


@pytest.mark.timeout(20)
def test_a_refused_connection(storage: Storage, s3_env: pytest.MonkeyPatch) -> None:
    endpoint = f"http://127.0.0.1:{_closed_port()}"
    s3_env.setenv("AWS_ENDPOINT_URL", endpoint)
    _assert_checks_fail(
        storage, f"the S3 endpoint {endpoint} cannot be reached .*; check AWS_ENDPOINT_URL, the network"
    )


@pytest.mark.timeout(20)
def test_plain_http_where_https_is_expected(storage: Storage, server: S3Server, s3_env: pytest.MonkeyPatch) -> None:
    s3_env.setenv("AWS_ENDPOINT_URL", server.endpoint.replace("http:", "https:"))
    _assert_checks_fail(storage, "no TLS with the S3 endpoint .*; check http:// or https:// in AWS_ENDPOINT_URL")


@pytest.mark.timeout(20)
def test_an_address_that_never_connects(storage: Storage, s3_env: pytest.MonkeyPatch) -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):  # fill the queue of a listener that accepts nobody: later connections hang
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        s3_env.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        _assert_checks_fail(storage, r"cannot be reached \(ConnectTimeoutError\); check AWS_ENDPOINT_URL")


@pytest.mark.timeout(20)
def test_a_server_that_never_answers(storage: Storage, s3_env: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        s3_env.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        _assert_checks_fail(storage, r"cannot be reached \(.*Timeout.*\); check AWS_ENDPOINT_URL")


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (400, "ExpiredToken", "the S3 credentials have expired; renew AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and"),
        (400, "InvalidToken", "the session token is not valid; renew .*AWS_SESSION_TOKEN"),
        (403, "RequestTimeTooSkewed", "this machine's clock differs from the server's; set the clock"),
        (400, "AuthorizationHeaderMalformed", "the bucket is in another region; set AWS_DEFAULT_REGION"),
        (503, "SlowDown", r"the S3 server answers SlowDown \(said so\); check AWS_ENDPOINT_URL"),
    ],
)
def test_what_only_aws_answers(
    status: int, code: str, message: str, storage: Storage, s3_env: pytest.MonkeyPatch
) -> None:
    with _always(status, code) as endpoint:
        s3_env.setenv("AWS_ENDPOINT_URL", endpoint)
        _assert_checks_fail(storage, message)


def _assert_checks_fail(storage: Storage, message: str) -> None:
    checks: list[Callable[[], object]] = [
        lambda: check_readable(storage.uri),
        lambda: check_reachable(storage.uri),
        storage.check_writable,
        lambda: list_inputs(storage.uri),
    ]
    with ThreadPoolExecutor(len(checks)) as pool:  # side by side, as each may wait for 12 s
        answers = [pool.submit(check) for check in checks]
    for answer in answers:
        with pytest.raises(StorageError, match=message) as caught:
            answer.result()
        assert str(caught.value).startswith(f"{storage.uri}: ")
        assert "\n" not in str(caught.value)


def _closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def _always(status: int, code: str) -> Iterator[str]:
    """Serve one S3 error to every request."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = f"<Error><Code>{code}</Code><Message>said\nso</Message></Error>".encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def _answer_lost_once(endpoint: str) -> Iterator[str]:
    """Pass connections on to an S3 server; the first one is cut as soon as the server has begun to answer."""
    host, _, port = endpoint.removeprefix("http://").partition(":")

    def serve(listener: socket.socket) -> None:
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for number in itertools.count():
                client = stack.enter_context(listener.accept()[0])
                server = stack.enter_context(socket.create_connection((host, int(port))))
                for source, target, lose in ((client, server, False), (server, client, number == 0)):
                    pump = threading.Thread(target=_pump, args=(source, target, lose))
                    pump.start()
                    stack.callback(pump.join)
                    stack.callback(_shut, source)

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _pump(source: socket.socket, target: socket.socket, lose: bool) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            if lose and not data.startswith(b"HTTP/1.1 100 "):  # that one only asks for the body
                break
            target.sendall(data)
    _shut(source)
    _shut(target)


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
