"""Deleting, as rows: what is due and where, what protects it, the mark under a lease, and the record of the end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.engine import Row

from dlm.db import arrays
from dlm.db.engine import Tx
from dlm.db.letting_go import PROTECTED
from dlm.db.rules import WAITS

LANE_LOCK = 0x646C6D02  # advisory, with the storage id: one reaper at a time marks there, so budgets hold
_REAPABLE = "('available', 'unverified', 'bad', 'lost')"
_HELD = """EXISTS (SELECT FROM breaker b WHERE b.act = 'delete' AND b.closed_at IS NULL
                      AND (b.storage_id IS NULL OR b.storage_id = s.id))"""
_COPIES = f"CASE WHEN {WAITS} THEN 1 ELSE r.copies END"
_OPEN = f"s.can_delete AND s.is_available AND s.deleted_at IS NULL AND NOT {_HELD}"


@dataclass(frozen=True, slots=True)
class Claim:
    """A replica marked for deletion by this worker; `fence` tells whether it is its still."""

    did_id: int
    storage_id: int
    fence: int
    size_bytes: int
    scope: str
    name: str
    path: str | None  # None: derived from scope and name
    tombstone_at: datetime
    was_verified: bool


def lanes(tx: Tx, besides: Iterable[int] = ()) -> Sequence[Row[Any]]:
    """Storages, by id, where something is due and may be deleted, with their space; one statement.

    Each comes with a lock on its lane until the transaction ends; a lane that another reaper holds is left out.
    """
    return tx.rows(
        f"""WITH lane AS MATERIALIZED (
                SELECT s.id, s.reap, s.capacity_bytes, s.min_free_bytes, u.used_files,
                       u.used_bytes + u.reserved_bytes AS taken_bytes
                  FROM storage s JOIN storage_usage u ON u.storage_id = s.id
                 WHERE {_OPEN} AND s.id <> ALL (%(besides)s::int[])
                   AND EXISTS (SELECT FROM protocol p WHERE p.storage_id = s.id)
                   AND EXISTS (SELECT FROM replica r WHERE r.storage_id = s.id AND r.tombstone_at <= %(now)s
                                  AND r.state IN {_REAPABLE})
                 ORDER BY s.id)
            SELECT * FROM lane WHERE pg_try_advisory_xact_lock(%(key)s, id) ORDER BY id""",
        besides=list(besides),
        key=LANE_LOCK,
    )


def stopped(tx: Tx, storage_ids: Iterable[int]) -> set[int]:
    """Those of the storages where a person stopped deletions: all are held, or its own are switched off; one statement.

    A breaker that a budget opened is not asked: what was marked within the budget may go.
    """
    rows = tx.rows(
        """SELECT s.id FROM storage s
            WHERE s.id = ANY (%(ids)s::int[]) AND (NOT s.can_delete OR EXISTS (
                  SELECT FROM breaker b WHERE b.act = 'delete' AND b.closed_at IS NULL AND b.storage_id IS NULL))""",
        ids=sorted(set(storage_ids)),
    )
    return {row.id for row in rows}


def claim_due(tx: Tx, limits: dict[int, int]) -> Sequence[Row[Any]]:
    """(did_id, storage_id, size_bytes) of due replicas, oldest first, at most `limits[storage]` each; one statement.

    They are locked; what others hold is skipped, never waited for.
    """
    return tx.rows(
        f"""SELECT c.did_id, c.storage_id, c.size_bytes
              FROM unnest(%(ids)s::int[], %(limits)s::int[]) AS l (storage_id, n)
             CROSS JOIN LATERAL (
                   SELECT r.did_id, r.storage_id, r.size_bytes FROM replica r
                    WHERE r.storage_id = l.storage_id AND r.tombstone_at <= %(now)s AND r.state IN {_REAPABLE}
                    ORDER BY r.tombstone_at LIMIT l.n FOR UPDATE SKIP LOCKED) c""",
        ids=list(limits),
        limits=list(limits.values()),
    )


def lock_copies(tx: Tx, file_ids: Iterable[int]) -> set[tuple[int, int]]:
    """Lock every replica row of the files, in key order, and return those (did, storage) that it got; one statement.

    Two reapers beside each other would otherwise each take the other's copy for the witness of its own deletion:
    1. R1 counts B as witness, R2 counts A; 2. R1 marks A; 3. R2 marks B; 4. both delete, and nothing is left.
    Rows that another holds are skipped; the caller leaves their files for a later pass.
    """
    rows = tx.rows(
        """SELECT did_id, storage_id FROM replica WHERE did_id = ANY (%(files)s::bigint[])
            ORDER BY did_id, storage_id FOR UPDATE SKIP LOCKED""",
        files=arrays.integers(file_ids),
    )
    return {(row.did_id, row.storage_id) for row in rows}


def load_copies(tx: Tx, file_ids: Iterable[int]) -> Sequence[Row[Any]]:
    """Every replica of the files with what protects and what discredits it, in key order; one statement.

    A statement of its own after `lock_copies`: only its snapshot shows what committed while that one locked.
    """
    return tx.rows(
        f"""SELECT r.did_id, r.storage_id, r.state, r.fence, r.size_bytes, r.tombstone_at,
                   {PROTECTED} AS is_locked,
                   EXISTS (SELECT FROM request q
                            WHERE q.did_id = r.did_id AND q.storage_id = r.storage_id) AS has_request,
                   EXISTS (SELECT FROM finding f
                            WHERE f.did_id = r.did_id AND f.storage_id = r.storage_id) AS is_doubted,
                   s.is_available AND s.deleted_at IS NULL AS is_reachable
              FROM replica r JOIN storage s ON s.id = r.storage_id
             WHERE r.did_id = ANY (%(files)s::bigint[]) ORDER BY r.did_id, r.storage_id""",
        files=arrays.integers(file_ids),
    )


def load_wanted(tx: Tx, file_ids: Iterable[int]) -> dict[int, int]:
    """The largest number of copies that a rule not letting go wants of each file (absent: none); one statement.

    Rules on the file and on every collection above it count. A rule for all that match wants as many copies as it
    has locks covering the file, and at least one, as it may not have been judged yet. One that waits for its start wants
    that something is left to copy then: one.
    """
    rows = tx.rows(
        f"""WITH RECURSIVE file (id) AS (SELECT unnest(%(files)s::bigint[])),
                parent AS MATERIALIZED (SELECT f.id, a.parent_id FROM file f JOIN attachment a ON a.child_id = f.id),
                above (start_id, did_id) AS (
                    SELECT DISTINCT parent_id, parent_id FROM parent
                     UNION
                    SELECT b.start_id, a.parent_id FROM above b JOIN attachment a ON a.child_id = b.did_id),
                wish (did_id, rule_id, copies) AS MATERIALIZED (
                    SELECT b.start_id, r.id, {_COPIES} FROM above b JOIN rule r ON r.did_id = b.did_id
                     WHERE r.state NOT IN ('letting_go', 'gone')),
                holder (file_id, rule_id, copies) AS (
                    SELECT p.id, w.rule_id, w.copies FROM parent p JOIN wish w ON w.did_id = p.parent_id
                     UNION
                    SELECT f.id, r.id, {_COPIES} FROM file f JOIN rule r ON r.did_id = f.id
                     WHERE r.state NOT IN ('letting_go', 'gone'))
           SELECT h.file_id, max(coalesce(h.copies, greatest(1, (
                      SELECT count(DISTINCT l.storage_id) FROM lock l
                       WHERE l.rule_id = h.rule_id AND NOT l.is_released
                         AND (l.did_id = h.file_id OR l.did_id IN (
                                  SELECT a.parent_id FROM attachment a WHERE a.child_id = h.file_id)))))) AS wanted
             FROM holder h GROUP BY h.file_id""",
        files=arrays.integers(file_ids),
    )
    return {row.file_id: int(row.wanted) for row in rows}


def mark(tx: Tx, proofs: Sequence[tuple[int, int, int]], lease_s: float) -> list[Claim]:
    """Mark (did, storage, fence to act under) as deleting, under a lease; one statement.

    A bad or lost copy forgets that it was ever verified: should the deletion be taken back, it comes back as
    unverified and due for a check, not as good.
    """
    rows = tx.rows(
        """UPDATE replica r
              SET state = 'deleting', fence = p.fence, claimed_until = %(now)s + make_interval(secs => %(lease_s)s),
                  verified_at = CASE WHEN r.state = 'available' THEN r.verified_at END,
                  next_check_at = CASE WHEN r.state = 'available' THEN r.next_check_at ELSE %(now)s END
             FROM unnest(%(dids)s::bigint[], %(storages)s::int[], %(fences)s::int[]) AS p (did_id, storage_id, fence)
             JOIN did d ON d.id = p.did_id JOIN scope s ON s.id = d.scope_id
            WHERE r.did_id = p.did_id AND r.storage_id = p.storage_id AND r.fence = p.fence - 1
           RETURNING r.did_id, r.storage_id, r.fence, r.size_bytes, s.name AS scope, d.name, r.path, r.tombstone_at,
                     r.verified_at IS NOT NULL AS was_verified""",
        lease_s=lease_s,
        **_keys(proofs),
    )
    return [Claim(*list(row)) for row in rows]


def add_proofs(tx: Tx, proofs: Sequence[tuple[int, int, int, int, Sequence[int], str]]) -> None:
    """Store (did, storage, fence, wanted, witnesses, cause) of each deletion; one statement."""
    tx.run(
        """INSERT INTO proof (did_id, storage_id, made_at, fence, wanted, witnesses, cause)
           SELECT did_id, storage_id, %(now)s, fence, wanted, string_to_array(witnesses, ',')::int[], cause
             FROM unnest(%(dids)s::bigint[], %(storages)s::int[], %(fences)s::int[], %(wanted)s::int[],
                         %(witnesses)s::text[], %(causes)s::text[])
                  AS p (did_id, storage_id, fence, wanted, witnesses, cause)""",
        wanted=[proof[3] for proof in proofs],
        witnesses=[",".join(map(str, proof[4])) for proof in proofs],
        causes=[proof[5] for proof in proofs],
        **_keys([proof[:3] for proof in proofs]),
    )


def set_tombstones(tx: Tx, tombstones: Sequence[tuple[int, int, datetime | None]]) -> None:
    """Write the tombstone of each (did, storage), which the caller has locked; one statement."""
    tx.run(
        """UPDATE replica r SET tombstone_at = t.at
             FROM unnest(%(dids)s::bigint[], %(storages)s::int[], %(ats)s::timestamptz[]) AS t (did_id, storage_id, at)
            WHERE r.did_id = t.did_id AND r.storage_id = t.storage_id""",
        dids=[row[0] for row in tombstones],
        storages=[row[1] for row in tombstones],
        ats=[row[2] for row in tombstones],
    )


# The claims that are this worker's still, locked in key order.
_MINE = """mine AS (SELECT r.did_id, r.storage_id, r.size_bytes, r.quiet_until, m.*
                      FROM unnest({columns}) AS m ({names})
                      JOIN replica r ON r.did_id = m.m_did AND r.storage_id = m.m_storage
                     WHERE r.state = 'deleting' AND r.fence = m.m_fence
                     ORDER BY r.did_id, r.storage_id FOR UPDATE OF r)"""


def hold(tx: Tx, claims: Sequence[Claim]) -> None:
    """Lock those of the claims that are this worker's still, before the parts of an outcome are written; one statement."""
    mine = _MINE.format(
        columns="%(dids)s::bigint[], %(storages)s::int[], %(fences)s::int[]", names="m_did, m_storage, m_fence"
    )
    tx.run(f"WITH {mine} SELECT count(*) FROM mine", **_keys([(claim.did_id, claim.storage_id, claim.fence) for claim in claims]))


