"""Files to register are checked in bulk, and the first that is wrong is named."""

from __future__ import annotations

from typing import Any

import pytest

from dlm import did as codec
from dlm.core import files
from dlm.errors import InvalidInput, TooLarge

GOOD: dict[str, Any] = {"name": "a", "size_bytes": 1}


def test_items_become_columns() -> None:
    read = files.read([{"name": "a", "size_bytes": 1, "adler32": "0000000A"}, {"name": "b", "size_bytes": 0}], "demo")
    assert read.scopes == ["demo", "demo"]
    assert read.names == ["a", "b"]
    assert read.sizes == [1, 0]
    assert read.checksums == {"adler32": ["0000000a", None], "md5": None, "sha256": None}
    assert read.paths is None and read.metadata is None


def test_a_file_may_name_a_scope_of_its_own() -> None:
    read = files.read([{**GOOD, "scope": "ska"}, {**GOOD, "scope": None}], "demo")
    assert read.scopes == ["ska", "demo"]


def test_a_derived_path_is_not_kept() -> None:
    derived = codec.derived_path("demo", "a")
    read = files.read([{**GOOD, "path": derived}, {"name": "b", "size_bytes": 1, "path": "x/b"}], "demo")
    assert read.paths == [None, "x/b"]


def test_a_path_that_only_another_did_can_have_is_refused() -> None:
    with pytest.raises(InvalidInput, match="derives for 'demo:other'") as caught:
        files.read([GOOD | {"path": codec.derived_path("demo", "other")}], "demo")
    assert caught.value.field == "files[0].path"


def test_a_path_that_resembles_a_derived_one_is_a_path_like_others() -> None:
    assert files.read([GOOD | {"path": "demo/00/11/other"}], "demo").paths == ["demo/00/11/other"]


@pytest.mark.parametrize(
    ("item", "field"),
    [
        ({"size_bytes": 1}, "files[1].name"),
        ({"name": "b"}, "files[1].size_bytes"),
        ({"name": 7, "size_bytes": 1}, "files[1].name"),
        ({"name": "b", "size_bytes": -1}, "files[1].size_bytes"),
        ({"name": "b", "size_bytes": 2**63}, "files[1].size_bytes"),
        ({"name": "b", "size_bytes": True}, "files[1].size_bytes"),
        ({"name": "b", "size_bytes": 1.0}, "files[1].size_bytes"),
        ({"name": "b", "size_bytes": "1"}, "files[1].size_bytes"),
        ({"name": "../b", "size_bytes": 1}, "files[1]"),
        ({"name": "b" * 4096, "size_bytes": 1}, "files[1]"),
        ({"name": "e\u0301", "size_bytes": 1}, "files[1]"),
        ({"name": "b\x00", "size_bytes": 1}, "files[1]"),
        ({"name": "b", "size_bytes": 1, "adler32": "123"}, "files[1].adler32"),
        ({"name": "b", "size_bytes": 1, "md5": "g" * 32}, "files[1].md5"),
        ({"name": "b", "size_bytes": 1, "sha256": 5}, "files[1].sha256"),
        ({"name": "b", "size_bytes": 1, "path": "/etc/passwd"}, "files[1].path"),
        ({"name": "b", "size_bytes": 1, "path": "x/../y"}, "files[1].path"),
        ({"name": "b", "size_bytes": 1, "path": ".dlm-storage"}, "files[1].path"),
        ({"name": "b", "size_bytes": 1, "scope": "no scope"}, "files[1].scope"),
        ({"name": "b", "size_bytes": 1, "metadata": []}, "files[1].metadata"),
        ({"name": "b", "size_bytes": 1, "colour": "red"}, "files[1]"),
        ({"name": "a", "size_bytes": 1}, "files[1]"),
    ],
)
def test_the_first_file_that_is_wrong_is_named(item: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        files.read([GOOD, item], "demo")
    assert caught.value.field == field


def test_one_path_for_two_files_is_refused() -> None:
    with pytest.raises(InvalidInput, match="path is here twice"):
        files.read([GOOD | {"path": "x"}, {"name": "b", "size_bytes": 1, "path": "x"}], "demo")


def test_no_file_too_many_files_and_no_scope_are_refused() -> None:
    with pytest.raises(InvalidInput, match="empty"):
        files.read([], "demo")
    with pytest.raises(TooLarge):
        files.read([GOOD] * 10_001, "demo")
    with pytest.raises(InvalidInput, match="no scope"):
        files.read([GOOD])
    with pytest.raises(InvalidInput, match="an object"):
        files.read([["a", 1]], "demo")  # type: ignore[list-item]
