"""Files below one URI, with the same behaviour on a local disk and on S3.

    storage = Storage("s3://bucket/runs/7")
    storage.write_json("manifest.json", {"levels": 3})
    storage.child("level_0").list()

Notable:

- A write is atomic: a reader finds the old file, the new one or none. A listing is never cached.
- Every failure becomes one line that names the URI, the cause and the remedy (`_diagnose`). What time may heal (an
  outage, throttling) is tried again for 60 s, except in the `check_*` functions, which answer within 20 s (`_guard`).
- S3 is set up by the usual AWS_* variables (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, ...) alone.
"""

import contextlib
import errno
import functools
import glob
import io
import json
import os
import random
import re
import shutil
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Any, BinaryIO, TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy
from botocore import exceptions as boto  # type: ignore[import-untyped]
from fsspec.asyn import sync
from fsspec.utils import glob_translate
from safetensors import SafetensorError

from hilander_dist.errors import HilanderError, InputError, StorageError

_PATIENCE_S = 60.0  # a restarting S3 server or a throttled prefix is back within a minute
_CHECK_S = 12.0
_CONNECT_S, _READ_S = 5, 15
_SLOWEST_BYTES_PER_S = 1 << 20  # an attempt may last 60 s plus its size over this
_READ_AHEAD = 1 << 22  # a ranged read has the latency of 4 MiB
_TEMPORARY = ".writing-"
_SUFFIXES = (".parquet", ".npy")

_T = TypeVar("_T")
_Retry = Callable[[Callable[[], bytes]], bytes]


@dataclass(frozen=True, slots=True, order=True)
class FileInfo:
    """A file: path relative to the storage that listed it, size in bytes, and a tag that changes with the content."""

    path: str
    size: int
    tag: str
    """S3: the ETag. Local: modification time in ns and size."""


_Files = list[FileInfo]  # `list` means a method inside the classes below


class Storage:
    """The files below a URI: a local path, file:///path or s3://bucket/prefix.

    Paths are relative, with forward slashes; "" is the URI itself where it names a file. Small and picklable:
    connections belong to the process, not to the object. All methods raise StorageError (see the module's docstring).
    """

    def __init__(self, uri: str) -> None:
        scheme, separator, rest = uri.partition("://")
        self._backend: _Local | _S3
        if not separator or (scheme == "file" and rest.startswith("/")):
            self.uri = os.path.abspath(os.path.expanduser(rest if separator else uri))  # noqa: PTH100, PTH111 (Path keeps "..")
            self._backend = _Local(self.uri)
        elif scheme == "s3" and rest.strip("/"):
            self.uri = f"s3://{rest.strip('/')}"
            bucket, _, prefix = rest.strip("/").partition("/")
            self._backend = _S3(bucket, prefix)
        else:
            raise StorageError(
                f"{uri}: not a location that can be used; give a local path, file:///path or s3://bucket/prefix"
            )

    def __repr__(self) -> str:
        return f"Storage({self.uri!r})"

    def child(self, path: str) -> "Storage":
        """Return the storage of the directory `path`."""
        return Storage(self._full(path))

    def exists(self, path: str = "") -> bool:
        """Tell whether `path` is a file. A directory is none: S3 has no directories."""
        return self._run(path, lambda: self._backend.info(path)) is not None

    def list(self, path: str = "") -> _Files:
        """List the files below the directory `path`, recursively, sorted by path; [] where there are none."""
        return sorted(self._run(path, lambda: self._backend.list(path)))

    def read_bytes(self, path: str = "") -> bytes:
        """Read a whole file, on S3 in one stream. The peak of memory is twice its size."""
        return self._run(path, lambda: self._backend.read(path))

    def open(self, path: str = "") -> BinaryIO:
        """Open a file for random access; on S3 a read fetches a range, 4 MiB at least. The file must not change."""
        return self._run(path, lambda: self._backend.open(path, functools.partial(self._run, path)))

    def put(self, path: str, data: bytes) -> None:
        """Write a file, atomically; an existing one is replaced."""
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
        # safetensors copies the memory of an array and ignores its strides.
        self.put(path, safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in block.items()}))

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
            detail = f"cannot be read as {kind} ({_one_line(error)})"
            raise StorageError(
                f"{self._full(path)}: {detail}; write it again, or check that it is the right file"
            ) from error

    def _run(self, path: str, action: Callable[[], _T]) -> _T:
        return _guard(self._full(path), action, patience_s=_PATIENCE_S)


