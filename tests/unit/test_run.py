import contextlib
import copy
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import hilander_dist
from hilander_dist.errors import OutputError
from hilander_dist.run import Run, code_version
from hilander_dist.storage import Storage
from hilander_dist.storage.local import Local

FINGERPRINT: dict[str, Any] = {
    "job": "cluster",
    "config": {"k": 10, "train": {"level_k": [10, 5]}},
    "input": {"files": [["a.parquet", 10, "t1"], ["b.parquet", 20, "t2"]]},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """The fingerprint with one entry replaced."""
    other = copy.deepcopy(FINGERPRINT)
    *parents, last = path.split("/")
    at: Any = other
    for parent in parents:
        at = at[int(parent) if parent.isdigit() else parent]
    at[int(last) if last.isdigit() else last] = value
    return other


def files(where: Path) -> list[str]:
    """What the directory holds, but for the lease."""
    return [info.path for info in Storage(str(where)).list() if not info.path.startswith("_work/lease/")]


def test_a_new_run_claims_the_directory_and_has_nothing_saved(tmp_path: Path) -> None:
    run = Run(Storage(str(tmp_path)), FINGERPRINT)
    assert run.saved == frozenset()
    assert run.marker("level-0") is None
    assert run.output.read_json("_work/fingerprint.json") == FINGERPRINT
    assert run.work.uri == f"{tmp_path}/_work"


def test_a_resumed_run_sees_the_blocks_and_markers_of_the_earlier_attempt(tmp_path: Path) -> None:
    first = Run(Storage(str(tmp_path)), FINGERPRINT)
    first.work.put("level-0/nodes-00000.safetensors", b"x")
    first.mark("level-0", {"nodes": 7, "starts": [0, 7]})
    first.output.put("bad_rows/rows-00000.parquet", b"x")
    again = Run(Storage(str(tmp_path)), FINGERPRINT)
    assert again.marker("level-0") == {"nodes": 7, "starts": [0, 7]}
    assert again.marker("level-1") is None
    assert again.saved == {"fingerprint.json", "level-0/nodes-00000.safetensors", "markers/level-0.json"}


def test_a_marker_of_this_attempt_is_not_taken_for_an_earlier_one(tmp_path: Path) -> None:
    run = Run(Storage(str(tmp_path)), FINGERPRINT)
    run.mark("ingest", {"rows": 3})
    assert run.marker("ingest") is None


def test_a_complete_run_is_not_touched(tmp_path: Path) -> None:
    Run(Storage(str(tmp_path)), FINGERPRINT).succeed({"clusters": 3})
    assert Storage(str(tmp_path)).read_json("manifest.json") == {"clusters": 3, "attempt": 1}
    with pytest.raises(OutputError, match=r"holds a complete run.*--output") as caught:
        Run(Storage(str(tmp_path)), FINGERPRINT)
    assert str(tmp_path) in str(caught.value)


def test_the_manifest_is_written_before_the_success_marker(tmp_path: Path) -> None:
    run = Run(Storage(str(tmp_path)), FINGERPRINT)
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.succeed({"recall": float("nan")})
    assert not run.output.exists("_SUCCESS")


def test_a_directory_with_other_files_is_refused_by_the_name_of_one(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(OutputError, match=r"is not empty \(holiday.jpg\)"):
        Run(Storage(str(tmp_path)), FINGERPRINT)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("job", "train", "job ('cluster' there, 'train' now)"),
        ("config/k", 12, "config.k (10 there, 12 now)"),
        ("config/new", 1, "config.new (None there, 1 now)"),
        ("config/train/level_k/1", 6, "config.train.level_k[1] (5 there, 6 now)"),
        ("input/files/1/2", "t3", "input.files[1][2] ('t2' there, 't3' now)"),
        ("input/files", [], "input.files ([['a.parquet', 10, 't1'], ['b.parquet', 20, 't2']] there, [] now)"),
    ],
)
def test_another_fingerprint_is_refused_and_the_key_that_differs_is_named(
    tmp_path: Path, path: str, value: Any, named: str
) -> None:
    Run(Storage(str(tmp_path)), FINGERPRINT)
    with pytest.raises(OutputError) as caught:
        Run(Storage(str(tmp_path)), changed(path, value))
    assert f"unfinished run that differs in {named}" in str(caught.value)


