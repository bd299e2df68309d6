"""Looking whether storages have what the catalogue says: checks asked for, due verifications, findings, demotions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from sqlalchemy.engine import Row

from dlm.db import arrays
from dlm.db.engine import Tx

SPREAD_SHARE = 0.25  # of the cycle: replicas verified together come due apart by up to this

# An item's columns; `r` is the replica, and a finding, if any, is joined as `f`.
_ITEM = """r.did_id, r.storage_id, r.state, r.size_bytes, sc.name AS scope, d.name, r.path, d.adler32, d.md5, d.sha256,
           r.fence, r.verified_at, coalesce(f.probes, 0) AS probes"""
_JOINS = """JOIN did d ON d.id = r.did_id JOIN scope sc ON sc.id = d.scope_id
            LEFT JOIN finding f ON f.storage_id = r.storage_id AND f.did_id = r.did_id"""


@dataclass(frozen=True, slots=True)
class Item:
    """A replica to be looked at, with what it should be, and what tells later that nobody changed it meanwhile."""

    did_id: int
    storage_id: int
    state: str
    size_bytes: int
    scope: str
    name: str
    path: str | None
    adler32: str | None
    md5: str | None
    sha256: str | None
    fence: int
    verified_at: datetime | None
    probes: int  # findings so far


# -- checks of a whole storage ----------------------------------------------------------------------------------


def insert(tx: Tx, storage_id: int, *, with_checksum: bool, confirm_lost: bool) -> int:
    """Write a check that may start at once; its id; one statement."""
    return int(
        tx.scalar(
            """INSERT INTO audit (storage_id, state, with_checksum, confirm_lost, asked_by, created_at, next_attempt_at)
               VALUES (%(storage_id)s, 'running', %(with_checksum)s, %(confirm_lost)s, %(by)s, %(now)s, %(now)s)
               RETURNING id""",
            storage_id=storage_id,
            with_checksum=with_checksum,
            confirm_lost=confirm_lost,
            by=tx.actor.account,
        )
    )


def hold_storage(tx: Tx, storage_id: int) -> Row[Any] | None:
    """Lock the storage's row; (id, name, running): the last is the id of its running check, if any; one statement."""
    return tx.one(
        """SELECT s.id, s.name,
                  (SELECT max(a.id) FROM audit a WHERE a.storage_id = s.id AND a.state = 'running') AS running
             FROM storage s WHERE s.id = %(id)s AND s.deleted_at IS NULL FOR UPDATE OF s""",
        id=storage_id,
    )


def get(tx: Tx, audit_id: int) -> Row[Any] | None:
    """The check, with the storage's name and how many files it has to look at in all; one statement."""
    return tx.one(
        """SELECT a.*, s.name AS storage, u.used_files AS total
             FROM audit a JOIN storage s ON s.id = a.storage_id JOIN storage_usage u ON u.storage_id = s.id
            WHERE a.id = %(id)s""",
        id=audit_id,
    )


def list_for(tx: Tx, storage_id: int, limit: int = 20) -> Sequence[Row[Any]]:
    """The storage's checks, newest first; one statement."""
    return tx.rows(
        """SELECT a.*, s.name AS storage, u.used_files AS total
             FROM audit a JOIN storage s ON s.id = a.storage_id JOIN storage_usage u ON u.storage_id = s.id
            WHERE a.storage_id = %(id)s ORDER BY a.id DESC LIMIT %(limit)s""",
        id=storage_id,
        limit=limit,
    )


def claim(tx: Tx, lease_s: float, besides: Iterable[int] = ()) -> Row[Any] | None:
    """Take the running check that waits longest, not of the storages `besides`; None if none is due; one statement."""
    return tx.one(
        """WITH next AS (SELECT id FROM audit
                          WHERE next_attempt_at <= %(now)s AND state = 'running'
                            AND storage_id <> ALL (%(besides)s::int[])
                            AND coalesce(claimed_until <= %(now)s, true)
                          ORDER BY next_attempt_at, id LIMIT 1 FOR UPDATE SKIP LOCKED)
           UPDATE audit a SET fence = a.fence + 1, claimed_until = %(now)s + make_interval(secs => %(lease_s)s)
             FROM next, storage s WHERE a.id = next.id AND s.id = a.storage_id
           RETURNING a.*, s.name AS storage, s.is_available""",
        lease_s=lease_s,
        besides=list(besides),
    )


