"""The parts of an upload: how large they are, and what is known of those that were sent."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

PART_BYTES = 5 << 20  # the smallest that S3 takes
PARTS = 9000  # of a file whose size is known, at most: S3 takes 10,000
PARTS_PER_SIZE = 1000  # else parts are twice as large after so many: 10,000 of them hold 5 TiB


@dataclass(slots=True)
class Upload:
    """An upload in parts: what it is called, and the parts that were sent, in order."""

    key: str
    upload_id: str
    note: str
    parts: list[dict[str, Any]] = field(default_factory=list)
    digests: list[tuple[int, bytes]] = field(default_factory=list)  # (size, md5) of each part


def md5_of(content: bytes) -> tuple[bytes, str]:
    """The MD5 of the content, as it is and as headers tell it."""
    digest = hashlib.md5(content, usedforsecurity=False).digest()
    return digest, base64.b64encode(digest).decode()


def chained(first: bytes, second: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    """Two parts, then the rest of them."""
    yield first
    yield second
    yield from rest


def parts_of(chunks: Iterable[bytes], size_bytes: int | None) -> Iterator[bytes]:
    """The bytes in parts of the sizes that S3 takes, as small as can be; only the last may be smaller."""
    held: list[bytes] = []
    length = number = 0
    for chunk in chunks:
        held.append(chunk)
        length += len(chunk)
        while length >= (size := part_bytes(number, size_bytes)):
            joined = b"".join(held)
            held, length, number = [joined[size:]] if length > size else [], length - size, number + 1
            yield joined if len(joined) == size else joined[:size]
            del joined  # not held while the next is read
    if length:
        yield b"".join(held)


def part_bytes(number: int, size_bytes: int | None) -> int:
    """The size of a part, the first of which has number 0, of a file of that size, if it is known."""
    if size_bytes is None:
        return PART_BYTES << number // PARTS_PER_SIZE
    return max(PART_BYTES, -(-size_bytes // PARTS))
