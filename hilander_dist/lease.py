"""One live process owns a run: a lease in the run directory, renewed while its holder works.

_work/lease/00000001.json   an attempt: who makes it, and a heartbeat that is renewed every RENEW_S

An attempt is claimed by put-if-absent under the next number, so that of two processes one gets it. A holder whose file
stands still for STALE_S, by the clock of the one who looks, counts as dead, and the next number is claimed: clocks of
different machines are never compared. Nobody waits for a holder that ended, or that was a process of the same machine and
is gone. A holder that finds a later attempt than its own has lost the run: it stops, and writes nothing that counts.
"""

import contextlib
import json
import os
import signal
import socket
import threading
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, Self

from hilander_dist.errors import OutputError, StorageError
from hilander_dist.monitor.log import logger
from hilander_dist.storage import Storage

RENEW_S = 10.0
"""Time between two heartbeats."""

STALE_S = 60.0
"""A lease that does not change for so long is taken over. Longer than a storage outage that is waited for."""

POLL_S = 1.0
"""Time between two looks at another's lease."""

_held: set[str] = set()
"""Tokens of the leases that this process holds and renews."""


class Lease:
    """The right to work on a run. Claimed by making it, renewed inside ``with``, given back at its end."""

    def __init__(self, work: Storage, name: str) -> None:
        """Claim the next attempt; ``name`` is the run's, for messages.

        Raises:
            OutputError: another process holds the run, and works.
        """
        self._store, self._name = work.child("lease"), name
        self._record: dict[str, Any] = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "machine": _machine(),
            "process_start": _process_start(os.getpid()),
            "token": uuid.uuid4().hex,
            "started": _now(),
        }
        self._writing, self._over = threading.Lock(), threading.Event()
        self._lost = False
        self.attempt = self._claim()
        """1 for the first process that works on the run."""

    def __enter__(self) -> Self:
        """Renew from now on. Where the run is lost, the main thread is interrupted as by Ctrl-C."""
        _held.add(self._record["token"])
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            # Not SIGINT: processes that a shell puts into the background ignore it.
            self._handler = signal.signal(signal.SIGUSR2, _interrupt)
        threading.Thread(target=self._renew, name="lease", daemon=True).start()
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Give the lease back.

        Raises:
            OutputError: the work ended because the run was lost, or was lost when it ended.
        """
        with self._writing:
            self._over.set()
        if self._main:
            signal.signal(signal.SIGUSR2, self._handler)
        _held.discard(self._record["token"])
        if error is not None:
            with contextlib.suppress(StorageError):
                self._lost = self._lost or self._is_taken_over()
            if self._lost:
                raise self._loss() from error
        self.release()

    def release(self) -> None:
        """Say that the attempt has ended: the next one need not wait."""
        try:
            with self._writing:
                self._put(ended=_now())
        except StorageError as failure:  # The next attempt waits for a minute.
            logger.warning("lease not given back", reason=str(failure))

    def confirm(self) -> None:
        """Look whether the run is still this process's; call before anything that counts is written.

        Raises:
            OutputError: another process took it over.
        """
        self._lost = self._lost or self._is_taken_over()
        if self._lost:
            raise self._loss()

    def _claim(self) -> int:
        while True:
            last = self._last()
            if last and not self._has_ended(last):
                continue
            with self._writing:
                record = json.dumps({**self._record, "attempt": last + 1, "heartbeat": _now()}, indent=2)
                if self._store.put_if_absent(_path(last + 1), record.encode()):
                    return last + 1

    def _has_ended(self, attempt: int) -> bool:
        """Whether a holder is gone; waits until that is known. False where another attempt came meanwhile.

        Raises:
            OutputError: the holder works.
        """
        seen = self._store.read_bytes(_path(attempt))
        holder = json.loads(seen)
        if _is_gone(holder):
            return True
        if holder["token"] not in _held:
            logger.info("run may be owned: watching", host=holder["host"], pid=holder["pid"], at_most_s=STALE_S)
            began = time.monotonic()
            while (now := self._store.read_bytes(_path(attempt))) == seen and not _is_gone(holder):
                if time.monotonic() - began > STALE_S:
                    logger.warning("run taken over: its owner stands still", host=holder["host"], pid=holder["pid"])
                    return True
                time.sleep(POLL_S)
            if _is_gone(json.loads(now)):
                return self._last() == attempt
        raise OutputError(
            f"{self._name} is being worked on by process {holder['pid']} on {holder['host']} (attempt {attempt}, since "
            f"{holder['started']}): wait for its end, or choose another --output"
        )

    def _renew(self) -> None:
        while not self._over.wait(RENEW_S):
            try:
                self._lost = self._is_taken_over()
                with self._writing:  # after the end neither a heartbeat nor a signal
                    if self._over.is_set():
                        return
                    if not self._lost:
                        self._put()
                    elif self._main:
                        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR2)
                if self._lost:
                    return
            except StorageError as failure:  # After STALE_S somebody may take over; then the next look tells.
                logger.warning("lease not renewed", reason=str(failure))

    def _is_taken_over(self) -> bool:
        if self._last() != self.attempt:
            return True
        record = json.loads(self._store.read_bytes(_path(self.attempt)))
        return bool(record["token"] != self._record["token"])

    def _loss(self) -> OutputError:
        with contextlib.suppress(StorageError):
            holder = json.loads(self._store.read_bytes(_path(self._last())))
            return OutputError(
                f"{self._name}: this process stood still, and process {holder['pid']} on {holder['host']} took the run "
                f"over (attempt {holder['attempt']}): it goes on there"
            )
        return OutputError(
            f"{self._name}: this process stood still, and another one took the run over: it goes on there"
        )

    def _last(self) -> int:
        """The number of the last attempt, 0 for none."""
        return max((int(info.path.partition(".")[0]) for info in self._store.list()), default=0)

    def _put(self, **more: str) -> None:
        record = {**self._record, "attempt": self.attempt, "heartbeat": _now(), **more}
        self._store.put(_path(self.attempt), json.dumps(record, indent=2).encode())


def _is_gone(holder: dict[str, Any]) -> bool:
    """Whether a holder has ended for sure: it said so, or is no process of this machine any more."""
    if "ended" in holder:
        return True
    if not holder["machine"] or holder["machine"] != _machine() or holder["token"] in _held:
        return False
    if holder["pid"] == os.getpid():
        return True
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # another user's
        return False
    return _process_start(holder["pid"]) not in (holder["process_start"], "")


def _machine() -> str:
    """The boot of the machine and its name space of process ids; "" where they cannot be told."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _process_start(pid: int) -> str:
    """When a process started, in ticks since boot; "gone" for one that ended but was not collected; "" if unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "gone" if fields[0] in ("Z", "X") else fields[19]


def _path(attempt: int) -> str:
    return f"{attempt:08d}.json"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _interrupt(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt
