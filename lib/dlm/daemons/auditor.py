"""The auditor: storages and catalogue agree. Whole-storage checks, due verifications, reported doubts, availability.

Everything it does outside the database is reading, so a worker that lost its lease does no harm; what it then writes
is refused by the fence (checks) or by the due time it was given (verifications).
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy.engine import Row

from dlm import effects
from dlm.config import Settings
from dlm.core import audit, credentials
from dlm.core.audit import Answer, Verdict
from dlm.daemons.abreast import Abreast, spread
from dlm.daemons.loop import Pass
from dlm.daemons.reaper import breaker_limits
from dlm.db import audits, breakers, usage
from dlm.db.audits import Item
from dlm.db.engine import Database, Tx
from dlm.did import derived_path
from dlm.errors import StorageError, Unsupported
from dlm.protocols import StorageProtocol, open_protocol
from dlm.types import ErrorClass, ProtocolRef
from dlm.unforeseen import netting

LOOK_S = 60.0  # between two looks at a storage's marker
LOOK_TIMEOUT_S = 10.0  # a storage that does not show its marker within this is unavailable
PROBE_PAUSE_S = 30.0  # before a file that was missed is looked for again; doubles
PROBE_PAUSE_MAX_S = 3600.0
SLOW_BYTES_S = 20_000_000  # reading is expected to be faster than this; leases are lengthened by it
DEFAULT_DIGEST = "adler32"  # computed where the DID has none

Token = datetime | None


class Unavailable(Exception):
    """The storage went away while it was looked at: what was seen of it counts for nothing."""


class Auditor:
    """One process's auditor; several may run beside each other."""

    name = "auditor"

    def __init__(self, database: Database, settings: Settings, timer: Callable[[], float] = time.monotonic) -> None:
        self.database = database
        self.settings = settings
        self.interval_s = settings.auditor_interval_s
        self.limits = breaker_limits(settings)
        self._abreast = Abreast(timer)

    def run_once(self, *, dry_run: bool = False) -> Pass:
        """Look at the markers, then at one chunk of a check, then at one batch of due verifications."""
        done = Pass()
        self._look(done, dry_run)
        self._check(done, dry_run)
        self._verify_due(done, dry_run)
        return done

    # -- availability -------------------------------------------------------------------------------------------

    def _look(self, done: Pass, dry_run: bool) -> None:
        """Look at the markers of storages not looked at for a while, side by side."""
        with self.database.begin("auditor.look", commit=not dry_run) as tx:
            due = audits.claim_looks(tx, LOOK_S, self._abreast.hanging())
            refs = credentials.refs(tx, due)
            breakers.forget_harm(tx, 2 * self.limits.window_s)
        if dry_run or not due:
            return
        reasons = self._abreast.run({storage: partial(_look_at, ref) for storage, ref in refs.items()}, LOOK_TIMEOUT_S)
        with self.database.begin("auditor.availability") as tx:
            for storage_id in due:
                reason = reasons.get(storage_id, f"no answer within {LOOK_TIMEOUT_S:.0f} s")
                done.count("availability_changed", audit.note_availability(tx, storage_id, reason))

    # -- checks of a whole storage ------------------------------------------------------------------------------

    def _check(self, done: Pass, dry_run: bool) -> None:
        """One chunk of one check: its next replicas, or, when all were looked at, its findings once more."""
        with self.database.begin("auditor.claim", commit=not dry_run) as tx:
            check = audits.claim(tx, self.settings.auditor_lease_s, self._abreast.hanging())
            if check is None:
                return
            items, is_last_look = self._load(tx, check)
            ref = credentials.refs(tx, [check.storage_id]).get(check.storage_id)
            lease_s = self.settings.auditor_lease_s + _read_s(items)
            audits.extend(tx, check.id, lease_s)
        if dry_run:
            return
        try:
            with_checksum = check.with_checksum
            answers = self._examine({check.storage_id: (ref, items)}, with_checksum, lease_s)[check.storage_id]
        except Unavailable as reason:
            with self.database.begin("auditor.record") as tx:
                self._end_unavailable(tx, check, str(reason))
            return
        with self.database.begin("auditor.record") as tx:
            if not check.is_available:  # it answered: whoever asked need not wait for the next look at markers
                audit.note_availability(tx, check.storage_id, None)
            self._record_check(tx, check, answers, is_last_look, done)
        done.is_full = True

    def _load(self, tx: Tx, check: Row[Any]) -> tuple[list[Item], bool]:
        """The check's next replicas, or its findings and True when there are no more replicas."""
        batch = self.settings.auditor_batch
        items = audits.load_chunk(tx, check.storage_id, check.after_did_id, batch)
        if items:
            return _within_lease(items, self.settings.auditor_lease_s) if check.with_checksum else items, False
        return audits.load_findings(tx, check.id, batch), True

    def _record_check(self, tx: Tx, check: Row[Any], answers: list[Answer], is_last_look: bool, done: Pass) -> None:
        """Write a chunk down; stop for a person when the losses are too many, end when nothing is left."""
        delta = usage.StorageDelta()
        wrong = audit.found_wrong(answers)
        if is_last_look:
            now = audits.advance(tx, check.id, check.fence, check.after_did_id)
        else:
            lost = sum(answer.verdict is Verdict.LOST for answer in wrong)
            counts = (len(answers), lost, len(wrong) - lost, audit.proven(wrong))
            now = audits.advance(tx, check.id, check.fence, max(a.item.did_id for a in answers), counts)
        if now is None:
            done.count("late")
            return
        if not is_last_look:
            self._note_findings(tx, now, wrong)
        elif answers:
            audit.hold(tx, answers)
            self._declare_check(tx, now, answers, wrong, delta, done)
        else:
            audits.end(tx, check.id, "done", _told(now))
            done.count("checks_done")
        done.count("verified", audit.record_good(tx, answers, self.settings.auditor_cycle_s, delta))
        usage.change_storages(tx, delta)
        done.count("looked_at", len(answers))

    def _note_findings(self, tx: Tx, check: Row[Any], wrong: Sequence[Answer]) -> None:
        """Keep what a chunk found until the end of the check; stop as soon as the share is certainly exceeded."""
        if wrong:
            audits.add_findings(tx, [(a.item, str(a.verdict), a.detail) for a in wrong], check.id)
        if check.confirm_lost or not wrong:
            return
        reason = audit.loss_refused(tx, check.storage_id, (check.missing + check.corrupt, check.proven), self.limits)
        if reason is not None:
            hint = f"if they are lost indeed: dlm-admin storage check {check.storage} --confirm-lost"
            audits.end(tx, check.id, "stopped", f"{_told(check)}; {reason}; nothing was declared lost. {hint}")

    def _declare_check(
        self, tx: Tx, check: Row[Any], answers: list[Answer], wrong: list[Answer], delta: usage.StorageDelta, done: Pass
    ) -> None:
        """Declare what is wrong at the last look, too. What is not declared is left to the due verifications."""
        if check.confirm_lost:
            breakers.close_for(tx, "loss", check.storage_id)
        declared = audit.declare(tx, check.storage_id, wrong, delta, confirm_lost=check.confirm_lost)
        audit.note_in_doubt(tx, check.storage_id, declared.in_doubt)
        fine = [a.item for a in answers if a.verdict in (Verdict.PRESENT, Verdict.GOOD)]
        audits.forget_findings(tx, [(item.did_id, item.storage_id) for item in fine])
        audits.disown_findings(tx, [answer.item for answer in answers])
        _count_declared(done, declared)

    def _end_unavailable(self, tx: Tx, check: Row[Any], reason: str) -> None:
        """The storage is not there: the check ends, and no file is blamed."""
        if audits.advance(tx, check.id, check.fence, check.after_did_id) is not None:
            audits.end(tx, check.id, "unavailable", f"{reason}; nothing was declared lost")
        audit.note_availability(tx, check.storage_id, reason)

    # -- due verifications and reported findings ------------------------------------------------------------------

    def _verify_due(self, done: Pass, dry_run: bool) -> None:
        """Read the replicas whose verification is due, reported ones among them, storages side by side."""
        lease_s = self.settings.auditor_lease_s
        with self.database.begin("auditor.claim-due", commit=not dry_run) as tx:
            batch = self.settings.auditor_batch
            audits.forget_gone(tx, batch)
            audits.call_reported(tx, batch, PROBE_PAUSE_S, PROBE_PAUSE_MAX_S)
            due = audits.claim_due(tx, batch, lease_s, SLOW_BYTES_S, self._abreast.hanging())
            refs = credentials.refs(tx, {item.storage_id for item, _ in due})
        if dry_run or not due:
            return
        done.is_full = done.is_full or len(due) == batch
        tokens = {(item.did_id, item.storage_id): token for item, token in due}
        by_storage: dict[int, list[Item]] = defaultdict(list)
        for item, _ in due:
            by_storage[item.storage_id].append(item)
        for storage_id, items in by_storage.items():
            self._verify_storage(storage_id, refs.get(storage_id), _within_lease(items, lease_s), tokens, done)

    def _verify_storage(
        self,
        storage_id: int,
        ref: ProtocolRef | None,
        items: list[Item],
        tokens: dict[tuple[int, int], datetime],
        done: Pass,
    ) -> None:
        """Verify one storage's due replicas and write down what came of it."""
        lease_s = self.settings.auditor_lease_s + _read_s(items)
        try:
            answers = self._examine({storage_id: (ref, items)}, True, lease_s, tokens)[storage_id]
        except Unavailable as reason:
            with self.database.begin("auditor.availability") as tx:
                done.count("availability_changed", audit.note_availability(tx, storage_id, str(reason)))
            return
        with self.database.begin("auditor.record-due") as tx:
            delta = usage.StorageDelta()
            audit.hold(tx, answers)
            self._declare_due(tx, storage_id, audit.found_wrong(answers), delta, done)
            done.count("verified", audit.record_good(tx, answers, self.settings.auditor_cycle_s, delta))
            usage.change_storages(tx, delta)
        done.count("unreadable", sum(answer.verdict is Verdict.UNKNOWN for answer in answers))

    def _declare_due(self, tx: Tx, storage_id: int, wrong: list[Answer], delta: usage.StorageDelta, done: Pass) -> None:
        """Declare what was found wrong often enough; the rest waits for the next probe with its finding."""
        if not wrong:
            return
        audits.add_findings(tx, [(a.item, str(a.verdict), a.detail) for a in wrong], None)
        ripe = [answer for answer in wrong if answer.item.probes + 1 >= self._probes(answer)]
        if audit.loss_refused(tx, storage_id, (len(ripe), audit.proven(ripe)), self.limits) is not None:
            done.count("held_by_breaker", len(ripe))
            return
        declared = audit.declare(tx, storage_id, ripe, delta)
        first = {a.item.did_id for a in ripe if a.item.probes + 1 == self._probes(a)}
        audit.note_in_doubt(tx, storage_id, [did for did in declared.in_doubt if did in first])
        _count_declared(done, declared)

    def _probes(self, answer: Answer) -> int:
        """How many looks at different times it takes: many to believe that a file is gone, one for wrong bytes."""
        return self.settings.auditor_probes if answer.verdict is Verdict.LOST else 1

    # -- looking ------------------------------------------------------------------------------------------------

    def _examine(
        self,
        work: dict[int, tuple[ProtocolRef | None, list[Item]]],
        with_checksum: bool,
        timeout_s: float,
        tokens: dict[tuple[int, int], datetime] | None = None,
    ) -> dict[int, list[Answer]]:
        """The answers of each storage; Unavailable when one went away, or did not answer in time."""
        probes, threads = self.settings.auditor_probes, self.settings.auditor_threads
        tasks = {
            storage: partial(_examine_storage, ref, items, with_checksum, probes, threads, tokens or {})
            for storage, (ref, items) in work.items()
        }
        effects.point("auditor.examine:before")
        answers = self._abreast.run(tasks, timeout_s)
        effects.point("auditor.examine:after")
        if len(answers) < len(tasks):
            raise Unavailable(f"no answer within {timeout_s:,.0f} s")
        return answers


