"""The queue of requests: taking due ones under a lease, lane by lane, and what the judge and people ask of it.

A lane is (destination, priority). Each is read in the order of the index ix_request_lane, so a long queue that
nobody may serve costs nothing to pass by. `fence` counts claims: who writes back shows the number it was given.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Row

from dlm.db import changes
from dlm.db.arrays import integers
from dlm.db.engine import Tx
from dlm.errors import InvalidInput, NotFound
from dlm.types import ErrorClass, Page, RequestState

PRIORITIES = [1, 2, 3, 4, 5]


@dataclass(frozen=True, slots=True)
class Lease:
    """How long a batch may take: `base_s`, and the time that its bytes take at `rate_bytes_s`.

    A request's bytes count once for each attempt it had, so one that was too slow gets more time.
    A batch ends with the request that reaches `batch_bytes`.
    """

    base_s: float
    rate_bytes_s: float
    batch_bytes: int


@dataclass(frozen=True, slots=True)
class Filters:
    """Which requests; None stands for any. `did_id` is a file, or a dataset that contains files."""

    ids: Sequence[int] | None = None
    rule_id: int | None = None
    storage_id: int | None = None
    did_id: int | None = None
    state: RequestState | None = None


# --- taking work -------------------------------------------------------------------------------------------------


def recover(tx: Tx, limit: int, *, max_attempts: int, backoff_s: float, parked_retry_s: float) -> Sequence[Row[Any]]:
    """Take back requests whose lease ran out and note their attempt as interrupted; one statement.

    The fence moves, so their worker's late report counts for nothing. The first time they are due at once.
    """
    return tx.rows(
        """WITH late AS (SELECT id, attempts >= %(max_attempts)s AS is_last FROM request
                          WHERE state = 'active' AND claimed_until <= %(now)s
                          ORDER BY claimed_until LIMIT %(limit)s FOR UPDATE SKIP LOCKED),
                back AS (UPDATE request r
                            SET state = CASE WHEN is_last AND NOT r.is_cancelled
                                              THEN 'parked' ELSE 'queued' END::request_state,
                                next_attempt_at = %(now)s + make_interval(secs => CASE
                                    WHEN r.is_cancelled THEN 0
                                    WHEN is_last THEN %(parked_retry_s)s
                                    ELSE %(backoff_s)s * greatest(r.attempts - 1, 0) END::float8),
                                claimed_until = NULL, fence = r.fence + 1,
                                error_class = %(error_class)s, error = %(error)s
                           FROM late WHERE r.id = late.id
                         RETURNING r.id, r.did_id, r.storage_id, r.state, r.attempts, r.source_storage_id),
                noted AS (INSERT INTO attempt (did_id, storage_id, ended_at, request_id, number, source_storage_id,
                                               outcome, error_class, error)
                          SELECT did_id, storage_id, %(now)s, id, attempts, source_storage_id,
                                 CASE WHEN state = 'parked' THEN 'parked' ELSE 'retry' END, %(error_class)s, %(error)s
                            FROM back)
           SELECT id, did_id, storage_id, state FROM back""",
        limit=limit,
        max_attempts=max_attempts,
        backoff_s=backoff_s,
        parked_retry_s=parked_retry_s,
        error_class=str(ErrorClass.INTERRUPTED),
        error="the worker did not report within its lease",
    )


def retry_parked(tx: Tx, limit: int, max_attempts: int) -> int:
    """Give parked requests that are due one more attempt; their number; one statement."""
    return tx.run(
        """WITH due AS (SELECT id FROM request WHERE state = 'parked' AND next_attempt_at <= %(now)s
                         ORDER BY next_attempt_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED)
           UPDATE request r SET state = 'queued', attempts = greatest(attempts, %(max_attempts)s)
             FROM due WHERE r.id = due.id""",
        limit=limit,
        max_attempts=max_attempts,
    ).rowcount


def wake_waiting(tx: Tx) -> int:
    """Make requests due that wait for a storage to be there or to take data; their number; one statement.

    Reads the whole queue, so it is for when a storage changed: without it they would find out within their wait.
    """
    return tx.run(
        """WITH held AS (SELECT id FROM request WHERE state = 'queued' AND next_attempt_at > %(now)s AND error_class = ANY (%(classes)s::text[])
                          ORDER BY did_id, storage_id FOR UPDATE SKIP LOCKED)
           UPDATE request r SET next_attempt_at = %(now)s FROM held WHERE r.id = held.id""",
        classes=[str(ErrorClass.SOURCE_UNAVAILABLE), str(ErrorClass.DESTINATION_UNAVAILABLE)],
    ).rowcount


def age(tx: Tx, after_s: float, limit: int) -> int:
    """Raise by one the priority of requests that are due for more than `after_s` times it; their number; one statement.

    At most `limit` for each lane of a storage that takes data.
    """
    return tx.run(
        """WITH old AS (SELECT r.id FROM storage s CROSS JOIN unnest(%(priorities)s::smallint[]) AS p (priority)
                         CROSS JOIN LATERAL (
                               SELECT id FROM request
                                WHERE state = 'queued' AND storage_id = s.id AND priority = p.priority
                                  AND next_attempt_at <= %(now)s - make_interval(secs => %(after_s)s * p.priority)
                                ORDER BY next_attempt_at, id LIMIT %(limit)s FOR UPDATE SKIP LOCKED) r
                         WHERE s.deleted_at IS NULL AND s.is_available AND s.can_write)
           UPDATE request r SET priority = priority + 1 FROM old WHERE r.id = old.id""",
        priorities=PRIORITIES[:-1],
        after_s=after_s,
        limit=limit,
    ).rowcount


def lanes(tx: Tx, max_active: int, limit: int) -> Sequence[Row[Any]]:
    """Lanes with due requests, counted up to `limit`, and the room at their storage; one statement.

    What is counted is ordered, so that ix_request_lane is read: else the planner reads the whole queue once per lane.
    """
    return tx.rows(
        """WITH busy AS (SELECT storage_id, count(*) AS active FROM request WHERE state = 'active' GROUP BY storage_id),
                open AS (SELECT s.id, %(max_active)s - coalesce(b.active, 0) AS room
                           FROM storage s LEFT JOIN busy b ON b.storage_id = s.id
                          WHERE s.deleted_at IS NULL AND s.is_available AND s.can_write
                            AND coalesce(b.active, 0) < %(max_active)s)
           SELECT o.id AS storage_id, p.priority, r.waiting, o.room
             FROM open o CROSS JOIN unnest(%(priorities)s::smallint[]) AS p (priority)
            CROSS JOIN LATERAL (
                  SELECT count(*) AS waiting FROM (
                      SELECT FROM request WHERE state = 'queued' AND storage_id = o.id AND priority = p.priority
                                            AND next_attempt_at <= %(now)s
                       ORDER BY next_attempt_at, id LIMIT least(o.room, %(limit)s)) due) r
            WHERE r.waiting > 0 ORDER BY 1, 2""",
        priorities=PRIORITIES,
        max_active=max_active,
        limit=limit,
    )


# By an array of ids: a join makes the planner, who expects a share of the queue, read all of it.
_LEASE = """
    UPDATE request r
       SET state = 'active', fence = r.fence + 1, attempts = least(r.attempts + 1, 1000),
           claimed_until = %(now)s + make_interval(
               secs => %(base_s)s + (SELECT max(upto) FROM taken)::float8 / %(rate_bytes_s)s)
     WHERE r.id = ANY (ARRAY (SELECT id FROM taken))
    RETURNING r.id, r.did_id, r.storage_id, r.size_bytes, r.fence, r.attempts, r.is_cancelled, r.is_repair,
              r.created_at, r.claimed_until"""


def claim(tx: Tx, takes: Sequence[tuple[int, int, int]], lease: Lease) -> Sequence[Row[Any]]:
    """Take due requests of each (storage_id, priority, number), those of another worker left out; one statement.

    The storages take turns, so that the bound on bytes cuts the same from each. `lease_replicas` must follow.
    """
    return tx.rows(
        f"""WITH lane AS (SELECT * FROM unnest(%(storages)s::int[], %(priorities)s::smallint[], %(takes)s::int[])
                                    AS l (storage_id, priority, take)),
                 due AS MATERIALIZED (
                     SELECT r.* FROM lane l CROSS JOIN LATERAL (
                            SELECT id, storage_id, priority, next_attempt_at,
                                   size_bytes::numeric * (attempts + 1) AS weight
                              FROM request
                             WHERE state = 'queued' AND storage_id = l.storage_id AND priority = l.priority
                               AND next_attempt_at <= %(now)s
                             ORDER BY next_attempt_at, id LIMIT l.take FOR UPDATE SKIP LOCKED) r),
                 turned AS (SELECT id, weight, row_number() OVER (PARTITION BY storage_id
                                                    ORDER BY priority DESC, next_attempt_at, id) AS turn FROM due),
                 summed AS (SELECT id, weight, sum(weight) OVER (ORDER BY turn, id) AS upto FROM turned),
                 taken AS (SELECT id, upto FROM summed WHERE upto - weight < %(batch_bytes)s)
            {_LEASE}""",
        storages=[take[0] for take in takes],
        priorities=[take[1] for take in takes],
        takes=[take[2] for take in takes],
        base_s=lease.base_s,
        rate_bytes_s=lease.rate_bytes_s,
        batch_bytes=lease.batch_bytes,
    )


def claim_cancelled(tx: Tx, limit: int, lease: Lease) -> Sequence[Row[Any]]:
    """Take cancelled requests wherever they would go, full or switched off: they move nothing; one statement."""
    return tx.rows(
        f"""WITH taken AS (SELECT id, 0 AS upto FROM request
                            WHERE is_cancelled AND state = 'queued' AND next_attempt_at <= %(now)s
                            ORDER BY id LIMIT %(limit)s FOR UPDATE SKIP LOCKED)
            {_LEASE}""",
        limit=limit,
        base_s=lease.base_s,
        rate_bytes_s=lease.rate_bytes_s,
    )


def lease_replicas(tx: Tx, rows: Sequence[Row[Any]]) -> None:
    """Write the lease on the replicas of all requests that the transaction claimed, too; one statement.

    Once, after all claims. Otherwise: 1. we lease file 2, whose request was cancelled; 2. an auditor locks the replicas
    of file 1 and waits for file 2; 3. we claim file 1 in its lane, and wait for the auditor.
    """
    tx.run(
        """WITH held AS (SELECT p.did_id, p.storage_id, q.claimed_until
                           FROM request q JOIN replica p ON p.did_id = q.did_id AND p.storage_id = q.storage_id
                          WHERE q.id = ANY (%(ids)s::bigint[])
                          ORDER BY p.did_id, p.storage_id FOR UPDATE OF p)
           UPDATE replica r SET claimed_until = h.claimed_until, fence = r.fence + 1
             FROM held h WHERE r.did_id = h.did_id AND r.storage_id = h.storage_id""",
        ids=integers(row.id for row in rows),
    )


def set_sources(tx: Tx, sources: Mapping[int, int]) -> None:
    """Note from where the claimed requests are copied, {request: storage}; one statement."""
    tx.run(
        """UPDATE request r SET source_storage_id = s.storage_id
             FROM unnest(%(ids)s::bigint[], %(storages)s::int[]) AS s (id, storage_id) WHERE r.id = s.id""",
        ids=integers(sources.keys()),
        storages=integers(sources.values()),
    )


# --- what a decision needs ---------------------------------------------------------------------------------------


def load_files(tx: Tx, ids: Collection[int]) -> Sequence[Row[Any]]:
    """The file of each request, and its place at the destination (has_replica, path); one statement."""
    return tx.rows(
        """SELECT r.id, s.name AS scope, d.name, d.adler32, d.md5, d.sha256, p.did_id IS NOT NULL AS has_replica, p.path
             FROM unnest(%(ids)s::bigint[]) AS q (id) JOIN request r ON r.id = q.id
             JOIN did d ON d.id = r.did_id JOIN scope s ON s.id = d.scope_id
             LEFT JOIN replica p ON p.did_id = r.did_id AND p.storage_id = r.storage_id AND p.state = 'copying'""",
        ids=integers(ids),
    )


def load_replicas(tx: Tx, did_ids: Collection[int]) -> Sequence[Row[Any]]:
    """All replicas of the files that are not deleted, as (did_id, storage_id, state, path); one statement."""
    return tx.rows(
        """SELECT r.did_id, r.storage_id, r.state, r.path FROM unnest(%(dids)s::bigint[]) AS q (did_id)
             JOIN replica r ON r.did_id = q.did_id WHERE r.state <> 'deleted' ORDER BY 1, 2""",
        dids=integers(sorted(set(did_ids))),
    )


def load_holds(tx: Tx, rows: Sequence[Row[Any]]) -> Sequence[Row[Any]]:
    """(id, source_expression_id) for every request that a lock holds, once per expression (or null); one statement."""
    return tx.rows(
        """WITH q AS (SELECT * FROM unnest(%(ids)s::bigint[], %(dids)s::bigint[], %(storages)s::int[])
                               AS q (id, did_id, storage_id)),
                held AS (SELECT q.id, l.rule_id FROM q JOIN lock l USING (did_id, storage_id) WHERE NOT l.is_released
                         UNION
                         SELECT q.id, l.rule_id FROM q JOIN attachment a ON a.child_id = q.did_id
                           JOIN lock l ON l.did_id = a.parent_id AND l.storage_id = q.storage_id
                          WHERE NOT l.is_released)
           SELECT DISTINCT held.id, rule.source_expression_id FROM held JOIN rule ON rule.id = held.rule_id""",
        ids=integers(row.id for row in rows),
        dids=integers(row.did_id for row in rows),
        storages=integers(row.storage_id for row in rows),
    )


def load_expressions(tx: Tx, ids: Collection[int]) -> dict[int, frozenset[int]]:
    """The storages that each expression matches; one statement."""
    rows = tx.rows("SELECT id, storage_ids FROM expression WHERE id = ANY (%(ids)s::int[])", ids=sorted(set(ids)))
    return {row.id: frozenset(row.storage_ids) for row in rows}


def load_failures(tx: Tx, rows: Sequence[Row[Any]]) -> tuple[dict[tuple[int, int], int], set[int]]:
    """({(request, source): how often it failed}, requests that met a file of another content there); one statement."""
    found = tx.rows(
        """SELECT a.request_id, a.source_storage_id, count(*) AS failures,
                  bool_or(a.error_class = %(exists)s) AS is_taken
             FROM unnest(%(ids)s::bigint[], %(dids)s::bigint[], %(storages)s::int[]) AS q (id, did_id, storage_id)
             JOIN attempt a ON a.did_id = q.did_id AND a.storage_id = q.storage_id AND a.request_id = q.id
            WHERE a.ended_at >= %(since)s AND a.error_class IS NOT NULL AND a.source_storage_id IS NOT NULL
            GROUP BY 1, 2""",
        ids=integers(row.id for row in rows),
        dids=integers(row.did_id for row in rows),
        storages=integers(row.storage_id for row in rows),
        since=min(row.created_at for row in rows),
        exists=str(ErrorClass.DESTINATION_EXISTS),
    )
    failures = {(row.request_id, row.source_storage_id): row.failures for row in found}
    return failures, {row.request_id for row in found if row.is_taken}


# --- what the judge and people ask ---------------------------------------------------------------------------------

_SHOWN = """
    SELECT q.id, q.did_id, s.name AS scope, d.name, q.storage_id, t.name AS storage, q.state, q.size_bytes, q.priority,
           q.activity, q.attempts, q.created_at, q.next_attempt_at, q.claimed_until, q.is_cancelled, q.is_repair,
           q.source_storage_id, f.name AS source, q.error_class, q.error
      FROM request q JOIN did d ON d.id = q.did_id JOIN scope s ON s.id = d.scope_id
      JOIN storage t ON t.id = q.storage_id
      LEFT JOIN storage f ON f.id = q.source_storage_id"""
_MATCHES = """
    (%(ids)s::bigint[] IS NULL OR q.id = ANY (%(ids)s::bigint[]))
    AND (%(storage_id)s::int IS NULL OR q.storage_id = %(storage_id)s)
    AND (%(state)s::request_state IS NULL OR q.state = %(state)s::request_state)
    AND (%(did_id)s::bigint IS NULL OR q.did_id = %(did_id)s
         OR EXISTS (SELECT FROM attachment a WHERE a.parent_id = %(did_id)s AND a.child_id = q.did_id))
    AND (%(rule_id)s::bigint IS NULL
         OR EXISTS (SELECT FROM lock l
                     WHERE l.rule_id = %(rule_id)s AND l.storage_id = q.storage_id AND l.did_id = q.did_id)
         OR EXISTS (SELECT FROM attachment a JOIN lock l ON l.did_id = a.parent_id
                     WHERE a.child_id = q.did_id AND l.rule_id = %(rule_id)s AND l.storage_id = q.storage_id))"""


def _values(filters: Filters) -> dict[str, Any]:
    return {
        "ids": None if filters.ids is None else list(filters.ids),
        "rule_id": filters.rule_id,
        "storage_id": filters.storage_id,
        "did_id": filters.did_id,
        "state": None if filters.state is None else str(filters.state),
    }


def list_requests(tx: Tx, filters: Filters, page: Page) -> tuple[Sequence[Row[Any]], str | None]:
    """A page of requests by id, and the cursor of the next page (None at the end); one statement."""
    if page.after is not None and not (page.after.isdecimal() and len(page.after) < 19):
        raise InvalidInput("this is no cursor of this list", field="after", hint="take it from the page before")
    rows = tx.rows(
        f"{_SHOWN} WHERE q.id > %(after)s AND {_MATCHES} ORDER BY q.id LIMIT %(limit)s",
        after=int(page.after or 0),
        limit=page.limit + 1,
        **_values(filters),
    )
    if len(rows) <= page.limit:
        return rows, None
    return rows[: page.limit], str(rows[page.limit - 1].id)


def get(tx: Tx, request_id: int) -> Row[Any]:
    """One request, as the list shows it; NotFound; one statement."""
    row = tx.one(f"{_SHOWN} WHERE q.id = %(id)s", id=request_id)
    if row is None:
        raise NotFound(
            "there is no such request; one that is done or cancelled leaves its attempts only", field="request"
        )
    return row


def attempts_of(tx: Tx, did_id: int, storage_id: int, limit: int = 100) -> Sequence[Row[Any]]:
    """The newest attempts to put the file there, newest first, for `why`; one statement."""
    return tx.rows(
        """SELECT a.ended_at, a.request_id, a.number, a.source_storage_id, s.name AS source, a.outcome, a.size_bytes,
                  a.duration_s, a.error_class, a.error
             FROM attempt a LEFT JOIN storage s ON s.id = a.source_storage_id
            WHERE a.did_id = %(did_id)s AND a.storage_id = %(storage_id)s
            ORDER BY a.ended_at DESC, a.number DESC LIMIT %(limit)s""",
        did_id=did_id,
        storage_id=storage_id,
        limit=limit,
    )


def retry(tx: Tx, filters: Filters) -> tuple[int, int]:
    """Make these due now, with all their attempts again: (how many were parked, how many waited); two statements."""
    done = tx.one(
        f"""WITH held AS (SELECT q.id, q.state FROM request q
                           WHERE {_MATCHES}
                             AND (q.state = 'parked' OR q.state = 'queued' AND q.next_attempt_at > %(now)s)
                           ORDER BY q.did_id, q.storage_id FOR UPDATE OF q),
                 done AS (UPDATE request r SET state = 'queued', attempts = 0, next_attempt_at = %(now)s
                            FROM held WHERE r.id = held.id RETURNING held.state)
            SELECT count(*) FILTER (WHERE state = 'parked') AS parked,
                   count(*) FILTER (WHERE state = 'queued') AS waited FROM done""",
        **_values(filters),
    )
    assert done is not None
    changes.wake(tx, "conveyor")
    return done.parked, done.waited


def next_due(tx: Tx) -> float | None:
    """Seconds until a queued request at a storage that takes data is due, or a lease ends; one statement."""
    return tx.scalar(
        """SELECT extract(epoch FROM least(
                    (SELECT min(r.next_attempt_at)
                       FROM storage s CROSS JOIN unnest(%(priorities)s::smallint[]) AS p (priority)
                      CROSS JOIN LATERAL (SELECT next_attempt_at FROM request
                                           WHERE state = 'queued' AND storage_id = s.id AND priority = p.priority
                                           ORDER BY next_attempt_at LIMIT 1) r
                      WHERE s.deleted_at IS NULL AND s.is_available AND s.can_write),
                    (SELECT min(claimed_until) FROM request WHERE state = 'active')) - %(now)s)::float8""",
        priorities=PRIORITIES,
    )
