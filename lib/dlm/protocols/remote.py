"""What all storages behind a network have in common: a marker that is a small file, and looking before writing."""

from __future__ import annotations

import json
import os
import time
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from dlm.digest import Digest
from dlm.errors import StorageError, Unsupported
from dlm.protocols.interface import Chunks, Entry, ReadBack, Stat, StorageProtocol, Written, nothing
from dlm.protocols.places import above, remote_root
from dlm.rooted import MARKER, SEAL, SIBLING, TEMPORARIES, parsed_marker, require_owner, shown, split
from dlm.staging import temporary_name
from dlm.types import Checksums, ErrorClass, ProtocolRef

MARKER_REMEMBERED_S = 5.0
DEFAULT_TIMEOUT_S = 60.0
ABOVE_S = 60.0  # for all that lies above a root: a web request waits for it
NAME_LIMIT_BYTES = 255
DEPTH_LIMIT = 200
_NO_MARKER = "is this the right root?"


@dataclass(frozen=True, slots=True)
class Storing:
    """How chunks are to be stored: the name until they have their own, and what must hold before they get it."""

    temporary: str
    replace: bool = False
    size_bytes: int | None = None  # where it is known
    # Is called with the path under which the bytes are stored, and perhaps with what is to be done once they were read.
    prove: Callable[..., None] = lambda *_: None
    fill: Callable[[str], None] | None = None  # puts them under the temporary's URL, instead of the chunks

    def attempt(self) -> str:
        """The attempt that stores them."""
        return self.temporary.rpartition("~")[0]