def check_readable(uri: str) -> None:
    """Raise StorageError within 20 s unless `uri` (a file, a directory or a glob) exists and can be listed and read."""
    storage = Storage(_split_glob(uri)[0])
    _guard(uri, storage._backend.check_readable, patience_s=0)


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
    with contextlib.suppress(_MissingError):
        _guard(uri, storage._backend.check_readable, patience_s=0)
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


def _why_nothing_matches(base: str, files: _Files, matching: _Files) -> str:
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


class _MissingError(StorageError):
    """A file or directory does not exist."""


class _Local:
    """A directory of a mounted file system."""

    def __init__(self, root: str) -> None:
        self._root = root

    def _at(self, path: str) -> Path:
        return Path(self._root, _relative(path))

    def info(self, path: str) -> FileInfo | None:
        try:
            stat = self._at(path).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return FileInfo(path, stat.st_size, f"{stat.st_mtime_ns}-{stat.st_size}") if S_ISREG(stat.st_mode) else None

    def list(self, path: str) -> _Files:
        top = self._at(path)
        if not top.is_dir():
            return []
        files = []
        for directory, _, names in os.walk(top, onerror=_raise_unless_gone, followlinks=True):
            for name in names:
                full = Path(directory, name)
                # A file may go away while the walk is under way (a temporary one, or another task's).
                if not name.startswith(_TEMPORARY) and (info := self.info(str(full.relative_to(self._root)))):
                    files.append(info)
        return files

    def read(self, path: str) -> bytes:
        return self._at(path).read_bytes()

    def open(self, path: str, _: _Retry) -> BinaryIO:
        return self._at(path).open("rb")

    def put(self, path: str, data: bytes) -> None:
        with self._written(path, data) as temporary:
            temporary.replace(self._at(path))

    def put_if_absent(self, path: str, data: bytes, _: str) -> bool:
        with self._written(path, data) as temporary:
            try:
                self._at(path).hardlink_to(
                    temporary
                )  # fails where the name exists, and shows the whole content where not
            except FileExistsError:
                return False
            return True

    def delete(self, path: str) -> None:
        self._at(path).unlink(missing_ok=True)

    def delete_tree(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._at(path))

    def check_readable(self) -> None:
        top = self._at("")
        if top.is_dir():
            with os.scandir(top):
                pass
        else:
            with top.open("rb"):
                pass

    def check_writable(self) -> None:
        with self._written("probe", b"probe"):
            pass

    @contextlib.contextmanager
    def _written(self, path: str, data: bytes) -> Iterator[Path]:
        """Write `data` to a temporary file in the directory of `path`; it is gone afterwards."""
        temporary = self._at(path).with_name(f"{_TEMPORARY}{uuid.uuid4().hex}")
        temporary.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)


