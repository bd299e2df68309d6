"""What a conveyor does outside the database: markers looked at, files copied, leftovers found. No transaction is open.

Every look at a storage is made by a daemon thread, so that one which never answers holds up itself only.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from dlm import effects
from dlm.errors import StorageError, Unsupported
from dlm.protocols import open_protocol
from dlm.transfertools import Copy, Outcome, select
from dlm.types import Checksums, ErrorClass, ProtocolRef, ReplicaState
from dlm.unforeseen import netting

_KEPT_FENCES = 20


@dataclass(frozen=True, slots=True)
class Look:
    """A cancelled request's place: did an earlier attempt leave something there?"""

    request_id: int
    destination: ProtocolRef
    path: str
    size_bytes: int
    checksums: Checksums


@dataclass(frozen=True, slots=True)
class Looked:
    """What stands there: an available or a bad file, or None; or why that could not be told."""

    request_id: int
    leftover: ReplicaState | None = None
    error_class: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What came of one item of a flight, or (`what` None) that the flight ended, `failure` if by a bug.

    It carries its flight: one that was given up may still report on a request that is in the air again.
    """

    flight: Flight
    what: Outcome | Looked | None
    failure: BaseException | None = None


def attempt_name(request_id: int, fence: int) -> str:
    """What stands in the temporary's name of one attempt: no other attempt of any worker has the same."""
    return f"{request_id}.{fence}"


def earlier_attempts(request_id: int, fence: int) -> list[str]:
    """The names of the attempts before this one; the last twenty, older temporaries are long removed."""
    return [attempt_name(request_id, number) for number in range(max(1, fence - _KEPT_FENCES), fence)]


def absent(refs: Iterable[ProtocolRef], timeout_s: float) -> dict[int, str]:
    """Why storages cannot be used now, by id: their root or marker is not there, or they do not answer in time."""
    answers: SimpleQueue[tuple[int, str | None]] = SimpleQueue()
    waiting = {ref.storage_id: ref for ref in refs}
    for ref in waiting.values():
        threading.Thread(target=_probe, args=(ref, answers), name="dlm-marker", daemon=True).start()
    limit = time.monotonic() + timeout_s
    reasons: dict[int, str] = {}
    while waiting:
        try:
            storage_id, reason = answers.get(timeout=max(0.0, limit - time.monotonic()))
        except Empty:
            return reasons | dict.fromkeys(waiting, f"no answer within {timeout_s:g} s")
        del waiting[storage_id]
        if reason is not None:
            reasons[storage_id] = reason
    return reasons


def _probe(ref: ProtocolRef, answers: SimpleQueue[tuple[int, str | None]]) -> None:
    try:
        with netting(f"look at the marker of {ref.storage_name}"):
            open_protocol(ref).require_marker(ref.storage_uuid)
    except (StorageError, Unsupported) as error:
        answers.put((ref.storage_id, str(error)))
    else:
        answers.put((ref.storage_id, None))


@dataclass(slots=True, eq=False)
class Flight:
    """The copies and looks of one batch at one destination, carried out in a thread; reports go to `reports`.

    Temporaries of `earlier` attempts are removed first: their workers are gone, or too late.
    """

    destination: ProtocolRef
    deadline: float  # time.monotonic
    stop: Callable[[], bool]
    reports: SimpleQueue[Report]
    threads: int = 1
    copies: list[Copy] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    earlier: list[str] = field(default_factory=list)

    def start(self) -> None:
        threading.Thread(target=self._run, name=f"dlm-to-{self.destination.storage_name}", daemon=True).start()

    def request_ids(self) -> set[int]:
        return {copy.request_id for copy in self.copies} | {look.request_id for look in self.looks}

    def _run(self) -> None:
        failure: BaseException | None = None
        try:
            effects.point("conveyor.flight:before")
            self._remove_temporaries()
            for outcome in self._copied():
                self.reports.put(Report(self, outcome))
            for look in self.looks:
                self.reports.put(Report(self, self._looked(look)))
        except BaseException as error:  # noqa: BLE001 - a thread's boundary: the daemon raises it
            failure = error
        self.reports.put(Report(self, None, failure))

    def _remove_temporaries(self) -> None:
        if not self.earlier:
            return
        try:
            with netting(f"remove temporaries from {self.destination.storage_name}"):
                open_protocol(self.destination).remove_temporaries(*self.earlier)
        except (StorageError, Unsupported):
            return  # the copies meet the same storage and tell why

    def _copied(self) -> Iterable[Outcome]:
        for (source, destination), copies in _by_schemes(self.copies).items():
            try:
                tool = select(source, destination, threads=self.threads, open_protocol=open_protocol)
            except Unsupported as error:
                yield from (_failed(copy, ErrorClass.UNAVAILABLE, str(error)) for copy in copies)
                continue
            yield from tool.copy_many(copies, self.deadline, self.stop)

    def _looked(self, look: Look) -> Looked:
        try:
            self._check()
            with netting(f"look at {look.path}"):
                return Looked(look.request_id, leftover(look, self._check))
        except StorageError as error:
            return Looked(look.request_id, error_class=error.error_class, error=str(error))
        except Unsupported as error:
            return Looked(look.request_id, error_class=ErrorClass.UNAVAILABLE, error=str(error))

    def _check(self) -> None:
        if self.stop() or time.monotonic() >= self.deadline:
            raise StorageError(ErrorClass.INTERRUPTED, "no time left to look")


def leftover(look: Look, between: Callable[[], None] = lambda: None) -> ReplicaState | None:
    """What stands at the place: None, or an available file if size and digests are the catalogue's, else a bad one."""
    protocol = open_protocol(look.destination)
    there = protocol.stat(look.path)
    if there is None:
        return None
    known = look.checksums.known()
    if there.size_bytes != look.size_bytes or not known:
        return ReplicaState.BAD  # with no digest to compare, nothing vouches for it
    found = protocol.checksum(look.path, tuple(known), between)
    return ReplicaState.AVAILABLE if found.agrees(look.checksums) else ReplicaState.BAD


def _by_schemes(copies: Sequence[Copy]) -> Mapping[tuple[str, str], list[Copy]]:
    groups: dict[tuple[str, str], list[Copy]] = defaultdict(list)
    for copy in copies:
        groups[copy.source.scheme, copy.destination.scheme].append(copy)
    return groups


def _failed(copy: Copy, error_class: ErrorClass, detail: str) -> Outcome:
    return Outcome(copy.request_id, False, error_class=str(error_class), error=detail)
