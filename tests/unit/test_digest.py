"""Digests of what the disk holds, on real files."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dlm.digest import Digest, aligned_buffer, digest_stored

CONTENT = os.urandom(3 * 4096 + 17)
ALGORITHMS = ("adler32", "md5", "sha256")


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    """A file with that content, durable, open for reading."""
    file = tmp_path / "file"
    file.write_bytes(CONTENT)
    fd = os.open(file, os.O_RDONLY)
    os.fsync(fd)
    yield fd
    os.close(fd)


def expected(content: bytes) -> dict[str, str]:
    digest = Digest(ALGORITHMS)
    digest.update(content)
    return digest.hexdigests()


def opens_past_cache(path: str) -> bool:
    """True where the file system can be read past the page cache."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("size_bytes", [4096, 8192, 1 << 20])
def test_the_digests_are_those_of_the_content_whatever_the_buffer(fd: int, size_bytes: int) -> None:
    digest = digest_stored(fd, ALGORITHMS, aligned_buffer(size_bytes))
    assert (digest.size_bytes, digest.hexdigests()) == (len(CONTENT), expected(CONTENT))


def test_an_empty_file_has_a_digest(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with open(tmp_path / "empty", "rb") as file:
        digest = digest_stored(file.fileno(), ALGORITHMS, aligned_buffer())
    assert (digest.size_bytes, digest.hexdigests()) == (0, expected(b""))


def test_the_page_cache_is_passed_where_the_file_system_can(fd: int) -> None:
    seen: list[bool] = []
    digest_stored(
        fd, ALGORITHMS, aligned_buffer(4096), lambda: seen.append(bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT))
    )
    assert seen == [opens_past_cache(f"/proc/self/fd/{fd}")] * 4


def test_a_file_system_that_cannot_is_read_through_the_cache() -> None:
    path = "/proc/version"
    assert not opens_past_cache(path)
    with open(path, "rb") as file:
        content = file.read()
        assert digest_stored(file.fileno(), ALGORITHMS, aligned_buffer()).hexdigests() == expected(content)


def test_a_read_that_is_refused_for_its_alignment_goes_through_the_cache(fd: int) -> None:
    misaligned = aligned_buffer(8192)[1:4000]
    digest = digest_stored(fd, ALGORITHMS, misaligned)
    assert (digest.size_bytes, digest.hexdigests()) == (len(CONTENT), expected(CONTENT))


def test_whoever_asks_can_stop_it_after_each_read(fd: int) -> None:
    reads = iter([None, None])

    def stop_at_the_third() -> None:
        if next(reads, "over") == "over":
            raise InterruptedError

    with pytest.raises(InterruptedError):
        digest_stored(fd, ALGORITHMS, aligned_buffer(4096), stop_at_the_third)


def test_what_is_no_file_is_an_error_and_not_read_through_the_cache(tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(OSError):
            digest_stored(directory, ALGORITHMS, aligned_buffer())
    finally:
        os.close(directory)
