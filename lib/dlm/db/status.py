"""Counts for the one look at everything. Each is bounded: COUNTED means that many or more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy.engine import Row

from dlm.db.engine import Tx

COUNTED = 1_000_000


def rules_by_state(tx: Tx) -> dict[str, int]:
    """Number of live rules in each state; one statement."""
    return {
        row.state: row.number
        for row in tx.rows("SELECT state, count(*) AS number FROM rule WHERE state <> 'gone' GROUP BY state")
    }


def queues(tx: Tx) -> Row[Any]:
    """What waits for judge, conveyor, reaper and auditor, and since when; one statement."""
    row = tx.one(
        """SELECT (SELECT count(*) FROM (SELECT FROM change LIMIT %(most)s) c) AS changes,
                  (SELECT count(*) FROM (SELECT FROM rule
                                          WHERE next_judge_at <= %(now)s LIMIT %(most)s) r) AS rules,
                  (SELECT count(*) FROM (SELECT FROM request WHERE state = 'queued' LIMIT %(most)s) q) AS queued,
                  (SELECT min(at) FROM (SELECT next_attempt_at AS at FROM request
                                         WHERE state = 'queued' AND next_attempt_at <= %(now)s
                                         LIMIT %(most)s) o) AS due_at,
                  (SELECT count(*) FROM (SELECT FROM request WHERE state = 'active' LIMIT %(most)s) a) AS active,
                  (SELECT count(*) FROM (SELECT FROM request WHERE state = 'parked' LIMIT %(most)s) p) AS parked,
                  (SELECT count(*) FROM (SELECT FROM replica
                                          WHERE tombstone_at IS NOT NULL LIMIT %(most)s) t) AS dying,
                  (SELECT count(*) FROM (SELECT FROM replica
                                          WHERE next_check_at <= %(now)s LIMIT %(most)s) k) AS checks""",
        most=COUNTED,
    )
    assert row is not None
    return row


def storages_with_news(tx: Tx) -> Sequence[Row[Any]]:
    """Storages that are unavailable, or have a switch off, by name, with the reason; one statement."""
    return tx.rows(
        """SELECT name, is_available, can_read, can_write, can_delete,
                  coalesce(unavailable_reason, switch_reason) AS reason
             FROM storage WHERE deleted_at IS NULL AND NOT (is_available AND can_read AND can_write AND can_delete)
            ORDER BY name"""
    )


def copies_held_up(tx: Tx) -> Sequence[Row[Any]]:
    """(storage, error_class, files) of copies to come that failed and wait, the most first; one statement."""
    return tx.rows(
        """SELECT s.name AS storage, q.error_class, count(*) AS files
             FROM (SELECT storage_id, error_class FROM request
                    WHERE state = 'queued' AND error_class IS NOT NULL LIMIT %(most)s) q
             JOIN storage s ON s.id = q.storage_id GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2 LIMIT 10""",
        most=COUNTED,
    )


def count_storages(tx: Tx) -> int:
    """Storages that are not deleted; one statement."""
    return int(tx.scalar("SELECT count(*) FROM storage WHERE deleted_at IS NULL"))
