"""The stored facts behind the present state of things, as `why` reads them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy.engine import Row

from dlm.db.engine import Tx


def replicas(tx: Tx, did_id: int, storage_id: int | None = None) -> Sequence[Row[Any]]:
    """A file's replicas with what stands beside them: storage, request, finding, open breaker; one statement."""
    return tx.rows(
        """SELECT r.storage_id, s.name AS storage, r.state, r.size_bytes, r.created_at, r.verified_at, r.next_check_at, r.tombstone_at,
                  r.claimed_until, r.quiet_until, r.path, s.is_available, s.can_delete, s.can_read, s.can_write, s.reap,
                  s.unavailable_reason, s.switch_reason,
                  q.id AS request_id, q.state AS request_state, q.attempts, q.next_attempt_at, q.claimed_until AS request_until,
                  q.error_class, q.error, q.is_cancelled, q.is_repair, src.name AS source,
                  f.state AS finding, f.detail AS finding_detail, f.found_at,
                  (SELECT b.reason FROM breaker b WHERE b.closed_at IS NULL AND b.act = 'delete'
                      AND (b.storage_id IS NULL OR b.storage_id = r.storage_id) LIMIT 1) AS held_by
             FROM replica r JOIN storage s ON s.id = r.storage_id
             LEFT JOIN request q ON q.did_id = r.did_id AND q.storage_id = r.storage_id
             LEFT JOIN storage src ON src.id = q.source_storage_id
             LEFT JOIN finding f ON f.did_id = r.did_id AND f.storage_id = r.storage_id
            WHERE r.did_id = %(did)s AND (%(storage)s::int IS NULL OR r.storage_id = %(storage)s)
            ORDER BY s.name""",
        did=did_id,
        storage=storage_id,
    )


def holders(tx: Tx, did_id: int) -> Sequence[Row[Any]]:
    """The locks that hold a DID: its own, or of collections that contain it, with their rules; one statement."""
    return tx.rows(
        """SELECT l.storage_id, s.name AS storage, l.created_at AS since, l.is_released, l.did_id <> %(did)s AS by_collection,
                  r.id AS rule_id, r.uuid AS rule, a.name AS account, r.created_at, r.copies, e.canonical AS storages, r.spread,
                  r.state, r.reason, r.expires_at, r.comment
             FROM lock l JOIN storage s ON s.id = l.storage_id JOIN rule r ON r.id = l.rule_id
             JOIN account a ON a.id = r.account_id JOIN expression e ON e.id = r.expression_id
            WHERE l.did_id = %(did)s OR l.did_id IN (SELECT parent_id FROM attachment WHERE child_id = %(did)s)
            ORDER BY l.created_at, r.id, l.storage_id""",
        did=did_id,
    )


def rules_above(tx: Tx, did_id: int) -> Sequence[Row[Any]]:
    """Live rules on a DID or on collections above it; one statement."""
    return tx.rows(
        """WITH RECURSIVE above (id) AS (SELECT %(did)s::bigint UNION SELECT a.parent_id FROM above JOIN attachment a ON a.child_id = above.id)
           SELECT r.id, r.uuid AS rule, a.name AS account, r.created_at, r.copies, e.canonical AS storages, r.spread, r.state, r.reason,
                  r.expires_at, r.next_judge_at
             FROM rule r JOIN account a ON a.id = r.account_id JOIN expression e ON e.id = r.expression_id
            WHERE r.did_id IN (SELECT id FROM above) AND r.state <> 'gone' ORDER BY r.id""",
        did=did_id,
    )


def rules_ended(tx: Tx, did_id: int, limit: int) -> Sequence[Row[Any]]:
    """The newest rules on a DID or on collections above it that have ended; one statement."""
    return tx.rows(
        """WITH RECURSIVE above (id) AS (SELECT %(did)s::bigint UNION SELECT a.parent_id FROM above JOIN attachment a ON a.child_id = above.id)
           SELECT r.id, r.uuid AS rule, a.name AS account, r.created_at, r.copies, e.canonical AS storages, r.spread, r.state, r.reason,
                  r.state_since
             FROM rule r JOIN account a ON a.id = r.account_id JOIN expression e ON e.id = r.expression_id
            WHERE r.did_id IN (SELECT id FROM above) AND r.state = 'gone' ORDER BY r.id DESC LIMIT %(limit)s""",
        did=did_id,
        limit=limit,
    )


def harms(tx: Tx, did_id: int, storage_ids: Sequence[int], since: datetime) -> Sequence[Row[Any]]:
    """Events of harm: those that name the file, and the newest at each storage that found files bad or lost; one statement."""
    return tx.rows(
        """SELECT e.at, e.actor, e.action, s.name AS storage, coalesce(e.after ->> 'reason', e.cause) AS detail, e.after, true AS is_named
             FROM event e LEFT JOIN storage s ON s.id = (e.after ->> 'storage_id')::int
            WHERE e.object = 'did' AND e.object_id = %(did)s AND e.action = 'declared bad'
           UNION ALL
           SELECT h.at, h.actor, h.action, s.name, h.cause, h.after, h.is_named
             FROM unnest(%(storages)s::int[]) AS i (id) JOIN storage s ON s.id = i.id
            CROSS JOIN LATERAL (
                  SELECT e.at, e.actor, e.action, e.cause, e.after, e.after -> 'examples' @> to_jsonb(%(did)s::bigint) AS is_named
                    FROM event e WHERE e.object = 'storage' AND e.object_id = i.id AND e.action = 'harmed' AND e.at >= %(since)s
                   ORDER BY is_named DESC, e.at DESC LIMIT 1) h
            ORDER BY at""",
        did=did_id,
        storages=list(storage_ids),
        since=since,
    )


