"""Which files an input means, on a real S3 server: the contract of tests/unit/source/test_files.py, and what S3 alone has."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hilander_dist.source import list_inputs
from hilander_dist.storage import Storage
from hilander_dist.storage.s3 import S3
from tests.unit.source.test_files import CONTRACT


@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
def test_contract(check: Callable[[Storage], None], storage: Storage) -> None:
    check(storage)
    assert storage.is_directory()


def test_a_folder_s_own_name_as_an_empty_object_is_no_file(storage: Storage) -> None:
    storage.put("data", b"")
    storage.put("data/x.parquet", b"PAR1")
    storage.put("data.parquet", b"")
    storage.put("data.parquet/part-0.parquet", b"PAR1")
    for uri, expected in (("data", "data/x.parquet"), ("data.parquet", "data.parquet/part-0.parquet")):
        assert [file.uri for file in list_inputs(f"{storage.uri}/{uri}").files] == [f"{storage.uri}/{expected}"]
    assert len(list_inputs(storage.uri).files) == 2
    # A file and a folder of one name: the file is meant, the folder is named.
    storage.put("data", b"PAR1")
    both = list_inputs(f"{storage.uri}/data")
    assert ([file.uri for file in both.files], list(both.left_out)) == (
        [f"{storage.uri}/data"],
        [f"{storage.uri}/data/"],
    )
    assert [file.uri for file in list_inputs(f"{storage.uri}/data/").files] == [f"{storage.uri}/data/x.parquet"]


def test_a_glob_lists_what_it_must_alone(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ("a.parquet", "deep/b.parquet", "deep/deeper/c.parquet"):
        storage.put(path, b"PAR1")
    asked: list[tuple[str, str]] = []
    pages = S3._pages

    def noted(self: S3, **request: Any) -> Iterator[dict[str, Any]]:
        asked.append(
            (request["Prefix"].rpartition(f"{request['Prefix'].split('/')[0]}/")[2], request.get("Delimiter", ""))
        )
        return pages(self, **request)

    monkeypatch.setattr(S3, "_pages", noted)
    assert len(list_inputs(f"{storage.uri}/a*.parquet").files) == 1
    assert asked == [("a", "/")]