def test_a_key_that_is_gone_is_a_difference(tmp_path: Path) -> None:
    Run(Storage(str(tmp_path)), changed("model", "abc"))
    with pytest.raises(OutputError, match=r"differs in model \('abc' there, None now\)"):
        Run(Storage(str(tmp_path)), FINGERPRINT)


def test_a_message_stays_one_short_line_whatever_differs(tmp_path: Path) -> None:
    Run(Storage(str(tmp_path)), changed("input/files", [["x.parquet", i, "t\n"] for i in range(10_000)]))
    with pytest.raises(OutputError, match=r"differs in input\.files") as caught:
        Run(Storage(str(tmp_path)), FINGERPRINT)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


def test_code_version_changes_with_the_content_and_the_name_of_a_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(hilander_dist, "__file__", str(package / "__init__.py"))

    versions = [code_version()]
    (package / "a.py").write_text("x = 1\n")
    versions.append(code_version())
    (package / "a.py").write_text("x = 2\n")
    versions.append(code_version())
    (package / "a.py").rename(package / "b.py")
    versions.append(code_version())
    (package / "notes.txt").write_text("not code")
    assert code_version() == versions[-1]
    assert len(set(versions)) == len(versions)
    assert versions[0].startswith(f"{hilander_dist.__version__}+")


@pytest.mark.parametrize("complete", [False, True])
def test_restart_discards_a_run_of_any_fingerprint(complete: bool, tmp_path: Path) -> None:
    first = Run(Storage(str(tmp_path)), changed("config/k", 80))
    first.work.put("level-0/nodes-00000.safetensors", b"x")
    first.mark("level-0", {"nodes": 7})
    first.output.put("assignments/part-00000.parquet", b"x")
    if complete:
        first.succeed({})
    run = Run(Storage(str(tmp_path)), FINGERPRINT, restart=True)
    assert run.saved == frozenset()
    assert files(tmp_path) == ["_work/fingerprint.json"]
    assert run.output.read_json("_work/fingerprint.json") == FINGERPRINT


def test_restart_discards_a_complete_run_without_its_work_area_and_leaves_the_users_files(tmp_path: Path) -> None:
    first = Run(Storage(str(tmp_path)), FINGERPRINT)
    first.output.put("assignments/part-00000.parquet", b"x")
    first.output.put("my-notes.txt", b"x")
    first.succeed({})
    shutil.rmtree(tmp_path / "_work")
    Run(Storage(str(tmp_path)), FINGERPRINT, restart=True)
    assert files(tmp_path) == ["_work/fingerprint.json", "my-notes.txt"]


def test_restart_leaves_other_files_alone(tmp_path: Path) -> None:
    Storage(str(tmp_path)).put("photo.jpg", b"x")
    with pytest.raises(OutputError, match="is not empty"):
        Run(Storage(str(tmp_path)), FINGERPRINT, restart=True)
    assert Storage(str(tmp_path)).exists("photo.jpg")


def test_an_interrupted_restart_leaves_no_marker_without_its_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Run(Storage(str(tmp_path)), FINGERPRINT)
    for s in range(3):
        first.work.put(f"level-0/nodes-{s:05d}.safetensors", b"x")
    first.mark("ingest", {"rows": 3})
    first.mark("level-0", {"nodes": 7})
    first.succeed({})
    blocks = {info.path for info in first.output.list() if "nodes" in info.path}
    delete = Local.delete
    for _ in range(12):
        left = 2

        def limited(self: Local, paths: Sequence[str]) -> None:
            nonlocal left
            for path in paths:
                if left == 0:
                    raise KeyboardInterrupt
                left -= 1
                delete(self, [path])

        monkeypatch.setattr(Local, "delete", limited)
        with contextlib.suppress(KeyboardInterrupt):
            Run(Storage(str(tmp_path)), FINGERPRINT, restart=True)
        now = set(files(tmp_path))
        assert "_work/fingerprint.json" in now
        assert blocks <= now or not any("markers" in path or path == "_SUCCESS" for path in now)
    assert now == {"_work/fingerprint.json"}