def extend(tx: Tx, audit_id: int, lease_s: float) -> None:
    """Lengthen the lease on a check just claimed; one statement."""
    tx.run(
        "UPDATE audit SET claimed_until = %(now)s + make_interval(secs => %(lease_s)s) WHERE id = %(id)s",
        id=audit_id,
        lease_s=lease_s,
    )


def advance(
    tx: Tx, audit_id: int, fence: int, after_did_id: int, counts: tuple[int, int, int, int] = (0, 0, 0, 0)
) -> Row[Any] | None:
    """Note what a chunk found and let go of the lease; the check, or None if it is another worker's; one statement.

    `counts`: files looked at, missing, corrupt, and of the last two those that had been verified once.
    """
    files, missing, corrupt, proven = counts
    return tx.one(
        """UPDATE audit a
              SET after_did_id = greatest(after_did_id, %(after)s), files = files + %(files)s,
                  missing = missing + %(missing)s, corrupt = corrupt + %(corrupt)s, proven = proven + %(proven)s,
                  claimed_until = NULL, next_attempt_at = %(now)s
             FROM storage s
            WHERE a.id = %(id)s AND a.fence = %(fence)s AND a.state = 'running' AND s.id = a.storage_id
           RETURNING a.*, s.name AS storage""",
        id=audit_id,
        fence=fence,
        after=after_did_id,
        files=files,
        missing=missing,
        corrupt=corrupt,
        proven=proven,
    )


def end(tx: Tx, audit_id: int, state: str, message: str) -> None:
    """End a check as done, stopped or unavailable; one statement."""
    tx.run(
        """UPDATE audit SET state = %(state)s, message = %(message)s, ended_at = %(now)s, next_attempt_at = NULL,
                  claimed_until = NULL WHERE id = %(id)s""",
        id=audit_id,
        state=state,
        message=message,
    )


def resume(tx: Tx, audit_id: int) -> bool:
    """Let a stopped check go on, its losses confirmed; False if it is not stopped; one statement."""
    changed = tx.run(
        """UPDATE audit SET state = 'running', confirm_lost = true, message = NULL, ended_at = NULL,
                  next_attempt_at = %(now)s WHERE id = %(id)s AND state = 'stopped'""",
        id=audit_id,
    )
    return changed.rowcount > 0


def load_chunk(tx: Tx, storage_id: int, after_did_id: int, limit: int) -> list[Item]:
    """The next replicas of a storage by DID; those whose path rests are passed over; one statement."""
    rows = tx.rows(
        f"""SELECT {_ITEM} FROM replica r {_JOINS}
             WHERE r.storage_id = %(storage_id)s AND r.did_id > %(after)s
               AND r.state IN ('available', 'unverified', 'bad', 'lost') AND coalesce(r.quiet_until <= %(now)s, true)
             ORDER BY r.did_id LIMIT %(limit)s""",
        storage_id=storage_id,
        after=after_did_id,
        limit=limit,
    )
    return [_item(row) for row in rows]


def load_findings(tx: Tx, audit_id: int, limit: int) -> list[Item]:
    """The next replicas that a check has findings about; findings about no such replica are removed; two statements."""
    tx.run(
        """DELETE FROM finding f WHERE f.audit_id = %(id)s AND NOT EXISTS (
               SELECT FROM replica r WHERE r.did_id = f.did_id AND r.storage_id = f.storage_id
                  AND r.state IN ('available', 'unverified', 'bad', 'lost'))""",
        id=audit_id,
    )
    rows = tx.rows(
        f"""SELECT {_ITEM} FROM replica r {_JOINS}
             WHERE f.audit_id = %(id)s ORDER BY r.did_id LIMIT %(limit)s""",
        id=audit_id,
        limit=limit,
    )
    return [_item(row) for row in rows]