def _look_at(ref: ProtocolRef) -> str | None:
    """Why the storage is not available, or None if its marker is there."""
    try:
        with netting(f"look at the marker of {ref.storage_name}"):
            open_protocol(ref).require_marker(ref.storage_uuid)
    except (StorageError, Unsupported) as error:
        return error.detail
    return None


def _examine_storage(
    ref: ProtocolRef | None,
    items: Sequence[Item],
    with_checksum: bool,
    probes: int,
    threads: int,
    tokens: dict[tuple[int, int], datetime],
) -> list[Answer]:
    """An answer for each replica, in order; what looks wrong is looked at again, `probes` times in all."""
    if ref is None:
        raise Unavailable("the storage has no protocol")
    reason = _look_at(ref)
    if reason is not None:
        raise Unavailable(reason)
    protocol = open_protocol(ref)
    examined = spread(lambda item: _examine_one(protocol, item, with_checksum), items, threads)
    answers = {answer.item.did_id: answer for answer in examined}
    for _ in range(probes - 1):
        # After all others, so that some time has passed.
        for did_id in [answer.item.did_id for answer in audit.found_wrong(answers.values())]:
            answers[did_id] = _examine_one(protocol, answers[did_id].item, with_checksum)
    # The root may have gone between the first look and a file that was missed.
    reason = _look_at(ref)
    if reason is not None:
        raise Unavailable(reason)
    return [_with_token(answer, tokens) for answer in answers.values()]


