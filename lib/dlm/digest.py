"""Streaming checksums: the digests that dlm stores, computed in the pass that moves or reads the bytes.

All of them release the GIL on big buffers. adler32 is the field's usual checksum and costs almost nothing;
md5 and sha256 are computed when they are expected or asked for.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable

try:  # three times as fast as zlib, where it is installed
    from isal.isal_zlib import adler32 as _adler32
except ImportError:
    _adler32 = zlib.adler32

Buffer = bytes | bytearray | memoryview
ALGORITHMS = ("adler32", "md5", "sha256")


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
