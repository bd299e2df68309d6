"""Recording how attempts ended, set by set: whatever their number, the same few statements.

The caller's order is the order of locks everywhere: requests, replicas, DIDs, then what is only inserted, usage last.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy.engine import Row

from dlm.db.arrays import booleans, integers, numbers, texts
from dlm.db.engine import Tx
from dlm.types import Checksums, ErrorClass, ReplicaState

_PAIRS = "unnest(%(dids)s::bigint[], %(storages)s::int[]) AS p (did_id, storage_id)"


class Verdict(StrEnum):
    """What an attempt came to; the value is what its row says."""

    DONE = "done"  # the file is there, verified
    RETRY = "retry"
    PARKED = "parked"
    CANCELLED = "cancelled"
    RELEASED = "released"  # nothing was tried: no attempt, no row


@dataclass(frozen=True, slots=True)
class Result:
    """How one claimed request ended, for `record`."""

    request_id: int
    fence: int
    verdict: Verdict
    source_id: int | None = None
    checksums: Checksums = Checksums()  # of the stored bytes
    is_unknown: bool = False  # the catalogue knew no checksum
    leftover: ReplicaState | None = None  # cancelled, and a file stands there: what it is
    delay_s: float = 0.0
    is_counted: bool = True
    is_tried: bool = True  # an attempt was made: it gets a row
    may_replace: bool = False  # wrong bytes got the final name: the next attempt takes their place
    is_wanted: bool = False  # it was flagged as cancelled, and a lock holds it again
    error_class: ErrorClass | None = None
    error: str | None = None
    suspicion: ReplicaState | None = None  # what the source may be
    duration_s: float = 0.0


def _columns(pairs: Collection[tuple[int, int]]) -> dict[str, str]:
    return {"dids": integers(did for did, _ in pairs), "storages": integers(storage for _, storage in pairs)}


def hold(tx: Tx, results: Collection[Result]) -> dict[int, Row[Any]]:
    """Lock the requests that are still ours (active, and the fence stands), by id; one statement.

    Active is told as what is not idle: of the index on active ones the planner believes that it is empty, and joins
    every result with every active request.
    """
    rows = tx.rows(
        """SELECT r.id, r.did_id, r.storage_id, r.size_bytes, r.attempts, r.is_cancelled
             FROM request r
             JOIN unnest(%(ids)s::bigint[], %(fences)s::int[]) AS f (id, fence) ON f.id = r.id AND f.fence = r.fence
            WHERE r.state NOT IN ('queued', 'parked') ORDER BY r.did_id, r.storage_id FOR UPDATE OF r""",
        ids=integers(result.request_id for result in results),
        fences=integers(result.fence for result in results),
    )
    return {row.id: row for row in rows}


def learn_checksums(tx: Tx, found: Mapping[int, str]) -> dict[int, Checksums]:
    """Keep the adler32 of files whose digest nobody knew; what the catalogue knew before, by did; one statement.

    Another copy may have taught it in the meantime: then that stands, and the caller compares.
    """
    if not found:
        return {}
    rows = tx.rows(
        """WITH held AS (SELECT d.id, d.adler32, d.md5, d.sha256, f.adler32 AS found
                           FROM did d
                           JOIN unnest(%(ids)s::bigint[], %(adler32s)s::text[]) AS f (id, adler32) ON f.id = d.id
                          ORDER BY d.id FOR UPDATE OF d),
                learnt AS (UPDATE did d SET adler32 = h.found FROM held h
                            WHERE d.id = h.id AND h.adler32 IS NULL AND h.md5 IS NULL AND h.sha256 IS NULL)
           SELECT id, adler32, md5, sha256 FROM held""",
        ids=list(found.keys()),
        adler32s=list(found.values()),
    )
    return {row.id: Checksums(row.adler32, row.md5, row.sha256) for row in rows}


@dataclass(frozen=True, slots=True)
class Standing:
    """A replica whose file is there now. One that nobody waits for any more gets a tombstone that is due."""

    did_id: int
    storage_id: int
    state: ReplicaState  # available (verified just now) or bad
    next_check_s: float
    is_unwanted: bool


def stand(tx: Tx, rows: Sequence[Standing]) -> Sequence[Row[Any]]:
    """Make copying replicas what they are now; (did_id, storage_id, size_bytes) of each; one statement.

    A lock may hold an unwanted one again by now: the reaper asks, and clears the tombstone.
    """
    if not rows:
        return []
    return tx.rows(
        """UPDATE replica r
              SET state = n.state, claimed_until = NULL, quiet_until = NULL,
                  verified_at = CASE WHEN n.state = 'available' THEN %(now)s::timestamptz END,
                  next_check_at = CASE WHEN n.state = 'available'
                                       THEN %(now)s + make_interval(secs => n.next_check_s) END,
                  tombstone_at = CASE WHEN n.is_unwanted THEN %(now)s::timestamptz END
             FROM unnest(%(dids)s::bigint[], %(storages)s::int[], %(states)s::replica_state[], %(checks)s::float8[],
                         %(unwanted)s::boolean[]) AS n (did_id, storage_id, state, next_check_s, is_unwanted)
            WHERE r.did_id = n.did_id AND r.storage_id = n.storage_id AND r.state = 'copying'
           RETURNING r.did_id, r.storage_id, r.size_bytes""",
        dids=integers(row.did_id for row in rows),
        storages=integers(row.storage_id for row in rows),
        states=texts([row.state for row in rows]),
        checks=numbers(row.next_check_s for row in rows),
        unwanted=booleans(row.is_unwanted for row in rows),
    )


def drop_replicas(tx: Tx, pairs: Collection[tuple[int, int]]) -> Sequence[Row[Any]]:
    """Remove copying replicas of which nothing is on their storage; (storage_id, size_bytes) of each; one statement."""
    if not pairs:
        return []
    return tx.rows(
        f"""DELETE FROM replica r USING {_PAIRS}
             WHERE r.did_id = p.did_id AND r.storage_id = p.storage_id AND r.state = 'copying'
            RETURNING r.storage_id, r.size_bytes""",
        **_columns(pairs),
    )


def hold_replicas(tx: Tx, pairs: Collection[tuple[int, int]]) -> None:
    """Lock these (did_id, storage_id) in key order before any of them is written; one statement.

    1. We write (file 1, storage 2), 2. a reaper locks (file 1, storage 1) and waits for it, 3. we go back for
    (file 1, storage 1): a deadlock, unless the batch takes all its rows in the one order first.
    """
    tx.run(
        f"SELECT 1 FROM replica r JOIN {_PAIRS} USING (did_id, storage_id) ORDER BY did_id, storage_id FOR UPDATE OF r",
        **_columns(pairs),
    )


def rest_replicas(tx: Tx, pairs: Collection[tuple[int, int]]) -> None:
    """Take the lease off replicas whose requests went back to the queue; at most one statement."""
    if pairs:
        tx.run(
            f"""UPDATE replica r SET claimed_until = NULL FROM {_PAIRS}
                 WHERE r.did_id = p.did_id AND r.storage_id = p.storage_id""",
            **_columns(pairs),
        )


def end_requests(tx: Tx, ids: Sequence[int]) -> None:
    """Remove requests that are done or cancelled; their rows are locked already; at most one statement."""
    if ids:
        tx.run("DELETE FROM request WHERE id = ANY (%(ids)s::bigint[])", ids=integers(ids))


def requeue(tx: Tx, results: Sequence[Result], held: Mapping[int, Row[Any]]) -> None:
    """Put requests back, queued or parked, due after their delay; their rows are locked already; at most one statement.

    One that was cancelled meanwhile is due at once, so that its cancelling is carried out.
    """
    if not results:
        return
    tx.run(
        """UPDATE request r
              SET state = CASE WHEN n.is_parked AND NOT n.is_cancelled THEN 'parked' ELSE 'queued' END::request_state,
                  next_attempt_at = %(now)s + make_interval(
                      secs => CASE WHEN n.is_cancelled AND n.is_counted THEN 0 ELSE n.delay_s END),
                  claimed_until = NULL, is_cancelled = n.is_cancelled, is_repair = r.is_repair OR n.may_replace,
                  attempts = r.attempts - CASE WHEN n.is_counted OR r.attempts = 0 THEN 0 ELSE 1 END,
                  error_class = coalesce(n.error_class, r.error_class), error = coalesce(n.error, r.error)
             FROM unnest(%(ids)s::bigint[], %(parked)s::boolean[], %(delays)s::float8[], %(counted)s::boolean[],
                         %(cancelled)s::boolean[], %(replaces)s::boolean[], %(classes)s::text[], %(errors)s::text[])
                  AS n (id, is_parked, delay_s, is_counted, is_cancelled, may_replace, error_class, error)
            WHERE r.id = n.id""",
        ids=[result.request_id for result in results],
        parked=[result.verdict is Verdict.PARKED for result in results],
        delays=[result.delay_s for result in results],
        counted=[result.is_counted for result in results],
        replaces=[result.may_replace for result in results],
        cancelled=[held[result.request_id].is_cancelled and not result.is_wanted for result in results],
        classes=[None if result.error_class is None else str(result.error_class) for result in results],
        errors=[result.error for result in results],
    )


def note(tx: Tx, results: Sequence[Result], held: Mapping[int, Row[Any]]) -> None:
    """Write an attempt row for each result that was tried; at most one statement."""
    if not results:
        return
    rows = [held[result.request_id] for result in results]
    tx.run(
        """INSERT INTO attempt (did_id, storage_id, ended_at, request_id, number, source_storage_id, outcome,
                                size_bytes, duration_s, error_class, error)
           SELECT did_id, storage_id, %(now)s, id, number, source_id, outcome, size_bytes, duration_s,
                  error_class, error
             FROM unnest(%(dids)s::bigint[], %(storages)s::int[], %(ids)s::bigint[], %(numbers)s::smallint[],
                         %(sources)s::int[], %(outcomes)s::text[], %(sizes)s::bigint[], %(durations)s::real[],
                         %(classes)s::text[], %(errors)s::text[])
               AS a (did_id, storage_id, id, number, source_id, outcome, size_bytes, duration_s, error_class, error)""",
        dids=integers(row.did_id for row in rows),
        storages=integers(row.storage_id for row in rows),
        ids=integers(row.id for row in rows),
        numbers=integers(row.attempts for row in rows),
        sizes=integers(row.size_bytes for row in rows),
        sources=integers(result.source_id for result in results),
        outcomes=texts([result.verdict for result in results]),
        durations=numbers(result.duration_s for result in results),
        classes=texts([result.error_class for result in results]),
        errors=texts([result.error for result in results]),
    )


def wake_sourceless(tx: Tx, did_ids: Collection[int]) -> int:
    """Queue the requests that were parked for want of a source of these files; their number; at most one statement."""
    if not did_ids:
        return 0
    return tx.run(
        """WITH held AS (SELECT r.id FROM request r
                          WHERE r.did_id = ANY (%(dids)s::bigint[]) AND r.state = 'parked'
                            AND r.error_class = %(no_source)s
                          ORDER BY r.did_id, r.storage_id FOR UPDATE SKIP LOCKED)
           UPDATE request r SET state = 'queued', attempts = 0, next_attempt_at = %(now)s
             FROM held WHERE r.id = held.id""",
        dids=integers(sorted(set(did_ids))),
        no_source=str(ErrorClass.NO_SOURCE),
    ).rowcount
