"""Which files an input means: a path as it stands, a directory, or a glob.

- A path that exists is taken as it is, whatever signs its name has; only what does not exist is a glob.
- Of a directory, and of directories that a glob matches, all that is below is read, but for names that begin with "." or
  "_" and empty markers. A glob lists no deeper than it must.
- A file named by its own path, and one without a suffix, is told by its first bytes; others by their suffix.
- What is left out is named. A link whose target is missing is an error.
"""

import fnmatch
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from hilander_dist.errors import InputError, OutputError
from hilander_dist.storage import FileInfo, Listing, Storage, check_reachable
from hilander_dist.storage.backend import MISSING_TARGET
from hilander_dist.storage.storage import split_glob

Kind = Literal["parquet", "npy"]

SUFFIXES: dict[str, Kind] = {".parquet": "parquet", ".pq": "parquet", ".parq": "parquet", ".npy": "npy"}
"""By lower-case suffix."""

MAGIC: dict[bytes, Kind] = {b"PAR1": "parquet", b"\x93NUM": "npy"}
"""By the first four bytes."""

CLIP_FOLDERS = ("img_emb", "text_emb")
"""Where clip-retrieval writes the embeddings of images and of their texts, as .npy beside ``metadata/*.parquet``."""

THREADS = 16
"""Files are looked at side by side: on S3 each is a round trip."""


@dataclass(frozen=True)
class InputFile:
    """A file to be read."""

    uri: str
    kind: Kind
    size: int
    """Bytes."""
    tag: str
    """Changes with the content, see ``storage.FileInfo``."""


@dataclass(frozen=True)
class Inputs:
    """What inputs mean."""

    files: list[InputFile]
    """In natural order of their paths (2 before 10), input after input. All of one kind."""
    left_out: dict[str, str]
    """URI and reason of what was met and is not read; hidden files and empty markers are not counted."""


def list_all(uris: Sequence[str]) -> Inputs:
    """Find the files of several inputs.

    Raises:
        InputError: see ``list_inputs``; a file that two inputs name; files of two kinds.
        StorageError: a location cannot be read.
    """
    found = [list_inputs(uri) for uri in uris]
    files = [file for inputs in found for file in inputs.files]
    named: dict[str, str] = {}
    for uri, inputs in zip(uris, found, strict=True):
        for file in inputs.files:
            if named.setdefault(_real(file.uri), uri) != uri:
                raise InputError(f"{file.uri}: both {named[_real(file.uri)]} and {uri} name it: name it once")
    other = next((file for file in files if file.kind != files[0].kind), None)
    if other is not None:
        raise InputError(f"{other.uri}: .{other.kind}, but {files[0].uri} is .{files[0].kind}: give inputs of one kind")
    return Inputs(files, {uri: why for inputs in found for uri, why in inputs.left_out.items()})


def list_inputs(uri: str) -> Inputs:
    """Find the input files that ``uri`` means.

    Args:
        uri: a file, a directory (everything below it), or a glob (``*``, ``?``, ``[ab]``, and ``**`` for any directories).

    Raises:
        InputError: nothing matches, Parquet and .npy files do, or a link's target is missing.
        StorageError: the location cannot be read.
    """
    check_reachable(uri)
    storage, left_out = Storage(uri), dict[str, str]()
    single = None if uri.endswith("/") else storage.info()
    if single is not None and (single.size or not storage.is_directory()):
        if storage.is_directory():
            left_out[f"{storage.uri}/"] = "a folder with the name of the object; name it with a slash at its end"
        return Inputs([_named_file(storage.uri, single)], left_out)
    found = Listing([], {})
    if storage.is_directory():
        _add_below(storage, "", found)
    else:
        storage, pattern = _place(uri)
        _expand(storage, "", pattern, found)
    for path, why in found.odd.items():
        if why == MISSING_TARGET:
            raise InputError(f"{_join(storage.uri, path)}: {why}: complete the download, or delete the link")
        left_out[_join(storage.uri, path)] = why
    files = _choose(storage, found.files, left_out)
    if not files:
        raise InputError(f"{uri}: {_why_nothing(uri, storage, found.files)}")
    _refuse_two_kinds(uri, storage.uri, files)
    return Inputs(files, left_out)


