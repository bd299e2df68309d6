"""What follows from locks, in chunks: replicas and requests for new ones, tombstones for released ones.

A lock is committed before this looks, and each chunk is a transaction of its own, so that a million files neither
outlast a lease nor keep small rules waiting.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy.engine import Row

from dlm.core.placing import Limits
from dlm.db import changes, filling, judging, letting_go, parcels, rules, usage
from dlm.db.engine import Tx

SMALL_FILES = filling.LARGE_FILES  # a lock of at most so many files is filled beside others
LOOKS_PER_WRITE = 40  # files are looked at so much faster than they are written
SMALL_LOCKS = 20_000
PARCELS = 1000


def fill_small(tx: Tx, limits: Limits) -> tuple[int, bool]:
    """Fill small locks together; (replicas made, whether more wait); at most twelve statements."""
    at_most = min(SMALL_LOCKS, limits.chunk_files)
    claimed = filling.claim_small(tx, SMALL_FILES, at_most)
    locks = _within(claimed, limits.chunk_files)
    if not locks:
        return 0, False
    rules.hold(tx, {lock.rule_id for lock in locks})  # before replicas: so does whoever folds
    delta = usage.StorageDelta()
    filled = filling.fill(
        tx,
        filling.LOCKS,
        delta,
        dids=[lock.did_id for lock in locks],
        storages=[lock.storage_id for lock in locks],
        priorities=[lock.priority for lock in locks],
        activities=[lock.activity for lock in locks],
    )
    filling.mark_filled(tx, locks, [0] * len(locks), None, was_empty=filled.was_empty)
    for lock in locks:
        delta.add(lock.storage_id, reserved_bytes=-lock.promised_bytes)
    _finish(tx, locks, delta)
    _wake_conveyor(tx, filled)
    return filled.files, len(locks) < len(claimed) or len(claimed) == at_most


def fill_large(tx: Tx, limits: Limits) -> tuple[int, bool]:
    """Fill the next chunk of one large dataset's locks; (replicas made, whether more wait); at most sixteen statements."""
    locks = filling.claim_large(tx, SMALL_FILES)
    if not locks:
        return 0, False
    upto, wish = _next_chunk(tx, locks, limits.chunk_files)
    if upto is None:
        rules.hold(tx, {lock.rule_id for lock in locks})
    delta = usage.StorageDelta()
    lanes = {lock.storage_id: lock for lock in sorted(locks, key=lambda lock: lock.priority)}
    chunk: dict[str, Any] = {
        "did_id": locks[0].did_id,
        "after": locks[0].fill_after,
        "upto": filling.LAST if upto is None else upto,
        "storages": list(lanes),
        "priorities": [lock.priority for lock in lanes.values()],
        "activities": [lock.activity for lock in lanes.values()],
    }
    filled = filling.fill(tx, wish, delta, **chunk) if wish else filling.Filled({}, 0, was_empty=False)
    promised = _keep_promises(locks, filled, delta, is_last=upto is None)
    filling.mark_filled(tx, locks, promised, upto, was_empty=filled.was_empty and locks[0].fill_after == 0)
    if upto is None:
        _finish(tx, locks, delta)
    else:
        usage.change_storages(tx, delta)
    _wake_conveyor(tx, filled)
    return filled.files, True


def _next_chunk(tx: Tx, locks: Sequence[Row[Any]], limit: int) -> tuple[int | None, str | None]:
    """The id of the last file of the next chunk (None: of the dataset), and the wish for what it lacks (None: nothing).

    Where the planner saw everything there, the chunk is as long as can be looked at, unless it lacks more than can be
    written: files that are empty promise nothing, and what is coming is not there.
    """
    if not any(lock.promised_bytes for lock in locks):
        upto = _chunk_end(tx, locks, limit * LOOKS_PER_WRITE)
        storages = sorted({lock.storage_id for lock in locks})
        lacking = filling.count_lacking(tx, locks[0].did_id, locks[0].fill_after, upto or filling.LAST, storages)
        if lacking <= limit:
            return upto, filling.CHUNK_LACKING if lacking else None
    return _chunk_end(tx, locks, limit), filling.CHUNK


