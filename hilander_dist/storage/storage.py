"""Files below one URI, with the same behaviour on a local disk and on S3.

    storage = Storage("s3://bucket/runs/7")
    storage.write_json("manifest.json", {"levels": 3})
    storage.child("level_0").list()

Notable:

- A write is atomic: a reader finds the old file, the new one or none. A listing is never cached.
- Every failure becomes one line that names the URI, the cause and the remedy (errors.py). What time may heal (an
  outage, throttling) is tried again for 60 s, except in the `check_*` functions, which answer within 20 s (`_guard`).
- S3 is set up by the usual AWS_* variables (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, ...) alone.
"""

import contextlib
import functools
import glob
import io
import json
import os
import random
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy
from botocore import exceptions as boto  # type: ignore[import-untyped]
from safetensors import SafetensorError

from hilander_dist.errors import HilanderError, StorageError, redact
from hilander_dist.storage.backend import Backend, Entries, FileInfo, Listing
from hilander_dist.storage.errors import diagnose, one_line
from hilander_dist.storage.local import Local
from hilander_dist.storage.s3 import S3, look_for_credentials_again

_PATIENCE_S = 60.0  # a restarting S3 server or a throttled prefix is back within a minute
_SAFETENSORS_TYPES = {
    f"{kind}{bits}": f"{kind[0].upper()}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)
}
_SAFETENSORS_TYPES |= {"float16": "F16", "float32": "F32", "float64": "F64", "bool": "BOOL"}

Files = list[FileInfo]  # `list` means a method inside the class below

_T = TypeVar("_T")


class Storage:
    """The files below a URI: a local path, file:///path or s3://bucket/prefix.

    Paths are relative, with forward slashes; "" is the URI itself where it names a file. Small and picklable:
    connections belong to the process, not to the object. All methods raise StorageError (see the module's docstring).
    """

    def __init__(self, uri: str) -> None:
        self._backend: Backend
        self.uri, self._backend = _backend_of(uri)

    def __repr__(self) -> str:
        return f"Storage({self.uri!r})"

    def child(self, path: str) -> "Storage":
        """Return the storage of the directory `path`."""
        return Storage(self._full(path))

    def exists(self, path: str = "") -> bool:
        """Tell whether `path` is a file. A directory is none: S3 has no directories."""
        return self._run(path, lambda: self._backend.info(path)) is not None

    def info(self, path: str = "") -> FileInfo | None:
        """Size and tag of a file; None where `path` is none."""
        return self._run(path, lambda: self._backend.info(path))

    def is_directory(self, path: str = "") -> bool:
        """Tell whether `path` is a directory; on S3, whether a key begins with it and a slash."""
        return self._run(path, lambda: self._backend.is_directory(path))

    def list(self, path: str = "") -> Files:
        """List the files below the directory `path`, recursively, sorted by path; [] where there are none."""
        return sorted(self.scan(path).files)

    def scan(self, path: str = "") -> Listing:
        """List all that is below the directory `path`, recursively, unsorted; also what is no file."""
        return self._run(path, lambda: self._backend.scan(path))

    def entries(self, path: str = "", prefix: str = "") -> Entries:
        """List what stands in the directory `path` with a name that begins with `prefix`, unsorted; nothing below it."""
        return self._run(path, lambda: self._backend.entries(path, prefix))

    def read_bytes(self, path: str = "") -> bytes:
        """Read a whole file, on S3 in one stream. The peak of memory is twice its size."""
        return self._run(path, lambda: self._backend.read(path))

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        """Read the bytes start .. stop - 1 of a file that is not empty, fewer where it ends before."""
        return self._run(path, lambda: self._backend.read_range(path, start, stop))

    def open(self, path: str = "") -> BinaryIO:
        """Open a file for random access; on S3 a read fetches a range, 4 MiB at least. The file must not change."""
        return self._run(path, lambda: self._backend.open(path, functools.partial(self._run, path)))

    def put(self, path: str, *data: bytes | memoryview) -> None:
        """Write a file of these bytes, one after another, atomically; an existing one is replaced."""
        self._run(path, lambda: self._backend.put(path, data))

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Write a file unless one exists, atomically; of concurrent callers exactly one gets True."""
        token = uuid.uuid4().hex
        return self._run(path, lambda: self._backend.put_if_absent(path, data, token))

    def delete(self, path: str = "") -> None:
        """Delete a file; a missing one is no error."""
        self._run(path, lambda: self._backend.delete([path]))

    def delete_all(self, paths: Iterable[str]) -> None:
        """Delete files, on S3 a thousand in a request; missing ones are no error."""
        rest = list(paths)
        self._run("", lambda: self._backend.delete(rest))

    def sweep(self) -> None:
        """Delete what killed writers left half written. Nobody may be writing."""
        self._run("", self._backend.sweep)

    def check_writable(self) -> None:
        """Raise StorageError within 20 s unless files can be written and deleted here. Creates a local directory."""
        _guard(self.uri, self._backend.check_writable, patience_s=0)

    def write_table(self, path: str, table: pa.Table) -> None:
        """Write a Parquet file (zstd), atomically. The peak of memory is twice the file's size, beside the table."""
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        self.put(path, sink.getvalue())

    def read_table(self, path: str = "", columns: Sequence[str] | None = None) -> pa.Table:
        """Read a Parquet file, or only some of its columns. One thread, as a task has one core."""
        with self.open(path) as file, self._parsing(path, "Parquet"):
            return pq.read_table(
                file, columns=None if columns is None else [*columns], use_threads=False, partitioning=None
            )

    def write_json(self, path: str, value: Any) -> None:
        """Write a value as JSON (indented, keys in the given order), atomically."""
        self.put(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())

    def read_json(self, path: str = "") -> Any:
        """Read a JSON file."""
        data = self.read_bytes(path)
        with self._parsing(path, "JSON"):
            return json.loads(data)

    def write_block(self, path: str, block: dict[str, np.ndarray]) -> None:
        """Write named arrays of numbers or booleans as safetensors, atomically. Equal arrays give equal bytes."""
        self.put(path, *_safetensors_buffers(block))

    def read_block(self, path: str = "") -> dict[str, np.ndarray]:
        """Read what `write_block` wrote: same dtypes and shapes, C order, writeable, sorted by name."""
        data = self.read_bytes(path)
        with self._parsing(path, "safetensors"):
            return dict(sorted(safetensors.numpy.load(data).items()))

    def _full(self, path: str) -> str:
        return f"{self.uri.rstrip('/')}/{path}".rstrip("/") if path else self.uri

    @contextlib.contextmanager
    def _parsing(self, path: str, kind: str) -> Iterator[None]:
        try:
            yield
        except (ValueError, SafetensorError, pa.ArrowException) as error:
            detail = f"cannot be read as {kind} ({one_line(error)})"
            raise StorageError(
                f"{self._full(path)}: {detail}; write it again, or check that it is the right file"
            ) from error

    def _run(self, path: str, action: Callable[[], _T]) -> _T:
        return _guard(self._full(path), action, patience_s=_PATIENCE_S)


