"""Which files an input means, on a local disk; tests/integration/test_storage_s3.py runs ``inputs`` on S3."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilander_dist.errors import InputError, OutputError, StorageError
from hilander_dist.source.files import Inputs, list_inputs, natural_key, refuse_overlap
from hilander_dist.storage import Storage


def inputs(storage: Storage) -> None:
    """What holds on every backend."""
    parquet = ["p/1.parquet", "p/a/2.PARQUET", "p/a/b/3.pq", "p/a/b/10.parq"]
    hidden = ["p/_SUCCESS", "p/.crc.parquet", "p/_tmp/4.parquet", "p/a/.x/5.parquet"]
    for path in (*parquet, *hidden, "p/readme.txt", "n/x.NPY", "mixed/x.npy", "mixed/x.parquet", "odd/x.csv"):
        storage.put(path, b"data")
    for path in ("hid/_x.parquet", "clip/img_emb/img_emb_0.npy", "clip/metadata/metadata_0.parquet"):
        storage.put(path, b"data")
    storage.put("athena/20261128_0001_uuid", b"PAR1 and more")
    storage.put("athena/20261128_0001_log", b"just text")
    storage.put("athena/table_$folder$", b"")
    storage.put("spark/x.parquet/part-0.parquet", b"data")

    def found(uri: str) -> list[str]:
        files = list_inputs(f"{storage.uri}/{uri}").files
        assert all(Storage(file.uri).info() is not None for file in files)
        return [file.uri.removeprefix(f"{storage.uri}/") for file in files]

    assert found("p") == found("p/") == found("p/**") == found("p/*") == parquet
    assert found("p/**/*.parquet") == found("p/[0-9].*") == ["p/1.parquet"]
    assert found("p/**/[0-9]*.p*") == ["p/1.parquet", "p/a/b/3.pq", "p/a/b/10.parq"]
    assert found("*/a/?.PARQUET") == ["p/a/2.PARQUET"]
    assert found("p/a*") == ["p/a/2.PARQUET", "p/a/b/3.pq", "p/a/b/10.parq"]
    assert found("p/a/b/3.pq") == ["p/a/b/3.pq"]
    assert found("hid/_x.parquet") == found("hid/_*") == ["hid/_x.parquet"]  # named, not met
    assert found("n") == ["n/x.NPY"]
    assert found("mixed/*.npy") == ["mixed/x.npy"]
    assert found("spark") == found("spark/*.parquet") == ["spark/x.parquet/part-0.parquet"]
    assert found("athena") == found("athena/2*uuid") == ["athena/20261128_0001_uuid"]
    assert list(list_inputs(f"{storage.uri}/athena").left_out) == [f"{storage.uri}/athena/20261128_0001_log"]
    left_out = list_inputs(f"{storage.uri}/p").left_out
    assert left_out == {f"{storage.uri}/p/readme.txt": "its name ends in none of .parquet, .pq, .parq, .npy"}
    for uri, hint in {
        "mixed": r"holds both .parquet and .npy files: name one kind with a glob, such as '.*/mixed/\*\*/\*.parquet'",
        "clip": r"name one kind with a glob, such as '.*/clip/img_emb/\*.npy'",
        "odd": r"none of the 1 files ends in .parquet or .npy \(x.csv",
        "odd/x.csv": r"neither Parquet nor .npy by its first bytes \(b'data'\): convert it",
        "p/*.npy": r"nothing of that name; in .*/p there are 1.parquet, a/, .*: check the path",
        "gone": "nothing of that name; in .* there are athena/, clip/",
        "gone/*.npy": "no such file or directory; check|no object below this prefix",
        "hid": "only hidden",
    }.items():
        with pytest.raises(InputError, match=hint) as caught:
            list_inputs(f"{storage.uri}/{uri}")
        assert str(caught.value).startswith(f"{storage.uri}/{uri}: ")
        assert "\n" not in str(caught.value)


def signs(storage: Storage) -> None:
    """A path that exists is taken as it is, whatever signs its name has."""
    for folder in ("run[1]", "run1", "what?", "a*b"):
        storage.put(f"{folder}/x[0].parquet", b"data")
        storage.put(f"{folder}/x0.parquet", b"data")
        found = list_inputs(f"{storage.uri}/{folder}").files
        assert sorted(file.uri for file in found) == [
            f"{storage.uri}/{folder}/{name}" for name in ("x0.parquet", "x[0].parquet")
        ]
        one = list_inputs(f"{storage.uri}/{folder}/x[0].parquet").files
        assert [file.uri for file in one] == [f"{storage.uri}/{folder}/x[0].parquet"]
        assert len(list_inputs(f"{storage.uri}/{folder}/*.parquet").files) == 2
    assert len(list_inputs(f"{storage.uri}/run[12]").files) == 2  # does not exist, so it is a glob


def dates(storage: Storage) -> None:
    """A glob that matches directories takes them, and looks nowhere else."""
    for day in ("2025-12-31", "2026-01-01", "2026-01-02"):
        storage.put(f"dates/date={day}/part-0.parquet", b"data")
        storage.put(f"dates/date={day}/_SUCCESS", b"")
    for uri in ("dates/date=2026-*", "dates/date=2026-*/", "dates/date=2026-*/*.parquet"):
        assert [file.uri for file in list_inputs(f"{storage.uri}/{uri}").files] == [
            f"{storage.uri}/dates/date=2026-01-0{i}/part-0.parquet" for i in (1, 2)
        ]


CONTRACT: list[Callable[[Storage], None]] = [inputs, signs, dates]


@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
def test_local(check: Callable[[Storage], None], tmp_path: Path) -> None:
    check(Storage(str(tmp_path / "root")))
    assert (tmp_path / "root").is_dir()


def test_an_empty_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"^{tmp_path}: the directory is empty, or holds only hidden files"):
        list_inputs(str(tmp_path))


@pytest.mark.parametrize("folder", ["in", "in/*", "in/x.parquet", "in/**/*.parquet"])
def test_a_link_whose_target_is_missing_is_an_error_that_names_it(folder: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.parquet").write_bytes(b"PAR1")
    (tmp_path / "in" / "x.parquet").symlink_to("../blobs/0123")
    with pytest.raises(
        InputError, match=f"^{tmp_path}/in/x.parquet: a link whose target is missing: complete the download"
    ):
        list_inputs(str(tmp_path / folder))
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "0123").write_bytes(b"PAR1")
    assert str(tmp_path / "in" / "x.parquet") in [file.uri for file in list_inputs(str(tmp_path / folder)).files]


def test_a_hidden_link_to_nothing_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    (tmp_path / ".lock").symlink_to("gone")
    assert len(list_inputs(str(tmp_path)).files) == 1


def test_loops_and_special_files_are_left_out_by_name_and_end_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.parquet").write_bytes(b"PAR1")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "a" / "pipe")
    found = list_inputs(str(tmp_path))
    assert [file.uri for file in found.files] == [str(tmp_path / "a" / "x.parquet")]
    assert found.left_out == {
        str(tmp_path / "a" / "loop"): "a link back to a directory above it",
        str(tmp_path / "a" / "pipe"): "neither a file nor a directory",
    }
    # A glob does not look there.
    assert list_inputs(str(tmp_path / "a" / "*.parquet")) == Inputs(found.files, {})


def test_a_named_file_is_told_by_its_content(tmp_path: Path) -> None:
    for name, start, kind in (
        ("000000_0", b"PAR1", "parquet"),
        ("x.npy", b"PAR1", "parquet"),
        ("x.bin", b"\x93NUMPY", "npy"),
        ("short.parquet", b"PA", "parquet"),
    ):
        (tmp_path / name).write_bytes(start)
        assert list_inputs(str(tmp_path / name)).files[0].kind == kind
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(InputError, match=r"empty: neither Parquet nor .npy by its first bytes \(b''\)"):
        list_inputs(str(tmp_path / "empty"))


def test_embeddings_of_images_and_of_texts_are_not_one_input(tmp_path: Path) -> None:
    for folder in ("img_emb", "text_emb"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(
        InputError, match=rf"images and of texts: name one of them, such as '{tmp_path}/img_emb/\*.npy'"
    ):
        list_inputs(str(tmp_path))


def test_a_name_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.parquet")).write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"caf\?\.parquet: its name is not UTF-8: rename it"):
        list_inputs(str(tmp_path))


def test_a_file_where_a_directory_is_needed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"/file/x\.npy: a file is where a directory is needed; move"):
        list_inputs(str(tmp_path / "file" / "x.npy"))


@pytest.mark.parametrize(
    ("uri", "output", "refused"),
    [
        ("in", "in", True),
        ("in", "in/out", True),
        ("in", "link/out", True),
        ("link", "in/a/out", True),
        ("in", "in/_out", False),
        ("in", "out", False),
        ("in", "in-2", False),
        ("in/x.parquet", "in/out", False),
        ("in/*.parquet", "in/out", False),
        ("in/*", "in/out", True),
        ("in/**/*.parquet", "in/out", True),
        ("in/a*", "in/out", False),
        ("in/a*", "in/a/out", True),
        ("in/a*", "in/a2", True),
    ],
)
def test_an_output_that_an_input_would_read_is_refused(uri: str, output: str, refused: bool, tmp_path: Path) -> None:
    (tmp_path / "in" / "a").mkdir(parents=True)
    (tmp_path / "link").symlink_to("in")
    for path in ("in/x.parquet", "in/a/y.parquet"):
        (tmp_path / path).write_bytes(b"PAR1")
    before = sorted(tmp_path.rglob("*"))
    if refused:
        with pytest.raises(OutputError, match=f"stands in the input {tmp_path}/.*: choose an --output beside it"):
            refuse_overlap([str(tmp_path / uri)], str(tmp_path / output))
    else:
        refuse_overlap([str(tmp_path / uri)], str(tmp_path / output))
        # What the check promises: an output there does not become a part of the input.
        listed = list_inputs(str(tmp_path / uri))
        Storage(str(tmp_path / output)).put("assignments/part-00000.parquet", b"PAR1")
        assert list_inputs(str(tmp_path / uri)) == listed
        return
    assert sorted(tmp_path.rglob("*")) == before


def test_an_output_that_is_refused_would_be_read(tmp_path: Path) -> None:
    (tmp_path / "in" / "a").mkdir(parents=True)
    (tmp_path / "in" / "a" / "y.parquet").write_bytes(b"PAR1")
    Storage(str(tmp_path / "in" / "a2")).put("assignments/part-00000.parquet", b"PAR1")
    for uri in ("in", "in/*", "in/a*", "in/**/*.parquet"):
        assert len(list_inputs(str(tmp_path / uri)).files) == 2


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=20, unique=True))
def test_numbers_in_names_sort_by_their_value(numbers: list[int]) -> None:
    names = [f"dir-{number % 7}/part-{number}.npy" for number in numbers]
    expected = [f"dir-{number % 7}/part-{number}.npy" for number in sorted(numbers, key=lambda n: (n % 7, n))]
    assert sorted(names, key=natural_key) == expected


@given(st.lists(st.text("a1./-_", min_size=1), max_size=8))
def test_the_order_of_names_is_total(names: list[str]) -> None:
    once, other = sorted(set(names), key=natural_key), sorted(set(names), reverse=True)
    assert sorted(other, key=natural_key) == once