def finish(tx: Tx, claims: Sequence[Claim]) -> Sequence[Row[Any]]:
    """Take the rows of deleted replicas away, and findings about them; (did_id, storage_id, size_bytes); one statement.

    Where an earlier lease had expired the row stays as `deleted` until `quiet_until`: that worker may still unlink
    what stands at the path, so nothing may be written there before.
    """
    mine = _MINE.format(
        columns="%(dids)s::bigint[], %(storages)s::int[], %(fences)s::int[]", names="m_did, m_storage, m_fence"
    )
    return tx.rows(
        f"""WITH {mine},
                 removed AS (DELETE FROM replica r USING mine m
                              WHERE r.did_id = m.did_id AND r.storage_id = m.storage_id
                                AND coalesce(m.quiet_until <= %(now)s, true)),
                 resting AS (UPDATE replica r
                                SET state = 'deleted', claimed_until = NULL, tombstone_at = NULL, verified_at = NULL,
                                    next_check_at = NULL
                               FROM mine m WHERE r.did_id = m.did_id AND r.storage_id = m.storage_id
                                AND m.quiet_until > %(now)s),
                 forgotten AS (DELETE FROM finding f USING mine m
                                WHERE f.did_id = m.did_id AND f.storage_id = m.storage_id)
            SELECT did_id, storage_id, size_bytes FROM mine""",
        **_keys([(claim.did_id, claim.storage_id, claim.fence) for claim in claims]),
    )


