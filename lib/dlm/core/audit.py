"""What a look at a stored file says, and what follows: verified, found wrong, declared, or left in doubt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy.engine import Row

from dlm.core import breaker
from dlm.db import audits, breakers, changes, events, storages
from dlm.db.audits import Item
from dlm.db.engine import Tx
from dlm.db.usage import StorageDelta
from dlm.errors import Conflict, NotFound
from dlm.types import ChangeKind, Checksums, ReplicaState

EXAMPLES = 10  # file ids that an event names


class Verdict(StrEnum):
    GOOD = "good"  # all bytes were read and are the file
    PRESENT = "present"  # there, and of the right size
    BAD = "bad"
    LOST = "lost"
    UNKNOWN = "unknown"  # the storage could not tell


@dataclass(frozen=True, slots=True)
class Answer:
    """What a look at one replica said; `token` is the lease it was taken under, if any."""

    item: Item
    verdict: Verdict
    detail: str = ""
    checksums: Checksums | None = None
    token: datetime | None = None


@dataclass(frozen=True, slots=True)
class Declared:
    """How many replicas were declared, and the files whose last good copy they would have been."""

    bad: int = 0
    lost: int = 0
    in_doubt: tuple[int, ...] = ()


# -- judging (pure) ---------------------------------------------------------------------------------------------


def expected(item: Item) -> Checksums:
    """The digests that the file is known by."""
    return Checksums(item.adler32, item.md5, item.sha256)


def needs_read(item: Item, with_checksum: bool) -> bool:
    """True when the size does not answer the question: bytes are asked for, or a bad or lost copy came back."""
    return with_checksum or item.state in (ReplicaState.BAD, ReplicaState.LOST)


def judge_size(item: Item, size_bytes: int | None) -> Answer:
    """The verdict on a file's size alone; None means that no file is there."""
    if size_bytes is None:
        return Answer(item, Verdict.LOST, "no file is there")
    if size_bytes != item.size_bytes:
        return Answer(item, Verdict.BAD, f"{size_bytes:,} bytes instead of {item.size_bytes:,}")
    return Answer(item, Verdict.PRESENT)


def judge_bytes(item: Item, digests: Checksums) -> Answer:
    """The verdict on the digests of a full read of a file of the right size."""
    known = expected(item)
    if known.contradicts(digests):
        wrong = [name for name, value in known.known().items() if digests.known().get(name, value) != value]
        told = ", ".join(f"{name} {digests.known()[name]} instead of {known.known()[name]}" for name in wrong)
        return Answer(item, Verdict.BAD, told)
    return Answer(item, Verdict.GOOD, checksums=digests)


def found_wrong(answers: Iterable[Answer]) -> list[Answer]:
    """The answers that contradict the catalogue: a bad copy that is bad still is no news."""
    wrong = (Verdict.BAD, Verdict.LOST)
    return [answer for answer in answers if answer.verdict in wrong and str(answer.verdict) != answer.item.state]


def proven(answers: Iterable[Answer]) -> int:
    """How many of these copies were verified once.

    Of the others somebody only said that they are there: that they are not says nothing of the storage, and whoever
    registers what was never there must not stop its audits.
    """
    return sum(answer.item.verified_at is not None for answer in answers)


# -- asking for a check -----------------------------------------------------------------------------------------


def start_check(tx: Tx, storage_id: int, *, with_checksum: bool = True, confirm_lost: bool = False) -> int:
    """Ask for a check of everything on a storage; its id. Up to four statements.

    NotFound for an unknown storage; Conflict while a check runs there. `confirm_lost` is a person's word that what
    is missing is lost, however much it is, last copies included; it closes the storage's breaker for losses.
    """
    storage = audits.hold_storage(tx, storage_id)
    if storage is None:
        raise NotFound(f"there is no storage {storage_id}", field="storage")
    if storage.running is not None:
        hint = "wait for its end; its progress is shown with it"
        raise Conflict(
            f"check {storage.running} of {storage.name} runs already", field="storage", hint=hint, audit=storage.running
        )
    audit_id = audits.insert(tx, storage_id, with_checksum=with_checksum, confirm_lost=confirm_lost)
    after = {"check": audit_id, "with_checksum": with_checksum, "confirm_lost": confirm_lost}
    events.record(tx, "storage", storage_id, "check_started", after=after)
    changes.wake(tx, "auditor")
    return audit_id


def confirm(tx: Tx, audit_id: int) -> None:
    """Let a stopped check declare what it found, on a person's word. NotFound, or Conflict if it is not stopped."""
    check = audits.get(tx, audit_id)
    if check is None:
        raise NotFound(f"there is no check {audit_id}", field="check")
    storage = audits.hold_storage(tx, check.storage_id)
    if storage is not None and storage.running is not None:
        raise Conflict(f"check {storage.running} of {storage.name} runs already", field="check", audit=storage.running)
    if not audits.resume(tx, audit_id):
        raise Conflict(f"check {audit_id} is {check.state}, not stopped", field="check", hint="start a new check")
    events.record(tx, "storage", check.storage_id, "losses_confirmed", after={"check": audit_id})
    changes.wake(tx, "auditor")


# -- writing down -----------------------------------------------------------------------------------------------


def hold(tx: Tx, answers: Sequence[Answer]) -> None:
    """Lock the copies of all these files, in key order, when something is to be declared; at most one statement.

    What is declared and what is recorded as good are written one after the other. Otherwise: 1. we write file 5, which
    is good; 2. somebody else locks file 2 and waits for file 5; 3. we declare file 2.
    """
    if found_wrong(answers):
        audits.hold_copies(tx, {answer.item.did_id for answer in answers})