def placements(tx: Tx, rule_ids: Sequence[int]) -> dict[int, Row[Any]]:
    """The newest placement that the judge recorded for each rule, by rule; one statement."""
    rows = tx.rows(
        """SELECT DISTINCT ON (object_id) object_id, at, after FROM event
            WHERE object = 'rule' AND action = 'placed' AND object_id = ANY (%(ids)s::bigint[]) ORDER BY object_id, at DESC, id DESC""",
        ids=list(rule_ids),
    )
    return {row.object_id: row for row in rows}


def attempts(tx: Tx, did_id: int, storage_id: int | None, limit: int) -> Sequence[Row[Any]]:
    """The newest attempts to copy a file, newest first; one statement."""
    return tx.rows(
        """SELECT a.ended_at, d.name AS storage, s.name AS source, a.outcome, a.number, a.error_class, a.error, a.size_bytes, a.duration_s
             FROM attempt a JOIN storage d ON d.id = a.storage_id LEFT JOIN storage s ON s.id = a.source_storage_id
            WHERE a.did_id = %(did)s AND (%(storage)s::int IS NULL OR a.storage_id = %(storage)s)
            ORDER BY a.ended_at DESC LIMIT %(limit)s""",
        did=did_id,
        storage=storage_id,
        limit=limit,
    )


def proofs(tx: Tx, did_id: int, storage_id: int | None, limit: int) -> Sequence[Row[Any]]:
    """The newest deletion proofs of a file, newest first; one statement."""
    return tx.rows(
        """SELECT p.made_at, s.name AS storage, p.cause, p.wanted,
                  ARRAY(SELECT w.name FROM storage w WHERE w.id = ANY (p.witnesses) ORDER BY w.name) AS witnesses,
                  (SELECT min(e.at) FROM event e WHERE e.object = 'storage' AND e.object_id = p.storage_id
                      AND e.action = 'reaped' AND e.at >= p.made_at) AS reaped_at
             FROM proof p JOIN storage s ON s.id = p.storage_id
            WHERE p.did_id = %(did)s AND (%(storage)s::int IS NULL OR p.storage_id = %(storage)s)
            ORDER BY p.made_at DESC LIMIT %(limit)s""",
        did=did_id,
        storage=storage_id,
        limit=limit,
    )


def rule_requests(tx: Tx, rule_id: int, limit: int) -> Sequence[Row[Any]]:
    """The requests under a rule's locks, by storage, state and class of error, with an example error; one statement."""
    return tx.rows(
        """SELECT s.name AS storage, q.state, q.error_class, min(q.error) AS error, count(*) AS files,
                  min(q.next_attempt_at) AS next_attempt_at
             FROM lock l
            CROSS JOIN LATERAL (SELECT child_id AS did_id FROM attachment WHERE parent_id = l.did_id UNION ALL SELECT l.did_id) f
             JOIN request q ON q.did_id = f.did_id AND q.storage_id = l.storage_id
             JOIN storage s ON s.id = l.storage_id
            WHERE l.rule_id = %(rule)s AND NOT l.is_released
            GROUP BY 1, 2, 3 ORDER BY files DESC, 1, 2 LIMIT %(limit)s""",
        rule=rule_id,
        limit=limit,
    )


def undo_window(tx: Tx, rule_id: int, default_s: float) -> float | None:
    """The shortest undo window, in seconds, of the storages at which a rule has locks; None without any; one statement."""
    return tx.scalar(
        """SELECT min(coalesce(s.undo_window_s, %(default_s)s))::float8
             FROM lock l JOIN storage s ON s.id = l.storage_id WHERE l.rule_id = %(rule)s""",
        rule=rule_id,
        default_s=default_s,
    )


def storage_load(tx: Tx, storage_id: int) -> Row[Any]:
    """What waits at a storage: replicas by state, requests by state with the next due and an example error, open breakers; one statement."""
    row = tx.one(
        """SELECT (SELECT jsonb_object_agg(state, n) FROM (SELECT state, count(*) AS n FROM replica WHERE storage_id = %(id)s GROUP BY 1) r) AS replicas,
                  (SELECT jsonb_object_agg(state, n) FROM (SELECT state, count(*) AS n FROM request WHERE storage_id = %(id)s GROUP BY 1) q) AS requests,
                  (SELECT min(next_attempt_at) FROM request WHERE storage_id = %(id)s AND state = 'queued') AS next_attempt_at,
                  (SELECT jsonb_agg(w ORDER BY files DESC) FROM (
                      SELECT error_class, min(error) AS error, count(*) AS files, min(next_attempt_at) AS at FROM request
                       WHERE storage_id = %(id)s AND state <> 'active' AND error_class IS NOT NULL GROUP BY 1) w) AS waits,
                  (SELECT min(tombstone_at) FROM replica WHERE storage_id = %(id)s AND tombstone_at IS NOT NULL) AS next_tombstone_at,
                  (SELECT count(*) FROM replica WHERE storage_id = %(id)s AND tombstone_at IS NOT NULL) AS tombstoned,
                  (SELECT count(*) FROM finding WHERE storage_id = %(id)s) AS findings,
                  (SELECT jsonb_agg(jsonb_build_object('act', act, 'reason', reason, 'since', opened_at, 'by', opened_by) ORDER BY id)
                     FROM breaker WHERE closed_at IS NULL AND (storage_id IS NULL OR storage_id = %(id)s)) AS breakers""",
        id=storage_id,
    )
    assert row is not None
    return row
