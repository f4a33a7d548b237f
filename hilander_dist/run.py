"""A run directory: who owns it, how far it got, and when it is complete.

manifest.json, assignments/, clusters/, bad_rows/, metrics.json   what the user came for
inputs/NAME/bad_rows/       of one of several inputs
_work/lease/                who works on it (lease.py)
_work/fingerprint.json      what this run depends on; a run with another fingerprint is refused
_work/markers/NAME.json     a finished stage with its numbers, written after the stage's blocks
_work/...                   blocks of stages
_SUCCESS                    written last
"""

import copy
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import hilander_dist
from hilander_dist.errors import OutputError
from hilander_dist.lease import Lease
from hilander_dist.storage import Storage

WORK = "_work"
SUCCESS = "_SUCCESS"
FINGERPRINT = f"{WORK}/fingerprint.json"
RESULTS = ("assignments/", "clusters/", "tree/", "bad_rows/", "graph/", "inputs/", f"{WORK}/")
RESULT_FILES = ("manifest.json", "metrics.json", "metrics.jsonl", "model.safetensors", "quantizer.safetensors", SUCCESS)


class Run:
    """An output directory owned by one job with one fingerprint.

    To be used in a ``with``: its lease is renewed there, and given back at the end.
    """

    def __init__(self, output: Storage, fingerprint: Mapping[str, Any], restart: bool = False) -> None:
        """Claim a new output directory, or go on in one that a killed run of the same fingerprint left.

        With ``restart`` a run that is there, complete or not and of any fingerprint, is deleted first; other files stay.

        Raises:
            OutputError: the directory holds a complete run, another run (the key that differs is named), or other files;
                or another process works on it.
        """
        self.output = output
        self.work = output.child(WORK)
        _refuse_other_files(output, _found(output), fingerprint, restart)
        self.lease = Lease(self.work, output.uri)
        try:
            found = _found(output)
            _refuse_other_files(output, found, fingerprint, restart)
            if self.lease.attempt > 1:
                output.sweep()
            if restart and found:
                _discard(output, found)
                found = set()
            if FINGERPRINT not in found:
                output.put(FINGERPRINT, json.dumps(fingerprint, indent=2).encode())
        except BaseException:
            self.lease.release()
            raise
        self.saved = frozenset(path.removeprefix(f"{WORK}/") for path in found if path.startswith(f"{WORK}/"))

    def __enter__(self) -> Self:
        self.lease.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.lease.__exit__(*error)

    def part(self, name: str) -> Self:
        """The same run with files of its own in ``_work/NAME`` and ``inputs/NAME``: for one of several inputs."""
        part = copy.copy(self)
        part.output, part.work = self.output.child(f"inputs/{name}"), self.work.child(name)
        part.saved = frozenset(path.removeprefix(f"{name}/") for path in self.saved if path.startswith(f"{name}/"))
        return part

    def marker(self, name: str) -> dict[str, Any] | None:
        """The numbers of a stage that an earlier attempt finished, or None."""
        path = f"markers/{name}.json"
        if path not in self.saved:
            return None
        numbers: dict[str, Any] = self.work.read_json(path)
        return numbers

    def mark(self, name: str, numbers: Mapping[str, Any]) -> None:
        """Record that a stage is finished; call after all its blocks are written.

        Raises:
            OutputError: another process took the run over.
        """
        self.lease.confirm()
        self.work.write_json(f"markers/{name}.json", dict(numbers))

    def succeed(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest, then the marker that makes the directory a result.

        Raises:
            OutputError: another process took the run over.
        """
        self.lease.confirm()
        self.output.sweep()
        self.output.write_json("manifest.json", {**manifest, "attempt": self.lease.attempt})
        self.lease.confirm()
        self.output.put(SUCCESS, b"")


def code_version() -> str:
    """Version of the package and a digest of its sources: an edited checkout is another version."""
    root = Path(hilander_dist.__file__).parent
    digest = hashlib.sha256()
    for source in sorted(root.rglob("*.py")):
        digest.update(source.relative_to(root).as_posix().encode())
        digest.update(source.read_bytes())
    return f"{hilander_dist.__version__}+{digest.hexdigest()[:12]}"


def _found(output: Storage) -> set[str]:
    """The files that are there, but for the leases."""
    return {info.path for info in output.list() if not info.path.startswith(f"{WORK}/lease/")}


def _refuse_other_files(output: Storage, found: set[str], fingerprint: Mapping[str, Any], restart: bool) -> None:
    if restart and found & {FINGERPRINT, SUCCESS}:
        return
    if SUCCESS in found:
        raise OutputError(f"{output.uri} holds a complete run: choose another --output, or discard it with --restart")
    if FINGERPRINT in found:
        _refuse_other_run(output, output.read_json(FINGERPRINT), fingerprint)
    elif found:
        raise OutputError(f"{output.uri} is not empty ({min(found)}): choose another --output, or delete it")


def _discard(output: Storage, found: set[str]) -> None:
    """Delete a run, also when that is itself interrupted: what is left is never taken for more than it is.

    No marker outlives the blocks that it vouches for, and the fingerprint goes last. Of a complete run it may be gone with
    its work area: then one that is nobody's stands in for it.
    """
    if FINGERPRINT not in found:
        output.write_json(FINGERPRINT, {})
    ours = {path for path in found if path.startswith(RESULTS) or path in RESULT_FILES}
    output.delete(SUCCESS)
    markers = {path for path in ours if path.startswith(f"{WORK}/markers/")}
    output.delete_all(sorted(markers))
    output.delete_all(sorted(ours - markers - {FINGERPRINT, SUCCESS}))
    output.delete(FINGERPRINT)


def _refuse_other_run(output: Storage, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    for key, theirs_value, ours_value in _differences("", theirs, ours):
        raise OutputError(
            f"{output.uri} holds an unfinished run that differs in {key} ({_short(theirs_value)} there, {_short(ours_value)} now): "
            "repeat it unchanged to resume, or choose another --output, or discard it with --restart"
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _differences(prefix: str, a: Any, b: Any) -> list[tuple[str, Any, Any]]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        keys = [*a, *(key for key in b if key not in a)]
        return [hit for key in keys for hit in _differences(f"{prefix}.{key}".lstrip("."), a.get(key), b.get(key))]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [hit for i, (x, y) in enumerate(zip(a, b, strict=True)) for hit in _differences(f"{prefix}[{i}]", x, y)]
    return [] if a == b else [(prefix, a, b)]