# -- due verifications and findings that others reported ----------------------------------------------------------


def claim_due(
    tx: Tx, limit: int, lease_s: float, slow_bytes_s: float, besides: Iterable[int] = ()
) -> list[tuple[Item, datetime]]:
    """Replicas whose verification is due, oldest first, each with its lease, which is its next due time; one statement.

    Only a write that finds this due time still standing counts. What cannot be looked at (storage unavailable, not
    readable, or in `besides`) is put off, so that it does not stand in the way of what can.
    """
    rows = tx.rows(
        f"""WITH due AS (SELECT did_id, storage_id FROM replica
                          WHERE next_check_at <= %(now)s AND state IN ('available', 'unverified')
                          ORDER BY next_check_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED),
                 taken AS (UPDATE replica r
                              SET next_check_at = %(now)s + make_interval(secs => %(lease_s)s + r.size_bytes / %(slow)s)
                             FROM due JOIN storage s ON s.id = due.storage_id
                            WHERE r.did_id = due.did_id AND r.storage_id = due.storage_id
                           RETURNING r.*, s.is_available AND s.can_read
                                          AND s.id <> ALL (%(besides)s::int[]) AS is_readable)
            SELECT {_ITEM}, r.next_check_at FROM taken r {_JOINS}
             WHERE r.is_readable ORDER BY r.storage_id, r.did_id""",
        limit=limit,
        lease_s=lease_s,
        slow=slow_bytes_s,
        besides=list(besides),
    )
    return [(_item(row), row.next_check_at) for row in rows]


def call_reported(tx: Tx, limit: int, pause_s: float, longest_s: float) -> int:
    """Make replicas with open findings due, each a doubling pause after the last look; how many; one statement.

    These are findings that no running check owns: reported by a conveyor that could not read a source, or seen once
    by a due verification. Findings whose replica is gone are removed with the replica.
    """
    return tx.run(
        """WITH open AS (SELECT r.did_id, r.storage_id
                           FROM finding f JOIN replica r ON r.did_id = f.did_id AND r.storage_id = f.storage_id
                          WHERE f.audit_id IS NULL AND r.state IN ('available', 'unverified')
                            AND r.next_check_at > %(now)s AND coalesce(r.quiet_until <= %(now)s, true)
                            AND f.found_at <= %(now)s - make_interval(
                                    secs => least(%(longest_s)s, %(pause_s)s * power(2, least(f.probes, 20) - 1)))
                          ORDER BY r.did_id, r.storage_id LIMIT %(limit)s FOR UPDATE OF r SKIP LOCKED)
           UPDATE replica r SET next_check_at = %(now)s FROM open o
            WHERE r.did_id = o.did_id AND r.storage_id = o.storage_id""",
        limit=limit,
        pause_s=pause_s,
        longest_s=longest_s,
    ).rowcount


# -- writing down what was seen -----------------------------------------------------------------------------------


def mark_good(tx: Tx, items: Sequence[Item], tokens: Sequence[datetime | None], cycle_s: float) -> Sequence[Row[Any]]:
    """Replicas whose bytes were read and are the file: verified, and due again within the cycle; one statement.

    Returns (did_id, storage_id, was, size_bytes) of those that nobody changed since they were loaded. Findings about
    them are removed.
    """
    return tx.rows(
        """WITH seen AS MATERIALIZED (
               SELECT r.did_id, r.storage_id, r.state AS was, r.size_bytes
                 FROM unnest(%(dids)s::bigint[], %(storages)s::int[], %(fences)s::int[], %(states)s::text[],
                             %(verified)s::timestamptz[], %(tokens)s::timestamptz[])
                      AS i (did_id, storage_id, fence, state, verified_at, token)
                 JOIN replica r ON r.did_id = i.did_id AND r.storage_id = i.storage_id
                WHERE r.fence = i.fence AND r.state = i.state::replica_state
                  AND r.verified_at IS NOT DISTINCT FROM i.verified_at
                  AND coalesce(r.next_check_at = i.token, i.token IS NULL)
                ORDER BY r.did_id, r.storage_id FOR UPDATE OF r),
              forgotten AS (DELETE FROM finding f USING seen
                             WHERE f.did_id = seen.did_id AND f.storage_id = seen.storage_id)
           UPDATE replica r
              SET state = 'available', verified_at = %(now)s,
                  next_check_at = %(now)s + make_interval(
                      secs => %(cycle_s)s * (1 - %(spread)s * (r.did_id * 7919 %% 1000) / 1000.0))
             FROM seen WHERE r.did_id = seen.did_id AND r.storage_id = seen.storage_id
           RETURNING r.did_id, r.storage_id, seen.was, r.size_bytes""",
        cycle_s=cycle_s,
        spread=SPREAD_SHARE,
        states=[item.state for item in items],
        verified=[item.verified_at for item in items],
        tokens=list(tokens),
        **_keys(items),
    )


