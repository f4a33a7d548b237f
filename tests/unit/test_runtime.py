"""What a Ray that does not start, or does not answer, looks like to the user."""

import http.server
import re
import resource
import threading

import pytest
import ray

from hilander_dist.errors import ClusterError
from hilander_dist.local_ray import check_open_files
from hilander_dist.runtime import check_answer, ray_session


def test_a_ray_that_does_not_start_in_time_is_no_internal_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_late(**options: object) -> None:
        raise Exception("The current node timed out during startup.")  # Ray's own class.

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", too_late)
    expected = r"no Ray on this machine: .*timed out during startup: is this machine busy\? Try again$"
    with pytest.raises(ClusterError, match=expected), ray_session(None):
        pass


def test_a_directory_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**options: object) -> None:
        raise OSError(28, "No space left on device", "/scratch/ray")

    monkeypatch.setenv("RAY_TMPDIR", "/scratch")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", full)
    expected = r"No space left on device: '/scratch/ray': set RAY_TMPDIR to a directory .* \(now /scratch\)$"
    with pytest.raises(ClusterError, match=expected), ray_session(None):
        pass


@pytest.mark.parametrize("limit", [8192, resource.RLIM_INFINITY])
def test_a_limit_of_open_files_that_does(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (64, limit))
    check_open_files(64)


def test_a_limit_of_open_files_that_grows_with_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (64, 256))
    check_open_files(16)
    with pytest.raises(ClusterError, match=r"may open 256 files \(ulimit -Hn\), and Ray with 17 CPUs needs 264: raise"):
        check_open_files(17)


def test_the_port_of_something_else() -> None:
    with http.server.HTTPServer(("0.0.0.0", 0), _Silent) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"localhost:{server.server_address[1]}"
        expected = (
            rf"^no Ray cluster at {address} \(--address, that is .*\): something else listens there: give the HOST:PORT"
        )
        with pytest.raises(ClusterError, match=expected):
            check_answer(address, "--address")
        server.shutdown()


@pytest.mark.parametrize("address", ["http://head:8265", "ray://head:10001"])
def test_an_address_with_a_scheme(address: str) -> None:
    scheme = address.partition(":")[0]
    expected = rf"^no Ray cluster at {re.escape(address)} \(RAY_ADDRESS\): a job cannot join one by {scheme}://: give the HOST:PORT"
    with pytest.raises(ClusterError, match=expected):
        check_answer(address, "RAY_ADDRESS")


class _Silent(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass
