"""Storage on a real file system: atomic writes, listings, formats, inputs, and one clear line per failure."""

import contextlib
import multiprocessing
import os
import pickle
import stat
from collections.abc import Callable, Iterator
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hilander_dist.errors import StorageError
from hilander_dist.storage import Storage, check_reachable, check_readable

# What must hold on every backend; tests/integration/test_storage_s3.py runs the same functions on S3.


def round_trip(storage: Storage) -> None:
    assert not storage.exists("a/x.bin")
    storage.put("a/x.bin", b"one")
    storage.put("a/x.bin", b"two")
    storage.put("a/empty", b"")
    assert storage.exists("a/x.bin")
    assert not storage.exists("a")
    assert not storage.exists("a/x.bin/y")
    assert storage.read_bytes("a/x.bin") == b"two"
    assert storage.read_bytes("a/empty") == b""
    assert storage.child("a").read_bytes("x.bin") == b"two"
    assert Storage(f"{storage.uri}/a/x.bin").read_bytes() == b"two"
    storage.delete("a/x.bin")
    storage.delete("a/x.bin")
    assert not storage.exists("a/x.bin")


def listing(storage: Storage) -> None:
    for path in ("b", "a-1/x", "a/x", "a/z/é y+%.bin", "_hidden/.x"):
        storage.put(path, path.encode())
    assert [file.path for file in storage.list()] == ["_hidden/.x", "a-1/x", "a/x", "a/z/é y+%.bin", "b"]
    assert [file.path for file in storage.list("a")] == ["a/x", "a/z/é y+%.bin"]
    assert [file.path for file in storage.child("a").list("z")] == ["z/é y+%.bin"]
    assert storage.list("nothing") == []
    assert storage.list("b") == []
    assert all(storage.read_bytes(file.path) == file.path.encode() for file in storage.list())
    assert [file.size for file in storage.list("a-1")] == [5]
    before = storage.list("a-1")
    assert storage.list("a-1") == before
    storage.put("a-1/x", b"other")
    assert storage.list("a-1")[0].tag != before[0].tag
    storage.delete_all([info.path if info.path.startswith("a/") else f"a/{info.path}" for info in storage.list("a")])
    assert [file.path for file in storage.list()] == ["_hidden/.x", "a-1/x", "b"]
    storage.delete_all([info.path for info in storage.list()])
    assert storage.list() == []


def random_access(storage: Storage) -> None:
    data = np.random.default_rng(0).bytes(9 << 20)  # more than two read-aheads
    storage.put("data", data)
    with storage.open("data") as file:
        assert file.seekable()
        assert file.read(10) == data[:10]
        file.seek(-7, os.SEEK_END)
        assert file.read() == data[-7:]
        assert file.read(1) == b""
        file.seek(5_000_000)
        assert file.read(4_000_000) == data[5_000_000:9_000_000]
        assert file.tell() == 9_000_000
    storage.put("empty", b"")
    with storage.open("empty") as file:
        assert file.read() == b""


def tables(storage: Storage) -> None:
    table = pa.table({"id": pa.array(range(1000), pa.int64()), "x": pa.array([[float(i), 1.0] for i in range(1000)])})
    storage.write_table("t/part.parquet", table)
    assert storage.read_table("t/part.parquet").equals(table)
    assert storage.read_table("t/part.parquet", ["x"]).equals(table.select(["x"]))
    assert storage.read_table("t/part.parquet", []).num_rows == 1000
    with storage.open("t/part.parquet") as file:
        assert pq.ParquetFile(file).metadata.row_group(0).column(0).compression == "ZSTD"
    with pytest.raises(StorageError, match=r"t/part\.parquet: cannot be read as Parquet .*nope"):
        storage.read_table("t/part.parquet", ["nope"])


def json_and_blocks(storage: Storage) -> None:
    value = {"b": [1, 2.5, None], "a": "Zürich"}
    storage.write_json("v.json", value)
    assert storage.read_json("v.json") == value
    assert list(storage.read_json("v.json")) == ["b", "a"]
    block: dict[str, np.ndarray] = {"sim_NK": np.zeros((4, 3), np.float32), "id_N": np.arange(4)}
    storage.write_block("block", block)
    read = storage.read_block("block")
    assert list(read) == ["id_N", "sim_NK"]
    for name, array in block.items():
        np.testing.assert_array_equal(read[name], array, strict=True)


def damaged(storage: Storage) -> None:
    storage.put("junk", b"\x01junk")
    for read, kind in (
        (storage.read_table, "Parquet"),
        (storage.read_json, "JSON"),
        (storage.read_block, "safetensors"),
    ):
        with pytest.raises(StorageError, match=f"/junk: cannot be read as {kind} .*; write it again"):
            read("junk")