def _examine_one(protocol: StorageProtocol, item: Item, with_checksum: bool) -> Answer:
    """What the storage says of one replica; Unavailable when it is not there to ask."""
    path = item.path or derived_path(item.scope, item.name)
    try:
        with netting(f"look at {path}"):
            stat = protocol.stat(path)
            answer = audit.judge_size(item, None if stat is None else stat.size_bytes)
            if answer.verdict is not Verdict.PRESENT or not audit.needs_read(item, with_checksum):
                return answer
            algorithms = tuple(audit.expected(item).known()) or (DEFAULT_DIGEST,)
            return audit.judge_bytes(item, protocol.checksum(path, algorithms))
    except StorageError as error:
        if error.error_class == ErrorClass.UNAVAILABLE:
            raise Unavailable(error.detail) from error
        if error.error_class == ErrorClass.SOURCE_MISSING:
            return Answer(item, Verdict.LOST, error.detail)
        return Answer(item, Verdict.UNKNOWN, error.detail)


def _with_token(answer: Answer, tokens: dict[tuple[int, int], datetime]) -> Answer:
    token: Token = tokens.get((answer.item.did_id, answer.item.storage_id))
    if token is None:
        return answer
    return Answer(answer.item, answer.verdict, answer.detail, answer.checksums, token)


def _read_s(items: Iterable[Item]) -> float:
    """How long reading the items may take, in seconds."""
    return sum(item.size_bytes for item in items) / SLOW_BYTES_S


def _within_lease(items: list[Item], lease_s: float) -> list[Item]:
    """The first items, as many as a lease is expected to suffice for; at least one."""
    left_s = lease_s
    for number, item in enumerate(items):
        left_s -= _read_s([item])
        if left_s < 0:
            return items[: max(1, number)]
    return items


def _told(check: Row[Any]) -> str:
    return f"{check.files:,} files looked at, {check.missing:,} missing, {check.corrupt:,} corrupt"


def _count_declared(done: Pass, declared: audit.Declared) -> None:
    for name, number in Counter(bad=declared.bad, lost=declared.lost, in_doubt=len(declared.in_doubt)).items():
        done.count(name, number)
