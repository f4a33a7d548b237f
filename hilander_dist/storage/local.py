"""A directory of a mounted file system, as a ``backend.Backend``.

Links are followed. A write is on the disk, with its name, when it returns: the file is flushed, then its directory.
"""

import contextlib
import errno
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from stat import S_ISREG
from typing import BinaryIO

from hilander_dist.storage.backend import LOOP, MISSING_TARGET, SPECIAL, TEMPORARY, Entries, FileInfo, Listing


class Local:
    """A directory of a mounted file system."""

    def __init__(self, root: str) -> None:
        self._root = root

    def _at(self, path: str) -> Path:
        return Path(self._root, relative(path))

    def info(self, path: str) -> FileInfo | None:
        try:
            stat = self._at(path).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return FileInfo(path, stat.st_size, f"{stat.st_mtime_ns}-{stat.st_size}") if S_ISREG(stat.st_mode) else None

    def is_directory(self, path: str) -> bool:
        return self._at(path).is_dir()

    def scan(self, path: str) -> Listing:
        found = Listing([], {})
        if self.is_directory(path):
            self._walk(path, (), found)
        return found

    def entries(self, path: str, prefix: str) -> Entries:
        found = Entries([], [], {})
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(self._at(path)) as scanned:
            for entry in scanned:
                # A file may go away while the walk is under way (a temporary one, or another task's).
                if not entry.name.startswith(prefix) or entry.name.startswith(TEMPORARY):
                    continue
                name = f"{path}/{entry.name}".lstrip("/")
                try:
                    if entry.is_dir():
                        found.directories.append(name)
                    elif info := self.info(name):
                        found.files.append(info)
                    elif entry.is_symlink() and not Path(entry.path).exists():
                        found.odd[name] = MISSING_TARGET
                    elif Path(entry.path).exists():
                        found.odd[name] = SPECIAL
                except OSError as error:
                    if error.errno != errno.ELOOP:  # a link to itself
                        raise
                    found.odd[name] = MISSING_TARGET
        return found

    def _walk(self, path: str, above: tuple[tuple[int, int], ...], found: Listing) -> None:
        """Collect what is below a directory; ``above`` are device and inode of those that the walk came through.

        A link to one of these is not followed: all that is behind it has been met on the way.
        """
        with contextlib.suppress(FileNotFoundError):
            stat = self._at(path).stat()
            place = (stat.st_dev, stat.st_ino)
            if place in above:
                found.odd[path] = LOOP
                return
            here = self.entries(path, "")
            found.files.extend(here.files)
            found.odd.update(here.odd)
            for directory in here.directories:
                self._walk(directory, (*above, place), found)

    def read(self, path: str) -> bytes:
        return self._at(path).read_bytes()

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        with self._at(path).open("rb") as file:
            file.seek(start)
            return file.read(stop - start)

    def open(self, path: str, _: Callable[[Callable[[], bytes]], bytes]) -> BinaryIO:
        return self._at(path).open("rb")

    def put(self, path: str, buffers: Sequence[bytes | memoryview]) -> None:
        target = self._at(path)
        with self._written(path, buffers) as temporary:
            temporary.replace(target)
            _flush_directory(target.parent)

    def put_if_absent(self, path: str, data: bytes, _: str) -> bool:
        target = self._at(path)
        with self._written(path, [data]) as temporary:
            try:
                target.hardlink_to(temporary)  # fails where the name exists, and shows the whole content where not
            except FileExistsError:
                return False
            _flush_directory(target.parent)
            return True

    def delete(self, paths: Sequence[str]) -> None:
        for path in paths:
            self._at(path).unlink(missing_ok=True)

    def sweep(self) -> None:
        for left in self._at("").rglob(f"{TEMPORARY}*"):
            left.unlink(missing_ok=True)

    def check_readable(self) -> None:
        top = self._at("")
        if top.is_dir():
            with os.scandir(top):
                pass
        else:
            with top.open("rb"):
                pass

    def check_writable(self) -> None:
        with self._written("probe", [b"probe"]):
            pass

    @contextlib.contextmanager
    def _written(self, path: str, buffers: Sequence[bytes | memoryview]) -> Iterator[Path]:
        """Write `buffers`, one after another, to a temporary file in the directory of `path`; it is gone afterwards."""
        temporary = self._at(path).with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
        _make_directories(temporary.parent)
        try:
            with temporary.open("xb") as file:
                file.writelines(buffers)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)


def relative(path: str) -> str:
    """The path, which must stay below the storage's own."""
    assert not path.startswith("/"), path
    assert ".." not in path.split("/"), path
    return path


def _make_directories(directory: Path) -> None:
    """Make a directory and those above it; each new one's name is flushed to the disk."""
    if directory.is_dir():
        return
    if not directory.parent.exists():
        _make_directories(directory.parent)
    directory.mkdir(exist_ok=True)
    _flush_directory(directory.parent)


def _flush_directory(directory: Path) -> None:
    """After a power cut a name may be gone though the file was flushed, and a marker outlive what it vouches for."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot flush directories
            raise
    finally:
        os.close(handle)