def missing(storage: Storage) -> None:
    storage.put("there", b"")
    for read in (storage.read_bytes, storage.open, storage.read_table, storage.read_json, storage.read_block):
        with pytest.raises(StorageError, match=r"/gone: no such .*; check the path"):
            read("gone")
    with pytest.raises(StorageError, match=r"/gone: no such .*; check the path"):
        check_readable(f"{storage.uri}/gone")
    check_reachable(f"{storage.uri}/gone")


def put_if_absent(storage: Storage) -> None:
    assert storage.put_if_absent("lock/run", b"first")
    assert not storage.put_if_absent("lock/run", b"second")
    assert storage.read_bytes("lock/run") == b"first"
    assert [file.path for file in storage.list("lock")] == ["lock/run"]
    storage.delete("lock/run")
    assert storage.put_if_absent("lock/run", b"third")


RACE = [f"race/{i}" for i in range(5)]


def winners(storage: Storage, env: dict[str, str]) -> list[str]:
    """Three processes race for the files of RACE; those that somebody won, once for each winner, whose content they hold."""
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(3), context.Queue()
    racers = [context.Process(target=_race, args=(storage, env, str(i), barrier, answers)) for i in range(3)]
    for racer in racers:
        racer.start()
    won = [answers.get(timeout=120) for _ in racers]
    for racer in racers:
        racer.join()
    names = [name for _, names in won for name in names]
    assert all(storage.read_bytes(name) == who.encode() * 5000 for who, names in won for name in names)
    return sorted(names)


def _race(
    storage: Storage, env: dict[str, str], who: str, barrier: Barrier, answers: "Queue[tuple[str, list[str]]]"
) -> None:
    os.environ.update(env)
    won = []
    for i in range(5):
        barrier.wait(60)
        if storage.put_if_absent(f"race/{i}", who.encode() * 5000):
            won.append(f"race/{i}")
    answers.put((who, won))


def directories(storage: Storage) -> None:
    for path in ("a/x", "a/b/y", "a/b/c/z", "a-1"):
        storage.put(path, b"data")
    assert storage.is_directory("a")
    assert storage.is_directory("a/b")
    assert storage.is_directory()
    assert not storage.is_directory("a/x")
    assert not storage.is_directory("a/y")
    here = storage.entries("a")
    assert ([file.path for file in here.files], here.directories, here.odd) == (["a/x"], ["a/b"], {})
    here = storage.entries("", "a-")
    assert ([file.path for file in here.files], here.directories) == (["a-1"], [])
    assert storage.entries("nothing") == ([], [], {})
    assert sorted(file.path for file in storage.scan("a").files) == ["a/b/c/z", "a/b/y", "a/x"]
    storage.delete_all(["a/x", "a/b/y", "gone"])
    assert [file.path for file in storage.list("a")] == ["a/b/c/z"]
    storage.put("range", b"0123456789")
    assert storage.read_range("range", 2, 5) == b"234"
    assert storage.read_range("range", 8, 12) == b"89"


def checks(storage: Storage) -> None:
    storage.check_writable()
    assert storage.list() == []
    storage.put("a/x.parquet", b"data")
    for uri in ("", "/a", "/a/x.parquet", "/*/x.*"):
        check_readable(storage.uri + uri)


CONTRACT: list[Callable[[Storage], None]] = [
    round_trip,
    listing,
    random_access,
    tables,
    json_and_blocks,
    damaged,
    missing,
    put_if_absent,
    directories,
    checks,
]


@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
def test_local(check: Callable[[Storage], None], tmp_path: Path) -> None:
    check(Storage(str(tmp_path / "root")))
    assert list(tmp_path.rglob(".writing-*")) == []


def test_put_if_absent_has_one_winner_among_processes(tmp_path: Path) -> None:
    assert winners(Storage(str(tmp_path)), {}) == RACE


def test_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Storage("a/../b/").uri == Storage(f"file://{tmp_path}/b").uri == str(tmp_path / "b")
    assert Storage("s3://bucket/a/b/").uri == "s3://bucket/a/b"
    assert Storage("s3://bucket").child("a").uri == "s3://bucket/a"
    assert Storage("/").child("a").uri == "/a"
    assert pickle.loads(pickle.dumps(Storage("s3://bucket/a"))).uri == "s3://bucket/a"
    for uri in ("gs://bucket/a", "http://host/a", "s3://", "file://host/a"):
        with pytest.raises(StorageError, match=f"{uri}: not a location that can be used; give a local path"):
            Storage(uri)


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x"])
def test_paths_stay_inside(path: str, tmp_path: Path) -> None:
    for uri in (str(tmp_path), "s3://bucket/a"):
        with pytest.raises(AssertionError):
            Storage(uri).read_bytes(path)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.put("x", b"old")
    (tmp_path / "directory" / "y").mkdir(parents=True)
    with pytest.raises(StorageError, match="/directory: a directory is where a file is needed; name a file in it"):
        storage.put("directory", b"new")
    with pytest.raises(StorageError, match="/x/y: a file is where a directory is needed; move the file away"):
        storage.put("x/y", b"new")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["directory", "x", "y"]
    assert storage.read_bytes("x") == b"old"


