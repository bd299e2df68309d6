"""The reaper: what is expired and unlocked goes, with a proof, within a budget, and not while a lock holds it.

Mark and commit · look again under a later snapshot · delete with no transaction open · record where the fence stands.
A crash anywhere leaves rows `deleting` under a lease; when it ends they are looked at anew (db.reaper.release_expired).
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy.engine import Row

from dlm import effects
from dlm.clock import DatabaseClock
from dlm.config import Settings
from dlm.core import audit, breaker, credentials
from dlm.core import reaper as planner
from dlm.daemons.abreast import Abreast
from dlm.daemons.loop import Pass, insist
from dlm.db import breakers, changes, events, usage
from dlm.db import reaper as rows
from dlm.db.engine import Database, Tx
from dlm.db.reaper import Claim
from dlm.did import derived_path
from dlm.errors import StorageError, Unsupported
from dlm.protocols import StorageProtocol, open_protocol
from dlm.types import ChangeKind, ErrorClass, ProtocolRef, ReplicaState
from dlm.unforeseen import netting

LATER_S = 600.0  # a replica that may not go, or could not be deleted, is looked at again after this
REST_S = 900.0  # the longest a single effect of a worker that lost its lease may still take
MARGIN_SHARE = 0.25  # of the lease: effects end this much before it does
CHUNK_FILES = 10_000  # deleted in one call, with one flush
SPARE_SHARE = 0.1  # a storage that reaps when full is full when less of it is free
JUMP_S = 3600.0  # the database's clock and this process's agree within this, or deletions stop

# After these the file certainly stands as before; after any other failure it is in doubt, and no witness.
_NOTHING_HAPPENED = (ErrorClass.PERMISSION, ErrorClass.INVALID_PATH)

Revert = tuple[Claim, datetime | None, bool]  # with: its tombstone, and whether the copy is in doubt


@dataclass(slots=True)
class Outcome:
    """What became of one storage's claims."""

    deleted: list[Claim] = field(default_factory=list)
    failed: list[tuple[Claim, StorageError, bool]] = field(default_factory=list)  # with: is the copy in doubt
    untouched: list[Claim] = field(default_factory=list)
    unavailable: str | None = None