def refuse_overlap(uris: Iterable[str], output_uri: str) -> None:
    """Refuse an output whose files an input would read from then on.

    Raises:
        OutputError: the output is an input, or stands in one.
    """
    output = _real(Storage(output_uri).uri)
    for uri in uris:
        if _would_read(uri, f"{output}/assignments/part-00000.parquet"):
            raise OutputError(
                f"{output_uri}: stands in the input {uri}, which would read it the next time: choose an --output beside it"
            )


def natural_key(path: str) -> tuple[list[list[str | int]], str]:
    """Sorts paths as people do: directory by directory, numbers in names by their value."""
    parts = [re.split(r"([0-9]+)", part) for part in path.split("/")]
    return [[int(text) if i % 2 else text for i, text in enumerate(part)] for part in parts], path


def _place(uri: str) -> tuple[Storage, list[str]]:
    """The directory above a glob's first wildcard, or above a path's last part, and the parts below it."""
    base, pattern = split_glob(uri.rstrip("/"))
    if pattern:
        return Storage(base), pattern.split("/")
    above, _, name = Storage(uri).uri.rpartition("/")
    return (Storage(uri), []) if above in ("s3:/", "") else (Storage(above), [name])


def _expand(storage: Storage, at: str, pattern: Sequence[str], found: Listing) -> None:
    """Add what the parts of a glob match below the directory ``at``; of a directory all that is below it."""
    if not pattern:
        _add_below(storage, at, found)
        return
    first, *rest = pattern
    if first == "**":
        below = storage.scan(at)
        depth = len(at.split("/")) if at else 0

        def matches(path: str) -> bool:
            return _matches(path.split("/")[depth:], pattern)

        found.files.extend(info for info in below.files if matches(info.path))
        found.odd.update((path, why) for path, why in below.odd.items() if matches(path))
        return
    path = f"{at}/{first}".lstrip("/")
    if storage.is_directory(path):
        _expand(storage, path, rest, found)
    elif not rest and (info := storage.info(path)) is not None:
        found.files.append(info)
    else:
        prefix = re.split(r"[*?[]", first, maxsplit=1)[0]
        here = storage.entries(at, prefix)
        found.odd.update((path, why) for path, why in here.odd.items() if _name_matches(_name(path), first))
        if not rest:
            found.files.extend(info for info in here.files if _name_matches(_name(info.path), first))
        for directory in here.directories:
            if _name_matches(_name(directory), first):
                _expand(storage, directory, rest, found)


def _add_below(storage: Storage, directory: str, found: Listing) -> None:
    below = storage.scan(directory)
    start = len(directory) + 1 if directory else 0
    found.files.extend(info for info in below.files if not _is_hidden(info.path[start:]))
    found.odd.update((path, why) for path, why in below.odd.items() if not _is_hidden(path[start:]))


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a glob matches a path or a directory above it, whose content is then read."""
    if not pattern:
        return not _is_hidden("/".join(parts))
    if pattern[0] == "**":
        starts = range(len(parts) + 1)
        return any(not _is_hidden("/".join(parts[:i])) and _matches(parts[i:], pattern[1:]) for i in starts)
    return bool(parts) and _name_matches(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _name_matches(name: str, pattern: str) -> bool:
    """As in a shell, a wildcard does not stand for a hidden name's first sign."""
    if _is_hidden(name) and name[:1] != pattern[:1]:
        return False
    return name == pattern or fnmatch.fnmatchcase(name, pattern)


def _is_hidden(path: str) -> bool:
    return any(part.startswith((".", "_")) for part in path.split("/"))


def _choose(storage: Storage, files: list[FileInfo], left_out: dict[str, str]) -> list[InputFile]:
    """The files that can be read, in order; the others are added to ``left_out``."""
    folders = {above for info in files for above in _above(info.path)}
    unnamed, kinds = [], dict[str, Kind]()
    for info in files:
        suffix = _suffix(info.path)
        if suffix in SUFFIXES and (info.size or info.path not in folders):
            kinds[info.path] = SUFFIXES[suffix]
        elif info.size and not suffix:
            unnamed.append(info)
        elif info.size:
            left_out[_join(storage.uri, info.path)] = f"its name ends in none of {', '.join(SUFFIXES)}"
    with ThreadPoolExecutor(THREADS) as pool:
        starts = list(pool.map(lambda info: storage.read_range(info.path, 0, 4), unnamed))
    for info, start in zip(unnamed, starts, strict=True):
        if start in MAGIC:
            kinds[info.path] = MAGIC[start]
        else:
            left_out[_join(storage.uri, info.path)] = (
                "neither Parquet nor .npy by its first bytes, and without a suffix"
            )
    chosen = sorted((info for info in files if info.path in kinds), key=lambda info: natural_key(info.path))
    return [_input_file(_join(storage.uri, info.path), kinds[info.path], info) for info in chosen]


