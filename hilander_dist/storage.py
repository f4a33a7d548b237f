"""Files below one URI, with the same behaviour on a local disk and on S3.

    storage = Storage("s3://bucket/runs/7")
    storage.write_json("manifest.json", {"levels": 3})
    storage.child("level_0").list()

Notable:

- A write is atomic: a reader finds the old file, the new one or none. A listing is never cached.
- Every failure becomes one line that names the URI, the cause and the remedy (storage_errors.py). What time may heal (an
  outage, throttling) is tried again for 60 s, except in the `check_*` functions, which answer within 20 s (`_guard`).
- S3 is set up by the usual AWS_* variables (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, ...) alone.
"""

import contextlib
import functools
import glob
import io
import json
import random
import re
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy
from botocore import exceptions as boto  # type: ignore[import-untyped]
from fsspec.utils import glob_translate
from safetensors import SafetensorError

from hilander_dist.errors import HilanderError, InputError, StorageError
from hilander_dist.storage_backends import FileInfo, Files, backend_of, look_for_credentials_again
from hilander_dist.storage_errors import diagnose, one_line

__all__ = ["FileInfo", "Storage", "check_reachable", "check_readable", "list_inputs"]

_PATIENCE_S = 60.0  # a restarting S3 server or a throttled prefix is back within a minute
_SUFFIXES = (".parquet", ".npy")
_SAFETENSORS_TYPES = {
    f"{kind}{bits}": f"{kind[0].upper()}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)
}
_SAFETENSORS_TYPES |= {"float16": "F16", "float32": "F32", "float64": "F64", "bool": "BOOL"}

_T = TypeVar("_T")


class Storage:
    """The files below a URI: a local path, file:///path or s3://bucket/prefix.

    Paths are relative, with forward slashes; "" is the URI itself where it names a file. Small and picklable:
    connections belong to the process, not to the object. All methods raise StorageError (see the module's docstring).
    """

    def __init__(self, uri: str) -> None:
        self.uri, self._backend = backend_of(uri)

    def __repr__(self) -> str:
        return f"Storage({self.uri!r})"

    def child(self, path: str) -> "Storage":
        """Return the storage of the directory `path`."""
        return Storage(self._full(path))

    def exists(self, path: str = "") -> bool:
        """Tell whether `path` is a file. A directory is none: S3 has no directories."""
        return self._run(path, lambda: self._backend.info(path)) is not None

    def list(self, path: str = "") -> Files:
        """List the files below the directory `path`, recursively, sorted by path; [] where there are none."""
        return sorted(self._run(path, lambda: self._backend.list(path)))

    def read_bytes(self, path: str = "") -> bytes:
        """Read a whole file, on S3 in one stream. The peak of memory is twice its size."""
        return self._run(path, lambda: self._backend.read(path))

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
        self._run(path, lambda: self._backend.delete(path))

    def delete_tree(self, path: str = "") -> None:
        """Delete the directory `path` with all files below it; a missing one is no error."""
        self._run(path, lambda: self._backend.delete_tree(path))

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
    storage = Storage(_split_glob(uri)[0])
    _guard(uri, storage._backend.check_readable, patience_s=0)


def check_reachable(uri: str) -> None:
    """Raise StorageError within 20 s unless the place of `uri` answers; that nothing is there is no error."""
    with contextlib.suppress(_MissingError):
        check_readable(uri)


def list_inputs(uri: str) -> tuple[Storage, list[FileInfo]]:
    """Find the input files that `uri` means.

    Args:
        uri: a file, a directory (everything below it), or a glob (`*`, `?`, `[ab]`, and `**` for any directories).

    Returns:
        A storage and the files in it, sorted by path: all .parquet or all .npy. Of directories and globs, names that
        begin with "." or "_" are left out, and so are other suffixes.

    Raises:
        InputError: nothing matches, or both kinds do.
        StorageError: the location cannot be read.
    """
    base, pattern = _split_glob(uri)
    storage = Storage(base)
    check_reachable(uri)
    single = None if pattern else storage._run("", lambda: storage._backend.info(""))
    if single is not None:
        parent, _, name = storage.uri.rpartition("/")
        storage, files = Storage(parent or "/"), [FileInfo(name, single.size, single.tag)]
    else:
        files = [
            file for file in storage.list() if not any(part.startswith((".", "_")) for part in file.path.split("/"))
        ]
    matching = files if not pattern else [file for file in files if re.match(glob_translate(pattern), file.path)]
    found = [file for file in matching if file.path.endswith(_SUFFIXES)]
    if not found:
        raise InputError(f"{uri}: {_why_nothing_matches(base, files, matching)}")
    if len({file.path.rpartition(".")[2] for file in found}) > 1:
        example = f"{base.rstrip('/')}/**/*.parquet"
        raise InputError(f"{uri}: holds both .parquet and .npy files; name one kind with a glob, such as {example}")
    return storage, found


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


def _why_nothing_matches(base: str, files: Files, matching: Files) -> str:
    if matching:
        return f"none of the {len(matching)} files ends in .parquet or .npy ({matching[0].path}, ...); convert them"
    if files:
        return f"none of the {len(files)} files below {base} matches ({files[0].path}, ...); check the pattern"
    if base.startswith("s3://"):
        return (
            "there is no object below this prefix, or only hidden ones ('.', '_'); check the bucket name and the prefix"
        )
    if Path(Storage(base).uri).is_dir():
        return "the directory is empty, or holds only hidden files ('.', '_'); check the path"
    return "no such file or directory; check the path, and that every node of the cluster sees it"


def _split_glob(uri: str) -> tuple[str, str]:
    """Split a URI into the directory above its first wildcard and the pattern below it ("" without a wildcard)."""
    parts = uri.split("/")
    first = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    base = "/".join(parts[:first])
    return base or ("/" if uri.startswith("/") else "."), "/".join(parts[first:])


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
                raise kind(f"{uri}: {cause}{tried}; {remedy}") from error
            if isinstance(error, boto.NoCredentialsError):
                look_for_credentials_again()
        time.sleep(pause_s * random.uniform(0.5, 1.0))  # spread out, as all tasks fail at the same moment
        pause_s = min(2 * pause_s, 5.0)


class _MissingError(StorageError):
    """A file or directory does not exist."""