def test_the_rest_of_a_killed_writer_is_not_listed(tmp_path: Path) -> None:
    (tmp_path / ".writing-0123").write_bytes(b"hal")
    assert Storage(str(tmp_path)).list() == []


def test_files_have_the_mode_that_the_umask_leaves(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        Storage(str(tmp_path)).put("x", b"")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640


def test_a_walk_follows_links_and_names_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "real" / "sub").mkdir(parents=True)
    (tmp_path / "real" / "x").write_bytes(b"")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "sub" / "loop").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "gone").symlink_to(tmp_path / "nothing")
    (tmp_path / "real" / "self").symlink_to("self")
    os.mkfifo(tmp_path / "real" / "pipe")
    found = Storage(str(tmp_path / "root")).scan()
    assert [file.path for file in found.files] == ["link/x"]
    assert found.odd == {
        "link/sub/loop": "a link back to a directory above it",
        "link/gone": "a link whose target is missing",
        "link/self": "a link whose target is missing",
        "link/pipe": "neither a file nor a directory",
    }


def test_a_directory_is_flushed_where_a_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    fsync = os.fsync

    def note(handle: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", note)
    Storage(str(tmp_path)).put("a/b/x", b"1")
    # The directories' own names, the file, then its name.
    assert [name for name in flushed if not name.startswith(".writing-")] == [tmp_path.name, "a", "b"]
    assert flushed[-2].startswith(".writing-")
    flushed.clear()
    assert Storage(str(tmp_path)).put_if_absent("a/b/y", b"1")
    assert flushed[-1] == "b"


def test_no_permission(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    (closed / "x.parquet").write_bytes(b"")
    closed.chmod(0)
    message = f"^{closed}.*: permission is denied; check the owner and the mode"
    with _no_root():
        for action in (
            Storage(str(closed)).check_writable,
            Storage(str(closed / "new")).check_writable,
            lambda: check_readable(str(closed)),
            lambda: check_readable(str(closed / "x.parquet")),
            lambda: check_readable(str(closed / "*.parquet")),
            lambda: Storage(str(closed)).read_bytes("x.parquet"),
            lambda: Storage(str(closed)).put("y", b""),
        ):
            with pytest.raises(StorageError, match=message) as caught:
                action()
            assert "\n" not in str(caught.value)
    closed.chmod(0o700)


def test_a_file_where_a_directory_is_needed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in ("file", "file/out"):
        with pytest.raises(StorageError, match=f"^{tmp_path / path}: a file is where a directory is needed; move"):
            Storage(str(tmp_path / path)).check_writable()


def test_errors_of_ours_are_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        Storage(str(tmp_path)).put("x", "text")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@given(
    st.dictionaries(
        st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1).filter(lambda name: name != "x"),
        hnp.arrays(
            st.sampled_from([np.int64, np.int32, np.uint8, np.float16, np.float32, np.float64, np.bool_]),
            hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5),
        ),
        max_size=4,
    )
)
def test_blocks_come_back_and_equal_blocks_give_equal_bytes(block: dict[str, np.ndarray]) -> None:
    written = _Memory()
    written.write_block("block", block)
    # The same numbers, in another order of names and of memory.
    written.write_block("again", {name: np.asfortranarray(block[name]) for name in reversed(block)})
    written.write_block("strided", {name: np.repeat(array, 2, axis=0)[::2] for name, array in block.items()})
    assert written.files["block"] == written.files["again"] == written.files["strided"]
    read = written.read_block("block")
    assert list(read) == sorted(block)
    for name, array in block.items():
        np.testing.assert_array_equal(read[name], array, strict=True)
        assert read[name].flags.writeable


class _Memory(Storage):
    """Keeps the bytes in a dictionary, so that hypothesis need not touch the disk."""

    def __init__(self) -> None:
        super().__init__("memory")
        self.files: dict[str, bytes] = {}

    def put(self, path: str, *data: bytes | memoryview) -> None:
        self.files[path] = b"".join(data)

    def read_bytes(self, path: str = "") -> bytes:
        return self.files[path]


@contextlib.contextmanager
def _no_root() -> Iterator[None]:
    """Take root's rights away, to whom no permission is denied."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