def check_readable(uri: str) -> None:
    """Raise StorageError within 20 s unless `uri` (a file, a directory or a glob) exists and can be listed and read."""
    base, pattern = split_glob(uri)
    try:
        _guard(uri, Storage(uri)._backend.check_readable, patience_s=0)
    except _MissingError:
        if not pattern:
            raise
        _guard(uri, Storage(base)._backend.check_readable, patience_s=0)


def check_reachable(uri: str) -> None:
    """Raise StorageError within 20 s unless the place of `uri` answers; that nothing is there is no error."""
    with contextlib.suppress(_MissingError):
        check_readable(uri)


def _safetensors_buffers(block: dict[str, np.ndarray]) -> list[bytes | memoryview]:
    """The format's header, then the arrays' own memory: the library's `save` makes two copies of it.

    Wider types come first, so that every array is aligned in the file.
    """
    arrays = {name: np.ascontiguousarray(array) for name, array in block.items()}
    header: dict[str, Any] = {}
    end = 0
    order = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    for name in order:
        array = arrays[name]
        kind = _SAFETENSORS_TYPES[array.dtype.name]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little"), text, *(arrays[name].reshape(-1).view(np.uint8).data for name in order)]


def split_glob(uri: str) -> tuple[str, str]:
    """Split a URI into the directory above its first wildcard and the pattern below it ("" without a wildcard)."""
    parts = uri.split("/")
    first = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    base = "/".join(parts[:first])
    return base or ("/" if uri.startswith("/") else "."), "/".join(parts[first:])


def _backend_of(uri: str) -> tuple[str, Backend]:
    """Return a URI in its plain form, and the backend for what is below it.

    Raises:
        StorageError: the URI is neither a local path, nor file:///path, nor s3://bucket/prefix.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator or (scheme == "file" and rest.startswith("/")):
        root = os.path.abspath(os.path.expanduser(rest if separator else uri))  # noqa: PTH100, PTH111 (Path keeps "..")
        return root, Local(root)
    if scheme == "s3" and rest.strip("/"):
        bucket, _, prefix = rest.strip("/").partition("/")
        return f"s3://{rest.strip('/')}", S3(bucket, prefix)
    raise StorageError(f"{uri}: not a location that can be used; give a local path, file:///path or s3://bucket/prefix")


def _guard(uri: str, action: Callable[[], _T], patience_s: float) -> _T:
    """Run an idempotent action; after a failure that time may heal, try again for `patience_s`."""
    deadline = None
    pause_s = 0.2
    while True:
        try:
            return action()
        except HilanderError:
            raise
        except Exception as error:
            cause, remedy, passing = diagnose(error)
            if not cause:
                raise
            now = time.monotonic()
            deadline = now + patience_s if deadline is None else deadline
            if not passing or now + pause_s > deadline:
                kind = _MissingError if cause.startswith("no such ") else StorageError
                tried = f" (tried for {patience_s:.0f} s)" if passing and patience_s else ""
                hidden = redact(str(error)) != str(error)  # a traceback would print the password
                raise kind(f"{uri}: {cause}{tried}; {remedy}") from None if hidden else error
            if isinstance(error, boto.NoCredentialsError):
                look_for_credentials_again()
        time.sleep(pause_s * random.uniform(0.5, 1.0))  # spread out, as all tasks fail at the same moment
        pause_s = min(2 * pause_s, 5.0)


class _MissingError(StorageError):
    """A file or directory does not exist."""