def learn_checksums(tx: Tx, digests: Sequence[tuple[int, str]]) -> None:
    """Give (did_id, adler32) to DIDs of which no digest is known; one statement."""
    tx.run(
        """WITH held AS (SELECT d.id, n.adler32
                           FROM unnest(%(ids)s::bigint[], %(digests)s::text[]) AS n (id, adler32)
                           JOIN did d ON d.id = n.id
                          WHERE d.adler32 IS NULL AND d.md5 IS NULL AND d.sha256 IS NULL ORDER BY d.id FOR UPDATE OF d)
           UPDATE did d SET adler32 = held.adler32 FROM held WHERE d.id = held.id""",
        ids=[row[0] for row in digests],
        digests=[row[1] for row in digests],
    )


def forget_findings(tx: Tx, keys: Sequence[tuple[int, int]]) -> None:
    """Remove findings by (did, storage); one statement."""
    tx.run(
        """DELETE FROM finding f USING unnest(%(dids)s::bigint[], %(storages)s::int[]) AS k (did_id, storage_id)
            WHERE f.did_id = k.did_id AND f.storage_id = k.storage_id""",
        dids=[key[0] for key in keys],
        storages=[key[1] for key in keys],
    )


def add_findings(tx: Tx, found: Sequence[tuple[Item, str, str]], audit_id: int | None) -> None:
    """Note (replica, bad or lost, what was seen); a finding seen before counts one probe more; one statement.

    A finding of a check is that check's until it ends; other probes do not take it over.
    """
    tx.run(
        """INSERT INTO finding AS f (storage_id, did_id, audit_id, state, detail, found_at)
           SELECT storage_id, did_id, %(audit_id)s, state::replica_state, detail, %(now)s
             FROM unnest(%(storages)s::int[], %(dids)s::bigint[], %(states)s::text[], %(details)s::text[])
                  AS n (storage_id, did_id, state, detail)
            ORDER BY storage_id, did_id
           ON CONFLICT (storage_id, did_id) DO UPDATE
              SET audit_id = coalesce(excluded.audit_id, f.audit_id), state = excluded.state, detail = excluded.detail,
                  found_at = excluded.found_at, probes = least(f.probes + 1, 1000)""",
        audit_id=audit_id,
        storages=[item.storage_id for item, _, _ in found],
        dids=[item.did_id for item, _, _ in found],
        states=[state for _, state, _ in found],
        details=[detail for _, _, detail in found],
    )


def report(tx: Tx, found: Sequence[tuple[int, int, str, str]]) -> None:
    """Note (did, storage, bad or lost, what was seen), for the auditor to confirm by its own probes; two statements.

    Only about replicas that stand: one that was being deleted when its bytes were missed is no finding. A finding that
    stands already keeps its probes: those are looks of the auditor, over time.
    """
    tx.run(
        """INSERT INTO finding (did_id, storage_id, state, detail, found_at)
           SELECT DISTINCT ON (storage_id, did_id) did_id, storage_id, n.state::replica_state, n.detail, %(now)s
             FROM unnest(%(dids)s::bigint[], %(storages)s::int[], %(states)s::text[], %(details)s::text[])
                  AS n (did_id, storage_id, state, detail)
             JOIN replica r USING (did_id, storage_id)
            WHERE r.state IN ('available', 'unverified')
            ORDER BY storage_id, did_id ON CONFLICT DO NOTHING""",
        dids=[row[0] for row in found],
        storages=[row[1] for row in found],
        states=[row[2] for row in found],
        details=[row[3] for row in found],
    )
    tx.run("SELECT pg_notify('dlm_auditor', '')")