def revert(tx: Tx, reverts: Sequence[tuple[Claim, datetime | None, bool]]) -> Sequence[Row[Any]]:
    """Bring (claim, tombstone, is the copy in doubt) back from deleting; (did_id, storage_id) reverted; one statement.

    Verified copies come back as available, others and those in doubt as unverified and due for a check.
    """
    columns = (
        "%(dids)s::bigint[], %(storages)s::int[], %(fences)s::int[], %(tombstones)s::timestamptz[], %(doubts)s::bool[]"
    )
    mine = _MINE.format(columns=columns, names="m_did, m_storage, m_fence, tombstone, in_doubt")
    return tx.rows(
        f"""WITH {mine}
            UPDATE replica r
               SET state = (CASE WHEN r.verified_at IS NULL OR m.in_doubt THEN 'unverified'
                                 ELSE 'available' END)::replica_state,
                   verified_at = CASE WHEN NOT m.in_doubt THEN r.verified_at END,
                   next_check_at = CASE WHEN r.verified_at IS NULL OR m.in_doubt
                                        THEN greatest(%(now)s, m.quiet_until) ELSE r.next_check_at END,
                   tombstone_at = m.tombstone, claimed_until = NULL
              FROM mine m WHERE r.did_id = m.did_id AND r.storage_id = m.storage_id
            RETURNING r.did_id, r.storage_id""",
        tombstones=[row[1] for row in reverts],
        doubts=[row[2] for row in reverts],
        **_keys([(row[0].did_id, row[0].storage_id, row[0].fence) for row in reverts]),
    )