def _named_file(uri: str, info: FileInfo) -> InputFile:
    """A file named by its own path: by its content, whatever it is called."""
    start = Storage(uri).read_range("", 0, 4) if info.size else b""
    kind = MAGIC.get(start) or SUFFIXES.get(_suffix(uri))
    if kind is None:
        raise InputError(f"{uri}: neither Parquet nor .npy by its first bytes ({start!r}): convert it")
    return _input_file(uri, kind, info)


def _input_file(uri: str, kind: Kind, info: FileInfo) -> InputFile:
    try:
        uri.encode()
    except UnicodeEncodeError:
        raise InputError(f"{uri.encode(errors='replace').decode()}: its name is not UTF-8: rename it") from None
    return InputFile(uri, kind, info.size, info.tag)


def _why_nothing(uri: str, storage: Storage, matching: list[FileInfo]) -> str:
    if matching:
        return f"none of the {len(matching)} files ends in .parquet or .npy ({matching[0].path}, ...): convert them"
    if storage.is_directory():
        here = storage.entries()
        names = sorted([*(_name(info.path) for info in here.files), *(f"{_name(path)}/" for path in here.directories)])
        names = [name for name in names if not _is_hidden(name)]
        if names and Storage(uri).uri != storage.uri:
            return f"nothing of that name; in {storage.uri} there are {', '.join(names[:5])}: check the path"
        return "the directory is empty, or holds only hidden files ('.', '_'); check the path"
    if uri.startswith("s3://"):
        return "there is no object below this prefix; check the bucket name and the prefix"
    return "no such file or directory; check the path, and that every node of the cluster sees it"


def _refuse_two_kinds(uri: str, root: str, files: list[InputFile]) -> None:
    folders: dict[Kind, list[str]] = {}
    for file in files:
        folder = file.uri.rpartition("/")[0]
        if folder not in folders.setdefault(file.kind, []):
            folders[file.kind].append(folder)
    clip = sorted(folder for folder in folders.get("npy", []) if _name(folder) in CLIP_FOLDERS)
    if len(folders) > 1:
        glob = f"{clip[0]}/*.npy" if clip else f"{root.rstrip('/')}/**/*.parquet"
        raise InputError(f"{uri}: holds both .parquet and .npy files: name one kind with a glob, such as '{glob}'")
    if {_name(folder) for folder in clip} == set(CLIP_FOLDERS):
        raise InputError(f"{uri}: holds embeddings of images and of texts: name one of them, such as '{clip[0]}/*.npy'")


def _would_read(uri: str, path: str) -> bool:
    """Whether a file at a plain path would be read as a part of an input."""
    storage = Storage(uri)
    if storage.info() is not None:
        return _real(storage.uri) == path
    pattern: Sequence[str] = []
    if not storage.is_directory():
        storage, pattern = _place(uri)
    root = _real(storage.uri).rstrip("/") + "/"
    return path.startswith(root) and _matches(path.removeprefix(root).split("/"), pattern)


def _real(uri: str) -> str:
    """The URI with links resolved."""
    return uri if uri.startswith("s3://") else os.path.realpath(uri)


def _join(root: str, path: str) -> str:
    return f"{root.rstrip('/')}/{path}" if path else root


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _suffix(path: str) -> str:
    """With its dot, in lower case; "" for none."""
    dot = _name(path).rpartition(".")
    return f".{dot[2].lower()}" if dot[1] else ""


def _above(path: str) -> list[str]:
    """The directories that a path stands in."""
    parts = path.split("/")
    return ["/".join(parts[:i]) for i in range(1, len(parts))]
