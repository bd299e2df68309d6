"""The stream transfertool: between any two protocols, read to write through this host, in bounded memory.

adopt    what stands at the destination and is right counts, and nothing is moved
pour     the source is read once, digested on the way, into the destination's write
judge    at the last byte, before anything gets its name: is this what the catalogue expects, did the source change
prove    the destination's own digest of the stored bytes, or all of them read back; only then they get their name
look     what has the name now is of the right size
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType

from dlm import effects
from dlm.digest import Digest
from dlm.errors import StorageError, Unsupported
from dlm.rooted import shown
from dlm.transfertools.interface import Copy, Described, Opener, Outcome, ReadBack, Storage, Transfertool
from dlm.transfertools.local import MARGIN_S, UNAVAILABLE, as_they_finish
from dlm.transfertools.local_group import Limits, algorithms, require_expected, require_size
from dlm.types import Checksums, ErrorClass, ProtocolRef
from dlm.unforeseen import netting

AHEAD_BYTES = 4 << 20  # from here on the next block is read while this one is written


class StreamTool(Transfertool):
    """`threads` copies at once. The margin is what naming the file may take before the deadline."""

    def __init__(self, open_protocol: Opener, *, threads: int = 2, margin_s: float = MARGIN_S) -> None:
        self.open_protocol = open_protocol
        self.threads = threads
        self.margin_s = margin_s

    def copy_many(self, copies: Sequence[Copy], deadline: float, stop: Callable[[], bool]) -> Iterator[Outcome]:
        limits = Limits(deadline - self.margin_s, stop)
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="dlm-stream")
        storages: dict[str, Storage] = {}
        try:
            waiting: dict[Future[list[Outcome]], list[Copy]] = {}
            for copy in copies:
                try:
                    with blaming("source"), netting("speak to the source"):
                        source = self._storage(storages, copy.source)
                    with blaming("destination"), netting("speak to the destination"):
                        destination = self._storage(storages, copy.destination)
                except (StorageError, Unsupported) as error:
                    yield _failure(copy, error, 0, 0.0)
                    continue
                waiting[pool.submit(self._copied, Item(copy, source, destination), limits)] = [copy]
            yield from as_they_finish(waiting, deadline)
        finally:
            limits.stop_now()
            # Not waited for: a thread that a storage holds would hold us too; it can no longer name a file. Nor is it
            # left to wait, where that can be ended: the next batch has threads of its own.
            pool.shutdown(wait=False, cancel_futures=True)
            for storage in storages.values():
                storage.hang_up()

    def _copied(self, item: Item, limits: Limits) -> list[Outcome]:
        """The outcome of one copy, alone in a list."""
        item.started = time.monotonic()
        try:
            return [_adopted(item, limits) or self._move(item, limits)]
        except (StorageError, Unsupported) as error:
            return [_failure(item.copy, error, item.bytes_moved, time.monotonic() - item.started)]

    def _move(self, item: Item, limits: Limits) -> Outcome:
        return moved(item, limits)

    def _storage(self, storages: dict[str, Storage], ref: ProtocolRef) -> Storage:
        """The adapter of a storage, one for all copies, so that its connections are too."""
        key = f"{ref.scheme} {ref.prefix} {ref.storage_uuid} {ref.secret_version}"
        if key not in storages:
            storages[key] = self.open_protocol(ref)
        return storages[key]


@dataclass(slots=True)
class Item:
    """A copy on its way."""

    copy: Copy
    source: Storage
    destination: Storage
    started: float = field(default_factory=time.monotonic)
    bytes_moved: int = 0
    is_own: bool = False  # what stands at the destination is what an earlier attempt left there


# -- adopt ------------------------------------------------------------------------------------------------------


def _adopted(item: Item, limits: Limits) -> Outcome | None:
    """An outcome if the right content stands at the destination: an earlier attempt got that far.

    With expected digests the source is not needed for that. Other content is DESTINATION_EXISTS, unless the copy
    replaces it, or an earlier attempt has left it.
    """
    limits.check()
    copy = item.copy
    with blaming("destination"):
        there = item.destination.stat(copy.destination_path)
    if there is None:
        return None
    if copy.size_bytes in (None, there.size_bytes):
        with blaming("destination"):
            found = item.destination.checksum(copy.destination_path, algorithms(copy), limits.check)
        if found.agrees(copy.checksums) or (not copy.checksums.known() and _is_like_source(item, there, found, limits)):
            spent_s = time.monotonic() - item.started
            return Outcome(copy.request_id, True, there.size_bytes, found, True, 0, spent_s)
    item.is_own = is_own(there, copy)
    if copy.replace or item.is_own:
        return None
    detail = f"{shown(copy.destination_path)} is there with other content"
    raise StorageError(ErrorClass.DESTINATION_EXISTS, detail, blamed="destination")


def is_own(there: Described, copy: Copy) -> bool:
    """True for what an earlier attempt of the same request wrote: nobody has proven it, else there were no other."""
    if there.written_by is None:
        return False
    (request, dot, fence), (mine, _, now) = there.written_by.partition("."), copy.attempt.partition(".")
    return bool(dot) and request == mine and fence.isdecimal() and now.isdecimal() and int(fence) < int(now)


def _is_like_source(item: Item, there: Described, found: Checksums, limits: Limits) -> bool:
    """True when the source has the size and the digests of what is there."""
    with blaming("source"):
        source = item.source.stat(item.copy.source_path)
        if source is None or source.size_bytes != there.size_bytes:
            return False
        return item.source.checksum(item.copy.source_path, tuple(found.known()), limits.check).agrees(found)


# -- pour, judge ------------------------------------------------------------------------------------------------


def moved(item: Item, limits: Limits) -> Outcome:
    copy, digest = item.copy, Digest(algorithms(item.copy))
    with blaming("source"):
        before = item.source.stat(copy.source_path)
        if before is None:
            raise StorageError(ErrorClass.SOURCE_MISSING, f"{shown(copy.source_path)} is not there")
        require_size(copy, before.size_bytes)
    with blaming("destination"), contextlib.closing(_poured(item, before, digest, limits)) as chunks:
        written = item.destination.write(
            copy.destination_path, chunks, attempt=copy.attempt, replace=copy.replace or item.is_own,
            algorithms=(), size_bytes=before.size_bytes, prove=partial(_prove, item, digest, limits),
        )  # fmt: skip
        effects.point("stream.write:after")
        require_named(item, digest.size_bytes, limits, is_ours=not written.was_adopted)
    sent = Checksums(**digest.hexdigests())
    moved = 0 if written.was_adopted else item.bytes_moved
    spent_s = time.monotonic() - item.started
    return Outcome(copy.request_id, True, digest.size_bytes, sent, written.was_adopted, moved, spent_s)


def _poured(item: Item, before: Described, digest: Digest, limits: Limits) -> Generator[bytes, None, None]:
    """The source's bytes, digested. Ends with an error, instead of ending, unless they are what is to be stored."""
    with blaming("source"):
        reading = item.source.read(item.copy.source_path)
    with contextlib.closing(reading):
        for block in _ahead(iter(reading)) if before.size_bytes >= AHEAD_BYTES else _blamed(iter(reading)):
            limits.check()
            digest.update(block)
            item.bytes_moved += len(block)
            yield block
    with blaming("source"):
        after = item.source.stat(item.copy.source_path)
        is_same = after is not None and (after.size_bytes, after.modified_at) == (before.size_bytes, before.modified_at)
        if not is_same or digest.size_bytes != before.size_bytes:
            detail = f"{shown(item.copy.source_path)} changed while it was copied"
            raise StorageError(ErrorClass.SOURCE_CHANGED, detail)
        require_expected(item.copy, Checksums(**digest.hexdigests()))
    limits.check()