def release_expired(tx: Tx, limit: int, rest_s: float) -> Sequence[Row[Any]]:
    """Take rows whose lease ended out of deleting; (did_id, storage_id) of each; one statement.

    Whether the file is still there is not known, and their worker may wake and delete it yet: they become unverified,
    to be checked, or their path written again, after `rest_s` only. Their tombstones stand, so that the same pass
    can mark them anew, with a new proof.
    """
    return tx.rows(
        """WITH held AS (SELECT did_id, storage_id FROM replica
                          WHERE state = 'deleting' AND claimed_until <= %(now)s
                          LIMIT %(limit)s FOR UPDATE SKIP LOCKED)
           UPDATE replica r
              SET state = 'unverified', verified_at = NULL, claimed_until = NULL, fence = r.fence + 1,
                  quiet_until = %(now)s + make_interval(secs => %(rest_s)s),
                  next_check_at = %(now)s + make_interval(secs => %(rest_s)s)
             FROM held h WHERE r.did_id = h.did_id AND r.storage_id = h.storage_id
           RETURNING r.did_id, r.storage_id""",
        limit=limit,
        rest_s=rest_s,
    )


def purge(tx: Tx, limit: int) -> Sequence[Row[Any]]:
    """Remove deleted rows whose path has rested; (did_id, storage_id) of each; one statement."""
    return tx.rows(
        """WITH held AS (SELECT did_id, storage_id FROM replica
                          WHERE state = 'deleted' AND coalesce(quiet_until <= %(now)s, true)
                          LIMIT %(limit)s FOR UPDATE SKIP LOCKED)
           DELETE FROM replica r USING held h WHERE r.did_id = h.did_id AND r.storage_id = h.storage_id
           RETURNING r.did_id, r.storage_id""",
        limit=limit,
    )


def next_due(tx: Tx) -> datetime | None:
    """When something next becomes due: a tombstone where deleting is possible, a lease, a rest; one statement."""
    return tx.scalar(
        f"""SELECT least(
                (SELECT min(t.at) FROM storage s CROSS JOIN LATERAL (
                        SELECT min(r.tombstone_at) AS at FROM replica r
                         WHERE r.storage_id = s.id AND r.tombstone_at > %(now)s) t
                  WHERE {_OPEN}),
                (SELECT min(claimed_until) FROM replica WHERE claimed_until IS NOT NULL AND state = 'deleting'),
                (SELECT min(quiet_until) FROM replica WHERE state = 'deleted'))"""
    )


def _keys(rows: Sequence[tuple[int, int, int]]) -> dict[str, str]:
    return {
        "dids": arrays.integers(row[0] for row in rows),
        "storages": arrays.integers(row[1] for row in rows),
        "fences": arrays.integers(row[2] for row in rows),
    }
