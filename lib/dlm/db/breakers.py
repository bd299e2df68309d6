"""Breakers (who stopped what, and why) and harm (what they count): deletions and losses per storage and window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.engine import Row

from dlm.db import changes, events
from dlm.db.engine import Tx, json
from dlm.errors import Conflict, NotFound

HOLD = "delete"  # the act that a person's hold on all storages stops


def open_(tx: Tx, act: str, storage_id: int | None, reason: str, facts: Mapping[str, Any] | None = None) -> int | None:
    """Open the breaker and return its id; None if it is open already. At most two statements, one event."""
    breaker_id = tx.scalar(
        """INSERT INTO breaker (storage_id, act, reason, facts, opened_at, opened_by)
           VALUES (%(storage_id)s, %(act)s, %(reason)s, %(facts)s, %(now)s, %(by)s)
           ON CONFLICT (coalesce(storage_id, 0), act) WHERE closed_at IS NULL DO NOTHING RETURNING id""",
        storage_id=storage_id,
        act=act,
        reason=reason,
        facts=json(dict(facts or {})),
        by=tx.actor.account,
    )
    if breaker_id is None:
        return None
    after = {"act": act, "storage_id": storage_id, **(facts or {})}
    events.record(tx, "breaker", breaker_id, "opened", cause=reason, after=after)
    return int(breaker_id)


def close(tx: Tx, breaker_id: int) -> Row[Any]:
    """Close a breaker, so that its window starts anew from this moment; up to four statements, one event.

    NotFound for an unknown id, Conflict for one that is closed.
    """
    row = tx.one(
        """UPDATE breaker SET closed_at = %(now)s, closed_by = %(by)s
            WHERE id = %(id)s AND closed_at IS NULL RETURNING id, storage_id, act, reason, opened_at, opened_by""",
        id=breaker_id,
        by=tx.actor.account,
    )
    if row is None:
        raise _refusal(tx, breaker_id)
    events.record(tx, "breaker", breaker_id, "closed", before={"act": row.act, "storage_id": row.storage_id})
    changes.wake(tx, "reaper" if row.act == "delete" else "auditor")
    return row


def close_for(tx: Tx, act: str, storage_id: int) -> None:
    """Close the storage's breaker for this act, if one is open; up to four statements."""
    breaker_id = tx.scalar(
        "SELECT id FROM breaker WHERE storage_id = %(storage_id)s AND act = %(act)s AND closed_at IS NULL",
        storage_id=storage_id,
        act=act,
    )
    if breaker_id is not None:
        close(tx, breaker_id)


def hold(tx: Tx, reason: str) -> int:
    """Stop all deletions everywhere until a person closes this breaker again; its id. Conflict if they are stopped."""
    breaker_id = open_(tx, HOLD, None, reason)
    if breaker_id is None:
        sql = "SELECT id FROM breaker WHERE storage_id IS NULL AND act = %(act)s AND closed_at IS NULL"
        held = tx.scalar(sql, act=HOLD)
        raise Conflict("all deletions are held already", breaker=held)
    return breaker_id


def list_all(tx: Tx, *, with_closed: bool = False, limit: int = 100) -> Sequence[Row[Any]]:
    """Breakers with the storage's name, open ones first, then the newest; one statement."""
    return tx.rows(
        """SELECT b.id, b.storage_id, s.name AS storage, b.act, b.reason, b.facts, b.opened_at, b.opened_by,
                  b.closed_at, b.closed_by
             FROM breaker b LEFT JOIN storage s ON s.id = b.storage_id
            WHERE b.closed_at IS NULL OR %(with_closed)s
            ORDER BY b.closed_at IS NOT NULL, b.opened_at DESC, b.id DESC LIMIT %(limit)s""",
        with_closed=with_closed,
        limit=limit,
    )


def is_open(tx: Tx, act: str, storage_id: int) -> bool:
    """True when this act is stopped on the storage, or on all; one statement."""
    return bool(
        tx.scalar(
            """SELECT EXISTS (SELECT 1 FROM breaker WHERE act = %(act)s AND closed_at IS NULL
                                 AND (storage_id IS NULL OR storage_id = %(storage_id)s))""",
            act=act,
            storage_id=storage_id,
        )
    )


def add_harm(tx: Tx, act: str, files: Mapping[int, int]) -> None:
    """Count files deleted or declared lost, by storage; at most one statement.

    A negative number takes back what was counted beforehand and then did not happen.
    """
    rows = [(storage, number) for storage, number in sorted(files.items()) if number]
    if not rows:
        return
    tx.run(
        """INSERT INTO harm (storage_id, act, files, at)
           SELECT storage_id, %(act)s, files, %(now)s
             FROM unnest(%(ids)s::int[], %(files)s::int[]) AS h (storage_id, files)""",
        act=act,
        ids=[row[0] for row in rows],
        files=[row[1] for row in rows],
    )


def in_window(tx: Tx, act: str, storage_ids: Sequence[int], window_s: float) -> dict[int, int]:
    """Files harmed on each storage since the window began, or since a person last closed its breaker; one statement."""
    rows = tx.rows(
        """SELECT i.storage_id, coalesce(sum(h.files), 0) AS files
             FROM unnest(%(ids)s::int[]) AS i (storage_id)
             LEFT JOIN harm h ON h.storage_id = i.storage_id AND h.act = %(act)s
                  AND h.at > %(now)s - make_interval(secs => %(window_s)s)
                  AND h.at > coalesce((SELECT max(b.closed_at) FROM breaker b
                                        WHERE b.storage_id = i.storage_id AND b.act = %(act)s), '-infinity')
            GROUP BY i.storage_id""",
        ids=list(storage_ids),
        act=act,
        window_s=window_s,
    )
    return {row.storage_id: max(0, int(row.files)) for row in rows}


def forget_harm(tx: Tx, older_than_s: float) -> int:
    """Remove harm rows that no window reaches any more; how many; one statement."""
    return tx.run("DELETE FROM harm WHERE at < %(now)s - make_interval(secs => %(age)s)", age=older_than_s).rowcount


def _refusal(tx: Tx, breaker_id: int) -> Conflict | NotFound:
    """Why the breaker cannot be closed."""
    if tx.scalar("SELECT 1 FROM breaker WHERE id = %(id)s", id=breaker_id) is None:
        return NotFound(f"there is no breaker {breaker_id}", field="breaker")
    return Conflict(f"breaker {breaker_id} is closed", field="breaker")