def _blamed(blocks: Iterator[bytes]) -> Iterator[bytes]:
    while True:
        with blaming("source"):
            block = next(blocks, None)
        if block is None:
            return
        yield block


def _ahead(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The blocks, one of them read ahead by a thread of its own."""
    with ThreadPoolExecutor(1, thread_name_prefix="dlm-ahead") as pool:
        coming = pool.submit(next, blocks, None)
        while True:
            with blaming("source"):
                block = coming.result()
            if block is None:
                return
            coming = pool.submit(next, blocks, None)
            yield block


# -- prove ------------------------------------------------------------------------------------------------------


def _prove(item: Item, digest: Digest, limits: Limits, read_back: ReadBack) -> None:
    """CHECKSUM_MISMATCH unless the destination has stored what was sent; INTERRUPTED if it is too late to name it."""
    sent = Checksums(**digest.hexdigests())
    stored = read_within(limits, read_back, tuple(sent.known()))
    if stored != sent:
        raise mismatch(item, digest.size_bytes, sent, str(stored.known()) if stored.known() else "nothing")


def read_within(limits: Limits, read_back: ReadBack, wanted: tuple[str, ...]) -> Checksums:
    """The digests of what is stored, none if nothing is; INTERRUPTED when the time is over by then.

    So nothing is named, or found wrong and removed, when another attempt may be at it.
    """
    limits.check()
    try:
        stored = read_back(wanted, limits.check)
    except StorageError as error:
        if error.error_class != ErrorClass.SOURCE_MISSING:
            raise
        stored = Checksums()
    limits.check()
    return stored


def require_named(item: Item, size_bytes: int, limits: Limits, *, is_ours: bool) -> None:
    """CHECKSUM_MISMATCH unless a file of the size that was sent has the name now: naming may lose what was proven."""
    there = item.destination.stat(item.copy.destination_path)
    if there is not None and there.size_bytes == size_bytes:
        return
    if there is not None and is_ours:
        limits.check()
        item.destination.delete(item.copy.destination_path)
    found = "nothing" if there is None else f"{there.size_bytes} bytes"
    raise mismatch(item, size_bytes, Checksums(), found)


def mismatch(item: Item, size_bytes: int, sent: Checksums, found: str) -> StorageError:
    path = shown(item.copy.destination_path)
    detail = f"{path}: wrote {size_bytes} bytes {sent.known() or ''}, read back {found}"
    return StorageError(ErrorClass.CHECKSUM_MISMATCH, detail)


# -- whose failure ----------------------------------------------------------------------------------------------


class blaming:  # noqa: N801  reads as a statement
    """A StorageError inside the block is this side's, unless it was the other's already, or nobody's."""

    __slots__ = ("side",)

    def __init__(self, side: str) -> None:
        self.side = side

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, StorageError):
            side: str | None = self.side
            if error.error_class == ErrorClass.INTERRUPTED:
                side = None
            elif error.error_class == ErrorClass.SOURCE_CHANGED:  # told by whom it was announced to
                side = "source"
            error.facts.setdefault("blamed", side)


def _failure(copy: Copy, error: Exception, bytes_moved: int, spent_s: float) -> Outcome:
    """The outcome of a copy that ended with an error."""
    side, error_class = None, ErrorClass.UNAVAILABLE if isinstance(error, Unsupported) else ErrorClass.IO
    if isinstance(error, StorageError):
        side, error_class = error.facts.get("blamed"), ErrorClass(error.error_class)
    if side and error_class == ErrorClass.UNAVAILABLE:
        error_class = UNAVAILABLE[side]
    if side == "destination" and error_class == ErrorClass.SOURCE_MISSING:
        error_class = ErrorClass.IO  # it went while we looked at it; the source is not to be suspected
    return Outcome(
        copy.request_id, False, bytes_moved=bytes_moved, duration_s=spent_s, error_class=str(error_class),
        error=str(error), side=side,
    )  # fmt: skip
