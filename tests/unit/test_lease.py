"""Leases in one process and among processes: a live holder is left alone, a dead one is followed, a late one stops."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hilander_dist import lease as lease_module
from hilander_dist.errors import OutputError
from hilander_dist.lease import Lease
from hilander_dist.run import Run
from hilander_dist.storage import Storage

HOLD = """
import sys
from hilander_dist import lease
from hilander_dist.storage import Storage
lease.RENEW_S = 0.2
with lease.Lease(Storage(sys.argv[1]), "run"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "RENEW_S", 0.2)
    monkeypatch.setattr(lease_module, "STALE_S", 3.0)
    monkeypatch.setattr(lease_module, "POLL_S", 0.1)


@pytest.fixture
def work(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "work"))


def hold(work: Storage) -> "subprocess.Popen[str]":
    """A process that claims the lease, says so, and holds it until its input is closed."""
    command = [sys.executable, "-c", HOLD, work.uri]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


@pytest.fixture
def holder(work: Storage) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the lease until it is killed."""
    process = hold(work)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def record(work: Storage, attempt: int) -> dict[str, Any]:
    found: dict[str, Any] = work.read_json(f"lease/{attempt:08d}.json")
    return found


def test_attempts_are_counted_and_a_lease_that_was_given_back_is_not_waited_for(work: Storage) -> None:
    for attempt in (1, 2, 3):
        with Lease(work, "run") as lease:
            assert lease.attempt == attempt
            lease.confirm()
        assert record(work, attempt)["ended"]


def test_a_lease_is_renewed(work: Storage) -> None:
    with Lease(work, "run"):
        first = record(work, 1)["heartbeat"]
        for _ in range(100):
            if record(work, 1)["heartbeat"] != first:
                break
            time.sleep(0.05)
        else:
            pytest.fail("no heartbeat")
    last = record(work, 1)
    time.sleep(0.5)
    assert record(work, 1) == last


def test_a_live_lease_is_refused_with_who_holds_it(work: Storage, holder: "subprocess.Popen[str]") -> None:
    with pytest.raises(OutputError, match=rf"^run is being worked on by process {holder.pid} on .* \(attempt 1, since"):
        Lease(work, "run")
    with Lease(Storage(f"{work.uri}-other"), "other"), pytest.raises(OutputError, match=f"by process {os.getpid()}"):
        Lease(Storage(f"{work.uri}-other"), "other")


def test_a_killed_holder_of_this_machine_is_followed_at_once(
    work: Storage, holder: "subprocess.Popen[str]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "STALE_S", 3600.0)
    holder.send_signal(signal.SIGKILL)  # not collected: a zombie counts as gone
    with Lease(work, "run") as lease:
        assert lease.attempt == 2


def test_a_holder_of_another_machine_is_followed_when_its_lease_stood_still(work: Storage) -> None:
    elsewhere = {"host": "elsewhere", "pid": 1, "machine": "other", "process_start": "1", "token": "t", "started": "?"}
    work.put("lease/00000001.json", json.dumps({**elsewhere, "attempt": 1, "heartbeat": "2000"}).encode())
    began = time.monotonic()
    with Lease(work, "run") as lease:
        assert lease.attempt == 2
    assert time.monotonic() - began > lease_module.STALE_S


def test_a_stopped_holder_loses_the_lease_and_ends_when_it_goes_on(
    work: Storage, holder: "subprocess.Popen[str]"
) -> None:
    holder.send_signal(signal.SIGSTOP)
    with Lease(work, "run") as lease:
        assert lease.attempt == 2
        holder.send_signal(signal.SIGCONT)
        assert holder.wait(30) == 1
        lease.confirm()
    assert "ended" not in record(work, 1)


def test_a_lost_lease_interrupts_the_main_thread_and_says_who_took_over(work: Storage) -> None:
    def work_on() -> None:
        with Lease(work, "run"):
            other = {"host": "there", "pid": 7, "attempt": 2, "token": "t"}
            work.put("lease/00000002.json", json.dumps(other).encode())
            threading.Event().wait(30)
            pytest.fail("nobody interrupted")

    with pytest.raises(OutputError, match=r"^run: this process stood still, and process 7 on there took the run over"):
        work_on()
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL


def test_nothing_that_counts_is_written_without_the_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "RENEW_S", 3600.0)
    run = Run(Storage(str(tmp_path)), {})
    other = {"host": "there", "pid": 7, "attempt": 2, "token": "t"}
    run.work.put("lease/00000002.json", json.dumps(other).encode())
    with pytest.raises(OutputError, match="took the run over"):
        run.mark("level-0", {})
    with pytest.raises(OutputError, match="took the run over"):
        run.succeed({})
    assert {info.path for info in run.output.list()} == {
        "_work/fingerprint.json",
        "_work/lease/00000001.json",
        "_work/lease/00000002.json",
    }


def test_of_many_processes_that_start_together_one_gets_the_lease(work: Storage) -> None:
    racers = [hold(work) for _ in range(4)]
    while sum(racer.poll() is None for racer in racers) > 1:
        time.sleep(0.1)
    said = [racer.communicate(timeout=60) for racer in racers]
    assert [out.endswith("held\n") for out, _ in said].count(True) == 1
    assert [racer.returncode for racer in racers].count(0) == 1
    assert sum("is being worked on by process" in err for _, err in said) == 3
    assert [info.path for info in work.list("lease")] == ["lease/00000001.json"]
