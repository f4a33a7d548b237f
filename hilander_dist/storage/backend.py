"""What ``storage.Storage`` asks of a local disk and of S3, and what a listing tells of files and directories."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple, Protocol

TEMPORARY = ".writing-"
"""Names of files that are being written begin so; no listing shows them."""

MISSING_TARGET = "a link whose target is missing"
LOOP = "a link back to a directory above it"
SPECIAL = "neither a file nor a directory"


@dataclass(frozen=True, slots=True, order=True)
class FileInfo:
    """A file: path relative to the storage that listed it, size in bytes, and a tag that changes with the content."""

    path: str
    size: int
    tag: str
    """S3: the ETag. Local: modification time in ns and size."""


class Listing(NamedTuple):
    """All that is below a directory."""

    files: list[FileInfo]
    odd: dict[str, str]
    """Path of whatever is no file, and what it is: MISSING_TARGET, LOOP or SPECIAL. S3 has none."""


class Entries(NamedTuple):
    """What stands in one directory, not below it."""

    files: list[FileInfo]
    directories: list[str]
    """Their paths."""
    odd: dict[str, str]
    """As of ``Listing``."""


class Backend(Protocol):
    """The files below a place. Each method tries once and raises what the operating system, botocore or s3fs raises."""

    def info(self, path: str) -> FileInfo | None:
        """Size and tag of a file; None where `path` is none."""

    def is_directory(self, path: str) -> bool:
        """Tell whether `path` is a directory; on S3, whether a key begins with it and a slash."""

    def scan(self, path: str) -> Listing:
        """All that is below a directory."""

    def entries(self, path: str, prefix: str) -> Entries:
        """What stands in a directory with a name that begins with `prefix`."""

    def read(self, path: str) -> bytes:
        """A whole file."""

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        """Some bytes of a file."""

    def open(self, path: str, retry: Callable[[Callable[[], bytes]], bytes]) -> BinaryIO:
        """A file for random access; `retry` is put around each read of a range that may be tried again."""

    def put(self, path: str, buffers: Sequence[bytes | memoryview]) -> None:
        """Write a file of these bytes, one after another, atomically."""

    def put_if_absent(self, path: str, data: bytes, token: str) -> bool:
        """Write a file unless one exists; `token` tells an own write, whose answer was lost, from another's."""

    def delete(self, paths: Sequence[str]) -> None:
        """Delete files; missing ones are no error."""

    def sweep(self) -> None:
        """Delete what killed writers left half written."""

    def check_readable(self) -> None:
        """Raise unless the place exists and can be read."""

    def check_writable(self) -> None:
        """Raise unless files can be written and deleted here."""
