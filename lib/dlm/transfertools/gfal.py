"""The gfal2 transfertool: storages that copy between themselves. Bytes do not pass through this host.

adopt    as the stream tool does: what stands at the destination and is right counts
copy     the destination is told to fetch the file into a temporary name, by a worker that is killed when it is over
prove    the destination's digest of that is what the catalogue expects, or the source's own; then it gets its name
look     what has the name now is of the right size

Where storages cannot do it (no gfal2 here, another identity at each, a refusal of either), the stream tool moves the
file. What that finds tells whose failure it is; of a copy between two others one cannot.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from dlm import effects
from dlm.errors import StorageError
from dlm.gfal import extension, speech
from dlm.gfal.workers import GfalError, Workers
from dlm.rooted import shown
from dlm.transfertools.interface import Copy, Described, Opener, Outcome, ReadBack, ThirdParty
from dlm.transfertools.local import MARGIN_S
from dlm.transfertools.local_group import Limits, algorithms, require_expected, require_size
from dlm.transfertools.stream import Item, StreamTool, blaming, mismatch, read_within, require_named
from dlm.types import Checksums, ErrorClass

STALL_S = 120.0  # servers that cannot reach each other may try for hours; then there is still time for the stream
REST_S = 600.0
log = logging.getLogger(__name__)


class NotBetweenThem(Exception):
    """These two storages did not copy this file between themselves; `lasting` if the next will not fare better."""

    def __init__(self, reason: str, *, lasting: bool = False) -> None:
        super().__init__(reason)
        self.lasting = lasting


class Rests:
    """Pairs of storages that are not asked for a while to copy between themselves: each try may cost minutes."""

    def __init__(self) -> None:
        self._until: dict[tuple[str, str], float] = {}
        self._lock = threading.Lock()

    def begin(self, copy: Copy) -> None:
        now = time.monotonic()
        with self._lock:
            self._until = {pair: until for pair, until in self._until.items() if until > now}
            self._until[copy.source.prefix, copy.destination.prefix] = now + REST_S

    def are_on(self, copy: Copy) -> bool:
        with self._lock:
            return self._until.get((copy.source.prefix, copy.destination.prefix), 0.0) > time.monotonic()


RESTS = Rests()  # of this process: tools are made anew for each batch


class GfalTool(StreamTool):
    """`threads` copies at once, each watched by a worker of its own."""

    def __init__(self, open_protocol: Opener, *, threads: int = 2, margin_s: float = MARGIN_S) -> None:
        super().__init__(open_protocol, threads=threads, margin_s=margin_s)
        self._lock = threading.Lock()
        self._workers: dict[str, Workers] = {}
        self._told: set[tuple[str, str]] = set()

    def copy_many(self, copies: Sequence[Copy], deadline: float, stop: Callable[[], bool]) -> Iterator[Outcome]:
        try:
            yield from super().copy_many(copies, deadline, stop)
        finally:
            with self._lock:
                ended, self._workers = self._workers, {}
            for workers in ended.values():
                workers.close()

    def _move(self, item: Item, limits: Limits) -> Outcome:
        try:
            return self._moved_between(item, limits)
        except NotBetweenThem as reason:
            self._tell(item.copy, reason)
        item.bytes_moved = 0
        return super()._move(item, limits)

    def _tell(self, copy: Copy, reason: NotBetweenThem) -> None:
        """Log the reason, once a batch; give the pair a rest if it is to have one."""
        if reason.lasting:
            RESTS.begin(copy)
        here, there = copy.source.storage_name, copy.destination.storage_name
        with self._lock:
            is_first = (here, there) not in self._told
            self._told.add((here, there))
        if is_first:
            log.info("from %s to %s by way of this host: %s", here, there, reason)

    def _moved_between(self, item: Item, limits: Limits) -> Outcome:
        copy, source, destination = item.copy, item.source, item.destination
        if not isinstance(source, ThirdParty) or not isinstance(destination, ThirdParty):
            raise NotBetweenThem("not with these protocols")
        workers = self._between(copy)
        with blaming("source"):
            before = source.stat(copy.source_path)
            if before is None:
                raise StorageError(ErrorClass.SOURCE_MISSING, f"{shown(copy.source_path)} is not there")
            require_size(copy, before.size_bytes)
            fetch = partial(_fetched, item, workers, source.url(copy.source_path), before, limits)
        found: list[Checksums] = []
        with blaming("destination"):
            is_ours = destination.receive(
                copy.destination_path, fetch, attempt=copy.attempt, replace=copy.replace,
                prove=lambda read_back: found.append(_proven(item, before, limits, read_back)),
            )  # fmt: skip
            effects.point("gfal.write:after")
            require_named(item, before.size_bytes, limits, is_ours=is_ours)
        spent_s = time.monotonic() - item.started
        moved = before.size_bytes if is_ours else 0
        return Outcome(copy.request_id, True, before.size_bytes, found[0], not is_ours, moved, spent_s)

    def _between(self, copy: Copy) -> Workers:
        """Those who may have this copy made; NotBetweenThem where there can be none."""
        if not extension.is_there():
            raise NotBetweenThem("gfal2 is not installed")
        if RESTS.are_on(copy):
            raise NotBetweenThem("they could not a short while ago")
        source, destination = copy.source, copy.destination
        key = f"{source.prefix} {source.secret_version} {destination.prefix} {destination.secret_version}"
        with self._lock:
            if key not in self._workers:
                told = speech.between(source, destination)
                if told is None:
                    raise NotBetweenThem(
                        "not with these secrets, or the source does not trust the destination with its token"
                    )
                self._workers[key] = Workers(told)
            return self._workers[key]


def _fetched(
    item: Item, workers: Workers, source_url: str, before: Described, limits: Limits, temporary_url: str
) -> None:
    """Have the destination fetch the source's bytes."""
    limits.check()
    effects.point("gfal.copy:before")
    with workers.one() as worker:
        left_s = max(1.0, limits.until - time.monotonic())
        try:
            told = (source_url, temporary_url, int(left_s), STALL_S)
            worker.call("copy", *told, limit_s=left_s, is_over=partial(_is_over, limits))
        except GfalError as error:
            limits.check()  # whoever was asked to stop did not fail
            judged = error.judged("copy to", item.copy.destination_path, writing=True)
            if judged.error_class == ErrorClass.NO_SPACE:
                raise judged from error
            is_lasting = judged.error_class in (ErrorClass.TIMEOUT, ErrorClass.UNAVAILABLE)
            raise NotBetweenThem(str(judged), lasting=is_lasting) from error
    item.bytes_moved = before.size_bytes
    effects.point("gfal.copy:after")


def _is_over(limits: Limits) -> bool:
    try:
        limits.check()
    except StorageError:
        return True
    return False


def _proven(item: Item, before: Described, limits: Limits, read_back: ReadBack) -> Checksums:
    """What is stored, once it is what it should be. CHECKSUM_MISMATCH or the source's failure if not.

    One digest is enough, if the catalogue has that which storages know: the others would be read through this host.
    """
    copy = item.copy
    wanted = ("adler32",) if copy.checksums.adler32 else algorithms(copy)
    stored = read_within(limits, read_back, wanted)
    expected = copy.checksums
    if not stored.agrees(expected):
        with blaming("source"):
            expected = item.source.checksum(copy.source_path, wanted, limits.check)
            require_expected(copy, expected)
    with blaming("source"):
        after = item.source.stat(copy.source_path)
        if after is None or (after.size_bytes, after.modified_at) != (before.size_bytes, before.modified_at):
            raise StorageError(ErrorClass.SOURCE_CHANGED, f"{shown(copy.source_path)} changed while it was copied")
    if not stored.agrees(expected):
        raise mismatch(item, before.size_bytes, expected, str(stored.known()) if stored.known() else "nothing")
    limits.check()
    return stored