class Reaper:
    """One process's reaper; several may run beside each other."""

    name = "reaper"

    def __init__(self, database: Database, settings: Settings, timer: Callable[[], float] = time.monotonic) -> None:
        self.database = database
        self.settings = settings
        self.interval_s = settings.reaper_interval_s
        self.limits = breaker_limits(settings)
        self._timer = timer
        self._seen: tuple[datetime, float] | None = None
        self._abreast = Abreast(timer)

    def run_once(self, *, dry_run: bool = False) -> Pass:
        """Delete one batch. A dry run marks, counts, and rolls back."""
        done = Pass()
        deadline = self._timer() + self.settings.reaper_lease_s * (1 - MARGIN_SHARE)
        with self.database.begin("reaper.mark", commit=not dry_run) as tx:
            claims = self._mark(tx, done)
        if dry_run or not claims:
            return done
        claims, refs, reverted = insist(partial(self._recheck, claims))
        done.count("reverted", reverted)
        for storage_id, outcome in self._act(claims, refs, deadline).items():
            done.merge(insist(partial(self._record, storage_id, outcome)))
        return done

    # -- mark ---------------------------------------------------------------------------------------------------

    def _mark(self, tx: Tx, done: Pass) -> list[Claim]:
        """Claim what is due, prove what may go, and mark it; the statements do not depend on the number of rows."""
        self._clean(tx, done)
        done.next_due_s = _seconds_until(tx, rows.next_due(tx))
        if self._clock_jumped(tx):
            return []
        lanes = {lane.id: lane for lane in rows.lanes(tx, self._abreast.hanging()) if _must_free(lane) != 0}
        if not lanes:
            return []
        share = max(1, self.settings.reaper_batch // len(lanes))
        due = rows.claim_due(tx, dict.fromkeys(lanes, share))
        done.is_full = len(due) >= share
        files, copies = load_files(tx, [(row.did_id, row.storage_id) for row in due], lock=True)
        verdicts = planner.decide(files)
        _keep(tx, [verdict for verdict in verdicts if isinstance(verdict, planner.Keep)], done)
        proofs = [verdict.proof for verdict in verdicts if isinstance(verdict, planner.Drop)]
        return self._mark_proven(tx, self._within_budget(tx, proofs, lanes, copies, done), copies, done)

    def _clean(self, tx: Tx, done: Pass) -> None:
        """Release what a dead worker held, and forget deleted rows whose path has rested."""
        batch = self.settings.reaper_batch
        released = rows.release_expired(tx, batch, self.settings.reaper_lease_s + REST_S)
        purged = rows.purge(tx, batch)
        if released or purged:
            changes.add_by_storage(tx, ChangeKind.GONE, [(row.did_id, row.storage_id) for row in (*released, *purged)])
        breakers.add_harm(tx, "delete", _negative(released))
        done.count("expired", len(released))
        done.count("purged", len(purged))

    def _within_budget(
        self,
        tx: Tx,
        proofs: Sequence[planner.DropProof],
        lanes: dict[int, Row[Any]],
        copies: dict[tuple[int, int], Row[Any]],
        done: Pass,
    ) -> list[planner.DropProof]:
        """The proofs that the breaker's window, and a storage that reaps only when full, leave room for."""
        by_storage: dict[int, list[planner.DropProof]] = defaultdict(list)
        for proof in proofs:
            by_storage[proof.storage_id].append(proof)
        window = breakers.in_window(tx, "delete", list(by_storage), self.limits.window_s)
        taken: list[planner.DropProof] = []
        for storage_id, wished in sorted(by_storage.items()):
            lane = lanes[storage_id]
            wished = _needed(wished, _must_free(lane), copies)
            reason = breaker.trips("delete", window[storage_id], len(wished), lane.used_files, self.limits)
            if reason is not None:
                facts = {"files_in_window": window[storage_id], "files_due": len(wished), "files": lane.used_files}
                breakers.open_(tx, "delete", storage_id, reason, facts)
                wished = wished[: breaker.budget("delete", window[storage_id], lane.used_files, self.limits)]
                done.count("breakers_opened")
            taken += wished
        return taken

    def _mark_proven(
        self,
        tx: Tx,
        proofs: Sequence[planner.DropProof],
        copies: dict[tuple[int, int], Row[Any]],
        done: Pass,
    ) -> list[Claim]:
        if not proofs:
            return []
        claims = rows.mark(tx, [(p.did_id, p.storage_id, p.fence) for p in proofs], self.settings.reaper_lease_s)
        rows.add_proofs(tx, [(p.did_id, p.storage_id, p.fence, p.wanted, p.witnesses, str(p.cause)) for p in proofs])
        breakers.add_harm(tx, "delete", Counter(claim.storage_id for claim in claims))
        delta = usage.StorageDelta()
        for claim in claims:
            # A lost file used nothing; while it is being deleted it may be there after all.
            if copies[claim.did_id, claim.storage_id].state == ReplicaState.LOST:
                delta.add(claim.storage_id, used_bytes=claim.size_bytes, used_files=1)
        usage.change_storages(tx, delta)
        done.count("marked", len(claims))
        return claims

    def _clock_jumped(self, tx: Tx) -> bool:
        """True, with all deletions held, when the database's clock leapt between two passes.

        A clock that only tests move is exempt: it leaps by design.
        """
        if not isinstance(self.database.clock, DatabaseClock):
            return False
        before, self._seen = self._seen, (tx.now, self._timer())
        if before is None:
            return False
        leap_s = (tx.now - before[0]).total_seconds() - (self._seen[1] - before[1])
        if abs(leap_s) <= JUMP_S:
            return False
        breakers.open_(tx, "delete", None, f"the database's clock leapt by {leap_s:+,.0f} s; is it right now?")
        return True

    # -- look again ---------------------------------------------------------------------------------------------

    def _recheck(self, claims: Sequence[Claim]) -> tuple[list[Claim], dict[int, ProtocolRef], int]:
        """The claims that may still go, how their storages are reached, and how many others were reverted.

        1. a judge's transaction has not committed its lock; 2. the mark finds no lock, and commits; 3. the judge
        commits, and then sees a replica that is being deleted. Whichever commits first, the other one's next
        statement sees it: the judge looks after its commit, and this looks after the mark's. A person who stops
        deletions is heard here, too: once the stop has committed, no batch that is not rechecked yet deletes anything.
        """
        with self.database.begin("reaper.recheck") as tx:
            going, reverts = self._look_again(tx, claims)
            return going, credentials.refs(tx, {claim.storage_id for claim in going}), _revert(tx, reverts)

    def _look_again(self, tx: Tx, claims: Sequence[Claim]) -> tuple[list[Claim], list[Revert]]:
        files, copies = load_files(tx, [(claim.did_id, claim.storage_id) for claim in claims], lock=False)
        # Those that are marked still: of this very look the answer may have been lost, after it had given some back.
        claims = [claim for claim in claims if _is_marked(copies.get((claim.did_id, claim.storage_id)), claim)]
        verdicts = planner.decide(files)
        kept = {(v.did_id, v.storage_id): v for v in verdicts if isinstance(v, planner.Keep)}
        later = tx.now + timedelta(seconds=LATER_S)
        stopped = rows.stopped(tx, {claim.storage_id for claim in claims})
        reverts: list[Revert] = []
        going: list[Claim] = []
        for claim in claims:
            if claim.storage_id in stopped:
                reverts.append((claim, claim.tombstone_at, False))
            elif verdict := kept.get((claim.did_id, claim.storage_id)):
                clear = verdict.action is planner.KeepAction.CLEAR
                reverts.append((claim, None if clear else later, False))
            else:
                going.append(claim)
        return going, reverts

    # -- act ----------------------------------------------------------------------------------------------------

    def _act(self, claims: Sequence[Claim], refs: dict[int, ProtocolRef], deadline: float) -> dict[int, Outcome]:
        """Delete the files, one thread a storage, so that one that hangs holds up no other.

        A storage that has not answered by the deadline is not in the result: its rows' lease ends, and what then
        happens to them assumes that the hanging call may still come through.
        """
        by_storage: dict[int, list[Claim]] = defaultdict(list)
        for claim in claims:
            by_storage[claim.storage_id].append(claim)
        tasks = {
            storage: partial(self._delete, refs.get(storage), mine, deadline) for storage, mine in by_storage.items()
        }
        return self._abreast.run(tasks, max(0.0, deadline - self._timer()))

    def _delete(self, ref: ProtocolRef | None, claims: Sequence[Claim], deadline: float) -> Outcome:
        """Delete the claims' files, in chunks, until the deadline; nothing where the storage's marker is not seen."""
        outcome = Outcome()
        left = list(claims)
        try:
            if ref is None:
                raise Unsupported("the storage has no protocol any more")
            with netting(f"look at the marker of {ref.storage_name}"):
                protocol = open_protocol(ref)
                protocol.require_marker(ref.storage_uuid)
        except Unsupported as error:
            outcome.failed += [(claim, StorageError(ErrorClass.INVALID_PATH, error.detail), False) for claim in left]
            return outcome
        except StorageError as error:
            outcome.unavailable = error.detail
            outcome.untouched = left
            return outcome
        while left and self._timer() < deadline and outcome.unavailable is None:
            chunk, left = left[:CHUNK_FILES], left[CHUNK_FILES:]
            _delete_chunk(protocol, chunk, outcome, lambda: self._timer() >= deadline)
        outcome.untouched += left
        return outcome

    # -- record -------------------------------------------------------------------------------------------------

    def _record(self, storage_id: int, outcome: Outcome) -> Pass:
        done = Pass()
        with self.database.begin("reaper.record") as tx:
            _write(tx, storage_id, outcome, done)
        return done


def breaker_limits(settings: Settings) -> breaker.Limits:
    """The breaker's settings as its arithmetic takes them."""
    return breaker.Limits(
        loss_share=settings.breaker_loss_share,
        delete_share=settings.breaker_delete_share,
        delete_files=settings.breaker_delete_files,
        floor_files=settings.breaker_floor_files,
        window_s=settings.breaker_window_s,
    )


def load_files(
    tx: Tx, candidates: Sequence[tuple[int, int]], *, lock: bool
) -> tuple[list[planner.File], dict[tuple[int, int], Row[Any]]]:
    """The files of these (did, storage) as the planner sees them, and their replica rows; two or three statements.

    With `lock`, all replica rows of the files are locked first, and files of which another worker holds a row, or
    got a row meanwhile, are left out.
    """
    if not candidates:
        return [], {}
    ids = sorted({did for did, _ in candidates})
    locked = rows.lock_copies(tx, ids) if lock else None
    copies = {(row.did_id, row.storage_id): row for row in rows.load_copies(tx, ids)}
    wanted = rows.load_wanted(tx, ids)
    partly_held = set() if locked is None else {did for did, storage in copies if (did, storage) not in locked}
    by_file: dict[int, list[planner.Copy]] = defaultdict(list)
    for row in copies.values():
        by_file[row.did_id].append(_copy(row))
    proposed: dict[int, set[int]] = defaultdict(set)
    for did, storage in candidates:
        proposed[did].add(storage)
    files = [
        planner.File(did, wanted.get(did, 0), tuple(by_file[did]), frozenset(proposed[did]))
        for did in ids
        if did in by_file and did not in partly_held
    ]
    return files, copies


def _copy(row: Row[Any]) -> planner.Copy:
    return planner.Copy(
        did_id=row.did_id,
        storage_id=row.storage_id,
        state=ReplicaState(row.state),
        fence=row.fence,
        has_tombstone=row.tombstone_at is not None,
        is_locked=row.is_locked,
        has_request=row.has_request,
        is_doubted=row.is_doubted,
        is_reachable=row.is_reachable,
    )


def _is_marked(row: Row[Any] | None, claim: Claim) -> bool:
    return row is not None and row.state == ReplicaState.DELETING and row.fence == claim.fence


def _keep(tx: Tx, kept: Sequence[planner.Keep], done: Pass) -> None:
    """Write what becomes of the tombstones of replicas that may not go."""
    later = tx.now + timedelta(seconds=LATER_S)
    written: list[tuple[int, int, datetime | None]] = []
    for keep in kept:
        if keep.action is not planner.KeepAction.LEAVE:
            at = None if keep.action is planner.KeepAction.CLEAR else later
            written.append((keep.did_id, keep.storage_id, at))
    if written:
        rows.set_tombstones(tx, written)
    done.count("kept", len(kept))


def _write(tx: Tx, storage_id: int, outcome: Outcome, done: Pass) -> None:
    """Write one storage's outcome where this worker's fence still stands; usage last."""
    if outcome.untouched or outcome.failed:  # several statements write: all rows first, in their one order
        rows.hold(tx, [*outcome.deleted, *outcome.untouched, *(claim for claim, _, _ in outcome.failed)])
    later = tx.now + timedelta(seconds=LATER_S)
    failed: list[Revert] = [(c, later, doubt) for c, _, doubt in outcome.failed]
    was_back = _revert(tx, failed)
    done.count("failed", was_back)
    done.count("postponed", _revert(tx, [(claim, claim.tombstone_at, False) for claim in outcome.untouched]))
    if was_back:
        events.record_many(tx, "storage", "delete_failed", [(storage_id, None, _failures(outcome))])
    if outcome.unavailable is not None:
        audit.note_availability(tx, storage_id, outcome.unavailable)
    gone = rows.finish(tx, outcome.deleted) if outcome.deleted else ()
    done.count("late", len(outcome.deleted) - len(gone))
    if not gone:
        return
    size_bytes = sum(row.size_bytes for row in gone)
    changes.add_by_storage(tx, ChangeKind.GONE, [(row.did_id, row.storage_id) for row in gone])
    events.record(tx, "storage", storage_id, "reaped", after={"files": len(gone), "bytes": size_bytes})
    delta = usage.StorageDelta()
    delta.add(storage_id, used_bytes=-size_bytes, used_files=-len(gone))
    usage.change_storages(tx, delta)
    done.count("deleted", len(gone))


def _revert(tx: Tx, reverts: Sequence[Revert]) -> int:
    """Take deletions back, tell the judge, and give the breaker's window its budget again; how many."""
    if not reverts:
        return 0
    back = rows.revert(tx, reverts)
    if back:
        changes.add_by_storage(tx, ChangeKind.GONE, [(row.did_id, row.storage_id) for row in back])
        breakers.add_harm(tx, "delete", _negative(back))
    return len(back)


def _delete_chunk(
    protocol: StorageProtocol, claims: Sequence[Claim], outcome: Outcome, is_over: Callable[[], bool]
) -> None:
    """Delete one chunk of files, until time is over. Not found counts as deleted: an earlier worker was perhaps here."""
    paths = {claim.path or derived_path(claim.scope, claim.name): claim for claim in claims}
    effects.point("reaper.delete:before")
    try:
        with netting("delete files"):
            answers = protocol.delete_many(paths, is_over)
    except StorageError as error:
        outcome.failed += [(claim, error, True) for claim in claims]
        if error.error_class == ErrorClass.UNAVAILABLE:
            outcome.unavailable = error.detail
        return
    finally:
        effects.point("reaper.delete:after")
    for path, claim in paths.items():
        answer = answers.get(path)
        if answer is None:
            outcome.untouched.append(claim)
        elif isinstance(answer, StorageError):
            outcome.failed.append((claim, answer, answer.error_class not in _NOTHING_HAPPENED))
        else:
            outcome.deleted.append(claim)


def _must_free(lane: Row[Any]) -> int | None:
    """How many bytes the storage must free; None when everything due goes, whatever the space."""
    if lane.reap == "eager":
        return None
    if lane.capacity_bytes is None:
        return 0
    spare = max(lane.min_free_bytes, int(SPARE_SHARE * lane.capacity_bytes))
    return max(0, spare - (lane.capacity_bytes - lane.taken_bytes))


def _needed(
    proofs: list[planner.DropProof], must_free: int | None, copies: dict[tuple[int, int], Row[Any]]
) -> list[planner.DropProof]:
    """The proofs, oldest tombstone first, up to those that free as many bytes as must be."""
    if must_free is None:
        return proofs
    taken: list[planner.DropProof] = []
    for proof in sorted(proofs, key=lambda p: (copies[p.did_id, p.storage_id].tombstone_at, p.did_id)):
        if must_free <= 0:
            break
        taken.append(proof)
        must_free -= copies[proof.did_id, proof.storage_id].size_bytes
    return taken


def _failures(outcome: Outcome) -> dict[str, Any]:
    """What an event says of failed deletions: how many, by class, and the first one's words."""
    classes = Counter(str(error.error_class) for _, error, _ in outcome.failed)
    return {"files": len(outcome.failed), "classes": dict(classes), "example": outcome.failed[0][1].detail}


def _negative(changed: Iterable[Row[Any]]) -> dict[int, int]:
    return {storage: -number for storage, number in Counter(row.storage_id for row in changed).items()}


def _seconds_until(tx: Tx, moment: datetime | None) -> float | None:
    return None if moment is None else max(0.0, (moment - tx.now).total_seconds())
