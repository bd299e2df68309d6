"""Streaming checksums: the digests that dlm stores, computed in the pass that moves or reads the bytes.

All of them release the GIL on big buffers. adler32 is the field's usual checksum and costs almost nothing;
md5 and sha256 are computed when they are expected or asked for.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
import zlib
from collections.abc import Callable, Iterable

try:  # three times as fast as zlib, where it is installed
    from isal.isal_zlib import adler32 as _adler32
except ImportError:
    _adler32 = zlib.adler32

Buffer = bytes | bytearray | memoryview
ALGORITHMS = ("adler32", "md5", "sha256")
BLOCK_BYTES = 1 << 22  # of one read past the cache: the disk has nothing to do between two of them


class _Adler32:
    """adler32 with the interface of hashlib."""

    def __init__(self) -> None:
        self.value = 1

    def update(self, data: Buffer) -> None:
        self.value = _adler32(data, self.value)

    def hexdigest(self) -> str:
        return f"{self.value:08x}"


# usedforsecurity=False: these detect damage, and must work on hosts whose policy forbids md5 as a signature.
_MAKERS: dict[str, Callable[[], _Adler32 | hashlib._Hash]] = {
    "adler32": _Adler32,
    "md5": lambda: hashlib.md5(usedforsecurity=False),
    "sha256": lambda: hashlib.sha256(usedforsecurity=False),
}


class Digest:
    """The size and the digests of bytes as they go by. An unknown algorithm is a KeyError."""

    def __init__(self, algorithms: Iterable[str] = ("adler32",)) -> None:
        self.size_bytes = 0
        self._running = {name: _MAKERS[name]() for name in algorithms}

    def update(self, data: Buffer) -> None:
        self.size_bytes += len(data)
        for running in self._running.values():
            running.update(data)

    def hexdigests(self) -> dict[str, str]:
        """The digests so far, lower-case hexadecimal, by algorithm: the keywords of types.Checksums."""
        return {name: running.hexdigest() for name, running in self._running.items()}


def aligned_buffer(size_bytes: int = BLOCK_BYTES) -> memoryview:
    """A buffer that starts on a page, as reads past the page cache want it."""
    return memoryview(mmap.mmap(-1, size_bytes))


def digest_stored(
    fd: int, algorithms: Iterable[str], buffer: memoryview, between: Callable[[], None] = lambda: None
) -> Digest:
    """The digest of an open file as the disk holds it; OSError, and what `between` raises after a read.

    Its cached pages are dropped, and it is read past the cache (O_DIRECT) where the file system can. Both, because
    each alone is a wish: pages in use stay, and some file systems take the flag and read through the cache all the
    same. Past the cache costs no memory either, which is most of the time where memory is dear (a virtual machine).
    """
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    digest = Digest(algorithms)
    is_direct = _read_past_cache(fd, True)
    while True:
        try:
            size = os.preadv(fd, [buffer], digest.size_bytes)
        except OSError as error:
            if error.errno != errno.EINVAL or not is_direct:
                raise
            is_direct = _read_past_cache(fd, False)  # it wants more than a page to be aligned, or at the file's end
            continue
        if not size:
            return digest
        digest.update(buffer[:size])
        between()


def _read_past_cache(fd: int, wish: bool) -> bool:
    """Have reads of this descriptor go past the page cache, or through it; which of them they do now."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_DIRECT
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT if wish else flags)
    except OSError:  # a file system that cannot
        return False
    return wish