def forget_gone(tx: Tx, limit: int) -> int:
    """Remove findings whose replica is gone; their number; one statement.

    It goes with its replica. But: 1. a reaper takes the replica's row away, and sees no finding; 2. a conveyor that
    missed the file meanwhile commits one.
    """
    return tx.run(
        """DELETE FROM finding f USING (
               SELECT storage_id, did_id FROM finding o
                WHERE NOT EXISTS (SELECT FROM replica r WHERE r.did_id = o.did_id AND r.storage_id = o.storage_id)
                ORDER BY storage_id, did_id LIMIT %(limit)s FOR UPDATE SKIP LOCKED) gone
            WHERE f.storage_id = gone.storage_id AND f.did_id = gone.did_id""",
        limit=limit,
    ).rowcount


def disown_findings(tx: Tx, items: Sequence[Item]) -> None:
    """Leave findings of a check to the due verifications; one statement."""
    tx.run(
        """UPDATE finding f SET audit_id = NULL, found_at = %(now)s
             FROM unnest(%(dids)s::bigint[], %(storages)s::int[], %(fences)s::int[]) AS k (did_id, storage_id, fence)
            WHERE f.did_id = k.did_id AND f.storage_id = k.storage_id""",
        **_keys(items),
    )


def list_findings(tx: Tx, storage_id: int | None = None, limit: int = 100) -> Sequence[Row[Any]]:
    """Open findings with names, oldest first; one statement."""
    return tx.rows(
        """SELECT f.storage_id, st.name AS storage, f.did_id, sc.name AS scope, d.name, f.state, f.probes, f.detail,
                  f.found_at, f.audit_id
             FROM finding f JOIN did d ON d.id = f.did_id JOIN scope sc ON sc.id = d.scope_id
             JOIN storage st ON st.id = f.storage_id
            WHERE %(storage_id)s::int IS NULL OR f.storage_id = %(storage_id)s
            ORDER BY f.found_at, f.storage_id, f.did_id LIMIT %(limit)s""",
        storage_id=storage_id,
        limit=limit,
    )


def found_by(tx: Tx, audit_id: int, limit: int) -> Sequence[Row[Any]]:
    """The first files that a check found wrong: (scope, name, state, detail); one statement.

    What it declared is known by the examples of its events, at most ten of each; what it did not, by its findings.
    """
    return tx.rows(
        """WITH wrong AS (
               SELECT f.did_id, f.state::text AS state, f.detail FROM finding f WHERE f.audit_id = %(id)s
               UNION ALL
               SELECT x.id::bigint, CASE WHEN e.action <> 'harmed' THEN 'in doubt'
                                         WHEN e.after -> 'bad' = '0' THEN 'lost'
                                         WHEN e.after -> 'lost' = '0' THEN 'bad' ELSE 'bad or lost' END, NULL
                 FROM audit a JOIN event e ON e.object = 'storage' AND e.object_id = a.storage_id
                      AND e.action IN ('harmed', 'last_copy_in_doubt') AND e.at BETWEEN a.created_at AND a.ended_at
                CROSS JOIN LATERAL jsonb_array_elements_text(e.after -> 'examples') AS x (id) WHERE a.id = %(id)s)
           SELECT sc.name AS scope, d.name, w.state, w.detail
             FROM (SELECT DISTINCT ON (did_id) * FROM wrong ORDER BY did_id) w
             JOIN did d ON d.id = w.did_id JOIN scope sc ON sc.id = d.scope_id ORDER BY w.did_id LIMIT %(limit)s""",
        id=audit_id,
        limit=limit,
    )


