"""Where roots lie, told by how they are written."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlm.protocols.places import above, lies_in, remote_root
from dlm.types import ProtocolRef


def ref(scheme: str, prefix: str) -> ProtocolRef:
    return ProtocolRef(1, "name", "uuid", scheme, prefix)


@pytest.mark.parametrize(
    ("scheme", "inner", "outer_scheme", "outer"),
    [
        ("s3", "https://s3.example.org/bucket/a/b", "s3", "https://s3.example.org/bucket"),
        ("s3", "https://S3.example.org:443/bucket/a", "s3", "https://s3.example.org/bucket/"),
        ("davs", "davs://dav.example.org/a/b%20c/d", "https", "https://dav.example.org:443/a/b c/"),
        ("dav", "dav://127.0.0.1:8080/a//b/", "dav", "dav://127.0.0.1:8080/a"),
        ("dav", "dav://127.0.0.1:8080/a", "dav", "dav://127.0.0.1:8080"),
        ("sftp", "sftp://example.org/data/x", "sftp", "sftp://example.org.:22/data"),
    ],
)
def test_a_root_below_another_of_one_server_lies_in_it_however_it_is_written(
    scheme: str, inner: str, outer_scheme: str, outer: str
) -> None:
    assert lies_in(ref(scheme, inner), ref(outer_scheme, outer))
    assert not lies_in(ref(outer_scheme, outer), ref(scheme, inner))


@pytest.mark.parametrize(
    ("scheme", "one", "other_scheme", "other"),
    [
        ("s3", "https://s3.example.org/bucket", "s3", "https://s3.example.org/bucket"),
        ("s3", "https://s3.example.org/bucket-2/a", "s3", "https://s3.example.org/bucket"),
        ("s3", "https://s3.example.org/bucket/ab", "s3", "https://s3.example.org/bucket/a"),
        ("s3", "https://s3.example.org/bucket/a", "s3", "https://s3.example.net/bucket"),
        ("s3", "https://s3.example.org:9000/bucket/a", "s3", "https://s3.example.org/bucket"),
        ("davs", "davs://s3.example.org/bucket/a", "s3", "https://s3.example.org/bucket"),
        ("sftp", "sftp://example.org/data/x", "posix", "/data"),
        ("sftp", "sftp://[broken/data/x", "sftp", "sftp://[broken/data"),
    ],
)
def test_roots_beside_each_other_and_of_other_servers_do_not(
    scheme: str, one: str, other_scheme: str, other: str
) -> None:
    assert not lies_in(ref(scheme, one), ref(other_scheme, other))
    assert not lies_in(ref(other_scheme, other), ref(scheme, one))


def test_on_this_host_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "outer" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "outer" / "inner")
    assert lies_in(ref("posix", str(tmp_path / "link")), ref("file", str(tmp_path / "outer")))
    assert not lies_in(ref("posix", str(tmp_path / "outer")), ref("posix", str(tmp_path / "outer")))
    assert remote_root(ref("posix", "/data")) is None


def test_what_lies_above_is_the_nearest_first_and_of_s3_the_bucket_last() -> None:
    assert above(ref("sftp", "sftp://h:2222/a/b/c")) == ["sftp://h:2222/a/b", "sftp://h:2222/a", "sftp://h:2222/"]
    assert above(ref("s3", "https://h/bucket/a/b/")) == ["https://h/bucket/a", "https://h/bucket"]
    assert above(ref("s3", "https://h/bucket")) == []