def _chunk_end(tx: Tx, locks: Sequence[Row[Any]], limit: int) -> int | None:
    """The id of the last file of a chunk of `limit` replicas at the locks' storages, or None when fewer are left."""
    at_once = max(1, limit // _storages(locks))
    if not locks[0].fill_after and locks[0].files_now <= at_once:
        return None
    return filling.chunk_end(tx, locks[0].did_id, locks[0].fill_after, at_once)


def fill_parcels(tx: Tx, limits: Limits) -> tuple[int, bool]:
    """Fill a chunk of the locks in parcels; (replicas made, whether more wait); at most eighteen statements."""
    taken = _claim_parcels(tx, limits)
    if not taken:
        return 0, False
    is_there = any(parcel.has_copies for parcel in taken)
    savepoint = tx.connection.begin_nested()
    filled = _fill_parcels(tx, taken, is_there=is_there)
    if is_there or filled.files == sum(parcel.files for parcel in taken):
        savepoint.commit()
    else:  # copies came, or files left, since they were placed
        savepoint.rollback()
        filled = _fill_parcels(tx, taken, is_there=True)
    _wake_conveyor(tx, filled)
    return filled.files, True


def _fill_parcels(tx: Tx, taken: Sequence[Row[Any]], *, is_there: bool) -> filling.Filled:
    """Unless any of it `is_there`, all has to come, and wakes the rules when it comes: they are neither counted nor held."""
    if is_there:
        parcels.count(tx, taken)
        rules.hold(tx, {parcel.rule_id for parcel in taken})  # before replicas: so does whoever folds
    delta = usage.StorageDelta()
    filled = filling.fill_alike(
        tx, parcels.WISH, delta, priority=taken[0].priority, activity=taken[0].activity, **parcels.columns(taken)
    )
    for parcel in taken:
        for storage_id, promised in zip(parcel.storage_ids, parcel.promised_bytes, strict=True):
            delta.add(storage_id, reserved_bytes=-promised)
    parcels.remove(tx, taken)
    if is_there:
        judging.wake_complete(tx, sorted({parcel.rule_id for parcel in taken}))
    usage.change_storages(tx, delta)
    return filled


def _claim_parcels(tx: Tx, limits: Limits) -> Sequence[Row[Any]]:
    """The parcel that waits longest; if it is small, others that are small and alike with it; at most two statements.

    One that is large is taken alone, and so left to another judge are the others.
    """
    first = parcels.claim(tx, filling.LAST, 1)
    if not first or first[0].files > SMALL_FILES:
        return first
    kind = (first[0].priority, first[0].activity)
    alike = [parcel for parcel in parcels.claim(tx, SMALL_FILES, PARCELS) if (parcel.priority, parcel.activity) == kind]
    return _within(alike, limits.chunk_files)


def _finish(tx: Tx, locks: Sequence[Row[Any]], delta: usage.StorageDelta) -> None:
    """Locks are filled: bring them to their datasets' size, and have rules judged that may be complete; four statements."""
    charges = usage.Charges()
    for row in judging.resize_locks(tx, locks):
        charges.add(row.account_id, row.storage_id, row.bytes, row.files)
    judging.wake_complete(tx, sorted({lock.rule_id for lock in locks}))
    usage.change_accounts(tx, charges)
    usage.change_storages(tx, delta)


def _keep_promises(
    locks: Sequence[Row[Any]], filled: filling.Filled, delta: usage.StorageDelta, *, is_last: bool
) -> list[int]:
    """What stays promised by each lock after a chunk; what its replicas now reserve themselves is given back."""
    made = {storage_id: size for storage_id, (_, size) in filled.made.items()}
    left = []
    for lock in locks:
        used = lock.promised_bytes if is_last else min(lock.promised_bytes, made.get(lock.storage_id, 0))
        made[lock.storage_id] = max(0, made.get(lock.storage_id, 0) - used)
        delta.add(lock.storage_id, reserved_bytes=-used)
        left.append(lock.promised_bytes - used)
    return left


def let_go_small(tx: Tx, limits: Limits, undo_window_s: float) -> tuple[int, bool]:
    """Let go what small released locks held; (replicas let go, whether more wait); at most eleven statements."""
    at_most = min(SMALL_LOCKS, limits.chunk_files)
    claimed = letting_go.claim_small(tx, SMALL_FILES, at_most)
    locks = _within(claimed, limits.chunk_files)
    if not locks:
        return 0, False
    delta = usage.StorageDelta()
    count = letting_go.let_go(
        tx,
        letting_go.LOCKS,
        delta,
        undo_window_s=undo_window_s,
        rule_ids=sorted({lock.rule_id for lock in locks}),
        dids=[lock.did_id for lock in locks],
        storages=[lock.storage_id for lock in locks],
    )
    letting_go.remove(tx, locks)
    usage.change_storages(tx, delta)
    return count, len(locks) < len(claimed) or len(claimed) == at_most


def let_go_large(tx: Tx, limits: Limits, undo_window_s: float) -> tuple[int, bool]:
    """Let go the next chunk of a large dataset's released locks; (replicas let go, whether more wait); at most thirteen statements."""
    locks = filling.claim_large(tx, SMALL_FILES, released=True)
    if not locks:
        return 0, False
    upto = filling.chunk_end(tx, locks[0].did_id, locks[0].fill_after, max(1, limits.chunk_files // _storages(locks)))
    delta = usage.StorageDelta()
    count = letting_go.let_go(
        tx,
        letting_go.LAST_CHUNK if upto is None else letting_go.CHUNK,
        delta,
        undo_window_s=undo_window_s,
        rule_ids=sorted({lock.rule_id for lock in locks}),
        did_id=locks[0].did_id,
        after=locks[0].fill_after,
        upto=filling.LAST if upto is None else upto,
        storages=sorted({lock.storage_id for lock in locks}),
    )
    if upto is None:
        letting_go.remove(tx, locks)
    else:
        letting_go.advance(tx, locks, upto)
    usage.change_storages(tx, delta)
    return count, True


def _storages(locks: Sequence[Row[Any]]) -> int:
    return len({lock.storage_id for lock in locks})


def _within(held: Sequence[Row[Any]], chunk_files: int) -> Sequence[Row[Any]]:
    """The first locks, or parcels, that together hold at most a chunk of files; at least one."""
    total = 0
    for index, lock in enumerate(held):
        total += lock.files
        if total > chunk_files and index:
            return held[:index]
    return held


def _wake_conveyor(tx: Tx, filled: filling.Filled) -> None:
    if filled.files:
        changes.wake(tx, "conveyor")
