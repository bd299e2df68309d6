"""The local transfertool: POSIX to POSIX on this host, in a bounded pool of threads.

Small files go in groups whose bytes and names are made durable together, large files alone (see `local_group`).
"""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from dlm.errors import StorageError
from dlm.rooted import Root
from dlm.transfertools.interface import Copy, Outcome, Transfertool
from dlm.transfertools.local_group import Group, Limits, failed
from dlm.types import ErrorClass
from dlm.unforeseen import netting

SMALL_BYTES = 16 << 20  # up to here one flush of the file system for many files is cheaper than one per file
GROUP_BYTES = 128 << 20
GROUP_FILES = 500
MARGIN_S = 2.0

UNAVAILABLE = {"source": ErrorClass.SOURCE_UNAVAILABLE, "destination": ErrorClass.DESTINATION_UNAVAILABLE}


class LocalTool(Transfertool):
    """`threads` copies at once. The margin is what the last buffer and flush before the deadline may take."""

    def __init__(self, *, threads: int = 2, margin_s: float = MARGIN_S) -> None:
        self.threads = threads
        self.margin_s = margin_s

    def copy_many(self, copies: Sequence[Copy], deadline: float, stop: Callable[[], bool]) -> Iterator[Outcome]:
        limits = Limits(deadline - self.margin_s, stop)
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="dlm-copy")
        try:
            waiting = {pool.submit(copy_group, group, limits): group for group in groups(copies, self.threads)}
            yield from as_they_finish(waiting, deadline)
        finally:
            limits.stop_now()
            # Not waited for: a thread that a storage holds would hold us too; it can no longer name a file.
            pool.shutdown(wait=False, cancel_futures=True)


def as_they_finish(waiting: dict[Future[list[Outcome]], list[Copy]], deadline: float) -> Iterator[Outcome]:
    """The outcomes as they come; TIMEOUT for all of which nothing came by the deadline."""
    left = set(waiting)
    try:
        for done in concurrent.futures.as_completed(waiting, timeout=max(0.0, deadline - time.monotonic())):
            left.discard(done)
            yield from _outcomes(done, waiting[done])
    except TimeoutError:
        for held in left:
            detail = "a storage did not answer before the deadline"
            yield from (failed(copy.request_id, ErrorClass.TIMEOUT, detail) for copy in waiting[held])


def _outcomes(done: Future[list[Outcome]], copies: Sequence[Copy]) -> list[Outcome]:
    """What came of the copies that a thread had; all of them failed if it ended with what nobody foresaw."""
    try:
        with netting(f"copy {copies[0].source_path}"):
            return done.result()
    except StorageError as error:
        return [failed(copy.request_id, error.error_class, str(error)) for copy in copies]


def groups(copies: Sequence[Copy], threads: int) -> Iterator[list[Copy]]:
    """The copies in shares of one pair of storages each: large files alone, small ones together, in order."""
    files = min(GROUP_FILES, max(1, -(-len(copies) // threads)))
    pairs: dict[tuple[str, str, str, str], list[Copy]] = {}
    for copy in copies:
        pairs.setdefault(_pair(copy), []).append(copy)
    for same_pair in pairs.values():
        yield from _shares(same_pair, files)


def _shares(copies: list[Copy], files: int) -> Iterator[list[Copy]]:
    group: list[Copy] = []
    group_bytes = 0
    for copy in copies:
        size_bytes = _guessed_bytes(copy)
        if size_bytes > SMALL_BYTES:
            yield [copy]
            continue
        if group and (len(group) >= files or group_bytes + size_bytes > GROUP_BYTES):
            yield group
            group, group_bytes = [], 0
        group.append(copy)
        group_bytes += size_bytes
    if group:
        yield group


def _pair(copy: Copy) -> tuple[str, str, str, str]:
    source, destination = copy.source, copy.destination
    return source.prefix, source.storage_uuid, destination.prefix, destination.storage_uuid


def _guessed_bytes(copy: Copy) -> int:
    return copy.size_bytes if copy.size_bytes is not None else GROUP_BYTES // 32


def copy_group(copies: list[Copy], limits: Limits) -> list[Outcome]:
    """The outcomes of copies between one pair of storages, whose markers are proven on the opened roots."""
    side = "source"
    try:
        limits.check()
        with Root(copies[0].source.prefix) as source:
            source.require_marker(copies[0].source.storage_uuid)
            side = "destination"
            alone = len(copies) == 1
            with Root(copies[0].destination.prefix, durable_mkdir=alone) as destination:
                destination.require_marker(copies[0].destination.storage_uuid)
                return Group(source, destination, limits, alone=alone).run(copies)
    except StorageError as error:
        error_class = UNAVAILABLE[side] if error.error_class == ErrorClass.UNAVAILABLE else error.error_class
        blamed = None if error_class == ErrorClass.INTERRUPTED else side
        return [failed(copy.request_id, error_class, str(error), blamed) for copy in copies]