class _S3:
    """The keys below a prefix of a bucket."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self._bucket, self._prefix = bucket, prefix

    def _key(self, path: str) -> str:
        return f"{self._prefix}/{_relative(path)}".strip("/")

    def _call(self, method: str, **arguments: Any) -> dict[str, Any]:
        return cast("dict[str, Any]", _s3().call_s3(method, Bucket=self._bucket, timeout=_attempt_s(0), **arguments))

    def info(self, path: str) -> FileInfo | None:
        if not self._key(path):
            return None
        try:
            head = self._call("head_object", Key=self._key(path))
        except FileNotFoundError:
            return None
        return FileInfo(path, head["ContentLength"], head["ETag"].strip('"'))

    def list(self, path: str) -> _Files:
        key = self._key(path)
        start = len(self._prefix) + 1 if self._prefix else 0
        request: dict[str, Any] = {"Prefix": f"{key}/" if key else ""}
        files: _Files = []
        while True:
            page = self._call("list_objects_v2", **request)
            files += [
                FileInfo(item["Key"][start:], item["Size"], item["ETag"].strip('"'))
                for item in page.get("Contents", [])
                if not item["Key"].endswith("/")  # some tools mark directories by empty objects
            ]
            if not page.get("IsTruncated"):
                return files
            request["ContinuationToken"] = page["NextContinuationToken"]

    def read(self, path: str) -> bytes:
        return cast("bytes", _s3().cat_file(f"{self._bucket}/{self._key(path)}", max_concurrency=1))

    def open(self, path: str, retry: _Retry) -> BinaryIO:
        head = self._call("head_object", Key=self._key(path))

        def fetch(start: int, stop: int) -> bytes:
            return retry(lambda: self._fetch(path, head["ETag"], start, stop))

        return cast("BinaryIO", io.BufferedReader(_RangedFile(head["ContentLength"], fetch), _READ_AHEAD))

    def put(self, path: str, data: bytes) -> None:
        _s3().pipe_file(f"{self._bucket}/{self._key(path)}", data, timeout=_attempt_s(len(data)))

    def put_if_absent(self, path: str, data: bytes, token: str) -> bool:
        key = self._key(path)
        try:
            self._call("put_object", Key=key, Body=data, IfNoneMatch="*", Metadata={"writer": token})
        except OSError as error:
            if _response(error)[0] not in ("PreconditionFailed", "412"):
                raise
            # The winner may be an attempt of our own, whose answer was lost: the token tells.
            try:
                return bool(self._call("head_object", Key=key).get("Metadata", {}).get("writer") == token)
            except FileNotFoundError:
                return False
        return True

    def delete(self, path: str) -> None:
        self._call("delete_object", Key=self._key(path))

    def delete_tree(self, path: str) -> None:
        keys = [{"Key": self._key(file.path)} for file in self.list(path)]
        for start in range(0, len(keys), 1000):
            answer = self._call("delete_objects", Delete={"Objects": keys[start : start + 1000], "Quiet": True})
            for failure in answer.get("Errors", []):
                raise boto.ClientError({"Error": failure}, "DeleteObjects")

    def check_readable(self) -> None:
        async def check(s3: Any) -> None:
            keys = await self._first_key(s3)
            if keys or self._prefix:
                await s3._call_s3("head_object", Bucket=self._bucket, Key=keys[0] if keys else self._prefix)

        _sync(check, _CHECK_S)

    def check_writable(self) -> None:
        async def check(s3: Any) -> None:
            await self._first_key(s3)
            probe = {"Bucket": self._bucket, "Key": self._key(f"{_TEMPORARY}{uuid.uuid4().hex}")}
            await s3._call_s3("put_object", Body=b"probe", **probe)
            await s3._call_s3("delete_object", **probe)

        _sync(check, _CHECK_S)

    async def _first_key(self, s3: Any) -> Sequence[str]:
        # Checks begin with a listing: the answer to HEAD has no body to tell a wrong key from a wrong secret, and some
        # servers answer a write to a missing bucket with 403.
        prefix = f"{self._prefix}/" if self._prefix else ""
        page = await s3._call_s3("list_objects_v2", Bucket=self._bucket, Prefix=prefix, MaxKeys=1)
        return [item["Key"] for item in page.get("Contents", [])]

    def _fetch(self, path: str, tag: str, start: int, stop: int) -> bytes:
        async def fetch(s3: Any) -> bytes:
            byte_range = f"bytes={start}-{stop - 1}"
            answer = await s3._call_s3(
                "get_object", Bucket=self._bucket, Key=self._key(path), Range=byte_range, IfMatch=tag
            )
            async with answer["Body"] as body:
                return cast("bytes", await body.read())

        return _sync(fetch, _attempt_s(stop - start))


def _relative(path: str) -> str:
    assert not path.startswith("/"), path
    assert ".." not in path.split("/"), path
    return path


class _RangedFile(io.RawIOBase):
    """A file of `size` bytes whose range start..stop-1 is what `fetch(start, stop)` returns."""

    def __init__(self, size: int, fetch: Callable[[int, int], bytes]) -> None:
        self._size, self._fetch, self._position = size, fetch, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence])
        return self._position

    def readinto(self, buffer: Any) -> int:
        stop = min(self._position + len(buffer), self._size)
        if stop <= self._position:
            return 0
        data = self._fetch(self._position, stop)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def _s3() -> Any:
    """Return this process's s3fs file system for the present AWS_* variables."""
    return _s3_with(tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_"))))


@functools.lru_cache(maxsize=4)
def _s3_with(_: tuple[tuple[str, str], ...]) -> Any:
    import s3fs  # 0.5 s that local runs are spared

    one_attempt = {"total_max_attempts": 1}  # `_guard` is the only loop that tries again
    filesystem = s3fs.S3FileSystem(
        anon=False,
        skip_instance_cache=True,  # s3fs's own cache does not look at the environment
        use_listings_cache=False,
        max_concurrency=4,  # parts of 50 MB in flight
        config_kwargs={"connect_timeout": _CONNECT_S, "read_timeout": _READ_S, "retries": one_attempt},
    )
    filesystem.retries = 1
    return filesystem


def _sync(work: Callable[[Any], Coroutine[Any, Any, _T]], timeout_s: float) -> _T:
    s3 = _s3()
    return cast("_T", sync(s3.loop, work, s3, timeout=timeout_s))


def _attempt_s(size: int) -> float:
    return 60 + size / _SLOWEST_BYTES_PER_S


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
            cause, remedy, passing = _diagnose(error)
            if not cause:
                raise
            now = time.monotonic()
            deadline = now + patience_s if deadline is None else deadline
            if not passing or now + pause_s > deadline:
                kind = _MissingError if cause.startswith("no such ") else StorageError
                tried = f" (tried for {patience_s:.0f} s)" if passing and patience_s else ""
                raise kind(f"{uri}: {cause}{tried}; {remedy}") from error
            if isinstance(error, boto.NoCredentialsError):
                _s3_with.cache_clear()  # a client that found no credentials never looks again
        time.sleep(pause_s * random.uniform(0.5, 1.0))  # spread out, as all tasks fail at the same moment
        pause_s = min(2 * pause_s, 5.0)


_KEY_REMEDY = (
    "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and that they belong to the server at AWS_ENDPOINT_URL"
)
_RENEW_REMEDY = "renew AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN"
_REGION = ("the bucket is in another region", "set AWS_DEFAULT_REGION to the bucket's region")
_EXPIRED = ("the S3 credentials have expired", _RENEW_REMEDY)
_DENIED = ("access is denied (403)", "check that the key in AWS_ACCESS_KEY_ID may list, read and write in this bucket")
_NO_OBJECT = ("no such object (404)", "check the path, the bucket name and AWS_ENDPOINT_URL")
_CHANGED = ("the file changed while it was read (412)", "start again when its writer has finished")
_S3_CODES = {
    "InvalidAccessKeyId": ("the server does not know the access key (403)", _KEY_REMEDY),
    "SignatureDoesNotMatch": ("the secret key does not fit the access key (403)", _KEY_REMEDY),
    "ExpiredToken": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "InvalidToken": ("the session token is not valid", _RENEW_REMEDY),
    "AccessDenied": _DENIED,
    "403": _DENIED,
    "NoSuchBucket": (
        "the bucket does not exist (404)",
        "check the bucket name and AWS_ENDPOINT_URL, or create the bucket",
    ),
    "InvalidBucketName": ("this is no name that a bucket can have", "check the bucket name"),
    "NoSuchKey": _NO_OBJECT,
    "404": _NO_OBJECT,
    "PreconditionFailed": _CHANGED,
    "412": _CHANGED,
    "PermanentRedirect": _REGION,
    "301": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "RequestTimeTooSkewed": ("this machine's clock differs from the server's", "set the clock"),
}
_PASSING_CODES = {"SlowDown", "RequestTimeout", "OperationAborted", "ConditionalRequestConflict", "Throttling", "429"}
_LATE_CREDENTIALS = (boto.NoCredentialsError, boto.CredentialRetrievalError)  # a metadata service may be busy
_CREDENTIAL_ERRORS = (*_LATE_CREDENTIALS, boto.PartialCredentialsError, boto.TokenRetrievalError, boto.ProfileNotFound)
_NETWORK_ERRORS = (TimeoutError, ConnectionError, boto.HTTPClientError, boto.ConnectionError, boto.IncompleteReadError)
_DISK_ERRORS = {
    errno.ENOENT: ("no such file or directory", "check the path, and that every node of the cluster sees it"),
    errno.EACCES: ("permission is denied", "check the owner and the mode of the path and of the directories above it"),
    errno.EPERM: ("permission is denied", "check the owner and the mode of the path and of the directories above it"),
    errno.EEXIST: ("a file is where a directory is needed", "move the file away, or choose another path"),
    errno.ENOTDIR: ("a file is where a directory is needed", "move the file away, or choose another path"),
    errno.EISDIR: ("a directory is where a file is needed", "name a file in it"),
    errno.ENOSPC: ("the disk is full", "free some space, or choose another path"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, or choose another path"),
    errno.EROFS: ("the file system is read-only", "choose another path"),
}


def _diagnose(error: Exception) -> tuple[str, str, bool]:
    """Return cause, remedy and whether time may heal it; no cause for what is no failure of the storage."""
    import aiohttp  # 0.3 s that runs without an error are spared

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "of AWS"
    code, status, message = _response(error)
    if code:
        passing = code in _PASSING_CODES or status == 429 or (status >= 500 and status != 501)
        other = (f"the S3 server answers {code} ({message})", "check AWS_ENDPOINT_URL and the log of the server")
        return *_S3_CODES.get(code, other), passing
    if isinstance(error, _CREDENTIAL_ERRORS):
        remedy = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        return f"no S3 credentials ({_one_line(error)})", remedy, isinstance(error, _LATE_CREDENTIALS)
    if isinstance(error, boto.SSLError):
        return (
            f"no TLS with the S3 endpoint {endpoint}",
            "check http:// or https:// in AWS_ENDPOINT_URL, and AWS_CA_BUNDLE",
            True,
        )
    if isinstance(error, (*_NETWORK_ERRORS, aiohttp.ClientError)):
        cause = f"the S3 endpoint {endpoint} cannot be reached ({type(error).__name__})"
        return cause, "check AWS_ENDPOINT_URL, the network, and that the server runs", True
    if isinstance(error, boto.ParamValidationError):
        return _one_line(error), "check the bucket name", False
    if isinstance(error, boto.BotoCoreError) or (isinstance(error, ValueError) and "nvalid endpoint" in str(error)):
        return (
            f"S3 cannot be set up ({_one_line(error)})",
            "check AWS_ENDPOINT_URL and the other AWS_* variables",
            False,
        )
    if isinstance(error, OSError):
        number = error.errno or (errno.ENOENT if isinstance(error, FileNotFoundError) else 0)
        return *_DISK_ERRORS.get(number, (_one_line(error), "check the disk")), False
    return "", "", False


def _response(error: BaseException | None) -> tuple[str, int, str]:
    """Return code, HTTP status and message of the S3 answer that an error stems from; no code where there is none."""
    while error is not None:
        if isinstance(error, boto.ClientError):
            failure = error.response.get("Error", {})
            status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
            return str(failure.get("Code") or status), status, _one_line(failure.get("Message", ""))
        error = error.__cause__
    return "", 0, ""


def _one_line(text: object) -> str:
    return " ".join(str(text).split())[:300]


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