class RemoteProtocol(StorageProtocol):
    """The adapter gives the operations on single files; what they share is here.

    The marker is looked at by the first call, and again after some seconds.
    """

    def __init__(self, ref: ProtocolRef) -> None:
        super().__init__(ref)
        self.timeout_s = float(ref.options.get("timeout_s", DEFAULT_TIMEOUT_S))
        self._marked_until = 0.0

    def __del__(self) -> None:
        self.close()

    # -- for the adapter to give --------------------------------------------------------------------------------

    @abstractmethod
    def _read_marker(self) -> bytes | None:
        """The marker's text, None without one; UNAVAILABLE without a root."""

    @abstractmethod
    def _write_marker(self, text: bytes) -> None:
        """Store the marker, unless one is there."""

    @abstractmethod
    def _make_root(self) -> None:
        """Make the root if it is not there, where that is a matter of a directory."""

    @abstractmethod
    def _stat(self, path: str) -> Stat | None:
        """`stat` without a look at the marker; the path is checked."""

    @abstractmethod
    def _open(self, path: str, offset: int = 0, length: int | None = None) -> Chunks:
        """`read` without a look at the marker; the path is checked."""

    @abstractmethod
    def _store(self, path: str, chunks: Iterable[bytes], storing: Storing) -> bool:
        """Store the chunks under the path; False when the same content stood there when they were to be named.

        Nothing is left of the temporary, however this ends.
        """

    @abstractmethod
    def _delete(self, path: str) -> bool:
        """`delete` without a look at the marker; the path is checked."""

    # -- files --------------------------------------------------------------------------------------------------

    def _checked(self, path: str) -> str:
        """The path, once it is proven to stay in the root, which is proven to be the right one."""
        split(path)
        self._require_root()
        return path

    def stat(self, path: str) -> Stat | None:
        return self._stat(self._checked(path))

    def read(self, path: str, offset: int = 0, length: int | None = None) -> Chunks:
        return self._open(self._checked(path), offset, length)

    def write(
        self,
        path: str,
        chunks: Iterable[bytes],
        *,
        attempt: str,
        replace: bool = False,
        algorithms: Collection[str] = ("adler32",),
        size_bytes: int | None = None,
        prove: Callable[[ReadBack], None] | None = None,
    ) -> Written:
        digest = Digest(algorithms)
        temporary = temporary_name(attempt, self._checked(path))
        bytes_in = _digested(chunks, digest)
        if not replace and self._stat(path) is not None:
            with self._open(path) as stored:
                require_same(bytes_in, stored, path)
            return Written(digest.size_bytes, Checksums(**digest.hexdigests()), was_adopted=True)

        def proven(stored: str, then: Callable[[], None] = nothing) -> None:
            if prove is not None:
                prove(partial(self._read_back, stored, then))

        published = self._store(path, bytes_in, Storing(temporary, replace, size_bytes, proven))
        return Written(digest.size_bytes, Checksums(**digest.hexdigests()), was_adopted=not published)

    def url(self, path: str) -> str:
        """The URL of a path, for those who have storages copy between themselves; Unsupported where there is none."""
        raise Unsupported(f"{self.ref.scheme} takes no files from other storages")

    def receive(
        self,
        path: str,
        fill: Callable[[str], None],
        *,
        attempt: str,
        replace: bool = False,
        prove: Callable[[ReadBack], None],
    ) -> bool:
        """`write`, with bytes that `fill` has another storage put under the URL it is called with.

        False when the same content stood there when they were to be named.
        """
        temporary = temporary_name(attempt, self._checked(path))
        self.url(path)

        def proven(stored: str) -> None:
            prove(partial(self._read_back, stored, nothing))

        return self._store(path, (), Storing(temporary, replace, prove=proven, fill=fill))

    def _read_back(
        self, path: str, then: Callable[[], None], algorithms: Collection[str], between: Callable[[], None] = nothing
    ) -> Checksums:
        found = self._digests(path, algorithms, between)
        then()
        return found

    def checksum(
        self, path: str, algorithms: Collection[str] = ("adler32",), between: Callable[[], None] = nothing
    ) -> Checksums:
        return self._digests(self._checked(path), algorithms, between)

    def _digests(self, path: str, algorithms: Collection[str], between: Callable[[], None] = nothing) -> Checksums:
        """`checksum` without a look at the marker; the path is checked, or a temporary's.

        The server's word counts for what was written just now, of which nobody has asked it before. Of what stands
        there longer it may tell what it remembers: no witness of the bytes. That is read, unless the option
        remembered_digests says that the server's word is enough.
        """
        is_fresh = path.startswith(f"{TEMPORARIES}/")
        if is_fresh or self.ref.options.get("remembered_digests") == "true":
            told = self._told_digests(path, algorithms)
            if told is not None:
                return told
        digest = Digest(algorithms)
        with self._open(path) as chunks:
            for block in chunks:
                between()
                digest.update(block)
        return Checksums(**digest.hexdigests())

    def _told_digests(self, path: str, algorithms: Collection[str]) -> Checksums | None:
        """The server's digests; None where it does not give all of them."""
        return None

    def delete(self, path: str) -> bool:
        return self._delete(self._checked(path))

    def delete_many(
        self, paths: Iterable[str], is_over: Callable[[], bool] = lambda: False
    ) -> dict[str, bool | StorageError]:
        self._require_root()
        outcomes: dict[str, bool | StorageError] = {}
        for path in sorted(paths):
            if is_over():
                break
            try:
                outcomes[path] = self.delete(path)
            except StorageError as error:
                outcomes[path] = error
        return outcomes

    def list(self, prefix: str = "") -> Iterator[Entry]:
        if prefix:
            split(prefix)
        self._require_root()
        for entry in self._list(prefix):
            if not is_ours(entry.path):
                yield entry

    @abstractmethod
    def _list(self, prefix: str) -> Iterator[Entry]:
        """`list` without a look at the marker, and with dlm's own files."""

    def _require_same_as(self, staged: str, path: str) -> None:
        """DESTINATION_EXISTS unless a file stands there, with the content of the temporary."""
        if self._stat(path) is None:
            raise not_a_file(path)
        with self._open(staged) as mine, self._open(path) as stored:
            require_same(mine, stored, path)

    # -- the marker ---------------------------------------------------------------------------------------------

    def identify(self) -> str | None:
        marker = self._marker()
        return None if marker is None else marker["id"]

    def seal(self) -> str:
        return f"{SEAL}{remote_root(self.ref) or self.ref.prefix}"

    def marked_above(self) -> str | None:
        until = time.monotonic() + ABOVE_S
        for prefix in above(self.ref):
            left_s = until - time.monotonic()
            if left_s <= 0:
                detail = f"what lies above {shown(self.ref.prefix)} cannot be looked at within {ABOVE_S:g} s"
                raise StorageError(ErrorClass.TIMEOUT, detail)
            options = {**self.ref.options, "timeout_s": f"{max(0.01, min(self.timeout_s, left_s)):.3f}"}
            try:
                with type(self)(replace(self.ref, prefix=prefix, options=options)) as higher:
                    if higher._marker() is not None:
                        return prefix
            except StorageError as error:
                if error.error_class == ErrorClass.TIMEOUT:  # further up it would answer no better
                    raise
                # One that is not ours to look at has no root of a storage to show; one may be there that is not yet.
        return None

    def claim(self, storage_uuid: str, create_root: bool = False) -> None:
        if create_root:
            self._make_root()
        marker = self._marker()
        if marker is None:
            text = json.dumps({"id": storage_uuid, "name": self.ref.storage_name}) + "\n"
            self._write_marker(text.encode())
            marker = self._marker()
        if marker is None:
            detail = f"the marker of root {shown(self.ref.prefix)} cannot be read back"
            raise StorageError(ErrorClass.UNAVAILABLE, detail)
        if marker["id"] != storage_uuid:
            detail = f"root {shown(self.ref.prefix)} belongs to storage {marker['name']} ({marker['id']}) already"
            raise StorageError(ErrorClass.DESTINATION_EXISTS, detail, hint="give each storage a root of its own")

    def require_marker(self, storage_uuid: str) -> None:
        if not storage_uuid or storage_uuid.startswith(SEAL):
            self._require_seal(storage_uuid)
            return
        require_owner(self._marker(), storage_uuid, self.ref.prefix, _NO_MARKER)

    def _require_seal(self, seal: str) -> None:
        """A root that dlm may not write to is known by its URL, and taken for unmounted behind it when it is empty."""
        prefix = shown(self.ref.prefix)
        if seal and seal != self.seal():
            raise StorageError(ErrorClass.UNAVAILABLE, f"root {prefix} is another than the one that was added")
        if next(self._list(""), None) is None:
            raise StorageError(ErrorClass.UNAVAILABLE, f"root {prefix} is empty", hint=_NO_MARKER)

    def _require_root(self) -> None:
        """UNAVAILABLE unless the root carried the storage's marker within the last seconds."""
        if time.monotonic() >= self._marked_until:
            self.require_marker(self.ref.storage_uuid)
            self._marked_until = time.monotonic() + MARKER_REMEMBERED_S

    def _marker(self) -> dict[str, str] | None:
        text = self._read_marker()
        return None if text is None else parsed_marker(text, self.ref.prefix)


