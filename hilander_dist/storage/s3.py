"""The keys below a prefix of a bucket, as a ``backend.Backend``.

To try again and to explain is the caller's part. Ranged reads alone are tried again here, each range by itself.
"""

import functools
import io
import os
import uuid
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, BinaryIO, TypeVar, cast

from botocore import exceptions as boto  # type: ignore[import-untyped]
from fsspec.asyn import sync

from hilander_dist.storage.backend import TEMPORARY, Entries, FileInfo, Listing
from hilander_dist.storage.errors import response
from hilander_dist.storage.local import relative

_CHECK_S = 12.0
_CONNECT_S, _READ_S = 5, 15
_SLOWEST_BYTES_PER_S = 1 << 20  # an attempt may last 60 s plus its size over this
_READ_AHEAD = 1 << 22  # a ranged read has the latency of 4 MiB

_T = TypeVar("_T")
_Retry = Callable[[Callable[[], bytes]], bytes]


def look_for_credentials_again() -> None:
    """Drop this process's connections: a client that found no credentials never looks again."""
    _s3_with.cache_clear()


class S3:
    """The keys below a prefix of a bucket."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self._bucket, self._prefix = bucket, prefix

    def _key(self, path: str) -> str:
        return f"{self._prefix}/{relative(path)}".strip("/")

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

    def is_directory(self, path: str) -> bool:
        page = self._call("list_objects_v2", Prefix=self._below(path), MaxKeys=1)
        return bool(page.get("Contents"))

    def scan(self, path: str) -> Listing:
        files: list[FileInfo] = []
        for page in self._pages(Prefix=self._below(path)):
            files += self._files(page)
        return Listing(files, {})

    def entries(self, path: str, prefix: str) -> Entries:
        found = Entries([], [], {})
        for page in self._pages(Prefix=self._below(path) + prefix, Delimiter="/"):
            found.files.extend(self._files(page))
            found.directories.extend(item["Prefix"][self._start : -1] for item in page.get("CommonPrefixes", []))
        return found

    @property
    def _start(self) -> int:
        """Where the path begins in a key."""
        return len(self._prefix) + 1 if self._prefix else 0

    def _below(self, path: str) -> str:
        """What the keys below a directory begin with."""
        key = self._key(path)
        return f"{key}/" if key else ""

    def _pages(self, **request: Any) -> Iterator[dict[str, Any]]:
        while True:
            page = self._call("list_objects_v2", **request)
            yield page
            if not page.get("IsTruncated"):
                return
            request["ContinuationToken"] = page["NextContinuationToken"]

    def _files(self, page: dict[str, Any]) -> list[FileInfo]:
        return [
            FileInfo(item["Key"][self._start :], item["Size"], item["ETag"].strip('"'))
            for item in page.get("Contents", [])
            if not item["Key"].endswith("/")  # some tools mark directories by empty objects
        ]

    def read(self, path: str) -> bytes:
        return cast("bytes", _s3().cat_file(f"{self._bucket}/{self._key(path)}", max_concurrency=1))

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        return cast("bytes", _s3().cat_file(f"{self._bucket}/{self._key(path)}", start=start, end=stop))

    def open(self, path: str, retry: _Retry) -> BinaryIO:
        head = self._call("head_object", Key=self._key(path))

        def fetch(start: int, stop: int) -> bytes:
            return retry(lambda: self._fetch(path, head["ETag"], start, stop))

        return cast("BinaryIO", io.BufferedReader(_RangedFile(head["ContentLength"], fetch), _READ_AHEAD))

    def put(self, path: str, buffers: Sequence[bytes | memoryview]) -> None:
        data = buffers[0] if len(buffers) == 1 else b"".join(buffers)
        _s3().pipe_file(f"{self._bucket}/{self._key(path)}", data, timeout=_attempt_s(len(data)))

    def put_if_absent(self, path: str, data: bytes, token: str) -> bool:
        key = self._key(path)
        try:
            self._call("put_object", Key=key, Body=data, IfNoneMatch="*", Metadata={"writer": token})
        except OSError as error:
            if response(error)[0] not in ("PreconditionFailed", "412"):
                raise
            # The winner may be an attempt of our own, whose answer was lost: the token tells.
            try:
                return bool(self._call("head_object", Key=key).get("Metadata", {}).get("writer") == token)
            except FileNotFoundError:
                return False
        return True

    def delete(self, paths: Sequence[str]) -> None:
        keys = [{"Key": self._key(path)} for path in paths]
        for start in range(0, len(keys), 1000):
            answer = self._call("delete_objects", Delete={"Objects": keys[start : start + 1000], "Quiet": True})
            for failure in answer.get("Errors", []):
                raise boto.ClientError({"Error": failure}, "DeleteObjects")

    def sweep(self) -> None:
        pass  # a put that was cut off leaves no key

    def check_readable(self) -> None:
        async def check(s3: Any) -> None:
            keys = await self._first_key(s3)
            if keys or self._prefix:
                await s3._call_s3("head_object", Bucket=self._bucket, Key=keys[0] if keys else self._prefix)

        _sync(check, _CHECK_S)

    def check_writable(self) -> None:
        async def check(s3: Any) -> None:
            await self._first_key(s3)
            probe = {"Bucket": self._bucket, "Key": self._key(f"{TEMPORARY}{uuid.uuid4().hex}")}
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

    one_attempt = {"total_max_attempts": 1}  # `storage._guard` is the only loop that tries again
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