def record_good(tx: Tx, answers: Sequence[Answer], cycle_s: float, delta: StorageDelta) -> int:
    """Write down what was read and is right, and wake the rules that this may help; how many; up to four statements.

    Replicas before DIDs, as conveyors write them.
    """
    good = [answer for answer in answers if answer.verdict is Verdict.GOOD]
    if not good:
        return 0
    rows = audits.mark_good(tx, [a.item for a in good], [a.token for a in good], cycle_s)
    learnt = [
        (answer.item.did_id, answer.checksums.adler32)
        for answer in good
        if answer.checksums and answer.checksums.adler32 and not expected(answer.item).known()
    ]
    if learnt:
        audits.learn_checksums(tx, learnt)
    better = [row for row in rows if row.was != ReplicaState.AVAILABLE]
    for row in better:
        if row.was == ReplicaState.LOST:
            delta.add(row.storage_id, used_bytes=row.size_bytes, used_files=1)
    if better:
        changes.add_by_storage(tx, ChangeKind.ARRIVED, [(row.did_id, row.storage_id) for row in better])
    return len(rows)


def declare(
    tx: Tx, storage_id: int, wrong: Sequence[Answer], delta: StorageDelta, *, confirm_lost: bool = False
) -> Declared:
    """Declare replicas of one storage bad or lost; a fixed number of statements, one event.

    The last good copy of a file is never demoted on the word of one look, unless a person confirmed: its finding
    stays open, which keeps it from being a witness for any deletion.
    """
    if not wrong:
        return Declared()
    answers = {answer.item.did_id: answer for answer in wrong}
    audits.hold_copies(tx, answers)
    rows = audits.load_demotable(tx, [answer.item for answer in wrong])
    already = (ReplicaState.BAD, ReplicaState.LOST)
    taken = [row for row in rows if confirm_lost or row.has_other or row.state in already]
    _demote(tx, storage_id, taken, answers, delta)
    lost = sum(answers[row.did_id].verdict is Verdict.LOST for row in taken)
    kept = {row.did_id for row in rows} - {row.did_id for row in taken}
    return Declared(len(taken) - lost, lost, tuple(sorted(kept)))


def note_in_doubt(tx: Tx, storage_id: int, file_ids: Sequence[int]) -> None:
    """Make it visible that last copies look wrong and were not demoted; at most one statement."""
    if file_ids:
        after = {"files": len(file_ids), "examples": sorted(file_ids)[:EXAMPLES]}
        cause = "no other verified copy is there; a check with confirm_lost declares it nevertheless"
        events.record(tx, "storage", storage_id, "last_copy_in_doubt", cause=cause, after=after)


def loss_refused(tx: Tx, storage_id: int, found: tuple[int, int], limits: breaker.Limits) -> str | None:
    """Why a person must confirm so many losses (the breaker opens); None if they may be declared; ≤ 6 statements.

    `found`: how many are bad or lost, and how many of them are `proven`. An open breaker holds them all.
    """
    files, proven_files = found
    if not files:
        return None
    if breakers.is_open(tx, "loss", storage_id):
        return f"{files:,} files bad or lost; the breaker for losses is open"
    if not proven_files:
        return None
    used = audits.count_files(tx, storage_id)
    window = breakers.in_window(tx, "loss", [storage_id], limits.window_s)[storage_id]
    reason = breaker.trips("loss", window, proven_files, used, limits)
    if reason is not None:
        facts = {"files_in_window": window, "files_found": proven_files, "files": used}
        breakers.open_(tx, "loss", storage_id, reason, facts)
    return reason


def note_availability(tx: Tx, storage_id: int, reason: str | None) -> bool:
    """Record that a storage is there (None) or why it is not; True, with an event and a change, when that is news."""
    if not storages.set_available(tx, storage_id, reason):
        return False
    action = "available" if reason is None else "unavailable"
    events.record(tx, "storage", storage_id, action, cause=reason)
    changes.add(tx, ChangeKind.STORAGES, storage_id=storage_id)
    return True


def _demote(tx: Tx, storage_id: int, rows: Sequence[Row[Any]], answers: dict[int, Answer], delta: StorageDelta) -> None:
    if not rows:
        return
    audits.demote(tx, [(row.did_id, row.storage_id, str(answers[row.did_id].verdict)) for row in rows])
    for row in rows:
        was_used, is_used = row.state != ReplicaState.LOST, answers[row.did_id].verdict is Verdict.BAD
        files = int(is_used) - int(was_used)
        delta.add(storage_id, used_bytes=files * row.size_bytes, used_files=files)
    harmed = [row for row in rows if row.state in (ReplicaState.AVAILABLE, ReplicaState.UNVERIFIED)]
    breakers.add_harm(tx, "loss", {storage_id: proven(answers[row.did_id] for row in harmed)})
    changes.add_by_storage(tx, ChangeKind.HARMED, [(row.did_id, storage_id) for row in rows])
    first = answers[rows[0].did_id]
    lost = sum(answers[row.did_id].verdict is Verdict.LOST for row in rows)
    after = {"lost": lost, "bad": len(rows) - lost, "examples": sorted(row.did_id for row in rows)[:EXAMPLES]}
    events.record(tx, "storage", storage_id, "harmed", cause=f"file {first.item.did_id}: {first.detail}", after=after)
