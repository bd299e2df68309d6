"""One thread's share of a local batch, in steps that all its files take together.

    stage    read the source once, digesting, into a temporary that carries the attempt
    flush    the bytes are durable
    verify   read the temporary back from the disk: size and digests are those of what was read
    publish  the temporary gets its final name, atomically
    flush    the names are durable; only now does anything count

Two flushes of the file system (syncfs) serve hundreds of small files; a file alone has its own fsyncs instead.
Digesting while reading and writing was measured against copy_file_range plus a second read for the digest: equal
where the source is cached, and half the reading where it is not.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from dlm import effects, staging
from dlm.digest import Digest, aligned_buffer, digest_stored
from dlm.errors import StorageError
from dlm.rooted import Root, from_os_error, shown, sync_directory, translating
from dlm.transfertools.interface import Copy, Outcome
from dlm.types import Checksums, ErrorClass

BUFFER_BYTES = 1 << 18  # stays in the cache of a core between reading, digesting and writing
_WRITE_BACK_BYTES = 32 << 20  # how much may be dirty before the disk is set to work on it


@dataclass(slots=True)
class Limits:
    """Until when, and while what, effects are allowed."""

    until: float  # time.monotonic
    stop: Callable[[], bool]
    is_stopped: bool = False

    def stop_now(self) -> None:
        self.is_stopped = True

    def check(self) -> None:
        """StorageError INTERRUPTED once nothing may be started or named any more."""
        if self.is_stopped or self.stop():
            raise StorageError(ErrorClass.INTERRUPTED, "asked to stop", side=None)
        if time.monotonic() >= self.until:
            raise StorageError(ErrorClass.INTERRUPTED, "no time left before the deadline", side=None)


@dataclass(slots=True)
class Item:
    """A copy on its way through the steps; out of them once `outcome` is set."""

    copy: Copy
    started: float = field(default_factory=time.monotonic)
    staged: staging.Staged | None = None
    size_bytes: int = 0
    checksums: Checksums = Checksums()
    was_adopted: bool = False
    bytes_moved: int = 0
    outcome: Outcome | None = None


def failed(request_id: int, error_class: str, detail: str, side: str | None = None) -> Outcome:
    """The outcome of a copy that did not succeed."""
    return Outcome(request_id, False, error_class=str(error_class), error=detail, side=side)


class Group:
    """Copies files between two open roots. For one thread."""

    def __init__(self, source: Root, destination: Root, limits: Limits, *, alone: bool) -> None:
        self.source = source
        self.destination = destination
        self.limits = limits
        self.alone = alone
        self.buffer = aligned_buffer()

    def run(self, copies: list[Copy]) -> list[Outcome]:
        """One outcome per copy, in order."""
        items: list[Item] = []
        for copy in copies:
            items.append(Item(copy))
            self._step(items[-1:], self._stage)
        self._flush(items)
        self._step(items, self._verify)
        self._step(items, self._publish)
        self._flush(items)
        return [item.outcome or _succeeded(item) for item in items]

    def _step(self, items: list[Item], step: Callable[[Item], None]) -> None:
        for item in items:
            if item.outcome is not None:
                continue
            try:
                step(item)
            except StorageError as error:
                self._fail(item, error)
            except OSError as error:
                self._fail(item, from_os_error(error, "write", item.copy.destination_path, "destination"))

    def _fail(self, item: Item, error: StorageError) -> None:
        if item.staged is not None:
            staging.discard(self.destination, item.staged)
        side = error.facts.get("side", "destination")
        error_class = error.error_class
        if error_class == ErrorClass.UNAVAILABLE:
            error_class = ErrorClass.SOURCE_UNAVAILABLE if side == "source" else ErrorClass.DESTINATION_UNAVAILABLE
        spent_s = time.monotonic() - item.started
        item.outcome = Outcome(
            item.copy.request_id, False, bytes_moved=item.bytes_moved, duration_s=spent_s,
            error_class=str(error_class), error=str(error), side=side,
        )  # fmt: skip

    def _flush(self, items: list[Item]) -> None:
        """Make the file system durable; if that fails, none of the items counts."""
        if self.alone or all(item.outcome is not None for item in items):
            return
        try:
            self.destination.sync_all()
        except OSError as error:
            failure = from_os_error(error, "flush", self.destination.prefix, "destination")
            for item in items:
                if item.outcome is None:
                    self._fail(item, failure)

    # -- stage --------------------------------------------------------------------------------------------------

    def _stage(self, item: Item) -> None:
        self.limits.check()
        if self._adopt(item):
            return
        source = self.source.open_file(item.copy.source_path)
        try:
            before = os.fstat(source)
            require_size(item.copy, before.st_size)
            item.staged = staging.create(self.destination, item.copy.destination_path, item.copy.attempt)
            digest = self._pour(source, item)
            _require_unchanged(item.copy, before, os.fstat(source), digest.size_bytes)
        finally:
            os.close(source)
        item.size_bytes, item.checksums = digest.size_bytes, Checksums(**digest.hexdigests())
        require_expected(item.copy, item.checksums)
        self._sync_alone(item.staged)
        item.staged.close()

    def _pour(self, source: int, item: Item) -> Digest:
        """Move all bytes into the temporary; the digest of what was read."""
        assert item.staged is not None
        digest = Digest(algorithms(item.copy))
        buffer, written_back = self.buffer[:BUFFER_BYTES], 0
        os.posix_fadvise(source, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        effects.point("posix.write:before")
        while True:
            self.limits.check()
            with translating("read", item.copy.source_path):
                size = os.readv(source, [buffer])
            if not size:
                break
            digest.update(buffer[:size])
            _write_all(item.staged.fd, buffer[:size])
            item.bytes_moved += size
            if item.bytes_moved - written_back >= _WRITE_BACK_BYTES:
                # On dirty pages this starts their write-back: the disk works while we read on.
                length = item.bytes_moved - written_back
                os.posix_fadvise(item.staged.fd, written_back, length, os.POSIX_FADV_DONTNEED)
                written_back = item.bytes_moved
        effects.point("posix.write:after")
        return digest

    def _sync_alone(self, staged: staging.Staged) -> None:
        """fsync what the group's flush does not reach: a file alone, or one on a file system inside the root."""
        if self.alone or staged.is_sibling:
            effects.point("posix.fsync:before")
            os.fsync(staged.fd)
            effects.point("posix.fsync:after")

    # -- adopt --------------------------------------------------------------------------------------------------

    def _adopt(self, item: Item) -> bool:
        """True if the right content stands at the destination: an earlier attempt got that far.

        With expected digests the source is not needed for that. Other content is DESTINATION_EXISTS, unless the
        copy replaces it.
        """
        try:
            directory, name = self.destination.parent(item.copy.destination_path)
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        if stat.S_ISREG(status.st_mode):
            there = self.destination.open_file(item.copy.destination_path, "destination")
            try:
                if self._is_wanted(item, there):
                    sync_directory(self.destination.parent(item.copy.destination_path)[0])
                    item.was_adopted = True
                    return True
            finally:
                os.close(there)
        if item.copy.replace:
            return False
        detail = f"{shown(item.copy.destination_path)} is there with other content"
        raise StorageError(ErrorClass.DESTINATION_EXISTS, detail, side="destination")

    def _is_wanted(self, item: Item, there: int) -> bool:
        size_bytes = os.fstat(there).st_size
        if item.copy.size_bytes not in (None, size_bytes):
            return False
        if not item.copy.checksums.known() and not self._is_like_source(item.copy, there):
            return False
        os.fsync(there)  # so that the disk is what answers
        digest = digest_stored(there, algorithms(item.copy), self.buffer, self.limits.check)
        item.size_bytes, item.checksums = digest.size_bytes, Checksums(**digest.hexdigests())
        return not item.checksums.contradicts(item.copy.checksums)

    def _is_like_source(self, copy: Copy, there: int) -> bool:
        source = self.source.open_file(copy.source_path)
        try:
            return staging.same_bytes(source, there)
        finally:
            os.close(source)

    # -- verify and publish -------------------------------------------------------------------------------------

    def _verify(self, item: Item) -> None:
        if item.staged is None:
            return
        directory = self.destination.directory(item.staged.directory())
        fd = os.open(item.staged.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            digest = digest_stored(fd, algorithms(item.copy), self.buffer, self.limits.check)
        finally:
            os.close(fd)
        stored = Checksums(**digest.hexdigests())
        if digest.size_bytes != item.size_bytes or stored != item.checksums:
            detail = (
                f"{shown(item.copy.destination_path)}: wrote {item.size_bytes} bytes {item.checksums.known()}, "
                f"read back {digest.size_bytes} bytes {stored.known()}"
            )
            raise StorageError(ErrorClass.CHECKSUM_MISMATCH, detail, side="destination")

    def _publish(self, item: Item) -> None:
        if item.staged is None:
            return
        self.limits.check()
        published = staging.publish(self.destination, item.staged, replace=item.copy.replace)
        if not published and not self._adopt(item):
            raise StorageError(ErrorClass.IO, f"{shown(item.copy.destination_path)} came and went", side="destination")
        if not published:
            item.bytes_moved = 0
        if self.alone or item.staged.is_sibling:
            sync_directory(self.destination.parent(item.copy.destination_path)[0])
        staging.discard(self.destination, item.staged)


def algorithms(copy: Copy) -> tuple[str, ...]:
    """adler32 always, as the catalogue wants it for each file; the dear ones when they are expected."""
    return ("adler32", *(name for name in copy.checksums.known() if name != "adler32"))


def _write_all(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]


def require_size(copy: Copy, size_bytes: int) -> None:
    if copy.size_bytes not in (None, size_bytes):
        detail = f"{shown(copy.source_path)} has {size_bytes} bytes, not {copy.size_bytes}"
        raise StorageError(ErrorClass.SOURCE_CORRUPT, detail, side="source")


def _require_unchanged(copy: Copy, before: os.stat_result, after: os.stat_result, read_bytes: int) -> None:
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or read_bytes != after.st_size:
        detail = f"{shown(copy.source_path)} changed while it was copied"
        raise StorageError(ErrorClass.SOURCE_CHANGED, detail, side="source")


def require_expected(copy: Copy, found: Checksums) -> None:
    if found.contradicts(copy.checksums):
        detail = f"{shown(copy.source_path)} has {found.known()}, not {copy.checksums.known()}"
        raise StorageError(ErrorClass.SOURCE_CORRUPT, detail, side="source")


def _succeeded(item: Item) -> Outcome:
    return Outcome(
        item.copy.request_id, True, item.size_bytes, item.checksums, item.was_adopted,
        item.bytes_moved, time.monotonic() - item.started,
    )  # fmt: skip