def count_files(tx: Tx, storage_id: int) -> int:
    """How many files the storage holds, as its usage says; one statement."""
    sql = "SELECT used_files FROM storage_usage WHERE storage_id = %(id)s"
    return int(tx.scalar(sql, id=storage_id) or 0)


# -- demoting ---------------------------------------------------------------------------------------------------


def hold_copies(tx: Tx, file_ids: Iterable[int]) -> None:
    """Lock every replica row of the files, in key order; one statement.

    Two auditors would otherwise each find that the other's copy is good: both demote, and the last good copy goes.
    """
    tx.run(
        """SELECT 1 FROM replica WHERE did_id = ANY (%(files)s::bigint[]) ORDER BY did_id, storage_id FOR UPDATE""",
        files=arrays.integers(file_ids),
    )


def load_demotable(tx: Tx, items: Sequence[Item]) -> Sequence[Row[Any]]:
    """(did_id, storage_id, state, size_bytes, has_other) of items that nobody changed since; one statement.

    has_other: a verified copy without a finding stands on another storage that is there.
    """
    return tx.rows(
        """SELECT r.did_id, r.storage_id, r.state, r.size_bytes,
                  EXISTS (SELECT FROM replica o JOIN storage s ON s.id = o.storage_id
                           WHERE o.did_id = r.did_id AND o.storage_id <> r.storage_id AND o.state = 'available'
                             AND s.is_available AND s.deleted_at IS NULL
                             AND NOT EXISTS (SELECT FROM finding f
                                              WHERE f.did_id = o.did_id AND f.storage_id = o.storage_id)
                         ) AS has_other
             FROM unnest(%(dids)s::bigint[], %(storages)s::int[], %(fences)s::int[], %(verified)s::timestamptz[])
                  AS i (did_id, storage_id, fence, verified_at)
             JOIN replica r ON r.did_id = i.did_id AND r.storage_id = i.storage_id
            WHERE r.fence = i.fence AND r.verified_at IS NOT DISTINCT FROM i.verified_at
              AND r.state IN ('available', 'unverified', 'bad', 'lost')
            ORDER BY r.did_id, r.storage_id""",
        verified=[item.verified_at for item in items],
        **_keys(items),
    )


def demote(tx: Tx, states: Sequence[tuple[int, int, str]]) -> None:
    """Write (did, storage, bad or lost), rows locked before, and close the findings about them; two statements."""
    tx.run(
        """UPDATE replica r SET state = n.state::replica_state, next_check_at = NULL
             FROM unnest(%(dids)s::bigint[], %(storages)s::int[], %(states)s::text[]) AS n (did_id, storage_id, state)
            WHERE r.did_id = n.did_id AND r.storage_id = n.storage_id""",
        dids=[row[0] for row in states],
        storages=[row[1] for row in states],
        states=[row[2] for row in states],
    )
    forget_findings(tx, [row[:2] for row in states])


# -- availability -----------------------------------------------------------------------------------------------


def claim_looks(tx: Tx, every_s: float, besides: Iterable[int] = ()) -> list[int]:
    """Storages at whose marker nobody looked for that long, noted as looked at now; one statement."""
    rows = tx.rows(
        """WITH due AS (SELECT s.id FROM storage s
                         WHERE s.deleted_at IS NULL AND s.id <> ALL (%(besides)s::int[])
                           AND coalesce(s.looked_at <= %(now)s - make_interval(secs => %(every_s)s), true)
                           AND EXISTS (SELECT FROM protocol p WHERE p.storage_id = s.id)
                         ORDER BY s.id FOR UPDATE OF s SKIP LOCKED)
           UPDATE storage s SET looked_at = %(now)s FROM due WHERE s.id = due.id RETURNING s.id""",
        every_s=every_s,
        besides=list(besides),
    )
    return sorted(row.id for row in rows)


def _item(row: Row[Any]) -> Item:
    return Item(*list(row)[: len(fields(Item))])


def _keys(items: Sequence[Item]) -> dict[str, str]:
    return {
        "dids": arrays.integers(item.did_id for item in items),
        "storages": arrays.integers(item.storage_id for item in items),
        "fences": arrays.integers(item.fence for item in items),
    }