def require_depth(path: str) -> None:
    """IO for a directory deeper than any tree of files: a server that makes it up never comes to an end."""
    if path.count("/") > DEPTH_LIMIT:
        raise StorageError(ErrorClass.IO, f"{shown(path)} is deeper than {DEPTH_LIMIT} levels")


def blocks_of(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """The bytes in larger blocks, for libraries that make one call, or many requests at once, of each."""
    block = bytearray()
    for chunk in chunks:
        block += chunk
        if len(block) >= size:
            yield bytes(block)
            block.clear()
    if block:
        yield bytes(block)


def is_ours(path: str) -> bool:
    """True for dlm's own files in a root."""
    first, _, rest = path.partition("/")
    is_at_root = first == TEMPORARIES or (not rest and first.startswith(MARKER))
    return is_at_root or path.rpartition("/")[2].startswith(SIBLING)


def require_file_names(path: str) -> None:
    """INVALID_PATH if a part of the path is longer than any file system takes.

    Refused before the bytes are sent, and not left to servers, some of which are out of order after such a name.
    """
    if any(len(os.fsencode(part)) > NAME_LIMIT_BYTES for part in path.split("/")):
        detail = f"path {shown(path)} refused: a name has at most {NAME_LIMIT_BYTES} bytes"
        raise StorageError(ErrorClass.INVALID_PATH, detail, field="path")


def beginning(chunks: Chunks, limit_bytes: int) -> bytes:
    """The first bytes of a file that should be a small one; how it goes on is not read."""
    found = bytearray()
    with chunks:
        for block in chunks:
            found += block
            if len(found) >= limit_bytes:
                break
    return bytes(found[:limit_bytes])


def require_same(chunks: Iterable[bytes], stored: Iterator[bytes], path: str) -> None:
    """DESTINATION_EXISTS unless both have the same bytes; ends at the first that differs."""
    there = bytearray()
    for chunk in chunks:
        while len(there) < len(chunk) and (block := next(stored, b"")):
            there += block
        if not there.startswith(chunk):
            raise other_content(path)
        del there[: len(chunk)]
    if there or next(stored, b""):
        raise other_content(path)


def not_a_file(path: str) -> StorageError:
    return StorageError(ErrorClass.DESTINATION_EXISTS, f"{shown(path)} is there, and not a file")


def other_content(path: str) -> StorageError:
    return StorageError(ErrorClass.DESTINATION_EXISTS, f"{shown(path)} is there with other content")


def _digested(chunks: Iterable[bytes], digest: Digest) -> Iterator[bytes]:
    for chunk in chunks:
        if chunk:
            digest.update(chunk)
            yield chunk
